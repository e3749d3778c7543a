// The parts that every kernel of this folder shares: dtype, geometry, divisions, positions, bias and activation.
//
//   -DDTYPE=   0 float16   1 bfloat16   2 float32   3 float64   4 complex64   5 complex128
//              6 int8   7 uint8   8 int16   9 uint16   10 int32   11 int64: where a file says so
//   -DINDEX64= 1 where an array may have more than 2^30 elements, else 0
//
//   -DWEIGHTS= 6 or 7: weights are int8 or uint8, where they are not of DTYPE and both have 8 bits
//
//   T   the type of arrays     A   the type of sums: float for the 16-bit floats, i64 for integers, int where they have 8
//                                  bits; else T
//   R   the real type of A     index_t   an offset into an array, counted in elements
//   W   the type of weights    Y   the type of a convolution's result and bias: A for integers, else T
//                              F   the type in which factors are multiplied: int for integers of up to 32 bits, else A
//
// The host makes the structs with gpuconv/cuda/arguments.py, which lays out the same fields in the same order.
#pragma once
#include "ptx.cuh"

#ifndef DTYPE
#error "DTYPE says what the arrays hold: 0 float16, 1 bfloat16, 2 float32, 3 float64, and so on as above"
#endif

// ---------------------------------------------------------------------------------------------------------- numbers

typedef long long i64;

#if defined(INDEX64) && INDEX64
typedef i64 index_t;
#else
typedef int index_t;
#endif

template <class Real>
struct alignas(2 * sizeof(Real)) Complex {
  Real x, y;
};
typedef Complex<float> c64;
typedef Complex<double> c128;

#if DTYPE == 0 || DTYPE == 1
typedef u16 T;
typedef float A;
typedef float R;
#elif DTYPE == 2
typedef float T;
typedef float A;
typedef float R;
#elif DTYPE == 3
typedef double T;
typedef double A;
typedef double R;
#elif DTYPE == 4
typedef c64 T;
typedef c64 A;
typedef float R;
#elif DTYPE == 5
typedef c128 T;
typedef c128 A;
typedef double R;
#elif DTYPE == 6 || DTYPE == 7
#if DTYPE == 6
typedef signed char T;
#else
typedef u8 T;
#endif
typedef int A;
typedef int R;
#elif DTYPE >= 8 && DTYPE <= 11
#if DTYPE == 8
typedef short T;
#elif DTYPE == 9
typedef u16 T;
#elif DTYPE == 10
typedef int T;
#else
typedef i64 T;
#endif
typedef i64 A;
typedef i64 R;
#else
#error "DTYPE is 0 to 11"
#endif
#define IS_16_BIT (DTYPE <= 1)
#define IS_COMPLEX (DTYPE == 4 || DTYPE == 5)
#define IS_INTEGER (DTYPE >= 6)

#if !defined(WEIGHTS)
typedef T W;
#elif WEIGHTS == 6
typedef signed char W;
#elif WEIGHTS == 7
typedef u8 W;
#else
#error "WEIGHTS is 6 or 7"
#endif

#if IS_INTEGER
typedef A Y;
#else
typedef T Y;
#endif
#if DTYPE >= 6 && DTYPE <= 10
typedef int F;
#else
typedef A F;
#endif

#if DTYPE == 0
__device__ __forceinline__ A to_acc(T value) { return f16_to_f32(value); }
__device__ __forceinline__ T from_acc(A sum) { return f32_to_f16(sum); }
#elif DTYPE == 1
__device__ __forceinline__ A to_acc(T value) { return bf16_to_f32(value); }
__device__ __forceinline__ T from_acc(A sum) { return f32_to_bf16(sum); }
#else
__device__ __forceinline__ A to_acc(T value) { return value; }
__device__ __forceinline__ T from_acc(A sum) { return (T)sum; }
#endif
#if IS_INTEGER
__device__ __forceinline__ F to_factor(T value) { return value; }
#ifdef WEIGHTS
__device__ __forceinline__ F to_factor(W value) { return value; }
#endif
__device__ __forceinline__ A from_result(Y value) { return value; }
__device__ __forceinline__ Y to_result(A sum) { return sum; }
#else
__device__ __forceinline__ F to_factor(T value) { return to_acc(value); }
__device__ __forceinline__ A from_result(Y value) { return to_acc(value); }
__device__ __forceinline__ Y to_result(A sum) { return from_acc(sum); }
#endif

