// Convolution and its input gradient on tensor cores: a matrix product whose first factor is gathered while it multiplies.
//
//   forward      y[m, k]  =  sum over (t, c) of   x[m at t, c]  w[t, c, k]       m = (n, o, p, q)   a row per output pixel
//   input_grad  dx[m, c]  =  sum over (t, k) of  dy[m at t, k]  w[t, c, k]       m = (n, d, h, w)   a row per input pixel
//
//                       (t, c) runs on              k across
//     x                 +----+----+----+            +-------+
//   +-----------+  m    | t0 | t1 | t2 |            |   w   |     A row of the first factor is a window of x. Step by step
//   |  . . .    | ----> |    |    |    |            |       |     TILE_K of its numbers come into shared memory: the input
//   |  . . .    |       +----+----+----+            +-------+     of a tap is at one offset from the window's start, the
//   +-----------+                                                 same for all rows. Positions outside of x are zero.
//
// Input gradient: parts of stride 1, each with the taps that meet it (axes.cuh), all in one launch; w is read in place,
// along k. Groups, dilation, stride, any channels; zeros are the only padding.
//
// Layouts, channels last, C-contiguous: x (n, x[0], x[1], x[2], c), w (taps, c / groups, k), y (n, y[0], y[1], y[2], k),
// bias (k), or (c) for the gradient, or null; partials (plan.splits, elements of the result) of float, or null for 1 split.
//
// Launch: block (THREADS), grid (jobs) with jobs = tiles_n * parts * tiles_m * groups * splits; dynamic shared memory
// SHARED_BYTES of this file, which gpuconv/algorithms/cuda/implicit_gemm.py computes in the same way. More blocks than jobs
// do no harm. With weights per sample the grid has a row per sample (conv.cuh). A unit is one kernel: INPUT_GRAD=0 or 1.
// COPY=16 takes arrays aligned to 16 bytes whose channels per group, in and out, are multiples of 16 bytes; COPY=8 and
// COPY=4 of so many; COPY=2 takes all. With more than one split, split_k_reduce.cu follows.
//
// Cost: 2 n y taps c k / groups FLOP (three times that as three TF32 products), sizeof(T) (x + w + y) bytes. mma.sync
// reaches at most 63-65% of the tensor cores of an H200 (published): about 510 T/s in 16 bits, 83 T/s as three products.
//
// needs: sm_80
// budget: implicit_gemm_forward 248 registers
// budget: implicit_gemm_forward 310 instructions per 64 HMMA where float16 bfloat16 TILE_N=128
// budget: implicit_gemm_forward 240 instructions per 32 HMMA where float16 bfloat16 TILE_M=128 TILE_N=64
// budget: implicit_gemm_forward 185 instructions per 16 HMMA where float16 bfloat16 TILE_M=64 COPY=16
// budget: implicit_gemm_forward 125 instructions per 4 HMMA where float16 bfloat16 TILE_M=32
// budget: implicit_gemm_forward 330 instructions per 32 HMMA where float32 PRODUCTS=1 TILE_M=128
// budget: implicit_gemm_forward 230 instructions per 16 HMMA where float32 PRODUCTS=1 TILE_M=64 COPY=16
// budget: implicit_gemm_forward 155 instructions per 4 HMMA where float32 PRODUCTS=1 TILE_M=32
// budget: implicit_gemm_forward 790 instructions per 96 HMMA where float32 PRODUCTS=3 TILE_M=128
// budget: implicit_gemm_forward 490 instructions per 48 HMMA where float32 PRODUCTS=3 TILE_M=64 COPY=16
// budget: implicit_gemm_forward 255 instructions per 12 HMMA where float32 PRODUCTS=3 TILE_M=32
// budget: implicit_gemm_input_grad 248 registers
// budget: implicit_gemm_input_grad 355 instructions per 64 HMMA where float16 bfloat16 TILE_N=128
// budget: implicit_gemm_input_grad 310 instructions per 32 HMMA where float16 bfloat16 TILE_M=128 TILE_N=64
// budget: implicit_gemm_input_grad 235 instructions per 16 HMMA where float16 bfloat16 TILE_M=64 COPY=16
// budget: implicit_gemm_input_grad 175 instructions per 4 HMMA where float16 bfloat16 TILE_M=32
// budget: implicit_gemm_input_grad 375 instructions per 32 HMMA where float32 PRODUCTS=1 TILE_M=128
// budget: implicit_gemm_input_grad 275 instructions per 16 HMMA where float32 PRODUCTS=1 TILE_M=64 COPY=16
// budget: implicit_gemm_input_grad 195 instructions per 4 HMMA where float32 PRODUCTS=1 TILE_M=32
// budget: implicit_gemm_input_grad 840 instructions per 96 HMMA where float32 PRODUCTS=3 TILE_M=128
// budget: implicit_gemm_input_grad 535 instructions per 48 HMMA where float32 PRODUCTS=3 TILE_M=64 COPY=16
// budget: implicit_gemm_input_grad 290 instructions per 12 HMMA where float32 PRODUCTS=3 TILE_M=32
#include "windows.cuh"
#include "mma.cuh"

