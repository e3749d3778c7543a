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
// Launch: block (THREADS), grid (jobs) with jobs = tiles_n * parts * tiles_m * groups * splits, no dynamic shared memory.
// More blocks than jobs do no harm. A unit is one kernel: INPUT_GRAD=0 or 1; ALIGNED=1 takes arrays aligned to 16 bytes
// whose channels per group, in and out, are multiples of VECTOR, ALIGNED=0 takes all. With more than one split,
// split_k_reduce.cu follows.
//
// Cost: 2 n y taps c k / groups FLOP, sizeof(T) (x + w + y) bytes. Floor on an H200: FLOP / 67 T/s (float32), or bytes /
// 4.3 TB/s where that is more (1 x 1 with c + k < 60, say). Expected, not measured: 60 to 70% of the multiply-add rate
// for 128 x 128 tiles. Of every 73 instructions 64 multiply; shared memory delivers a number for every 4 products, about
// half of what it could; 16 warps per multiprocessor (128 registers per thread) hide its latency, not all of the barrier's.
// 64 x 64: about 50%, and the 8 x 4 products of a thread read 3/8 of a number each.
//
// budget: direct_forward 128 registers
// budget: direct_input_grad 128 registers
#include "axes.cuh"
#include "tile.cuh"

// A row of the result: its sample, and the start of its window. The sample is -1 where there is no such row.
struct alignas(16) Row {
  int sample, start[3];
};
// V neighbouring products: the step from a window's start, and the channel, which is -1 past the end of the sum.
struct alignas(16) Product {
  int shift[3], channel;
};
struct Tables {
  Row rows[TILE_M];
  index_t pixels[TILE_M];  // of the result, one per row
  Product products[2][TILE_K];
  index_t weights[2][TILE_K];  // the start of each product's weights, for the input gradient
  Axis axes[3];
};

template <int V, bool BACK>
__device__ __forceinline__ void convolve(const T* __restrict__ in, const T* __restrict__ w, const T* __restrict__ bias,
                                         T* out, A* partials, const Conv& g, const ProductPlan& plan) {
  __shared__ Buffers shared;
  __shared__ Tables tables;
  typedef Along<V, TILE_M> Windows;
  typedef Along<V, TILE_N> Columns;  // of w for the input gradient
  typedef Across<V, TILE_N> Rows;    // of w else
  constexpr int SLOTS_B = BACK ? Columns::SLOTS : Rows::SLOTS;
  const int thread = (int)threadIdx.x;

  Job job;
  if (!job_of(plan, (u32)plan.parts[0] * (u32)plan.parts[1] * (u32)plan.parts[2], g.groups, job)) return;
  const int n0 = job.tile_n * TILE_N, group = job.group, split = job.split;
  const index_t m0 = (index_t)job.tile_m * TILE_M;

  const int(&in_size)[3] = BACK ? g.y : g.x;
  const int(&out_size)[3] = BACK ? g.x : g.y;
  const int in_channels = BACK ? g.k : g.c, out_channels = BACK ? g.c : g.k;
  const int depth = in_channels / g.groups, width = out_channels / g.groups;

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
    Row row = {m < g.n ? (int)m : -1, {0, 0, 0}};
    index_t pixel = m;
#pragma unroll
    for (int axis = 0; axis < 3; axis++) {
      const Axis along = axis_of(axis);
      if (at[axis] >= along.outs || row.sample < 0) {
        row.sample = -1;
        continue;
      }
      row.start[axis] = at[axis] * along.scale + along.first;
      pixel = pixel * out_size[axis] + (at[axis] * along.out_step + along.out_first);
    }
    tables.rows[i] = row;
    tables.pixels[i] = row.sample < 0 ? -1 : pixel;
  }

  int taps[3];
