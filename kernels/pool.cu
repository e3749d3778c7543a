// Max and average pooling of images, channels last, and their gradients.
//
//     x (n, h, w, c)       y (n, p, q, c)       windows of kernel[1] x kernel[2], axes 1 and 2 of the geometry
//
//     max_pool            y = the largest of the window; of several the first in row order. A NaN is larger than all.
//     max_pool_argmax     argmax = the tap of that value, r * kernel[2] + s
//     max_pool_grad       dx = the sum of the dy of those windows whose argmax it is
//     avg_pool            y = the sum of the window, in row order, / count
//     avg_pool_grad       dx = the sum over the windows that hold it, in row order of its taps there, of dy / count
//
// count is kernel[1] * kernel[2], or with count_pads = 0 the positions of x in the window. Every window holds one at
// least. Gradients are fetched, not handed out: one thread writes a dx, in a fixed order, and nothing is atomic.
//
//     launch   block (256), grid any, shared bytes 0
//              A thread: one pixel of the result, as many channels as fill 16 bytes (WIDE = 1: that number divides c,
//              addresses are multiples of 16), or one (WIDE = 0). by_packs divides by the threads per pixel.
//              argmax: ARGMAX_BYTES per element of y, 1 for windows of up to 255 taps, else 4.  Maxima: real dtypes only.
//
// Bytes, each once from memory; where windows overlap the rest comes from the caches:
//     max_pool, avg_pool |x| + |y|;  argmax |x| + y;  max_pool_grad y + |dy| + |dx|;  avg_pool_grad |dy| + |dx|
// Floor: that / copy bandwidth. Occupancy: at 48 registers 5 blocks of 256 threads per SM (62%), 20 KB and more in flight.
//
// budget: max_pool 64 registers
// budget: max_pool_argmax 64 registers
// budget: max_pool_grad 64 registers
// budget: avg_pool 64 registers
// budget: avg_pool_grad 64 registers
#include "conv.cuh"

constexpr int V = WIDE ? 16 / (int)sizeof(T) : 1;

#if ARGMAX_BYTES == 1
typedef u8 Argmax;
#else
typedef int Argmax;
#endif

// Calls visit(n, at, element) for every pack of an array of pixels (n, sizes[1], sizes[2]); element is its offset.
template <class Visit>
__device__ __forceinline__ void each_pack(const FastDiv& by_packs, const FastDiv& by_w, const FastDiv& by_h,
                                          index_t packs, Visit visit) {
  const index_t step = (index_t)gridDim.x * blockDim.x;
  for (index_t i = (index_t)blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += step) {
    int pack, h, w;
    const index_t pixel = divide(i, by_packs, pack);
    const int n = (int)divide(divide(pixel, by_w, w), by_h, h);
    visit(n, h, w, pack * V, i * V);
  }
}

