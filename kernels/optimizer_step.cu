// One step of an optimizer, for up to four parameters at once: each is updated by its gradient, in place.
//
//   KIND                 p, a and b become, with g the gradient                                  scalars
//   0 plain              p + s0 g                                                                s0 = -lr
//   1 momentum           a = s1 a + s0 g                     p + a                               s1 = momentum
//   2 nesterov           a = s1 a + s0 g                     p + (s0 g + s1 a)
//   3 AdaGrad            a = a + g g                         p - s0 (g / (sqrt(a) + s1))         s0 = lr, s1 = eps
//   4 RMSProp            a = s2 a + s3 (g g)                 p - s0 (g / (sqrt(a) + s1))         s2 = decay, s3 = 1 - s2
//   5 Adam               a = s4 a + s5 g,                                                        s4, s5: those of a
//                        b = s2 b + s3 (g g)                 s6 p - s0 (a / (sqrt(b) + s1))      s6: weight decay
//
//   p0 g0 a0 b0          p1 g1 a1 b1          p2 ...         vectors of T, each parameter with its own length; null where
//   |blocks of 0.......| |blocks of 1.......|                there is none, or where KIND has no such state
//   0 ........ ends[0]-1 ends[0] .. ends[1]-1
//
// Every operation is rounded to T, in the order in which gpuconv/optimizers.py makes them with NumPy, and none is
// contracted: both give the same bits, but for denormals, which CuPy has the compiler flush to zero in float32.
//
// Launch: block (256), grid (ends[3]): ends[i] is where the blocks of parameter i end. Their threads loop over it. No
// dynamic shared memory. No array may overlap one that is written for another parameter.
// Cost: sizeof(T) bytes for each element of p, a and b twice, and of g once; floor: these over 4.3 TB/s on an H200, where
// the parameters of a layer are often bound by the launch instead.
//
// budget: optimizer_step 56 registers
#include "conv.cuh"

struct StepSizes {
  i64 counts[4];
  int ends[4];
};

#if DTYPE == 3
__device__ __forceinline__ A times(A a, A b) { return __dmul_rn(a, b); }
__device__ __forceinline__ A plus(A a, A b) { return __dadd_rn(a, b); }
__device__ __forceinline__ A root(A a) { return sqrt(a); }
#else
__device__ __forceinline__ A rounded(A a) { return to_acc(from_acc(a)); }
__device__ __forceinline__ A times(A a, A b) { return rounded(__fmul_rn(a, b)); }
__device__ __forceinline__ A plus(A a, A b) { return rounded(__fadd_rn(a, b)); }
__device__ __forceinline__ A root(A a) { return rounded(__fsqrt_rn(a)); }
#endif
__device__ __forceinline__ A over(A a, A b) { return to_acc(from_acc(divide(a, b))); }

struct Scalars {
  A at[7];
};

// s0 times g over the root of the squares.
__device__ __forceinline__ A descent(A g, A squares, const Scalars& s) {
  return times(over(g, plus(root(squares), s.at[1])), s.at[0]);
}

__device__ __forceinline__ void step(T* p, const T* g, T* a, T* b, i64 i, const Scalars& s) {
  const A slope = to_acc(g[i]);
  A value = to_acc(p[i]);
  if (KIND == 0) {
    value = plus(value, times(slope, s.at[0]));
  } else if (KIND <= 2) {
    const A change = times(slope, s.at[0]);
    const A velocity = plus(times(to_acc(a[i]), s.at[1]), change);
    a[i] = from_acc(velocity);
    value = plus(value, KIND == 1 ? velocity : plus(change, times(s.at[1], velocity)));
  } else if (KIND <= 4) {
    const A square = times(slope, slope), before = to_acc(a[i]);
    const A squares = KIND == 3 ? plus(before, square) : plus(times(before, s.at[2]), times(square, s.at[3]));
    a[i] = from_acc(squares);
    value = plus(value, -descent(slope, squares, s));
  } else {
    const A mean = plus(times(to_acc(a[i]), s.at[4]), times(slope, s.at[5]));
    const A squares = plus(times(to_acc(b[i]), s.at[2]), times(times(slope, slope), s.at[3]));
    a[i] = from_acc(mean);
    b[i] = from_acc(squares);
    value = plus(times(value, s.at[6]), -descent(mean, squares, s));
  }
  p[i] = from_acc(value);
}

// All elements of one parameter, of whose `blocks` this is number `block`.
__device__ __forceinline__ void all(T* p, const T* g, T* a, T* b, i64 count, int block, int blocks, const Scalars& s) {
  const i64 stride = (i64)blocks * blockDim.x;
  for (i64 i = (i64)block * blockDim.x + threadIdx.x; i < count; i += stride) step(p, g, a, b, i, s);
}

extern "C" __global__ void __launch_bounds__(256)
    optimizer_step(T* p0, const T* g0, T* a0, T* b0, T* p1, const T* g1, T* a1, T* b1, T* p2, const T* g2, T* a2, T* b2,
                   T* p3, const T* g3, T* a3, T* b3, const StepSizes sizes, A s0, A s1, A s2, A s3, A s4, A s5, A s6) {
  const Scalars s = {{s0, s1, s2, s3, s4, s5, s6}};
  const int block = (int)blockIdx.x;
  if (block < sizes.ends[0]) {
    all(p0, g0, a0, b0, sizes.counts[0], block, sizes.ends[0], s);
  } else if (block < sizes.ends[1]) {
    all(p1, g1, a1, b1, sizes.counts[1], block - sizes.ends[0], sizes.ends[1] - sizes.ends[0], s);
  } else if (block < sizes.ends[2]) {
    all(p2, g2, a2, b2, sizes.counts[2], block - sizes.ends[1], sizes.ends[2] - sizes.ends[1], s);
  } else {
    all(p3, g3, a3, b3, sizes.counts[3], block - sizes.ends[2], sizes.ends[3] - sizes.ends[2], s);
  }
}
