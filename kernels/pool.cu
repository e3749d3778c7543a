// Max and average pooling in 1-D to 3-D, channels last, and their gradients.
//
//     x (n, d, h, w, c)       y (n, o, p, q, c)       windows of kernel[0] x kernel[1] x kernel[2]; fewer axes are of size 1
//
//     max_pool            y = the largest of the window; of several the first in row order. A NaN is larger than all.
//     max_pool_indices    the same, and indices = where it is: its number among the positions of its sample, (d, h, w)
//     max_pool_argmax     argmax = the tap of that value, (t * kernel[1] + r) * kernel[2] + s
//     max_pool_grad       dx = the sum of the dy of those windows whose argmax it is
//     avg_pool            y = the sum of the window, in row order, / count
//     avg_pool_grad       dx = the sum over the windows that hold it, in row order of its taps there, of dy / count
//
// count is the number of taps of a window at positions from low to below high, along each axis: those of x, or with its
// pads; beyond the pads windows reach where output sizes are rounded up. With counts_all every tap counts. Every window
// holds one position of x at least. Gradients are fetched, not handed out: one thread writes a dx, in a fixed order, and
// nothing is atomic.
//
//     launch   block (256), grid any, shared bytes 0
//              A thread: one pixel of the result, as many channels as fill 16 bytes, but at most 8 (WIDE = 1: that number
//              divides c, addresses are multiples of 16), or one (WIDE = 0). by_packs divides by the threads per pixel.
//              argmax: ARGMAX_BYTES per element of y, 1 for windows of up to 255 taps, else 4.  Maxima: real dtypes only.
//              Integers: max_pool and max_pool_indices.
//
// Bytes, each once from memory; where windows overlap the rest comes from the caches:
//     max_pool, avg_pool |x| + |y|;  indices |x| + |y| + 8 y;  argmax |x| + y;  max_pool_grad y + |dy| + |dx|;
//     avg_pool_grad |dy| + |dx|
// Floor: that / copy bandwidth. Occupancy: at 64 registers 4 blocks of 256 threads per SM (50%), 16 KB and more in flight.
//
// budget: max_pool 64 registers
// budget: max_pool_indices 64 registers
// budget: max_pool_argmax 64 registers
// budget: max_pool_grad 64 registers
// budget: avg_pool 64 registers
// budget: avg_pool_grad 64 registers
#include "conv.cuh"

constexpr int V = !WIDE ? 1 : sizeof(T) == 1 ? 8 : 16 / (int)sizeof(T);  // with 16 the indices would spill

#if ARGMAX_BYTES == 1
typedef u8 Argmax;
#else
typedef int Argmax;
#endif

// A pixel of an array of pixels (n, sizes[0], sizes[1], sizes[2]), the first of the channels of a pack, and its offset.
struct Place {
  int n, at[3], c;
  index_t element;
};

// Calls visit(place) for every pack of an array of pixels.
template <class Visit>
__device__ __forceinline__ void each_pack(const FastDiv& by_packs, const FastDiv (&by)[3], index_t packs, Visit visit) {
  const index_t step = (index_t)gridDim.x * blockDim.x;
  for (index_t i = (index_t)blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += step) {
    int pack;
    Place place;
    index_t rest = divide(i, by_packs, pack);
    rest = divide(rest, by[2], place.at[2]);
    rest = divide(rest, by[1], place.at[1]);
    place.n = (int)divide(rest, by[0], place.at[0]);
    place.c = pack * V;
    place.element = i * V;
    visit(place);
  }
}

// The position of x under a tap of output p along an axis, if it is below the size of the axis as an unsigned number.
__device__ __forceinline__ int position(const Conv& g, int axis, int p, int tap) {
  return p * g.stride[axis] + tap * g.dilation[axis] - g.pad[axis];
}

// Calls visit(tap, element) for every position of x in the window of an output, in row order.
template <class Visit>
__device__ __forceinline__ void each_of_window(const Conv& g, const Place& y, Visit visit) {
  for (int t = 0; t < g.kernel[0]; t++) {
    const int d = position(g, 0, y.at[0], t);
    if ((u32)d >= (u32)g.x[0]) continue;
    for (int r = 0; r < g.kernel[1]; r++) {
      const int h = position(g, 1, y.at[1], r);
      if ((u32)h >= (u32)g.x[1]) continue;
      const index_t line = (((index_t)y.n * g.x[0] + d) * g.x[1] + h) * g.x[2];
      for (int s = 0; s < g.kernel[2]; s++) {
        const int w = position(g, 2, y.at[2], s);
        if ((u32)w < (u32)g.x[2]) visit((t * g.kernel[1] + r) * g.kernel[2] + s, (line + w) * g.c + y.c);
      }
    }
  }
}

