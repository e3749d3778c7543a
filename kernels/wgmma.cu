// Convolution and its input gradient on Hopper's tensor cores, in 16 bits: the matrix product of implicit_gemm.cu, whose
// pages this one shares, with wgmma in the place of mma.sync. Its first factor is gathered by warps of their own.
//
//   forward      y[m, k]  =  sum over (t, c) of   x[m at t, c]  w[t, c, k]       m = (n, o, p, q)   a row per output pixel
//   input_grad  dx[m, c]  =  sum over (t, k) of  dy[m at t, k]  w[t, c, k]       m = (n, d, h, w)   a row per input pixel
//
// Rows of the first factor are windows with k innermost (KMajor). Rows of w are across k in the forward pass (MNMajor), and
// along k in the input gradient. Nothing is repacked.
//
// Layouts: as in implicit_gemm.cu. Channels per group, in and out, are multiples of 8, and arrays begin at multiples of 16
// bytes: every copy is of 16 bytes, and none straddles taps.
//
// Launch: block (THREADS), grid (jobs, samples with weights of their own or 1); dynamic shared memory SHARED_BYTES of
// wgmma.cuh, which gpuconv/algorithms/cuda/wgmma.py computes in the same way. A unit is one kernel:
// INPUT_GRAD=0 or 1. With more than one split, split_k_reduce.cu follows.
//
// Cost: 2 n y taps c k / groups FLOP; a multiprocessor makes 4096 per clock.
//
// needs: sm_90a
// budget: wgmma_forward 168 registers
// budget: wgmma_input_grad 168 registers
#include "windows.cuh"
#include "wgmma.cuh"

typedef KMajor<TILE_M> Windows;
#if INPUT_GRAD
typedef KMajor<TILE_N> Weights;
#else
typedef MNMajor<TILE_N> Weights;
#endif

constexpr int CHUNK = 8;                         // numbers of a copy
constexpr int ROWS_AT_ONCE = PRODUCERS / 8;      // a thread copies the same chunk of every so manieth row
static_assert(Windows::BYTES + Weights::BYTES == STAGE, "a stage holds a step of both factors");

// What a producer does: it fills stage after stage. All its copies of the first factor are of one tap and channel.
template <bool BACK>
__device__ __forceinline__ void produce(const T* __restrict__ in, const T* __restrict__ w, const Conv& g,
                                        const ProductPlan& plan, const Job& job, const Pass<BACK>& pass,
                                        const Table<TILE_M>& table, Ring& ring, u32 stages, int begin, int steps,
                                        int products) {
  const auto taps = [&](int axis) { return BACK ? table.axes[axis].taps : g.kernel[axis]; };
  const auto hop = [&](int axis) { return BACK ? table.axes[axis].step : g.dilation[axis]; };
  const int member = (int)threadIdx.x - CONSUMING, number = member % 8, own_row = member / 8;
  const int n0 = job.tile_n * TILE_N;
  int product = begin * STEP_K + number * CHUNK, channel = 0, tap[3] = {0, 0, 0};
  if (products > 0) {
    const int tap_number = divide(product, plan.by_depth, channel);
    tap[2] = tap_number % taps(2);
    tap[1] = tap_number / taps(2) % taps(1);
    tap[0] = tap_number / taps(2) / taps(1);
  }
#if !INPUT_GRAD
  constexpr int COPIES = TILE_N / CHUNK, K_AT_ONCE = PRODUCERS / COPIES;  // of a row of the weights
  const int own_k = member / COPIES, column = n0 + member % COPIES * CHUNK;
  const T* weight = of_sample(w, weights_length(g)) + ((i64)(begin * STEP_K + own_k) * g.k + (job.group * pass.width + column));
  int products_left = column < pass.width ? products - begin * STEP_K - own_k : 0;
#endif
  Turn turn = {0, 0};
  for (int step = 0; step < steps; step++) {
    wait_until_empty(ring, turn);
    const u32 stage = stages + (u32)(turn.stage * STAGE), weights = stage + Windows::BYTES;
    const bool any = product < products;
    const int shift[3] = {tap[0] * hop(0), tap[1] * hop(1), tap[2] * hop(2)};
    const i64 delta = (((i64)shift[0] * pass.in_size[1] + shift[1]) * pass.in_size[2] + shift[2]) * pass.in_channels + channel;
#pragma unroll 2
    for (int i = 0; i < TILE_M / ROWS_AT_ONCE; i++) {
      const int row = own_row + i * ROWS_AT_ONCE;
      const Window window = table.windows[row];
      const bool inside = any && (u32)(window.start[0] + shift[0]) < (u32)pass.in_size[0] &&
                          (u32)(window.start[1] + shift[1]) < (u32)pass.in_size[1] &&
                          (u32)(window.start[2] + shift[2]) < (u32)pass.in_size[2];
      cp_async_16(stage + Windows::chunk(row, number), in + (inside ? table.offsets[row] + delta : 0), inside ? 16 : 0);
    }
#if INPUT_GRAD
    i64 tap_number = blockIdx.y;  // in the whole kernel, and in those of the rows of blocks before
#pragma unroll
    for (int axis = 0; axis < 3; axis++) {
      const Axis& along = table.axes[axis];
      tap_number = tap_number * g.kernel[axis] + (tap[axis] * along.tap_step + along.tap_first);
    }
    const i64 start = (tap_number * pass.width + n0) * g.k + (job.group * pass.depth + channel);
#pragma unroll 2
    for (int i = 0; i < TILE_N / ROWS_AT_ONCE; i++) {
      const int row = own_row + i * ROWS_AT_ONCE;
      const bool inside = any && n0 + row < pass.width;
      cp_async_16(weights + Weights::chunk(row, number), w + (inside ? start + (i64)row * g.k : 0), inside ? 16 : 0);
    }
#else
#pragma unroll 2
    for (int i = 0; i < STEP_K / K_AT_ONCE; i++) {
      const int k = i * K_AT_ONCE;
      const bool inside = k < products_left;
      cp_async_16(weights + Weights::chunk(own_k + k, member % COPIES), inside ? weight + (i64)k * g.k : w, inside ? 16 : 0);
    }
    weight += (i64)STEP_K * g.k;
    products_left -= STEP_K;
#endif
    fill_when_copied(ring, turn);
    next(turn);
    product += STEP_K;
    for (channel += STEP_K; channel >= pass.depth;) {
      channel -= pass.depth;
      if (++tap[2] < taps(2)) continue;
      tap[2] = 0;
      if (++tap[1] < taps(1)) continue;
      tap[1] = 0;
      tap[0]++;
    }
  }
  cp_async_wait<0>();
}