// Calls visit(tap, element) for every position of x in a window, in row order, channels from c on.
template <class Visit>
__device__ __forceinline__ void each_of_window(const Conv& g, int n, int p, int q, int c, Visit visit) {
  for (int r = 0; r < g.kernel[1]; r++) {
    const int h = p * g.stride[1] + r * g.dilation[1] - g.pad[1];
    if ((u32)h >= (u32)g.x[1]) continue;
    const index_t line = ((index_t)n * g.x[1] + h) * g.x[2];
    for (int s = 0; s < g.kernel[2]; s++) {
      const int w = q * g.stride[2] + s * g.dilation[2] - g.pad[2];
      if ((u32)w < (u32)g.x[2]) visit(r * g.kernel[2] + s, (line + w) * g.c + c);
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

// Calls visit(tap, p, q, element) for every window that holds a position of x, in row order of its taps there.
template <class Visit>
__device__ __forceinline__ void each_window_of(const Conv& g, int n, int h, int w, int c, Visit visit) {
  for (int r = 0; r < g.kernel[1]; r++) {
    const int p = output_over(g, 1, h, r);
    if (p < 0) continue;
    const index_t line = ((index_t)n * g.y[1] + p) * g.y[2];
    for (int s = 0; s < g.kernel[2]; s++) {
      const int q = output_over(g, 2, w, s);
      if (q >= 0) visit(r * g.kernel[2] + s, p, q, (line + q) * g.c + c);
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

// Walks over a window: `best` are its largest values, unchanged from x, and `argmax` their taps.
__device__ __forceinline__ void largest(const T* __restrict__ x, const Conv& g, int n, int p, int q, int c,
                                        Pack<T, V>& best, Pack<int, V>& argmax) {
#pragma unroll
  for (int v = 0; v < V; v++) argmax.at[v] = -1;
  each_of_window(g, n, p, q, c, [&](int tap, index_t element) {
    const Pack<T, V> values = load(x + element);
#pragma unroll
    for (int v = 0; v < V; v++) {
      const A value = to_acc(values.at[v]), so_far = to_acc(best.at[v]);
      if (argmax.at[v] < 0 || value > so_far || (value != value && so_far == so_far)) {
        best.at[v] = values.at[v];
        argmax.at[v] = tap;
      }
    }
  });
}

extern "C" __global__ void __launch_bounds__(256, 4)
    max_pool(const T* __restrict__ x, T* __restrict__ y, const Conv g, const FastDiv by_packs, index_t packs) {
  each_pack(by_packs, g.by_y[2], g.by_y[1], packs, [&](int n, int p, int q, int c, index_t element) {
    Pack<T, V> best = {};
    Pack<int, V> argmax;
    largest(x, g, n, p, q, c, best, argmax);
    store(y + element, best);
  });
}

extern "C" __global__ void __launch_bounds__(256, 4)
    max_pool_argmax(const T* __restrict__ x, unsigned char* __restrict__ all_argmax, const Conv g, const FastDiv by_packs,
                    index_t packs) {
  each_pack(by_packs, g.by_y[2], g.by_y[1], packs, [&](int n, int p, int q, int c, index_t element) {
    Pack<T, V> best = {};
    Pack<int, V> argmax;
    largest(x, g, n, p, q, c, best, argmax);
    Pack<Argmax, V> kept;
#pragma unroll
    for (int v = 0; v < V; v++) kept.at[v] = (Argmax)argmax.at[v];
    store(reinterpret_cast<Argmax*>(all_argmax) + element, kept);
  });
}

extern "C" __global__ void __launch_bounds__(256, 4)
    max_pool_grad(const T* __restrict__ dy, const unsigned char* __restrict__ all_argmax, T* __restrict__ dx, const Conv g,
                  const FastDiv by_packs, index_t packs) {
  each_pack(by_packs, g.by_x[2], g.by_x[1], packs, [&](int n, int h, int w, int c, index_t element) {
    A sums[V] = {};
    each_window_of(g, n, h, w, c, [&](int tap, int, int, index_t from) {
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
    store(dx + element, done);
  });
}

#endif

// The number of taps of output p that meet x along an axis.
__device__ __forceinline__ int meeting(const Conv& g, int axis, int p) {
  int count = 0;
  for (int r = 0; r < g.kernel[axis]; r++) {
    count += (u32)(p * g.stride[axis] + r * g.dilation[axis] - g.pad[axis]) < (u32)g.x[axis];
  }
  return count;
}

// The divisor of the sum over the window of an output.
__device__ __forceinline__ R divisor(const Conv& g, int p, int q, int count_pads) {
  if (count_pads) return (R)((i64)g.kernel[1] * g.kernel[2]);
  return (R)((i64)meeting(g, 1, p) * meeting(g, 2, q));
}

extern "C" __global__ void __launch_bounds__(256, 4)
    avg_pool(const T* __restrict__ x, T* __restrict__ y, const Conv g, const FastDiv by_packs, index_t packs,
             int count_pads) {
  each_pack(by_packs, g.by_y[2], g.by_y[1], packs, [&](int n, int p, int q, int c, index_t element) {
    A sums[V];
#pragma unroll
    for (int v = 0; v < V; v++) sums[v] = zero<A>();
    each_of_window(g, n, p, q, c, [&](int, index_t from) {
      const Pack<T, V> values = load(x + from);
#pragma unroll
      for (int v = 0; v < V; v++) sums[v] = add(sums[v], to_acc(values.at[v]));
    });
    const R by = divisor(g, p, q, count_pads);
    Pack<T, V> done;
#pragma unroll
    for (int v = 0; v < V; v++) done.at[v] = from_acc(divide(sums[v], by));
    store(y + element, done);
  });
}

extern "C" __global__ void __launch_bounds__(256, 4)
    avg_pool_grad(const T* __restrict__ dy, T* __restrict__ dx, const Conv g, const FastDiv by_packs, index_t packs,
                  int count_pads) {
  each_pack(by_packs, g.by_x[2], g.by_x[1], packs, [&](int n, int h, int w, int c, index_t element) {
    A sums[V];
#pragma unroll
    for (int v = 0; v < V; v++) sums[v] = zero<A>();
    each_window_of(g, n, h, w, c, [&](int, int p, int q, index_t from) {
      const Pack<T, V> shares = load(dy + from);
      const R by = divisor(g, p, q, count_pads);
#pragma unroll
      for (int v = 0; v < V; v++) sums[v] = add(sums[v], divide(to_acc(shares.at[v]), by));
    });
    Pack<T, V> done;
#pragma unroll
    for (int v = 0; v < V; v++) done.at[v] = from_acc(sums[v]);
    store(dx + element, done);
  });
}
