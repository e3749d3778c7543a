// col2im, the adjoint of im2col: every element of the columns is added to the position of x that it came from.
//
//     cols (g, m, t r s c/g),  m = (n, o, p, q)          x (n, d, h, w, c)
//
//     x[h]  =  sum over the taps r that reach it, in row order, of  cols[m = p, tap r],   p = (h + pad - r dilation) / stride
//
//     3 taps, stride 1, no pad:        p = 0   1   2
//                                 r = 0    a   d   g         x[0] = a
//                                 r = 1    b   e   h         x[1] = b + d
//                                 r = 2    c   f   i         x[2] = c + e + g        x[3] = f + h      x[4] = i
//
// Three kernels. All sum in A.
//
//   col2im_gather      each position fetches its own terms: one thread writes it, in a fixed order, so that the result
//   col2im_gather_acc  is the same on every run. The second takes columns of type A: the products of an input gradient,
//                      not yet rounded. Both then add the bias and apply the activation (those of a transposed
//                      convolution; else null and 0), and round once.
//   col2im_scatter     each element of the columns is added to its position atomically: the order of the additions, and
//                      with it the rounding, varies between runs. x is of type A and holds zeros before.
//
// A gather makes `count` pixels of x from pixel `first` on. It needs only the outputs that reach those: the columns hold
// those of `box`, samples from box.n0 on, `outputs[a]` positions of each axis from `low[a]` on; g.y is not used.
//
//     launch   gather: block (256), grid any.  A thread: one pixel, as many channels as fill 16 bytes of the columns
//              (WIDE = 1: that number divides c / groups, addresses are multiples of 16), or one (WIDE = 0).
//              by_packs divides by the number of threads per pixel.
//              scatter: block and grid as im2col; groups = 1
//              shared bytes 0
//
// Bytes: a gather reads each element of the columns once and writes x once; floor (|cols| + |x|) / copy bandwidth. Loads
// are contiguous along c. Scatter reads cols once and adds each element in the L2 cache.
// Occupancy: 16 bytes per load; at 48 registers 5 blocks of 256 threads per SM (62%), 20 KB and more in flight.
//
// budget: col2im_gather 64 registers
// budget: col2im_gather_acc 64 registers
// budget: col2im_scatter 64 registers
#include "conv.cuh"

struct Box {
  int n0, n;
  int low[3], outputs[3];
};

// The output, counted within the box, whose tap reaches position `at` of x along an axis; -1 if there is none.
__device__ __forceinline__ int reached(const Conv& g, const Box& box, int axis, int at, int tap) {
  const int start = at + g.pad[axis] - tap * g.dilation[axis];
  if (start < 0) return -1;
  const int p = divide(start, g.by_stride[axis]);
  const int inside = p - box.low[axis];
  return p * g.stride[axis] == start && (u32)inside < (u32)box.outputs[axis] ? inside : -1;
}

// An element of the columns, of type T or A, as a summand.
__device__ __forceinline__ A widened(T value) { return to_acc(value); }
#if IS_16_BIT
__device__ __forceinline__ A widened(A value) { return value; }
#endif

