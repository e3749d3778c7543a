// Forward convolution of few input channels, as in the first layer of a network: 7 x 7 of stride 2 over RGB.
//
//   y[n, p, q, k]  =  sum over (r, j) of   x[n, p * stride + r, (q * stride) * c + j]  w[r, j, k]        j = (s, c)
//
//      strip of x in shared memory                tile of y             The tap s and the channel c of a row of x are one
//     +---------------------------+   ROWS    +------------------+      index j, contiguous in x and in w. A block makes
//     | . . . . . . . . . . . . . |           | 8 x 16 pixels    |      8 x 16 pixels by 64 channels, a thread one column of
//     | . . . . . . . . . . . . . | --------> | by 64 channels   |      8 pixels by 8 channels. For each j it loads a
//     | . . . . . . . . . . . . . |           +------------------+      column of the strip, ROWS numbers, once for all its
//     +---------------------------+                                     pixels and all KERNEL_H taps: pixels below each
//                                                                       other share most of them. So the strip is kept
//                                                                       column by column, and 4 rows are one access.
//
//   -DKERNEL_H= -DSTRIDE_H=  of the rows; those of the columns are of any size
//
// Layouts, channels last, C-contiguous: x (n, x[0], x[1], x[2], c), w (1, KERNEL_H, kernel[2], c, k), y (n, y[0], y[1],
// y[2], k), bias (k) or null; w and y aligned to 4 elements, k a multiple of 4. No groups, no dilation of the last two
// axes, kernel[0] = 1. Any pad mode.
//
// Launch: block (128), grid (blocks_k * blocks_q * blocks_p * n * y[0]), shared bytes PITCH * plan.length * sizeof(A).
// More blocks than that do no harm. With weights per sample the grid has a row per sample (conv.cuh). ROWS = 7 * STRIDE_H +
// KERNEL_H; length = (15 * stride + kernel[2]) * c.
//
// Cost: 2 n y KERNEL_H kernel[2] c k FLOP; bytes are mostly those of y. Floor on an H200: FLOP / 67 T/s (float32), 450 us
// for 128 images of 224 x 224 and 64 channels; writing y takes 100. Expected, not measured: 65%. For each j 64 KERNEL_H of
// 64 KERNEL_H + 2 KERNEL_H + ROWS / 4 + 7 instructions multiply (95% for 7 x 7), and the loads of shared memory take about
// half the time of these. Partial tiles of 8 x 16 pixels are computed whole.
//
// budget: direct_stem 168 registers
// budget: direct_stem 480 instructions per 448 FFMA where float32 KERNEL_H=7
#include "conv.cuh"

constexpr int PIXELS_P = 8, PIXELS_Q = 16, CHANNELS = 64, THREADS = 128;
constexpr int ROWS = (PIXELS_P - 1) * STRIDE_H + KERNEL_H;
constexpr int PITCH = ((ROWS + 3) / 4 | 1) * 4;  // of a column: an odd multiple of 16 bytes, for stores along a row
constexpr int STAGE = KERNEL_H > 7 ? 4 : 8;  // values of j whose weights are in shared memory at a time
constexpr int RESIDENT = ROWS > 24 ? 3 : 4;  // blocks for which a multiprocessor shall have registers

struct StemPlan {
  int blocks_k, blocks_q, blocks_p, length, activation, bias_length;
  FastDiv by_length, by_c;
};

