// The weight gradient of a depthwise convolution: every weight is one long sum over the pixels of its channel.
//
//   dw[tap, k]  =  sum over (n, o, p, q) of   x[at (p, q) and tap, k / b]*  dy[n, o, p, q, k]      k = b * c, * conjugate
//
//     channels ->                       A thread takes CHANNELS neighbouring channels (threadIdx.x) and every n-th strip
//   p +--------------+                  of TILE_Q outputs (threadIdx.y): it keeps one sum per tap in registers, and loads
//   i |th 0  th 1 .. | lane 0           dy once and each row of the window once for all of them. Then the lanes of a block
//   x +--------------+                  are added pairwise in shared memory, and the blocks' sums (`splits` of them, in
//   e |              | lane 1           `partials`) in order by split_k_reduce.cu: the order of additions is always the same.
//   l +--------------+
//   s |     ...      |
//
//   -DCHANNELS=  a thread's       -DTILE_Q=  outputs of a strip
//   -DKERNEL=  K for kernels of 1 x K x K without dilation, stride STRIDE along both, b = 1
//   -DKERNEL=0 -DSTRIDE=0 for all others: a block makes the sums of one tap; CHANNELS=1 where b > 1
//
// Layouts, channels last, C-contiguous: x (n, x[0], x[1], x[2], c), dy (n, y[0], y[1], y[2], k), dw (taps, k), partials
// (splits, taps, k) of A, or null for 1 split.
//
// Launch: block (threads along the channels, lanes), grid (blocks_c * splits * taps), taps counting only with KERNEL=0;
// shared bytes: threads * CHANNELS * sizeof(A). More blocks do no harm. With a gradient per sample the grid has a row per
// sample (conv.cuh).
//
// Cost: 2 taps n y k FLOP, sizeof(T) (x + y) bytes. Floor on an H200: the bytes over 4.3 TB/s. Expected, not measured: 80%
// of it for 3 x 3 and 60% for 5 x 5 (an output loads 1 of dy and 4.5, or 10 of x through the cache, which takes 0.7, or
// 1.4 clocks of a multiprocessor, where memory takes 1.7 for four float32 channels); 40% for 7 x 7.
//
// budget: depthwise_weight_grad 128 registers
// budget: depthwise_weight_grad 640 instructions per 144 FFMA where float32 KERNEL=3 STRIDE=1
#include "conv.cuh"

struct DepthwiseWeightPlan {
  int blocks_c, splits;
  FastDiv by_strips, by_repeat;  // strips in a row of outputs
};

struct Values {
  A at[CHANNELS];
};
__device__ __forceinline__ Values load(const T* __restrict__ from) {
  const Pack<T, CHANNELS> raw = *reinterpret_cast<const Pack<T, CHANNELS>*>(from);
  Values values;
#pragma unroll
  for (int i = 0; i < CHANNELS; i++) values.at[i] = to_acc(raw.at[i]);
  return values;
}
__device__ __forceinline__ Values zeros() {
  Values values;
#pragma unroll
  for (int i = 0; i < CHANNELS; i++) values.at[i] = zero<A>();
  return values;
}
__device__ __forceinline__ void add_product(Values& sum, const Values& x, const Values& dy) {
#pragma unroll
  for (int i = 0; i < CHANNELS; i++) sum.at[i] = mul_add(conj(x.at[i]), dy.at[i], sum.at[i]);
}

constexpr int TAPS = KERNEL ? KERNEL * KERNEL : 1;  // whose sums a thread keeps

extern "C" __global__ void __launch_bounds__(256, 2)
depthwise_weight_grad(const T* __restrict__ x, const T* __restrict__ dy, T* __restrict__ dw, A* __restrict__ partials,
                      const Conv g, const DepthwiseWeightPlan plan) {
  __shared__ const T* arrays[2];  // of the block's sample: in registers they would be in the way of the sums
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    arrays[0] = of_sample(x, image_length(g.x, g.c));
    arrays[1] = of_sample(dy, image_length(g.y, g.k));
  }
  __syncthreads();
  extern __shared__ Values lanes[];
  u32 job = blockIdx.x;
  const int channel = ((int)(job % (u32)plan.blocks_c) * (int)blockDim.x + (int)threadIdx.x) * CHANNELS;
  job /= (u32)plan.blocks_c;
  const int split = (int)(job % (u32)plan.splits);
  job /= (u32)plan.splits;
  const int all_taps = g.kernel[0] * g.kernel[1] * g.kernel[2];
  if (job >= (KERNEL ? 1u : (u32)all_taps)) return;
  const int only_tap = (int)job;
  const bool has_channel = channel < g.k;
  const int from = KERNEL ? channel : divide(has_channel ? channel : 0, plan.by_repeat);

  Values sums[TAPS];
