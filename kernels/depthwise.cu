// Depthwise convolution and its input gradient: each channel is on its own, so there is little to compute and much to move.
//
//   forward      y[n, p, q, k]  =  sum over taps of   x[at (p, q) and tap, k / b]  w[tap, k]        k = b * c
//   input_grad  dx[n, h, w, c]  =  sum over taps and b of  dy[at (h, w) less tap, c * b + i]  w[tap, c * b + i]*
//
//        x, a window of a thread            y, its tile           A thread makes TILE_P x TILE_Q outputs of CHANNELS
//      . . . . . . . .                                            channels. It walks down the rows of its window: each is
//      . +---------+ .                      +-----+               loaded once, as CHANNELS neighbours at a time, and added
//      . | . . . . | .  3 x 3, stride 1     | . . |  2 x 4        to every output row that reads it. The weights stay in
//      . | . . . . | .  ----------------->  | . . |               registers where there is room (REGISTER_WEIGHTS).
//      . +---------+ .                      +-----+               threadIdx.x counts channels, .y tiles along the last axis,
//      . . . . . . . .                                            .z along the one before: a block is a patch of the image,
//                                                                 so that its halo is read from cache.
//
// Input gradient: tiles start at multiples of the stride in the padded image. Then the compiler knows which taps reach an
// input, those whose distance is a multiple of the stride, and the stride costs no products with zeros.
//
//   -DINPUT_GRAD=  0 or 1      -DCHANNELS=  a thread's       -DTILE_P= -DTILE_Q=  its tile, multiples of STRIDE
//   -DKERNEL=  K for kernels of 1 x K x K without dilation, stride STRIDE along both, b = 1; CHANNELS divides c, and the
//              arrays are aligned to as many elements
//   -DKERNEL=0 -DSTRIDE=0 -DTILE_P=1  for all others: a loop over the taps; CHANNELS=1 where b > 1
//
// Layouts, channels last, C-contiguous: x (n, x[0], x[1], x[2], c), w (taps, k), y (n, y[0], y[1], y[2], k), bias (k), or
// (c) for the gradient, or null. The result is written once, by one thread.
//
// Launch: block (lanes, tiles along q, tiles along p) of up to 256 threads, grid (jobs) with jobs = channel blocks *
// blocks along q * blocks along p * n * outer, as `plan` counts them; outer is axis 0 of the result. No dynamic shared
// memory. More blocks than jobs do no harm. With weights per sample the grid has a row per sample (conv.cuh).
//
// Cost: 2 taps n y k FLOP, sizeof(T) (x + w + y) bytes. Floor on an H200: the bytes over 4.3 TB/s: 32 bytes for four
// float32 outputs take a multiprocessor 1.7 clocks. Expected, not measured: 85% of it for 3 x 3 at stride 1 (3 window and 1.1
// weight loads per output, 0.5 clocks of cache; 36 of some 100 instructions multiply: 0.8 clocks), 65% for 5 x 5 (0.8
// clocks of cache; 100 of some 220: 1.7 clocks), 40% for 7 x 7, where 196 of some 480 instructions multiply: 3.8 clocks.
//
// budget: depthwise_forward 168 registers
// budget: depthwise_input_grad 168 registers
// tight: float32 INPUT_GRAD=1 KERNEL=5 STRIDE=1
// tight: float16 bfloat16 INPUT_GRAD=0 KERNEL=7 STRIDE=1
// tight: float64 complex64 complex128 KERNEL=0 INDEX64=1
#include "conv.cuh"

// Tiles along p and q start at tile number `first`. The first three divisors are the blocks along c, q and p, and by_outers
// those along axis 0 of the result; by_repeat divides an output channel by b.
struct DepthwisePlan {
  int first_p, first_q, activation, bias_length;
  FastDiv by_blocks_c, by_blocks_q, by_blocks_p, by_outers, by_repeat;
};