template <class S, int V>
__device__ __forceinline__ void gather(const S* __restrict__ cols, const T* __restrict__ bias, T* __restrict__ x,
                                       const Conv& g, const Box& box, const FastDiv& by_packs, index_t first,
                                       index_t count, int activation, int bias_length) {
  const int c_group = g.c / g.groups, taps_rs = g.kernel[1] * g.kernel[2];
  const index_t width = (index_t)g.kernel[0] * taps_rs * c_group;
  const index_t stop = count * by_packs.by, step = (index_t)gridDim.x * blockDim.x;

  for (index_t i = (index_t)blockIdx.x * blockDim.x + threadIdx.x; i < stop; i += step) {
    int pack;
    const index_t pixel = first + divide(i, by_packs, pack);
    const Output in = input_of(g, pixel);
    const int c = pack * V;
    const S* from = cols + c;
    if (g.groups > 1) {
      const int group = c / c_group;
      const index_t rows = (index_t)box.n * box.outputs[0] * box.outputs[1] * box.outputs[2];
      from += group * (rows * width - c_group);
    }

    A sums[V];
#pragma unroll
    for (int v = 0; v < V; v++) sums[v] = zero<A>();
    for (int t = 0; t < g.kernel[0]; t++) {
      const int o = reached(g, box, 0, in.at[0], t);
      if (o < 0) continue;
      for (int r = 0; r < g.kernel[1]; r++) {
        const int p = reached(g, box, 1, in.at[1], r);
        if (p < 0) continue;
        const index_t line = (((index_t)(in.n - box.n0) * box.outputs[0] + o) * box.outputs[1] + p) * box.outputs[2];
        const S* const at_line = from + line * width + (t * taps_rs + r * g.kernel[2]) * c_group;
        for (int s = 0; s < g.kernel[2]; s++) {
          const int q = reached(g, box, 2, in.at[2], s);
          if (q < 0) continue;
          const Pack<S, V> values = *(const Pack<S, V>*)(at_line + q * width + s * c_group);
#pragma unroll
          for (int v = 0; v < V; v++) sums[v] = add(sums[v], widened(values.at[v]));
        }
      }
    }

    finish<V>(sums, bias + (i64)in.n * bias_length, c, activation);
    Pack<T, V> done;
#pragma unroll
    for (int v = 0; v < V; v++) done.at[v] = from_acc(sums[v]);
    *(Pack<T, V>*)(x + pixel * g.c + c) = done;
  }
}

// Channels per thread, for columns of type S.
template <class S>
__device__ constexpr int channels() {
  return WIDE ? 16 / (int)sizeof(S) : 1;
}

extern "C" __global__ void __launch_bounds__(256, 4)
    col2im_gather(const T* __restrict__ cols, const T* __restrict__ bias, T* __restrict__ x, const Conv g,
                  const Box box, const FastDiv by_packs, index_t first, index_t count, int activation, int bias_length) {
  gather<T, channels<T>()>(cols, bias, x, g, box, by_packs, first, count, activation, bias_length);
}

#if IS_16_BIT
extern "C" __global__ void __launch_bounds__(256, 4)
    col2im_gather_acc(const A* __restrict__ cols, const T* __restrict__ bias, T* __restrict__ x, const Conv g,
                      const Box box, const FastDiv by_packs, index_t first, index_t count, int activation, int bias_length) {
  gather<A, channels<A>()>(cols, bias, x, g, box, by_packs, first, count, activation, bias_length);
}
#endif

__device__ __forceinline__ void add_atomically(float* sum, float value) { atomicAdd(sum, value); }
__device__ __forceinline__ void add_atomically(double* sum, double value) { atomicAdd(sum, value); }
template <class Real>
__device__ __forceinline__ void add_atomically(Complex<Real>* sum, Complex<Real> value) {
  atomicAdd(&sum->x, value.x);
  atomicAdd(&sum->y, value.y);
}

extern "C" __global__ void __launch_bounds__(256, 4)
    col2im_scatter(const T* __restrict__ cols, A* __restrict__ x, const Conv g, index_t rows) {
  const int width = g.kernel[0] * g.kernel[1] * g.kernel[2] * g.c;
  const index_t step = (index_t)gridDim.x * blockDim.y;

  for (index_t j = (index_t)blockIdx.y * blockDim.x + threadIdx.x; j < width; j += (index_t)gridDim.y * blockDim.x) {
    const int tap = (int)j / g.c, plane = tap / g.kernel[2], c = (int)j - tap * g.c;
    const int r[3] = {plane / g.kernel[1], plane % g.kernel[1], tap % g.kernel[2]};
    for (index_t row = (index_t)blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += step) {
      const Output out = output_of(g, row);
      const int d = source(g, 0, out.at[0], r[0]), h = source(g, 1, out.at[1], r[1]), w = source(g, 2, out.at[2], r[2]);
      if (d < 0 || h < 0 || w < 0) continue;
      const index_t at = ((((index_t)out.n * g.x[0] + d) * g.x[1] + h) * g.x[2] + w) * g.c + c;
      add_atomically(x + at, to_acc(cols[row * width + j]));
    }
  }
}