#pragma unroll
  for (int tap = 0; tap < TAPS; tap++) sums[tap] = zeros();

  const index_t strips = (index_t)g.n * g.y[0] * g.y[1] * plan.by_strips.by;
  const index_t step = (index_t)plan.splits * (int)blockDim.y;
  for (index_t strip = (index_t)split * (int)blockDim.y + (int)threadIdx.y; has_channel && strip < strips; strip += step) {
    int q, p, o;
    const index_t line = divide(strip, plan.by_strips, q);  // a row of outputs
    const index_t image = divide(line, g.by_y[1], p);
    const int sample = (int)divide(image, g.by_y[0], o);
    q *= TILE_Q;

    Values gradient[TILE_Q];
#pragma unroll
    for (int j = 0; j < TILE_Q; j++)
      gradient[j] = q + j < g.y[2] ? load(in_global(arrays[1]) + ((line * g.y[2] + (q + j)) * g.k + channel)) : zeros();

#if KERNEL
    constexpr int WINDOW = (TILE_Q - 1) * STRIDE + KERNEL;
    const int outer = source(g, 0, o, 0);
    if (outer < 0) continue;
    int rows[KERNEL], columns[WINDOW];
#pragma unroll
    for (int r = 0; r < KERNEL; r++) rows[r] = p * STRIDE - g.pad[1] + r;
#pragma unroll
    for (int b = 0; b < WINDOW; b++) columns[b] = q * STRIDE - g.pad[2] + b;
    sources<KERNEL>(rows, g.x[1], g.pad_mode);
    sources<WINDOW>(columns, g.x[2], g.pad_mode);
#pragma unroll
    for (int b = 0; b < WINDOW; b++)
      if (columns[b] >= 0) columns[b] *= g.c;  // an offset in a row of x
    const index_t plane = ((index_t)sample * g.x[0] + outer) * g.x[1] * g.x[2] * g.c + from;
#pragma unroll
    for (int r = 0; r < KERNEL; r++) {
      if (rows[r] < 0) continue;
      const index_t start = plane + (index_t)rows[r] * g.x[2] * g.c;
      Values seen[WINDOW];
#pragma unroll
      for (int b = 0; b < WINDOW; b++) seen[b] = columns[b] < 0 ? zeros() : load(in_global(arrays[0]) + (start + columns[b]));
#pragma unroll
      for (int s = 0; s < KERNEL; s++)
#pragma unroll
        for (int j = 0; j < TILE_Q; j++)  // past the end of the row dy is 0, but x may be infinite
          if (q + j < g.y[2]) add_product(sums[r * KERNEL + s], seen[j * STRIDE + s], gradient[j]);
    }
#else
    const int s = only_tap % g.kernel[2], r = only_tap / g.kernel[2] % g.kernel[1];
    const int t = only_tap / g.kernel[2] / g.kernel[1];
    const int outer = source(g, 0, o, t), row = source(g, 1, p, r);
    if (outer < 0 || row < 0) continue;
    const index_t start = (((index_t)sample * g.x[0] + outer) * g.x[1] + row) * g.x[2];
    int columns[TILE_Q];
#pragma unroll
    for (int j = 0; j < TILE_Q; j++)
      columns[j] = q + j < g.y[2] ? (q + j) * g.stride[2] + s * g.dilation[2] - g.pad[2] : -1;
    sources<TILE_Q>(columns, g.x[2], g.pad_mode);
#pragma unroll
    for (int j = 0; j < TILE_Q; j++)
      if (columns[j] >= 0 && q + j < g.y[2])
        add_product(sums[0], load(in_global(arrays[0]) + ((start + columns[j]) * g.c + from)), gradient[j]);
#endif
  }

  // The lanes of a block, pairwise, one tap after the other.
  const int lane = (int)threadIdx.y, width = (int)blockDim.x, count = (int)blockDim.y;
  const int place = lane * width + (int)threadIdx.x;
#pragma unroll
  for (int number = 0; number < TAPS; number++) {
    lanes[place] = sums[number];
    for (int distance = 1; distance < count; distance *= 2) {
      __syncthreads();
      if ((lane & (2 * distance - 1)) == 0 && lane + distance < count)
#pragma unroll
        for (int i = 0; i < CHANNELS; i++)
          lanes[place].at[i] = add(lanes[place].at[i], lanes[place + distance * width].at[i]);
    }
    if (lane == 0 && has_channel) {
      const Values total = lanes[place];
      const index_t to = (index_t)(only_tap + number) * g.k + channel;
#pragma unroll
      for (int i = 0; i < CHANNELS; i++) {
        if (plan.splits > 1)
          of_sample(partials, plan.splits * weights_length(g))[(index_t)split * all_taps * g.k + to + i] = total.at[i];
        else
          of_sample(dw, weights_length(g))[to + i] = from_acc(total.at[i]);
      }
    }
    __syncthreads();
  }
}