#pragma unroll
  for (int axis = 0; axis < 3; axis++) taps[axis] = axis_of(axis).taps;
  const index_t sum_length = (index_t)taps[0] * taps[1] * taps[2] * depth;
  const i64 all_steps = (sum_length + TILE_K - 1) / TILE_K;
  const int begin = (int)(all_steps * split / plan.splits), end = (int)(all_steps * (split + 1) / plan.splits);

  // Looks up the products of a step for all threads.
  const auto prepare = [&](int step) {
    if (thread >= TILE_K / V) return;
    const index_t j = (index_t)step * TILE_K + thread * V;
    Product product = {{0, 0, 0}, -1};
    if (j < sum_length) {
      int channel, number[3];
      int tap = (int)divide(j, plan.by_depth, channel);
      product.channel = group * depth + channel;
      number[2] = tap % taps[2];
      tap /= taps[2];
      number[1] = tap % taps[1];
      number[0] = tap / taps[1];
      index_t weights = 0;
#pragma unroll
      for (int axis = 0; axis < 3; axis++) {
        const Axis along = axis_of(axis);
        product.shift[axis] = number[axis] * along.step;
        weights = weights * g.kernel[axis] + (number[axis] * along.tap_step + along.tap_first);
      }
      if (BACK) tables.weights[step & 1][thread] = weights * width * g.k + product.channel;
    }
    tables.products[step & 1][thread] = product;
  };

  Pack<T, V> next_a[Windows::SLOTS], next_b[SLOTS_B];
  const auto fetch = [&](int step) {
#pragma unroll
    for (int slot = 0; slot < Windows::SLOTS; slot++) {
      next_a[slot] = nothing<V>();
      if (!Windows::has(slot)) continue;
      const Row row = tables.rows[Windows::row(slot)];
      const Product product = tables.products[step & 1][Windows::k(slot)];
      if (row.sample < 0 || product.channel < 0) continue;
      index_t pixel = row.sample;
      bool inside = true;
#pragma unroll
      for (int axis = 0; axis < 3; axis++) {
        int at = row.start[axis] + product.shift[axis];
        if (!BACK && g.pad_mode) at = source(at, in_size[axis], g.pad_mode);
        inside = inside && (u32)at < (u32)in_size[axis];
        pixel = pixel * in_size[axis] + (inside ? at : 0);
      }
      if (inside) next_a[slot] = load<V>(in + (pixel * in_channels + product.channel));
    }
#pragma unroll
    for (int slot = 0; slot < SLOTS_B; slot++) {
      next_b[slot] = nothing<V>();
      if (BACK) {
        if (!Columns::has(slot)) continue;
        const int n = n0 + Columns::row(slot), k = Columns::k(slot);
        if (n < width && tables.products[step & 1][k].channel >= 0)
          next_b[slot] = load<V>(w + (tables.weights[step & 1][k] + (index_t)n * g.k));
      } else {
        if (!Rows::has(slot)) continue;
        const int n = n0 + Rows::row(slot);
        const index_t j = (index_t)step * TILE_K + Rows::k(slot);
        if (n < width && j < sum_length) next_b[slot] = load<V>(w + (j * g.k + (group * width + n)));
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

  // Hands the sums on, WIDTH (or 1) neighbours at a time: to be collected, or with `last` as results.
  const auto deliver = [&](bool first, bool last) {
    constexpr int N = V == 1 ? 1 : WIDTH;
    const index_t count = (index_t)g.n * out_size[0] * out_size[1] * out_size[2] * out_channels;
    A* const collected = collection(out, partials, plan.splits, split, count);
#pragma unroll
    for (int i = 0; i < THREAD_M; i++) {
      const index_t pixel = tables.pixels[row_of_tile(place, i)];
      if (pixel < 0) continue;
#pragma unroll
      for (int j = 0; j < THREAD_N; j += N) {
        const int n = n0 + column_of_tile(place, j);
        if (n >= width) continue;
        const int channel = group * width + n;
        const index_t to = pixel * out_channels + channel;
        if (last && plan.splits == 1)
          conclude<N>(out + to, first ? nullptr : collected + to, &sums[i][j], bias, channel, plan.activation);
        else
          collect<N>(collected + to, &sums[i][j], first);
      }
    }
  };

  clear(sums);
  bool first = true;
  if (begin < end) {
    prepare(begin);
    prepare(begin + 1);
    __syncthreads();
    fetch(begin);
    keep(begin & 1);
  }
  __syncthreads();
  int until = begin + DEPTH_STEPS;
  for (int step = begin; step < end; step++) {
    prepare(step + 2);
    if (step + 1 < end) fetch(step + 1);
    multiply(shared, step & 1, place, sums);
    if (step + 1 < end) keep(~step & 1);
    if (step + 1 == until && step + 1 < end && (!IS_16_BIT || plan.splits > 1)) {
      deliver(first, false);
      clear(sums);
      first = false;
      until += DEPTH_STEPS;
    }
    __syncthreads();
  }
  deliver(first, true);
}

#if INPUT_GRAD
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
direct_input_grad(const T* __restrict__ dy, const T* __restrict__ w, const T* __restrict__ bias, T* dx, A* partials,
                  const Conv g, const ProductPlan plan) {
  convolve<ALIGNED ? VECTOR : 1, true>(dy, w, bias, dx, partials, g, plan);
}
#else
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
direct_forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* y, A* partials,
               const Conv g, const ProductPlan plan) {
  convolve<ALIGNED ? VECTOR : 1, false>(x, w, bias, y, partials, g, plan);
}
#endif