// zero<A>(), add, scale by a real, conj and mul_add (a * b + sum, each product and sum in one rounding) for every A. Those of
// integers are exact modulo 2^32 or 2^64: where a sum does not fit, unsigned numbers come back to what is left of it.
template <class Value> struct Zero { __device__ __forceinline__ static Value make() { return Value(0); } };
template <class Real> struct Zero<Complex<Real>> {
  __device__ __forceinline__ static Complex<Real> make() { return Complex<Real>{Real(0), Real(0)}; }
};
template <class Value> __device__ __forceinline__ Value zero() { return Zero<Value>::make(); }

__device__ __forceinline__ float add(float a, float b) { return a + b; }
__device__ __forceinline__ double add(double a, double b) { return a + b; }
#if IS_INTEGER
#if DTYPE <= 7
typedef u32 Bits;
#else
typedef u64 Bits;
#endif
__device__ __forceinline__ A add(A a, A b) { return (A)((Bits)a + (Bits)b); }
#endif
template <class Real>
__device__ __forceinline__ Complex<Real> add(Complex<Real> a, Complex<Real> b) {
  return Complex<Real>{a.x + b.x, a.y + b.y};
}

__device__ __forceinline__ float divide(float a, float by) { return a / by; }
__device__ __forceinline__ double divide(double a, double by) { return a / by; }
template <class Real>
__device__ __forceinline__ Complex<Real> divide(Complex<Real> a, Real by) {
  return Complex<Real>{a.x / by, a.y / by};
}

__device__ __forceinline__ float conj(float a) { return a; }
__device__ __forceinline__ double conj(double a) { return a; }
#if IS_INTEGER
__device__ __forceinline__ F conj(F a) { return a; }
#endif
template <class Real>
__device__ __forceinline__ Complex<Real> conj(Complex<Real> a) {
  return Complex<Real>{a.x, -a.y};
}

__device__ __forceinline__ float mul_add(float a, float b, float sum) { return fmaf(a, b, sum); }
__device__ __forceinline__ double mul_add(double a, double b, double sum) { return fma(a, b, sum); }
#if IS_INTEGER
__device__ __forceinline__ A mul_add(F a, F b, A sum) { return (A)((Bits)a * (Bits)b + (Bits)sum); }
#endif
template <class Real>
__device__ __forceinline__ Complex<Real> mul_add(Complex<Real> a, Complex<Real> b, Complex<Real> sum) {
  return Complex<Real>{mul_add(-a.y, b.y, mul_add(a.x, b.x, sum.x)), mul_add(a.y, b.x, mul_add(a.x, b.y, sum.y))};
}

// N neighbouring elements, moved by one access of up to 16 bytes. The address must be a multiple of the size.
template <class Element, int N>
struct alignas(sizeof(Element) * N) Pack {
  Element at[N];
};

// Replaces each of N values in registers by change(value), TOGETHER of them at a time, in a loop that has the code of
// `change` as few times. Registers have no index, so the values take turns at the first places of the array.
template <int TOGETHER, int N, class Value, class Change>
__device__ __forceinline__ void in_turn(Value* values, Change change) {
  static_assert(N % TOGETHER == 0, "every turn takes as many values");
#pragma unroll 1
  for (int turn = 0; turn < N / TOGETHER; turn++) {
    Value done[TOGETHER];
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) done[i] = change(values[i]);
#pragma unroll
    for (int i = 0; i < N - TOGETHER; i++) values[i] = values[i + TOGETHER];
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) values[N - TOGETHER + i] = done[i];
  }
}

// ---------------------------------------------------------------------------------------------------------- divisions