// The output whose tap lies over position `at` along an axis; -1 if there is none.
__device__ __forceinline__ int output_over(const Conv& g, int axis, int at, int tap) {
  const int start = at + g.pad[axis] - tap * g.dilation[axis];
  if (start < 0) return -1;
  const int p = divide(start, g.by_stride[axis]);
  return p * g.stride[axis] == start && p < g.y[axis] ? p : -1;
}

// Calls visit(tap, o, p, q, element) for every window that holds a position of x, in row order of its taps there.
template <class Visit>
__device__ __forceinline__ void each_window_of(const Conv& g, const Place& x, Visit visit) {
  for (int t = 0; t < g.kernel[0]; t++) {
    const int o = output_over(g, 0, x.at[0], t);
    if (o < 0) continue;
    for (int r = 0; r < g.kernel[1]; r++) {
      const int p = output_over(g, 1, x.at[1], r);
      if (p < 0) continue;
      const index_t line = (((index_t)x.n * g.y[0] + o) * g.y[1] + p) * g.y[2];
      for (int s = 0; s < g.kernel[2]; s++) {
        const int q = output_over(g, 2, x.at[2], s);
        if (q >= 0) visit((t * g.kernel[1] + r) * g.kernel[2] + s, o, p, q, (line + q) * g.c + x.c);
      }
    }
  }
}

template <class Element>
__device__ __forceinline__ Pack<Element, V> load(const Element* from) {
  return *(const Pack<Element, V>*)from;
}
template <class Element>
__device__ __forceinline__ void store(Element* to, const Pack<Element, V>& pack) {
  *(Pack<Element, V>*)to = pack;
}

#if !IS_COMPLEX

// Walks over a window: `best` are its largest values, unchanged from x, and `where` is what pick(tap, element) says of each.
template <class Where, class Pick>
__device__ __forceinline__ void largest(const T* __restrict__ x, const Conv& g, const Place& y, Pack<T, V>& best,
                                        Pack<Where, V>& where, Pick pick) {
#pragma unroll
  for (int v = 0; v < V; v++) where.at[v] = -1;
  each_of_window(g, y, [&](int tap, index_t element) {
    const Pack<T, V> values = load(x + element);
#pragma unroll
    for (int v = 0; v < V; v++) {
      const A value = to_acc(values.at[v]), so_far = to_acc(best.at[v]);
      if (where.at[v] < 0 || value > so_far || (value != value && so_far == so_far)) {
        best.at[v] = values.at[v];
        where.at[v] = pick(tap, element);
      }
    }
  });
}
__device__ __forceinline__ void largest(const T* __restrict__ x, const Conv& g, const Place& y, Pack<T, V>& best,
                                        Pack<int, V>& argmax) {
  largest(x, g, y, best, argmax, [](int tap, index_t) { return tap; });
}

extern "C" __global__ void __launch_bounds__(256, 4)
    max_pool(const T* __restrict__ x, T* __restrict__ y, const Conv g, const FastDiv by_packs, index_t packs) {
  each_pack(by_packs, g.by_y, packs, [&](const Place& place) {
    Pack<T, V> best = {};
    Pack<int, V> argmax;
    largest(x, g, place, best, argmax);
    store(y + place.element, best);
  });
}

// The indices go out one by one: a pack of them is longer than any store.
extern "C" __global__ void __launch_bounds__(256, 4)
    max_pool_indices(const T* __restrict__ x, T* __restrict__ y, i64* __restrict__ indices, const Conv g,
                     const FastDiv by_packs, index_t packs) {
  each_pack(by_packs, g.by_y, packs, [&](const Place& place) {
    Pack<T, V> best = {};
    Pack<index_t, V> where;
    const index_t image = (index_t)place.n * g.x[0] * g.x[1] * g.x[2];
    largest(x, g, place, best, where, [](int, index_t element) { return element; });
    store(y + place.element, best);
#pragma unroll
    for (int v = 0; v < V; v++) {
      int pack;
      indices[place.element + v] = divide(where.at[v] / V, by_packs, pack) - image;
    }
  });
}

#endif
#if !IS_COMPLEX && !IS_INTEGER