constexpr bool BACK = INPUT_GRAD;
constexpr bool REGISTER_WEIGHTS = KERNEL * KERNEL * CHANNELS * (int)sizeof(A) <= 52 * 4;

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
__device__ __forceinline__ Values weights_at(const T* __restrict__ from) {
  Values values = load(from);
#pragma unroll
  for (int i = 0; i < CHANNELS && BACK; i++) values.at[i] = conj(values.at[i]);
  return values;
}
__device__ __forceinline__ void add_product(Values& sum, const Values& a, const Values& b) {
#pragma unroll
  for (int i = 0; i < CHANNELS; i++) sum.at[i] = mul_add(a.at[i], b.at[i], sum.at[i]);
}

// The job of a thread: the sample, the position along axis 0, the first position of its tile along the others, the channel.
struct Job {
  int sample, outer, p, q, channel;
};
__device__ __forceinline__ bool job_of(const DepthwisePlan& plan, int samples, int channels, Job& job) {
  int c, q, p;
  int rest = divide((int)blockIdx.x, plan.by_blocks_c, c);
  rest = divide(rest, plan.by_blocks_q, q);
  rest = divide(rest, plan.by_blocks_p, p);
  job.sample = divide(rest, plan.by_outers, job.outer);
  job.channel = (c * (int)blockDim.x + (int)threadIdx.x) * CHANNELS;
  job.q = (q * (int)blockDim.y + (int)threadIdx.y + plan.first_q) * TILE_Q;
  job.p = (p * (int)blockDim.z + (int)threadIdx.z + plan.first_p) * TILE_P;
  return job.sample < samples && job.channel < channels;
}

// Turns the sums of N outputs into results, which are then to be rounded.
template <int N>
__device__ __forceinline__ void conclude(Values* sums, const T* __restrict__ bias, int channel, int activation) {
  if (bias) {
    const Values shift = load(bias + channel);
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < CHANNELS; i++) sums[n].at[i] = add(sums[n].at[i], shift.at[i]);
  }
  activate<N * CHANNELS>(sums[0].at, activation);
}
__device__ __forceinline__ void write(T* out, const Values& sums) {
  Pack<T, CHANNELS> result;
#pragma unroll
  for (int i = 0; i < CHANNELS; i++) result.at[i] = from_acc(sums.at[i]);
  *reinterpret_cast<Pack<T, CHANNELS>*>(out) = result;
}

// Blocks for which there shall be registers, 128 per thread for two. More need any kernel with offsets of 64 bits, and by the
// assemblers of some architectures a gradient of 5 x 5 with two channels per thread, or 7 x 7 of 16-bit floats.
constexpr bool CROWDED = (KERNEL == 0 && sizeof(index_t) == 8) || (KERNEL == 5 && BACK && CHANNELS == 2 && __CUDA_ARCH__ < 750) ||
                         (KERNEL == 7 && IS_16_BIT && __CUDA_ARCH__ >= 1200);
constexpr int RESIDENT = CROWDED ? 1 : 2;

#if KERNEL
// Along one axis, output i of a tile reads position `start + a` of the window through tap a - i * STRIDE; backwards, input
// i is read by output a, through tap i - (a - HALO) * STRIDE.
constexpr int HALO = (KERNEL - 1) / STRIDE;
__host__ __device__ constexpr int window(int tile) {
  return BACK ? HALO + (tile - 1) / STRIDE + 1 : (tile - 1) * STRIDE + KERNEL;
}
__host__ __device__ constexpr int tap_of(int a, int i) { return BACK ? i - (a - HALO) * STRIDE : a - i * STRIDE; }

