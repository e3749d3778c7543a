// The weight gradient of a convolution: a matrix product over all output pixels, neither of whose factors is copied.
//
//   dw[t, c, k]  =  sum over m of   x[m at t, c]*  dy[m, k]        m = (n, o, p, q)   output pixels       * conjugate
//
//                 m runs down             k across
//                +---+---+---+---+       +-------+
//         (t, c) |   a[m][t, c]  |       |  dy   |     a row (t, c) of the tile is the plane of channel c of x, shifted
//         down   |               |       |       |     by tap t; both factors lie in memory as the tile wants them, so
//                +---+---+---+---+       +-------+     16 bytes of channels go straight into its buffers
//
// There are few weights and many pixels: the pixels are cut into `splits`, each of which makes a whole dw of its own in
// `partials`, and split_k_reduce.cu sums these in order. So the result does not depend on which block is first.
//
// Layouts, channels last, C-contiguous: x (n, x[0], x[1], x[2], c), dy (n, y[0], y[1], y[2], k), dw (taps, c / groups, k),
// partials (splits, elements of dw) of A, or null for 1 split.
//
// Launch: block (THREADS), grid (jobs) with jobs = tiles_n * tiles_m * groups * splits, where the tiles_m are those of
// (t, c) and the tiles_n those of k; no dynamic shared memory. More blocks than jobs do no harm. With a gradient per sample
// the grid has a row per sample (conv.cuh). ALIGNED=1 takes arrays aligned to 16 bytes whose channels per group are
// multiples of VECTOR; ALIGNED=0 takes all.
//
// Cost: 2 n y taps c k / groups FLOP, sizeof(T) (x + w + y) bytes and twice those of `partials`. Floor on an H200: FLOP /
// 67 T/s (float32). Expected, not measured: 60 to 70% of it where dw fills tiles of 128 x 128; finding a pixel's
// neighbours takes some 15 instructions beside 64 x 8 multiply-adds, and no transposition is needed.
//
// budget: direct_weight_grad 144 registers
// budget: direct_weight_grad 144 instructions per 128 FFMA where float32 ALIGNED=1 INDEX64=0 TILE_M=128 TILE_N=128
// tight: float16 bfloat16 ALIGNED=1 INDEX64=1
#include "jobs.cuh"
#include "tile.cuh"