// The elements of arrays before those of this row of blocks, in shared memory: registers are for sums.
struct Before {
  i64 w, y, bias;
};

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
direct_stem(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
            const Conv g, const StemPlan plan) {
  extern __shared__ __align__(16) A strip[];
  __shared__ alignas(16) A weights[KERNEL_H][STAGE][CHANNELS];
  __shared__ Before before;
  typedef Pack<A, 4> Chunk;
  const int thread = (int)threadIdx.x;

  u32 job = blockIdx.x;
  const int k0 = (int)(job % (u32)plan.blocks_k) * CHANNELS;
  job /= (u32)plan.blocks_k;
  const int q0 = (int)(job % (u32)plan.blocks_q) * PIXELS_Q;
  job /= (u32)plan.blocks_q;
  const int p0 = (int)(job % (u32)plan.blocks_p) * PIXELS_P;
  job /= (u32)plan.blocks_p;
  const int o = (int)(job % (u32)g.y[0]);
  if (job / (u32)g.y[0] >= (u32)g.n) return;
  const int sample = (int)(job / (u32)g.y[0]);

  if (thread == 0)
    before = Before{blockIdx.y * weights_length(g), blockIdx.y * image_length(g.y, g.k), (i64)blockIdx.y * plan.bias_length};
  const int outer = source(g, 0, o, 0);
  const int top = p0 * STRIDE_H - g.pad[1], left = q0 * g.stride[2] - g.pad[2];
  for (int i = thread; i < ROWS * plan.length; i += THREADS) {
    int number, channel;
    const int a = divide(i, plan.by_length, number), column = divide(number, plan.by_c, channel);
    // Rows and columns of outputs past the end may read any position of x: they are not written.
    const int row = source(top + a, g.x[1], g.pad_mode), at = source(left + column, g.x[2], g.pad_mode);
    A value = zero<A>();
    if (outer >= 0 && row >= 0 && at >= 0)
      value = to_acc(of_sample(x, image_length(g.x, g.c))[((((index_t)sample * g.x[0] + outer) * g.x[1] + row) * g.x[2] + at) * g.c + channel]);
    strip[number * PITCH + a] = value;
  }

  const int lane_k = thread % 8 * 4, q = thread / 8;  // a warp: 4 columns of pixels, 8 chunks of channels
  A sums[PIXELS_P][8];
#pragma unroll
  for (int i = 0; i < PIXELS_P; i++)
#pragma unroll
    for (int m = 0; m < 8; m++) sums[i][m] = zero<A>();

  const int width = g.kernel[2] * g.c;
  for (int first = 0; first < width; first += STAGE) {
    const int count = width - first < STAGE ? width - first : STAGE;
    __syncthreads();
    for (int i = thread; i < KERNEL_H * STAGE * (CHANNELS / 4); i += THREADS) {
      const int m = i % (CHANNELS / 4) * 4, j = i / (CHANNELS / 4) % STAGE, r = i / (CHANNELS / 4) / STAGE;
      Chunk chunk = {{zero<A>(), zero<A>(), zero<A>(), zero<A>()}};
      const T* const from = w + before.w + ((index_t)(r * width + first + j) * g.k + (k0 + m));
      if (j < count && k0 + m < g.k) {
        const Pack<T, 4> raw = *reinterpret_cast<const Pack<T, 4>*>(from);
#pragma unroll
        for (int l = 0; l < 4; l++) chunk.at[l] = to_acc(raw.at[l]);
      }
      *reinterpret_cast<Chunk*>(&weights[r][j][m]) = chunk;
    }
    __syncthreads();
    const A* column = strip + (q * g.stride[2] * g.c + first) * PITCH;
    for (int j = 0; j < count; j++, column += PITCH) {
      A seen[ROWS];
#pragma unroll
      for (int a = 0; a < ROWS; a++)
        seen[a] = a < ROWS / 4 * 4 ? reinterpret_cast<const Chunk*>(column)[a / 4].at[a % 4] : column[a];
#pragma unroll
      for (int r = 0; r < KERNEL_H; r++) {
        const Chunk low = *reinterpret_cast<const Chunk*>(&weights[r][j][lane_k]);
        const Chunk high = *reinterpret_cast<const Chunk*>(&weights[r][j][lane_k + CHANNELS / 2]);
#pragma unroll
        for (int i = 0; i < PIXELS_P; i++)
#pragma unroll
          for (int m = 0; m < 4; m++) {
            sums[i][m] = mul_add(seen[i * STRIDE_H + r], low.at[m], sums[i][m]);
            sums[i][4 + m] = mul_add(seen[i * STRIDE_H + r], high.at[m], sums[i][4 + m]);
          }
      }
    }
  }

  if (q0 + q >= g.y[2]) return;
  if (bias) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int k = k0 + lane_k + half * (CHANNELS / 2);
      if (k >= g.k) continue;
#pragma unroll
      for (int m = 0; m < 4; m++) {
        const A shift = to_acc(bias[before.bias + k + m]);
#pragma unroll
        for (int i = 0; i < PIXELS_P; i++) sums[i][half * 4 + m] = add(sums[i][half * 4 + m], shift);
      }
    }
  }
  activate<PIXELS_P * 8>(sums[0], plan.activation);
#pragma unroll
  for (int i = 0; i < PIXELS_P; i++) {
    if (p0 + i >= g.y[1]) continue;
    const index_t pixel = (((index_t)sample * g.y[0] + o) * g.y[1] + (p0 + i)) * g.y[2] + (q0 + q);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int k = k0 + lane_k + half * (CHANNELS / 2);
      T* const to = y + before.y + (pixel * g.k + k);
      if (k >= g.k) continue;
      Pack<T, 4> result;
#pragma unroll
      for (int m = 0; m < 4; m++) result.at[m] = from_acc(sums[i][half * 4 + m]);
      *reinterpret_cast<Pack<T, 4>*>(to) = result;
    }
  }
}