// n / by for n >= 0 and 1 <= by < 2^31, by a multiplication (Granlund & Montgomery, "Division by invariant integers
// using multiplication", 1994): shift = ceil(log2 by), mul = ceil(2^(32 + shift) / by) - 2^32 for n < 2^31, and the same
// with 64 in the place of 32, in two halves, for longer n.
struct FastDiv {
  u32 mul, shift;
  int by;
  u32 mul64_low, mul64_high;
};

__device__ __forceinline__ int divide(int n, const FastDiv d) {
  return (int)((__umulhi((u32)n, d.mul) + (u32)n) >> d.shift);
}

// The same division, with the remainder in `rest`.
__device__ __forceinline__ int divide(int n, const FastDiv d, int& rest) {
  const int quotient = divide(n, d);
  rest = n - quotient * d.by;
  return quotient;
}
__device__ __forceinline__ i64 divide(i64 n, const FastDiv d, int& rest) {
  const u64 mul = (u64)d.mul64_high << 32 | d.mul64_low;
  const i64 quotient = (i64)((__umul64hi((u64)n, mul) + (u64)n) >> d.shift);
  rest = (int)(n - quotient * d.by);
  return quotient;
}

// ---------------------------------------------------------------------------------------------------------- geometry

// A convolution x -> y of three spatial axes: 1-D and 2-D have leading axes of size 1, kernel 1, stride 1, pad 0.
//
//   x (n, x[0], x[1], x[2], c)    w (kernel[0], kernel[1], kernel[2], c / groups, k)    y (n, y[0], y[1], y[2], k)
//
// Tap r of output p reads position  p * stride + r * dilation - pad  of x. `pad` is that of the low side; the size of y
// gives the high side. No padded axis is longer than 2^31 - 1, so such positions fit an int.
struct Conv {
  int n, c, k, groups;
  int x[3], y[3], kernel[3], stride[3], dilation[3], pad[3];
  int pad_mode;  // 0 zeros   1 reflect   2 replicate   3 circular   4 symmetric
  FastDiv by_x[3], by_y[3], by_stride[3];
};

// The position of x behind padded position `at`, which is counted from the first of x; -1 where it holds a zero.
__device__ __forceinline__ int source(int at, int size, int pad_mode) {
  if ((u32)at < (u32)size) return at;
  if (pad_mode == 0) return -1;
  if (pad_mode == 2) return at < 0 ? 0 : size - 1;
  if (size == 1) return 0;
  // Below 0 each mode reads what it reads some way above: circular and reflect at -at, counted from the other end if
  // circular; symmetric, which repeats both ends, at -at - 1.
  const u32 twice = pad_mode == 4, away = at < 0 ? 0u - (u32)at - twice : (u32)at;
  const u32 turn = 2u * (u32)size - 2u + twice, period = pad_mode == 3 ? (u32)size : turn + twice, rest = away % period;
  if (pad_mode == 3) return (int)(at > 0 || rest == 0 ? rest : (u32)size - rest);
  return (int)(rest < (u32)size ? rest : turn - rest);
}

// The position of x that output `p` reads through tap `r` along `axis`; -1 for a zero.
__device__ __forceinline__ int source(const Conv& g, int axis, int p, int r) {
  return source(p * g.stride[axis] + r * g.dilation[axis] - g.pad[axis], g.x[axis], g.pad_mode);
}

// Replaces padded positions, which are counted from the first of x, by what `source` makes of them. Zero padding takes two
// instructions per position; the code of the other modes, with their divisions, is there once.
template <int N>
__device__ __forceinline__ void sources(int* positions, int size, int pad_mode) {
  if (pad_mode == 0) {
#pragma unroll
    for (int i = 0; i < N; i++) positions[i] = (u32)positions[i] < (u32)size ? positions[i] : -1;
  } else {
    in_turn<1, N>(positions, [&](int at) { return source(at, size, pad_mode); });
  }
}

// The sample and the position of a row of y as a matrix (n * o * p * q, k).
struct Output {
  int n, at[3];
};
__device__ __forceinline__ Output output_of(const Conv& g, index_t row) {
  Output out;
  row = divide(row, g.by_y[2], out.at[2]);
  row = divide(row, g.by_y[1], out.at[1]);
  out.n = (int)divide(row, g.by_y[0], out.at[0]);
  return out;
}