template <int V>
__device__ __forceinline__ void weight_gradient(const T* __restrict__ x, const T* __restrict__ dy, T* dw, A* partials,
                                                const Conv& g, const WeightPlan& plan) {
  __shared__ Buffers shared;
  constexpr int STEPS = THREADS / TILE_K;  // whose pixels are looked up together, by one thread each
  __shared__ Window pixels[THREADS];
  __shared__ Window planes[TILE_M / V];  // of V neighbouring rows of the tile
  __shared__ index_t targets[TILE_M];  // where a row of dw starts; -1 for no such row
  typedef Across<V, TILE_M> Inputs;
  typedef Across<V, TILE_N> Outputs;
  const int thread = (int)threadIdx.x;

  Job job;
  if (!job_of(plan, 1, g.groups, job)) return;
  const int n0 = job.tile_n * TILE_N, group = job.group, split = job.split;
  const index_t m0 = (index_t)job.tile_m * TILE_M;

  const int depth = g.c / g.groups, width = g.k / g.groups;
  const index_t rows = (index_t)g.kernel[0] * g.kernel[1] * g.kernel[2] * depth;

  for (int i = thread; i < TILE_M; i += THREADS) targets[i] = m0 + i < rows ? (m0 + i) * g.k + group * width : -1;
  for (int i = thread; i < TILE_M / V; i += THREADS) {
    const index_t row = m0 + i * V;
    Window plane = {{NOWHERE, 0, 0}, 0};
    if (row < rows) {
      int channel, tap = (int)divide(row, plan.by_depth, channel);
#pragma unroll
      for (int axis = 2; axis >= 0; axis--) {
        plane.start[axis] = tap % g.kernel[axis] * g.dilation[axis];
        tap /= g.kernel[axis];
      }
#pragma unroll
      for (int axis = 0; axis < 3; axis++) plane.offset = along_axis(plane.offset, g.x[axis], plane.start[axis]);
      plane.offset = along_axis(plane.offset, g.c, group * depth + channel);
    }
    planes[i] = plane;
  }

  const index_t sum_length = (index_t)g.n * g.y[0] * g.y[1] * g.y[2];
  const i64 all_steps = (sum_length + TILE_K - 1) / TILE_K;
  index_t begin = 0;
  int steps = (int)all_steps;
  if (plan.splits > 1) {  // a division of 64 bits is a long function
    begin = (index_t)(all_steps * split / plan.splits);
    steps = (int)(all_steps * (split + 1) / plan.splits - begin);
  }

  // Looks up the pixels of a step, and of those that share the table with it.
  const auto prepare = [&](int step) {
    const index_t m = (begin + (step & ~(STEPS - 1))) * TILE_K + thread;
    Window pixel = {{NOWHERE, 0, 0}, 0};
    if (m < sum_length) {
      const Output out = output_of(g, m);
      pixel.offset = (Offset)out.n;
#pragma unroll
      for (int axis = 0; axis < 3; axis++) {
        pixel.start[axis] = out.at[axis] * g.stride[axis] - g.pad[axis];
        pixel.offset = along_axis(pixel.offset, g.x[axis], pixel.start[axis]);
      }
      pixel.offset = along_axis(pixel.offset, g.c, 0);
    }
    pixels[thread] = pixel;
  };

  Pack<T, V> next_a[Inputs::SLOTS], next_b[Outputs::SLOTS];
  const auto fetch = [&](int step) {
#pragma unroll
    for (int slot = 0; slot < Inputs::SLOTS; slot++) {
      next_a[slot] = nothing<V>();
      if (!Inputs::has(slot)) continue;
      index_t from;
      if (lands(pixels[(step & (STEPS - 1)) * TILE_K + Inputs::k(slot)], planes[Inputs::row(slot) / V], g.x, g.c,
                g.pad_mode, from))
        next_a[slot] = load<V>(x + from);
    }
#pragma unroll
    for (int slot = 0; slot < Outputs::SLOTS; slot++) {
      next_b[slot] = nothing<V>();
      if (!Outputs::has(slot)) continue;
      const int n = n0 + Outputs::row(slot);
      const index_t m = (begin + step) * TILE_K + Outputs::k(slot);
      if (n < width && m < sum_length) next_b[slot] = load<V>(dy + (m * g.k + (group * width + n)));
    }
  };
  const auto keep = [&](int buffer) {
#pragma unroll
    for (int slot = 0; slot < Inputs::SLOTS; slot++)
      if (Inputs::has(slot)) store_across<V>(shared.a[buffer], Inputs::k(slot), Inputs::row(slot), next_a[slot], true);
#pragma unroll
    for (int slot = 0; slot < Outputs::SLOTS; slot++)
      if (Outputs::has(slot))
        store_across<V>(shared.b[buffer], Outputs::k(slot), Outputs::row(slot), next_b[slot], false);
  };

  const Place place = place_of(thread);
  A sums[THREAD_M][THREAD_N];

  constexpr int N = V == 1 ? 1 : RESULTS;  // neighbours of a row are handed on together
  A* const collected = collection(dw, partials, plan.splits, split, rows * g.k);
  const auto start = [&](int row) { return targets[row]; };

  if (steps > 0) {
    prepare(0);
    __syncthreads();
    fetch(0);
    keep(0);
  }
  __syncthreads();
  for (int step = 0;;) {
    const bool first = step == 0;
    const int until = (IS_16_BIT && plan.splits == 1) || steps - step < DEPTH_STEPS ? steps : step + DEPTH_STEPS;
    clear(sums);
    for (; step < until; step++) {
      if (step + 1 < steps) {
        if (((step + 1) & (STEPS - 1)) == 0) {  // the last of the table has been read before the last barrier
          prepare(step + 1);
          __syncthreads();
        }
        fetch(step + 1);
      }
      multiply(shared, step & 1, place, sums);
      if (step + 1 < steps) keep(~step & 1);
      __syncthreads();
    }
    if (!first) add_collected<N>(sums, place, n0, width, collected, start);
    if (step >= steps) break;
    collect<N>(sums, place, n0, width, collected, start);
  }
  if (plan.splits > 1)
    collect<N>(sums, place, n0, width, collected, start);
  else
    conclude<N>(sums, place, n0, width, dw, nullptr, 0, start);
}

// sm_70 has no registers to spare for offsets of 64 bits where two blocks of the largest tile share a multiprocessor.
constexpr bool ALONE = IS_16_BIT && sizeof(index_t) == 8 && TILE_M * TILE_N >= 128 * 128 && __CUDA_ARCH__ < 750;

extern "C" __global__ void __launch_bounds__(THREADS, ALONE ? 1 : RESIDENT)
direct_weight_grad(const T* __restrict__ x, const T* __restrict__ dy, T* dw, A* partials, const Conv g,
                   const WeightPlan plan) {
  weight_gradient<ALIGNED ? VECTOR : 1>(of_sample(x, image_length(g.x, g.c)), of_sample(dy, image_length(g.y, g.k)),
                                        of_sample(dw, weights_length(g)),
                                        of_sample(partials, plan.splits * weights_length(g)), g, plan);
}