typedef AlongK<TILE_M> Windows;
#if INPUT_GRAD
typedef AlongK<TILE_N> Weights;
#else
typedef AcrossK<TILE_N> Weights;
#endif
constexpr int STAGE = STAGE_BYTES<Windows, Weights>;
constexpr int SHARED_BYTES = PIPELINE_BYTES<STAGE>;

constexpr int SIDE_BY_SIDE = 64 / COPY;               // copies of a row of a step, by neighbouring threads
constexpr int AT_ONCE = THREADS / SIDE_BY_SIDE;       // rows that all threads copy at a time
constexpr int OWN_WINDOWS = TILE_M / AT_ONCE;         // windows of a thread
constexpr bool KEEPS = OWN_WINDOWS <= 4;              // whether it keeps where they are in registers: if some are left
constexpr int UNROLL = COPY < 8 ? 2 : 8;              // with more the addresses would spill

template <bool BACK>
__device__ __forceinline__ void convolve(const T* __restrict__ in, const T* __restrict__ w, const T* __restrict__ bias,
                                         T* out, float* partials, const Conv& g, const ProductPlan& plan) {
  extern __shared__ __align__(16) char shared[];
  __shared__ Table<TILE_M> table;
  const int thread = (int)threadIdx.x;

  Job job;
  if (!job_of(plan, (u32)plan.parts[0] * (u32)plan.parts[1] * (u32)plan.parts[2], g.groups, job)) return;
  const Pass<BACK> pass(g);
  const int(&in_size)[3] = pass.in_size;
  const int n0 = job.tile_n * TILE_N, group = job.group, split = job.split, depth = pass.depth, width = pass.width;
  fill(table, g, plan, job, pass, n0, THREADS);

  // These are read where they are needed, from the arguments or shared memory: registers are for sums.
  const auto taps = [&](int axis) { return BACK ? table.axes[axis].taps : g.kernel[axis]; };
  const auto step_of = [&](int axis) { return BACK ? table.axes[axis].step : g.dilation[axis]; };
  const int products = taps(0) * taps(1) * taps(2) * depth;
  const int all_steps = (products + TILE_K - 1) / TILE_K;
  const int begin = (int)((i64)all_steps * split / plan.splits), end = (int)((i64)all_steps * (split + 1) / plan.splits);

  // The numbers of a row that this thread copies: from channel `channel` of tap (tap[0], tap[1], tap[2]) on. They are those
  // of one tap back, and past its last channel: each load moves on to the tap that it needs.
  const int own_row = thread / SIDE_BY_SIDE, own_k = thread % SIDE_BY_SIDE * COPIED;
  int tap[3] = {0, 0, 0};
  u32 channel = 0;  // unsigned: it starts below twice the depth
  if (products > 0) {
    int rest;
    const int number = divide(begin * TILE_K + own_k, plan.by_depth, rest);
    tap[2] = number % taps(2) - 1;
    tap[1] = number / taps(2) % taps(1);
    tap[0] = number / taps(2) / taps(1);
    channel = (u32)rest + (u32)depth;
  }
  const T* from[KEEPS ? OWN_WINDOWS : 1];  // of the windows, or of all of them together
  u32 inside = 0;                          // a bit per window: whether it has this tap

#if INPUT_GRAD
  const T* weight = w;
  int rows_left = 0;  // of the weights
#else
  constexpr int COPIES = TILE_N / COPIED;  // of a row of the weights
  const int own_product = thread / COPIES, column = n0 + thread % COPIES * COPIED;
  const T* weight = of_sample(w, weights_length(g)) + ((i64)(begin * TILE_K + own_product) * g.k + (group * width + column));
  int products_left = column < width ? products - begin * TILE_K - own_product : 0;
#endif

  const auto load = [&](Shared stage) {
    if (channel >= (u32)depth) {
      do {
        channel -= (u32)depth;
        if (++tap[2] < taps(2)) continue;
        tap[2] = 0;
        if (++tap[1] < taps(1)) continue;
        tap[1] = 0;
        tap[0]++;
      } while (channel >= (u32)depth);
      const bool any = tap[0] < taps(0);
      const int shift[3] = {tap[0] * step_of(0), tap[1] * step_of(1), tap[2] * step_of(2)};
      const i64 delta = (((i64)shift[0] * in_size[1] + shift[1]) * in_size[2] + shift[2]) * pass.in_channels + channel;
      if (!KEEPS) from[0] = in + delta;
      inside = 0;
#pragma unroll UNROLL
      for (int i = 0; i < OWN_WINDOWS; i++) {
        const int row = own_row + i * AT_ONCE;
        const Window window = table.windows[row];
        if (any && (u32)(window.start[0] + shift[0]) < (u32)in_size[0] &&
            (u32)(window.start[1] + shift[1]) < (u32)in_size[1] && (u32)(window.start[2] + shift[2]) < (u32)in_size[2])
          inside |= 1u << i;
        if (KEEPS) from[KEEPS ? i : 0] = in + (table.offsets[row] + delta);
      }
#if INPUT_GRAD
      i64 number = blockIdx.y;  // of the tap in the whole kernel, and in those of the rows of blocks before
#pragma unroll
      for (int axis = 0; axis < 3; axis++) {
        const Axis& along = table.axes[axis];
        number = number * g.kernel[axis] + (tap[axis] * along.tap_step + along.tap_first);
      }
      weight = w + ((number * width + (n0 + own_row)) * g.k + (group * depth + (int)channel));
      rows_left = any ? width - n0 - own_row : 0;
#endif
    }
#pragma unroll UNROLL
    for (int i = 0; i < OWN_WINDOWS; i++) {
      const int row = own_row + i * AT_ONCE;
      const T* const number = KEEPS ? from[KEEPS ? i : 0] : from[0] + table.offsets[row];
      bring(stage + Windows::byte(row, own_k), number, inside >> i & 1);
      if (KEEPS) from[KEEPS ? i : 0] += TILE_K;
    }
    if (!KEEPS) from[0] += TILE_K;
    channel += TILE_K;
    const Shared weights = stage + Windows::BYTES;
#if INPUT_GRAD
#pragma unroll UNROLL
    for (int i = 0; i < TILE_N / AT_ONCE; i++) {
      const int row = i * AT_ONCE;
      bring(weights + Weights::byte(own_row + row, own_k), weight + (i64)row * g.k, row < rows_left);
    }
    weight += TILE_K;
#else
#pragma unroll UNROLL
    for (int i = 0; i < TILE_K * COPIES / THREADS; i++) {
      const int k = i * (THREADS / COPIES);
      bring(weights + Weights::byte(column - n0, own_product + k), weight + (i64)k * g.k, k < products_left);
    }
    weight += (i64)TILE_K * g.k;
    products_left -= TILE_K;
#endif
  };

  Sums sums;
  const Place place = place_of(thread);
  product<Windows, Weights>(sums, Shared{shared, smem_u32(shared)}, end - begin, place, load);
  // A row of blocks has the partial sums of its own splits, in which its results are where they are among all results.
  const i64 size = g.n * image_length(pass.out_size, pass.out_channels), before = (i64)blockIdx.y * (plan.splits - 1) + split;
  write(sums, shared, place, out, plan.splits > 1 ? partials + before * size : nullptr, width - n0,
        of_sample(bias, plan.bias_length), group * width + n0, plan.activation, [&](int row) { return table.results[row]; });
}

#if INPUT_GRAD
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
implicit_gemm_input_grad(const T* __restrict__ dy, const T* __restrict__ w, const T* __restrict__ bias, T* dx,
                         float* partials, const Conv g, const ProductPlan plan) {
  convolve<true>(dy, w, bias, dx, partials, g, plan);
}
#else
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
implicit_gemm_forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* y,
                      float* partials, const Conv g, const ProductPlan plan) {
  convolve<false>(x, w, bias, y, partials, g, plan);
}
#endif