template <bool BACK>
__device__ __forceinline__ void convolve(const T* __restrict__ in, const T* __restrict__ w, const T* __restrict__ bias,
                                         T* out, float* partials, const Conv& g, const ProductPlan& plan) {
  extern __shared__ __align__(16) char dynamic[];
  __shared__ Table<TILE_M> table;
  __shared__ __align__(8) Ring ring;
  Job job;
  if (!job_of(plan, (u32)plan.parts[0] * (u32)plan.parts[1] * (u32)plan.parts[2], g.groups, job)) return;
  const Pass<BACK> pass(g);
  const int thread = (int)threadIdx.x, n0 = job.tile_n * TILE_N;
  if (thread == 0) begin(ring);
  fill(table, g, plan, job, pass, n0, THREADS);

  int products = pass.depth;
#pragma unroll
  for (int axis = 0; axis < 3; axis++) products *= BACK ? table.axes[axis].taps : g.kernel[axis];
  const int all_steps = (products + STEP_K - 1) / STEP_K;
  const int first = (int)((i64)all_steps * job.split / plan.splits);
  const int steps = (int)((i64)all_steps * (job.split + 1) / plan.splits) - first;
  char* const stages = aligned_stages(dynamic);
  if (thread >= CONSUMING) {
    produce(in, w, g, plan, job, pass, table, ring, smem_u32(stages), first, steps, products);
    return;
  }
  Sums sums;
  multiply<Windows, Weights>(sums, ring, smem_u32(stages), steps);
  const i64 size = g.n * image_length(pass.out_size, pass.out_channels), before = (i64)blockIdx.y * (plan.splits - 1) + job.split;
  write(sums, stages, out, plan.splits > 1 ? partials + before * size : nullptr, pass.width - n0,
        of_sample(bias, plan.bias_length), job.group * pass.width + n0, plan.activation,
        [&](int row) { return table.results[row]; });
}

#if INPUT_GRAD
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
wgmma_input_grad(const T* __restrict__ dy, const T* __restrict__ w, const T* __restrict__ bias, T* dx,
                                float* partials, const Conv g, const ProductPlan plan) {
  convolve<true>(dy, w, bias, dx, partials, g, plan);
}
#else
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
wgmma_forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* y,
                             float* partials, const Conv g, const ProductPlan plan) {
  convolve<false>(x, w, bias, y, partials, g, plan);
}
#endif