__device__ __forceinline__ void convolve(const T* __restrict__ in, const T* __restrict__ w, const T* __restrict__ bias,
                                         T* __restrict__ out, const Conv& g, const DepthwisePlan& plan) {
  constexpr int WINDOW_P = window(TILE_P), WINDOW_Q = window(TILE_Q);
  const int(&in_size)[3] = BACK ? g.y : g.x;
  const int(&out_size)[3] = BACK ? g.x : g.y;
  Job job;
  if (!job_of(plan, g.n, g.c, job)) return;
  const int pad_p = BACK ? g.pad[1] : 0, pad_q = BACK ? g.pad[2] : 0;  // tiles of a gradient count from the padding on
  if (job.p - pad_p >= out_size[1] || job.q - pad_q >= out_size[2]) return;
  const int mode = BACK ? 0 : g.pad_mode;

  int outer;
  if (BACK) {
    int rest;
    outer = divide(job.outer + g.pad[0], g.by_stride[0], rest);
    if (rest || outer >= in_size[0]) outer = -1;
  } else {
    outer = source(g, 0, job.outer, 0);
  }

  int rows[WINDOW_P], columns[WINDOW_Q];
#pragma unroll
  for (int a = 0; a < WINDOW_P; a++) rows[a] = (BACK ? job.p / STRIDE - HALO : job.p * STRIDE - g.pad[1]) + a;
#pragma unroll
  for (int b = 0; b < WINDOW_Q; b++) columns[b] = (BACK ? job.q / STRIDE - HALO : job.q * STRIDE - g.pad[2]) + b;
  sources<WINDOW_P>(rows, in_size[1], mode);
  sources<WINDOW_Q>(columns, in_size[2], mode);
#pragma unroll
  for (int b = 0; b < WINDOW_Q; b++)
    if (columns[b] >= 0) columns[b] *= g.c;

  Values kept[REGISTER_WEIGHTS ? KERNEL * KERNEL : 1];
  if (REGISTER_WEIGHTS)
#pragma unroll
    for (int tap = 0; tap < KERNEL * KERNEL; tap++) kept[tap] = weights_at(w + (tap * g.c + job.channel));

  Values sums[TILE_P][TILE_Q];
#pragma unroll
  for (int i = 0; i < TILE_P; i++)
#pragma unroll
    for (int j = 0; j < TILE_Q; j++)
#pragma unroll
      for (int k = 0; k < CHANNELS; k++) sums[i][j].at[k] = zero<A>();

  const index_t image = ((index_t)job.sample * in_size[0] + outer) * in_size[1] * in_size[2] * g.c + job.channel;
#pragma unroll
  for (int a = 0; a < WINDOW_P; a++) {
    const int row = rows[a];
    if (row < 0 || outer < 0) continue;
    const index_t line = image + (index_t)row * in_size[2] * g.c;
    Values seen[WINDOW_Q];
#pragma unroll
    for (int b = 0; b < WINDOW_Q; b++) {
      if (columns[b] >= 0) {
        seen[b] = load(in + (line + columns[b]));
      } else {
#pragma unroll
        for (int k = 0; k < CHANNELS; k++) seen[b].at[k] = zero<A>();
      }
    }
#pragma unroll
    for (int i = 0; i < TILE_P; i++) {
      const int r = tap_of(a, i);
      if (r < 0 || r >= KERNEL) continue;
#pragma unroll
      for (int s = 0; s < KERNEL; s++) {
        const int tap = r * KERNEL + s;
        const Values weight = REGISTER_WEIGHTS ? kept[REGISTER_WEIGHTS ? tap : 0] : weights_at(w + (tap * g.c + job.channel));
#pragma unroll
        for (int j = 0; j < TILE_Q; j++)
#pragma unroll
          for (int b = 0; b < WINDOW_Q; b++)
            if (tap_of(b, j) == s) add_product(sums[i][j], seen[b], weight);
      }
    }
  }

  conclude<TILE_P * TILE_Q>(sums[0], bias, job.channel, plan.activation);
#pragma unroll
  for (int i = 0; i < TILE_P; i++) {
    const int p = job.p + i - pad_p;
    if (p < 0 || p >= out_size[1]) continue;
    T* const line =
        out + ((((index_t)job.sample * out_size[0] + job.outer) * out_size[1] + p) * out_size[2] * g.c + job.channel);
#pragma unroll
    for (int j = 0; j < TILE_Q; j++) {
      const int q = job.q + j - pad_q;
      if (q >= 0 && q < out_size[2]) write(line + (index_t)q * g.c, sums[i][j]);
    }
  }
}