extern "C" __global__ void __launch_bounds__(256, 4)
    max_pool_argmax(const T* __restrict__ x, unsigned char* __restrict__ all_argmax, const Conv g, const FastDiv by_packs,
                    index_t packs) {
  each_pack(by_packs, g.by_y, packs, [&](const Place& place) {
    Pack<T, V> best = {};
    Pack<int, V> argmax;
    largest(x, g, place, best, argmax);
    Pack<Argmax, V> kept;
#pragma unroll
    for (int v = 0; v < V; v++) kept.at[v] = (Argmax)argmax.at[v];
    store(reinterpret_cast<Argmax*>(all_argmax) + place.element, kept);
  });
}

extern "C" __global__ void __launch_bounds__(256, 4)
    max_pool_grad(const T* __restrict__ dy, const unsigned char* __restrict__ all_argmax, T* __restrict__ dx, const Conv g,
                  const FastDiv by_packs, index_t packs) {
  each_pack(by_packs, g.by_x, packs, [&](const Place& place) {
    A sums[V] = {};
    each_window_of(g, place, [&](int tap, int, int, int, index_t from) {
      const Pack<T, V> shares = load(dy + from);
      const Pack<Argmax, V> argmax = load(reinterpret_cast<const Argmax*>(all_argmax) + from);
#pragma unroll
      for (int v = 0; v < V; v++) {
        if (argmax.at[v] == tap) sums[v] = add(sums[v], to_acc(shares.at[v]));
      }
    });
    Pack<T, V> done;
#pragma unroll
    for (int v = 0; v < V; v++) done.at[v] = from_acc(sums[v]);
    store(dx + place.element, done);
  });
}

#endif
#if !IS_INTEGER

struct Counted {
  int counts_all, low[3], high[3];
};

// The number of taps of output p that count along an axis.
__device__ __forceinline__ int meeting(const Conv& g, const Counted& counted, int axis, int p) {
  int count = 0;
  for (int r = 0; r < g.kernel[axis]; r++) {
    const int at = position(g, axis, p, r);
    count += at >= counted.low[axis] && at < counted.high[axis];
  }
  return count;
}

// The divisor of the sum over the window of an output.
__device__ __forceinline__ R divisor(const Conv& g, const Counted& counted, int o, int p, int q) {
  if (counted.counts_all) return (R)((i64)g.kernel[0] * g.kernel[1] * g.kernel[2]);
  return (R)((i64)meeting(g, counted, 0, o) * meeting(g, counted, 1, p) * meeting(g, counted, 2, q));
}

extern "C" __global__ void __launch_bounds__(256, 4)
    avg_pool(const T* __restrict__ x, T* __restrict__ y, const Conv g, const FastDiv by_packs, index_t packs,
             const Counted counted) {
  each_pack(by_packs, g.by_y, packs, [&](const Place& place) {
    A sums[V];
#pragma unroll
    for (int v = 0; v < V; v++) sums[v] = zero<A>();
    each_of_window(g, place, [&](int, index_t from) {
      const Pack<T, V> values = load(x + from);
#pragma unroll
      for (int v = 0; v < V; v++) sums[v] = add(sums[v], to_acc(values.at[v]));
    });
    const R by = divisor(g, counted, place.at[0], place.at[1], place.at[2]);
    Pack<T, V> done;
#pragma unroll
    for (int v = 0; v < V; v++) done.at[v] = from_acc(divide(sums[v], by));
    store(y + place.element, done);
  });
}

extern "C" __global__ void __launch_bounds__(256, 4)
    avg_pool_grad(const T* __restrict__ dy, T* __restrict__ dx, const Conv g, const FastDiv by_packs, index_t packs,
                  const Counted counted) {
  each_pack(by_packs, g.by_x, packs, [&](const Place& place) {
    A sums[V];
#pragma unroll
    for (int v = 0; v < V; v++) sums[v] = zero<A>();
    each_window_of(g, place, [&](int, int o, int p, int q, index_t from) {
      const Pack<T, V> shares = load(dy + from);
      const R by = divisor(g, counted, o, p, q);
#pragma unroll
      for (int v = 0; v < V; v++) sums[v] = add(sums[v], divide(to_acc(shares.at[v]), by));
    });
    Pack<T, V> done;
#pragma unroll
    for (int v = 0; v < V; v++) done.at[v] = from_acc(sums[v]);
    store(dx + place.element, done);
  });
}

#endif
