// Direct convolution and its input gradient: a matrix product whose first factor is never written down.
//
//   forward      y[m, k]  =  sum over (t, c) of   x[m at t, c]  w[t, c, k]        m = (n, o, p, q)   a row per output pixel
//   input_grad  dx[m, c]  =  sum over (t, k) of  dy[m at t, k]  w[t, c, k]*       m = (n, d, h, w)   a row per input pixel
//
//                        (t, c) runs down                k across
//     x                  +---+---+---+---+               +-------+
//   +-----------+   m    | t0| t1| t2| t3|   the tile    |  w    |
//   |  . . .    | -----> |   |   |   |   |   a[k][m] ,   |       |     a row of the tile is a window of x, fetched
//   |  . . .    |        +---+---+---+---+   b[k][n]     |       |     tap by tap as it is needed
//   +-----------+                                        +-------+
//
// Input gradient: only taps whose distance to an input pixel is a multiple of the stride reach it. Pixels of the same
// remainder have the same taps, so the image falls into parts (one per remainder and axis) in each of which the gradient is
// a convolution of stride 1 with some of the taps: see gpuconv/algorithms/adjoint.py. One launch covers all parts, the
// stride costs no products with zeros, and every element is written once, by one thread.
//
// Layouts, channels last, C-contiguous: x (n, x[0], x[1], x[2], c), w (taps, c / groups, k), y (n, y[0], y[1], y[2], k),
// bias (k), or (c) for the gradient, or null; partials (plan.splits, elements of the result) of A, or null for 1 split.
//
// Integers, of which there is a forward pass alone: x and w are of 8 bits each, signed or not (WEIGHTS), with sums and results
// of 32 bits; or both of 16, 32 or 64 bits, with sums and results of 64. Sums are exact modulo 2^32 or 2^64: whoever launches
// the kernel knows that they fit.
//
// Launch: block (THREADS), grid (jobs) with jobs = tiles_n * parts * tiles_m * groups * splits, no dynamic shared memory.
// More blocks than jobs do no harm. With weights per sample the grid has a row per sample (conv.cuh). A unit is one kernel:
// INPUT_GRAD=0 or 1; ALIGNED=1 takes arrays aligned to 16 bytes whose channels per group, in and out, are multiples of
// VECTOR, ALIGNED=0 takes all. With more than one split, split_k_reduce.cu follows.
//
// Cost: 2 n y taps c k / groups FLOP, sizeof(T) (x + w + y) bytes. Floor on an H200: FLOP / 67 T/s (float32), or bytes /
// 4.3 TB/s where that is more (1 x 1 with c + k < 60, say). Expected, not measured: 60 to 70% of the multiply-add rate
// for 128 x 128 tiles. Of 141 instructions in the inner loop 128 multiply, and of some 660 in a step 512; shared memory
// delivers a number for every 4 products, about half of what it could; 16 warps per multiprocessor (128 registers per
// thread) hide its latency, not all of the barrier's.
// 64 x 64: about 50%, and the 8 x 4 products of a thread read 3/8 of a number each.
//
// budget: direct_forward 128 registers
// budget: direct_input_grad 128 registers
// budget: direct_forward 144 instructions per 128 FFMA where float32 ALIGNED=1 INDEX64=0 TILE_M=128 TILE_N=128
// budget: direct_input_grad 144 instructions per 128 FFMA where float32 ALIGNED=1 INDEX64=0 TILE_M=128 TILE_N=128
// tight: float16 bfloat16 float32 ALIGNED=1 INDEX64=1
#include "axes.cuh"
#include "tile.cuh"

template <int V>
struct Tables {
  static constexpr int LOTS = TILE_K / V;       // of V neighbouring products, in a step
  static constexpr int STEPS = THREADS / LOTS;  // whose products are looked up together, by one thread each
  Window rows[TILE_M];
  index_t pixels[TILE_M];  // of the result, one per row
  Window products[THREADS];  // steps from the start of a row's window
  index_t weights[THREADS];  // the start of each product's weights, or -1, for the input gradient
  Axis axes[3];
  Job job;  // for the end: in registers it would be in the way of the products
  const T* __restrict__ in;  // of the block's sample, as the weights, read where they are needed: registers are for sums
  const W* __restrict__ w;
};

