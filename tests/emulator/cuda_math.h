// The functions that CUDA C++ has without an include: mathematics, bits, conversions.
#pragma once
#include "runtime.h"

// The C library's, declared here and not included: <math.h> costs more than most kernels.
extern "C" {
#define EMULATOR_MATH1(X)                                                                                              \
  X(sqrt)                                                                                                              \
  X(cbrt) X(exp) X(exp2) X(expm1) X(log) X(log2) X(log10) X(log1p) X(sin) X(cos) X(tan) X(asin) X(acos) X(atan)        \
      X(sinh) X(cosh) X(tanh) X(erf) X(erfc) X(floor) X(ceil) X(trunc) X(round) X(rint) X(nearbyint) X(fabs) X(lgamma) \
          X(tgamma)
#define EMULATOR_MATH2(X) X(pow) X(atan2) X(fmod) X(fmin) X(fmax) X(fdim) X(hypot) X(copysign) X(remainder)
#define EMULATOR_DECLARE1(name) \
  double name(double) noexcept; \
  float name##f(float) noexcept;
#define EMULATOR_DECLARE2(name)         \
  double name(double, double) noexcept; \
  float name##f(float, float) noexcept;
EMULATOR_MATH1(EMULATOR_DECLARE1)
EMULATOR_MATH2(EMULATOR_DECLARE2)
double fma(double, double, double) noexcept;
float fmaf(float, float, float) noexcept;
double ldexp(double, int) noexcept;
float ldexpf(float, int) noexcept;
double frexp(double, int*) noexcept;
float frexpf(float, int*) noexcept;
void sincos(double, double*, double*) noexcept;
void sincosf(float, float*, float*) noexcept;
int abs(int) noexcept;
long labs(long) noexcept;
long long llabs(long long) noexcept;
}
#define EMULATOR_OVERLOAD1(name) \
  inline float name(float x) { return name##f(x); }
#define EMULATOR_OVERLOAD2(name) \
  inline float name(float x, float y) { return name##f(x, y); }
EMULATOR_MATH1(EMULATOR_OVERLOAD1)
EMULATOR_MATH2(EMULATOR_OVERLOAD2)
inline float fma(float a, float b, float c) { return fmaf(a, b, c); }
inline float ldexp(float a, int e) { return ldexpf(a, e); }
inline float frexp(float a, int* e) { return frexpf(a, e); }
inline float abs(float x) { return fabsf(x); }
inline double abs(double x) { return fabs(x); }
inline long abs(long x) { return labs(x); }
inline long long abs(long long x) { return llabs(x); }
inline bool isnan(float x) { return x != x; }
inline bool isnan(double x) { return x != x; }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isinf(double x) { return __builtin_isinf(x); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }
inline bool isfinite(double x) { return __builtin_isfinite(x); }
inline bool signbit(float x) { return __builtin_signbit(x); }
inline bool signbit(double x) { return __builtin_signbit(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }

#define EMULATOR_MINMAX(T)                         \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
EMULATOR_MINMAX(int)
EMULATOR_MINMAX(unsigned)
EMULATOR_MINMAX(long)
EMULATOR_MINMAX(unsigned long)
EMULATOR_MINMAX(long long)
EMULATOR_MINMAX(unsigned long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }  // CUDA's mixed pairs
inline unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
inline unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }
inline unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
inline long long llmin(long long a, long long b) { return min(a, b); }
inline long long llmax(long long a, long long b) { return max(a, b); }
inline unsigned umin(unsigned a, unsigned b) { return min(a, b); }
inline unsigned umax(unsigned a, unsigned b) { return max(a, b); }

// Fast, less accurate on a device; here as good as the others.
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frsqrt_rn(float a) { return (float)(1.0 / sqrt((double)a)); }
inline float __saturatef(float a) { return a > 0.0f ? a < 1.0f ? a : 1.0f : 0.0f; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
// Never contracted to a multiply-add, which is why a kernel writes them: the result takes the way through memory.
inline float __fadd_rn(float a, float b) {
  volatile float r = a + b;
  return r;
}
inline float __fsub_rn(float a, float b) {
  volatile float r = a - b;
  return r;
}
inline float __fmul_rn(float a, float b) {
  volatile float r = a * b;
  return r;
}
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) {
  volatile double r = a + b;
  return r;
}
inline double __dsub_rn(double a, double b) {
  volatile double r = a - b;
  return r;
}
inline double __dmul_rn(double a, double b) {
  volatile double r = a * b;
  return r;
}

template <class To, class From>
inline To emulator_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "as many bits as before");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}
inline float __int_as_float(int i) { return emulator_bits<float>(i); }
inline float __uint_as_float(unsigned i) { return emulator_bits<float>(i); }
inline int __float_as_int(float f) { return emulator_bits<int>(f); }
inline unsigned __float_as_uint(float f) { return emulator_bits<unsigned>(f); }
inline double __longlong_as_double(long long i) { return emulator_bits<double>(i); }
inline long long __double_as_longlong(double f) { return emulator_bits<long long>(f); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; i++) r |= (x >> i & 1u) << (31 - i);
  return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }
inline int __mul24(int a, int b) {
  return (int)((unsigned)((int)((unsigned)a << 8) >> 8) * (unsigned)((int)((unsigned)b << 8) >> 8));
}
inline unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffffu) * (b & 0xffffffu); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) {
  return (unsigned)((((unsigned long long)high << 32 | low) << (n & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) {
  return (unsigned)(((unsigned long long)high << 32 | low) >> (n & 31));
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long bytes = (unsigned long long)b << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; i++) r |= (unsigned)(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return r;
}

// Float to integer saturates on a device, and a NaN becomes 0.
template <class To, class From>
inline To emulator_to_integer(From f, From low, From end, To least, To most) {
  return f != f ? 0 : f < low ? least : f >= end ? most : (To)f;
}
inline int emulator_int(double f) { return emulator_to_integer<int>(f, -0x1p31, 0x1p31, -0x7fffffff - 1, 0x7fffffff); }
inline unsigned emulator_uint(double f) { return emulator_to_integer<unsigned>(f, 0.0, 0x1p32, 0u, ~0u); }
inline int __float2int_rn(float f) { return emulator_int(rintf(f)); }
inline int __float2int_rz(float f) { return emulator_int(truncf(f)); }
inline int __float2int_rd(float f) { return emulator_int(floorf(f)); }
inline int __float2int_ru(float f) { return emulator_int(ceilf(f)); }
inline unsigned __float2uint_rn(float f) { return emulator_uint(rintf(f)); }
inline unsigned __float2uint_rz(float f) { return emulator_uint(truncf(f)); }
inline int __double2int_rn(double f) { return emulator_int(rint(f)); }
inline int __double2int_rz(double f) { return emulator_int(trunc(f)); }
inline float __int2float_rn(int i) { return (float)i; }
inline float __uint2float_rn(unsigned i) { return (float)i; }
inline double __int2double_rn(int i) { return (double)i; }
inline float __double2float_rn(double d) { return (float)d; }