// The sample and the position of a pixel of x, given its number.
__device__ __forceinline__ Output input_of(const Conv& g, index_t pixel) {
  Output in;
  pixel = divide(pixel, g.by_x[2], in.at[2]);
  pixel = divide(pixel, g.by_x[1], in.at[1]);
  in.n = (int)divide(pixel, g.by_x[0], in.at[0]);
  return in;
}

// Where each sample has weights of its own, `Conv` describes the convolution of one sample, and a launch has a row of blocks
// per sample, blockIdx.y, whose arrays begin so many elements after those of the sample before. Else there is one row, and
// the arrays begin where they are.
template <class Element>
__device__ __forceinline__ Element* of_sample(Element* array, i64 length) {
  return array + (i64)blockIdx.y * length;
}
__device__ __forceinline__ i64 image_length(const int (&size)[3], int channels) {
  return (i64)size[0] * size[1] * size[2] * channels;
}
__device__ __forceinline__ i64 weights_length(const Conv& g) { return image_length(g.kernel, g.c / g.groups) * g.k; }

// ---------------------------------------------------------------------------------------------------------- epilogue

// activation(sum + bias[channel]); bias may be null. A NaN stays one. 0 identity, 1 relu, 2 sigmoid, 3 tanh, 4 relu6,
// 5 leaky_relu, 6 silu, 7 hard_swish, 8 gelu.
#if IS_COMPLEX
__device__ __forceinline__ A activated(A sum, int) { return sum; }
#elif IS_INTEGER
__device__ __forceinline__ A activated(A sum, int activation) { return activation == 1 && sum < 0 ? 0 : sum; }
#else
__device__ __forceinline__ float tanh_of(float a) { return tanhf(a); }
__device__ __forceinline__ double tanh_of(double a) { return tanh(a); }
__device__ __forceinline__ float exp_of(float a) { return expf(a); }
__device__ __forceinline__ double exp_of(double a) { return exp(a); }
__device__ __forceinline__ float erfc_of(float a) { return erfcf(a); }
__device__ __forceinline__ double erfc_of(double a) { return erfc(a); }

// The sigmoid is made of tanh, because 1 / (1 + exp(-sum)) would overflow. Both take the same way, for one code: adding -0
// changes nothing.
__device__ __forceinline__ A activated(A sum, int activation) {
  if (activation == 0) return sum;
  if (activation == 1) return sum < A(0) ? A(0) : sum;
  if (activation == 4) return sum < A(0) ? A(0) : sum > A(6) ? A(6) : sum;
  if (activation == 5) return sum < A(0) ? A(0.01) * sum : sum;
  if (activation == 6) return sum / (A(1) + exp_of(-sum));  // exp may be infinite, and the result is then 0
  if (activation == 7) {
    const A factor = sum * A(1.0 / 6) + A(0.5);
    return sum * (factor < A(0) ? A(0) : factor > A(1) ? A(1) : factor);
  }
  if (activation == 8) return A(0.5) * sum * erfc_of(sum * A(-0.70710678118654752440));
  const A scale = activation == 2 ? A(0.5) : A(1), shift = activation == 2 ? A(0.5) : A(-0.0);
  return scale * tanh_of(scale * sum) + shift;
}
#endif

// Applies the activation to N numbers in registers. Only the short ones are written out N times: with tanh the code of a
// tile would be longer than all else of a kernel, and each warp would jump over it N times where it is not wanted.
template <int N>
__device__ __forceinline__ void activate(A* values, int activation) {
#if !IS_COMPLEX
  if (activation == 1) {
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = activated(values[i], 1);
  } else if (activation) {
    in_turn<N % 4 ? 1 : 4, N>(values, [&](A value) { return activated(value, activation); });
  }
#endif
}

// Makes results of the sums of N neighbouring channels.
template <int N>
__device__ __forceinline__ void finish(A* sums, const T* __restrict__ bias, int channel, int activation) {
  if (bias) {
#pragma unroll
    for (int i = 0; i < N; i++) sums[i] = add(sums[i], to_acc(bias[channel + i]));
  }
  activate<N>(sums, activation);
}