template <int V, bool BACK>
__device__ __forceinline__ void convolve(const T* __restrict__ in, const W* __restrict__ w, const Y* __restrict__ bias,
                                         Y* out, A* partials, const Conv& g, const ProductPlan& plan) {
  __shared__ Buffers shared;
  __shared__ Tables<V> tables;
  typedef Along<V, TILE_M> Windows;
  typedef Along<V, TILE_N> Columns;  // of w for the input gradient
  typedef Across<V, TILE_N> Rows;    // of w else
  constexpr int SLOTS_B = BACK ? Columns::SLOTS : Rows::SLOTS;
  const int thread = (int)threadIdx.x;

  Job job;
  if (!job_of(plan, (u32)plan.parts[0] * (u32)plan.parts[1] * (u32)plan.parts[2], g.groups, job)) return;
  const index_t m0 = (index_t)job.tile_m * TILE_M;

  const int(&in_size)[3] = BACK ? g.y : g.x;
  const int(&out_size)[3] = BACK ? g.x : g.y;
  const int in_channels = BACK ? g.k : g.c, out_channels = BACK ? g.c : g.k;
  const int depth = in_channels / g.groups, width = out_channels / g.groups;

  if (thread == 0) {
    tables.job = job;
    tables.in = of_sample(in, image_length(in_size, in_channels));
    tables.w = of_sample(w, weights_length(g));
  }
  if (BACK) {
    if (thread == 0) {
      u32 rest = job.part;
      for (int axis = 2; axis >= 0; axis--) {
        tables.axes[axis] = backward_axis(g, plan, axis, (int)(rest % (u32)plan.parts[axis]));
        rest /= (u32)plan.parts[axis];
      }
    }
    __syncthreads();
  }
  const auto axis_of = [&](int axis) { return BACK ? tables.axes[axis] : forward_axis(g, axis); };

  for (int i = thread; i < TILE_M; i += THREADS) {
    index_t m = m0 + i;
    int at[3];
    m = divide(m, plan.by_outs[2], at[2]);
    m = divide(m, plan.by_outs[1], at[1]);
    m = divide(m, plan.by_outs[0], at[0]);
    Window row = {{0, 0, 0}, (Offset)m};
    index_t pixel = m;
    bool is_there = m < g.n;
#pragma unroll
    for (int axis = 0; axis < 3; axis++) {
      const Axis along = axis_of(axis);
      is_there = is_there && at[axis] < along.outs;
      if (!is_there) continue;
      row.start[axis] = at[axis] * along.scale + along.first;
      row.offset = along_axis(row.offset, in_size[axis], row.start[axis]);
      pixel = pixel * out_size[axis] + (at[axis] * along.out_step + along.out_first);
    }
    row.offset = along_axis(row.offset, in_channels, job.group * depth);
    if (!is_there) row.start[0] = NOWHERE;
    tables.rows[i] = row;
    tables.pixels[i] = is_there ? pixel : -1;
  }

  const index_t sum_length = (index_t)axis_of(0).taps * axis_of(1).taps * axis_of(2).taps * depth;
  const i64 all_steps = (sum_length + TILE_K - 1) / TILE_K;
  int begin = 0, end = (int)all_steps;
  if (plan.splits > 1) {  // a division of 64 bits is a long function
    begin = (int)(all_steps * job.split / plan.splits);
    end = (int)(all_steps * (job.split + 1) / plan.splits);
  }

  // Looks up the products of a step, and of those that share the table with it.
  const auto prepare = [&](int step) {
    const index_t j = (index_t)(step & ~(Tables<V>::STEPS - 1)) * TILE_K + thread * V;
    Window product = {{NOWHERE, 0, 0}, 0};
    index_t weights = -1;
    if (j < sum_length) {
      int channel, number[3];
      int tap = (int)divide(j, plan.by_depth, channel);
      number[2] = tap % axis_of(2).taps;
      tap /= axis_of(2).taps;
      number[1] = tap % axis_of(1).taps;
      number[0] = tap / axis_of(1).taps;
      weights = 0;
#pragma unroll
      for (int axis = 0; axis < 3; axis++) {
        const Axis along = axis_of(axis);
        product.start[axis] = number[axis] * along.step;
        product.offset = along_axis(product.offset, in_size[axis], product.start[axis]);
        weights = weights * g.kernel[axis] + (number[axis] * along.tap_step + along.tap_first);
      }
      product.offset = along_axis(product.offset, in_channels, channel);
      weights = weights * width * g.k + (job.group * depth + channel);
    }
    tables.products[thread] = product;
    if (BACK) tables.weights[thread] = weights;
  };
  const auto place_of_product = [&](int step, int k) { return (step & (Tables<V>::STEPS - 1)) * Tables<V>::LOTS + k; };

  Pack<T, V> next_a[Windows::SLOTS];
  Pack<W, V> next_b[SLOTS_B];
  const auto fetch = [&](int step) {
#pragma unroll
    for (int slot = 0; slot < Windows::SLOTS; slot++) {
      next_a[slot] = nothing<V>();
      if (!Windows::has(slot)) continue;
      index_t from;
      if (lands(tables.rows[Windows::row(slot)], tables.products[place_of_product(step, Windows::k(slot))], in_size,
                in_channels, BACK ? 0 : g.pad_mode, from))
        next_a[slot] = load<V>(in_global(tables.in) + from);
    }
#pragma unroll
    for (int slot = 0; slot < SLOTS_B; slot++) {
      next_b[slot] = nothing<V, W>();
      if (BACK) {
        if (!Columns::has(slot)) continue;
        const int n = job.tile_n * TILE_N + Columns::row(slot);
        const index_t weights = tables.weights[place_of_product(step, Columns::k(slot))];
        if (n < width && weights >= 0) next_b[slot] = load<V>(in_global(tables.w) + (weights + (index_t)n * g.k));
      } else {
        if (!Rows::has(slot)) continue;
        const int n = job.tile_n * TILE_N + Rows::row(slot);
        const index_t j = (index_t)step * TILE_K + Rows::k(slot);
        if (n < width && j < sum_length) next_b[slot] = load<V>(in_global(tables.w) + (j * g.k + (job.group * width + n)));
      }
    }
  };
  const auto keep = [&](int buffer) {
#pragma unroll
    for (int slot = 0; slot < Windows::SLOTS; slot++)
      if (Windows::has(slot))
        store_along<V>(shared.a[buffer], Windows::k(slot), Windows::row(slot), next_a[slot], false);
#pragma unroll
    for (int slot = 0; slot < SLOTS_B; slot++) {
      if (BACK && Columns::has(slot))
        store_along<V>(shared.b[buffer], Columns::k(slot), Columns::row(slot), next_b[slot], true);
      if (!BACK && Rows::has(slot))
        store_across<V>(shared.b[buffer], Rows::k(slot), Rows::row(slot), next_b[slot], false);
    }
  };

  const Place place = place_of(thread);
  A sums[THREAD_M][THREAD_N];

  constexpr int N = V == 1 ? 1 : RESULTS;  // neighbours of a row are handed on together
  const auto n0 = [&] { return tables.job.tile_n * TILE_N; };
  // Where a sample's results begin is worked out where they are written: registers are for sums.
  const auto results = [&] { return of_sample(out, image_length(out_size, out_channels)); };
  const auto collected = [&] {
    const index_t count = (index_t)g.n * out_size[0] * out_size[1] * out_size[2] * out_channels;
    A* const own = of_sample(partials, plan.splits * image_length(out_size, out_channels));
    return collection(results(), own, plan.splits, tables.job.split, count);
  };
  const auto start = [&](int row) {
    const index_t pixel = tables.pixels[row];
    return pixel < 0 ? (index_t)-1 : pixel * out_channels + tables.job.group * width;
  };

  if (begin < end) {
    prepare(begin);
    __syncthreads();
    fetch(begin);
    keep(begin & 1);
  }
  __syncthreads();
  for (int step = begin;;) {
    const bool first = step == begin;
    const int until = IS_INTEGER || (IS_16_BIT && plan.splits == 1) || end - step < DEPTH_STEPS ? end : step + DEPTH_STEPS;
    clear(sums);
    for (; step < until; step++) {
      if (step + 1 < end) {
        if (((step + 1) & (Tables<V>::STEPS - 1)) == 0) {  // the last of the table has been read before the last barrier
          prepare(step + 1);
          __syncthreads();
        }
        fetch(step + 1);
      }
      multiply(shared, step & 1, place, sums);
      if (step + 1 < end) keep(~step & 1);
      __syncthreads();
    }
    if (!first) add_collected<N>(sums, place, n0(), width, collected(), start);
    if (step >= end) break;
    collect<N>(sums, place, n0(), width, collected(), start);
  }
  if (plan.splits > 1)
    collect<N>(sums, place, n0(), width, collected(), start);
  else
    conclude<N>(sums, place, n0(), width, results(),
                bias ? of_sample(bias, plan.bias_length) + tables.job.group * width : nullptr, plan.activation, start);
}

#if INPUT_GRAD
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
direct_input_grad(const T* __restrict__ dy, const W* __restrict__ w, const Y* __restrict__ bias, Y* dx, A* partials,
                  const Conv g, const ProductPlan plan) {
  convolve<ALIGNED ? VECTOR : 1, true>(dy, w, bias, dx, partials, g, plan);
}
#else
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
direct_forward(const T* __restrict__ x, const W* __restrict__ w, const Y* __restrict__ bias, Y* y, A* partials,
               const Conv g, const ProductPlan plan) {
  convolve<ALIGNED ? VECTOR : 1, false>(x, w, bias, y, partials, g, plan);
}
#endif