#else
// The position that position `at` of the result reads through tap r along `axis`; -1 for none.
__device__ __forceinline__ int seen_from(const Conv& g, int axis, int at, int r) {
  if (!BACK) return source(g, axis, at, r);
  const int distance = at + g.pad[axis] - r * g.dilation[axis];
  if (distance < 0) return -1;
  int rest;
  const int p = divide(distance, g.by_stride[axis], rest);
  return rest || p >= g.y[axis] ? -1 : p;
}

__device__ __forceinline__ void convolve(const T* __restrict__ in, const T* __restrict__ w, const T* __restrict__ bias,
                                         T* __restrict__ out, const Conv& g, const DepthwisePlan& plan) {
  const int(&in_size)[3] = BACK ? g.y : g.x;
  const int(&out_size)[3] = BACK ? g.x : g.y;
  const int in_channels = BACK ? g.k : g.c, out_channels = BACK ? g.c : g.k;
  const int repeat = plan.by_repeat.by;
  Job job;
  if (!job_of(plan, g.n, out_channels, job)) return;
  if (job.p >= out_size[1] || job.q >= out_size[2]) return;
  const int first = BACK ? job.channel * repeat : divide(job.channel, plan.by_repeat);  // of the channels that are read
  const int count = BACK ? repeat : 1;

  Values sums[TILE_Q];
#pragma unroll
  for (int j = 0; j < TILE_Q; j++)
#pragma unroll
    for (int k = 0; k < CHANNELS; k++) sums[j].at[k] = zero<A>();

  for (int t = 0; t < g.kernel[0]; t++) {
    const int outer = seen_from(g, 0, job.outer, t);
    if (outer < 0) continue;
    for (int r = 0; r < g.kernel[1]; r++) {
      const int row = seen_from(g, 1, job.p, r);
      if (row < 0) continue;
      const index_t line = (((index_t)job.sample * in_size[0] + outer) * in_size[1] + row) * in_size[2];
      for (int s = 0; s < g.kernel[2]; s++) {
        const index_t tap = ((index_t)t * g.kernel[1] + r) * g.kernel[2] + s;
        int columns[TILE_Q];
#pragma unroll
        for (int j = 0; j < TILE_Q; j++)
          columns[j] = job.q + j >= out_size[2] ? -1
                       : BACK                   ? seen_from(g, 2, job.q + j, s)
                                                : (job.q + j) * g.stride[2] + s * g.dilation[2] - g.pad[2];
        if (!BACK) sources<TILE_Q>(columns, in_size[2], g.pad_mode);
        for (int b = 0; b < count; b++) {
          const Values weight = weights_at(w + (tap * g.k + (BACK ? first + b : job.channel)));
#pragma unroll
          for (int j = 0; j < TILE_Q; j++)
            if (columns[j] >= 0 && job.q + j < out_size[2])
              add_product(sums[j], load(in + ((line + columns[j]) * in_channels + (first + b))), weight);
        }
      }
    }
  }

  conclude<TILE_Q>(sums, bias, job.channel, plan.activation);
  const index_t line = (((index_t)job.sample * out_size[0] + job.outer) * out_size[1] + job.p) * out_size[2];
#pragma unroll
  for (int j = 0; j < TILE_Q; j++)
    if (job.q + j < out_size[2]) write(out + ((line + (job.q + j)) * out_channels + job.channel), sums[j]);
}
#endif

#if INPUT_GRAD
extern "C" __global__ void __launch_bounds__(256, RESIDENT)
depthwise_input_grad(const T* __restrict__ dy, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ dx,
                     const Conv g, const DepthwisePlan plan) {
  convolve(of_sample(dy, image_length(g.y, g.k)), of_sample(w, weights_length(g)), of_sample(bias, plan.bias_length),
           of_sample(dx, image_length(g.x, g.c)), g, plan);
}
#else
extern "C" __global__ void __launch_bounds__(256, RESIDENT)
depthwise_forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
                  const Conv g, const DepthwisePlan plan) {
  convolve(of_sample(x, image_length(g.x, g.c)), of_sample(w, weights_length(g)), of_sample(bias, plan.bias_length),
           of_sample(y, image_length(g.y, g.k)), g, plan);
}
#endif
