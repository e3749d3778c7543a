// What PTX arithmetic means, in C++: the functions that the rows of ptx_arithmetic.py name.
//
// Types are called as in PTX. A value has the type of its instruction; a register holds raw bits (b16, b32, b64), a float,
// a double or a bool.
// 16-bit floats have types of their own, so that nothing computes with their bits by accident.
#pragma once
#include <fenv.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "runtime.h"

namespace ptx {
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef uint8_t u8, b8;
typedef uint16_t u16, b16;
typedef uint32_t u32, b32;
typedef uint64_t u64, b64;
typedef float f32;
typedef double f64;
typedef bool pred;
struct f16 { u16 bits; };
struct bf16 { u16 bits; };
struct tf32 { u32 bits; };
struct f16x2 { u32 bits; };
struct bf16x2 { u32 bits; };

// A function in the code once, however often the PTX has the instruction: modules of 10000 instructions compile in a third
// of the time.
#define ONCE [[gnu::noinline]] inline

// ---- registers -----------------------------------------------------------------------------------------------------
inline u32 bits(f32 x) { u32 r; memcpy(&r, &x, 4); return r; }
inline u64 bits(f64 x) { u64 r; memcpy(&r, &x, 8); return r; }
inline u16 bits(f16 x) { return x.bits; }
inline u16 bits(bf16 x) { return x.bits; }
inline u32 bits(tf32 x) { return x.bits; }
inline u32 bits(f16x2 x) { return x.bits; }
inline u32 bits(bf16x2 x) { return x.bits; }
template <class T> inline T bits(T integer) { return integer; }

// The value of type T in a register: its low bits, where the register is wider.
template <class T, class Register> inline T as(Register raw) {
  static_assert(sizeof(T) <= sizeof(Register), "a register narrower than the type of the instruction");
  T value;
  memcpy(&value, &raw, sizeof(T));
  return value;
}
// Sign or zero extension to the width of the register.
template <class Register, class T> inline void set(Register& target, T value) {
  static_assert(sizeof(T) <= sizeof(Register), "a register narrower than the type of the instruction");
  target = (Register)bits(value);
}
inline void set(f32& target, b32 raw) { target = as<f32>(raw); }
inline void set(f64& target, b64 raw) { target = as<f64>(raw); }
inline void set(f32& target, s32 raw) { target = as<f32>(raw); }
inline void set(f64& target, s64 raw) { target = as<f64>(raw); }

// ---- integers --------------------------------------------------------------------------------------------------------
inline u32 u(s16 x) { return (u32)x; }
inline u32 u(u16 x) { return x; }
inline u32 u(s32 x) { return (u32)x; }
inline u32 u(u32 x) { return x; }
inline u64 u(s64 x) { return (u64)x; }
inline u64 u(u64 x) { return x; }
template <class T> constexpr bool is_signed = (T)-1 < (T)0;
template <class T> constexpr unsigned width = sizeof(T) * 8;
template <class T> constexpr T lowest = is_signed<T> ? (T)((u64)1 << (width<T> - 1)) : (T)0;
template <class T> constexpr T highest = (T)~lowest<T>;

inline s16 high(s16 a, s16 b) { return (s16)((s32)a * b >> 16); }
inline u16 high(u16 a, u16 b) { return (u16)((u32)a * b >> 16); }
inline s32 high(s32 a, s32 b) { return (s32)((s64)a * b >> 32); }
inline u32 high(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
inline s64 high(s64 a, s64 b) { return (s64)((__int128)a * b >> 64); }
inline u64 high(u64 a, u64 b) { return (u64)((unsigned __int128)a * b >> 64); }
inline s32 low24(s32 x) { return (s32)((u32)x << 8) >> 8; }
inline u32 low24(u32 x) { return x & 0xffffff; }
inline u64 pair(b32 low, b32 high) { return (u64)high << 32 | low; }

template <class To, class From> inline To saturate(From x) {
  __int128 wide = x;
  return wide < lowest<To> ? lowest<To> : wide > highest<To> ? highest<To> : (To)x;
}
template <class T> ONCE T divide(T a, T b, emulator::Site site) {
  if (b == 0) emulator::fault(site, "integer division by zero");
  return is_signed<T> && b == (T)-1 ? (T)(0 - u(a)) : (T)(a / b);
}
template <class T> ONCE T remainder(T a, T b, emulator::Site site) {
  if (b == 0) emulator::fault(site, "integer remainder by zero");
  return is_signed<T> && b == (T)-1 ? (T)0 : (T)(a % b);
}
template <class U> inline U add_carry(U a, U b, bool in, bool& out) {
  unsigned __int128 sum = (unsigned __int128)a + b + in;
  out = (bool)(sum >> width<U>);
  return (U)sum;
}
template <class U> inline U subtract_borrow(U a, U b, bool in, bool& out) {
  unsigned __int128 difference = (unsigned __int128)a - b - in;
  out = (bool)(difference >> width<U> & 1);
  return (U)difference;
}
template <class T> inline T shift_left(T a, u32 n) { return n < width<T> ? (T)((u64)a << n) : (T)0; }
template <class T> inline T shift_right(T a, u32 n) {
  return n < width<T> ? (T)(a >> n) : is_signed<T> ? (T)(a >> (width<T> - 1)) : (T)0;
}
template <class T> inline u32 leading_zeros(T a) { return a ? (u32)__builtin_clzll((u64)a) - (64 - width<T>) : width<T>; }
template <class T> inline T reverse_bits(T a) {
  T r = 0;
  for (unsigned i = 0; i < width<T>; i++) r = (T)(r << 1 | (a >> i & 1));
  return r;
}
template <class T> inline u32 find_bit(T a, bool as_shift) {
  if (is_signed<T> && a < 0) a = (T)~a;
  if (a == 0) return ~0u;
  u32 shift = (u32)__builtin_clzll((u64)a) - (64 - width<T>);
  return as_shift ? shift : width<T> - 1 - shift;
}
inline u64 ones(u32 n) { return n >= 64 ? ~(u64)0 : ((u64)1 << n) - 1; }
template <class T> inline T extract_bits(T a, u32 position, u32 length) {
  position &= 255, length &= 255;
  if (length == 0) return 0;
  u32 there = position >= width<T> ? 0 : length < width<T> - position ? length : width<T> - position;
  u64 field = there ? (u64)a >> position & ones(there) : 0;
  u32 sign_at = position + length - 1 < width<T> ? position + length - 1 : width<T> - 1;
  return (T)(is_signed<T> && (u64)a >> sign_at & 1 ? field | ~ones(there) : field);
}
template <class T> inline T insert_bits(T field, T into, u32 position, u32 length) {
  position &= 255, length &= 255;
  if (position >= width<T>) return into;
  T mask = (T)(ones(length) << position);
  return (T)((into & ~mask) | ((T)(field << position) & mask));
}
inline b32 permute(b32 a, b32 b, b32 selector) {
  u64 bytes = pair(a, b);
  u32 r = 0;
  for (int i = 0; i < 4; i++) {
    u32 s = selector >> 4 * i, byte = (u32)(bytes >> 8 * (s & 7)) & 255;
    r |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
  }
  return r;
}
inline b32 lop3(b32 a, b32 b, b32 c, u32 table) {
  auto when = [&](int row, b32 mask) { return table >> row & 1 ? mask : 0; };
  return when(0, ~a & ~b & ~c) | when(1, ~a & ~b & c) | when(2, ~a & b & ~c) | when(3, ~a & b & c) | when(4, a & ~b & ~c) |
         when(5, a & ~b & c) | when(6, a & b & ~c) | when(7, a & b & c);
}
template <class Sum, class A, class B> inline Sum dot_bytes(A a, B b, Sum c) {
  u32 sum = (u32)c;
  for (int i = 0; i < 32; i += 8) {
    s32 x = is_signed<A> ? (s32)(s8)(a >> i) : (s32)(u8)(a >> i), y = is_signed<B> ? (s32)(s8)(b >> i) : (s32)(u8)(b >> i);
    sum += (u32)(x * y);
  }
  return (Sum)sum;
}

// ---- modes of floating point -------------------------------------------------------------------------------------------
enum Mode : unsigned { exact = 0, ftz = 1, sat = 2, relu = 4, rz = 8, rm = 16, rp = 32, NaN = 64, xorsign = 128 };

inline f64 to_f64(f64 x) { return x; }
inline f64 to_f64(f32 x) { return x; }
inline f64 to_f64(f16 x) { return emulator::half_to_float(x.bits); }
inline f64 to_f64(bf16 x) { return emulator::bfloat16_to_float(x.bits); }

// .ftz: a subnormal float becomes a zero of its sign. It has no meaning for double.
template <unsigned M> inline f32 flush(f32 x) { return M & ftz && fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }
template <unsigned M> inline f64 flush(f64 x) { return x; }
template <unsigned M> inline f32 flush(f16 x) { return emulator::half_to_float(x.bits); }
template <unsigned M> inline f32 flush(bf16 x) { return emulator::bfloat16_to_float(x.bits); }
template <unsigned M, class T> inline T flush(T integer) { return integer; }

template <unsigned M, class T> inline T finish(T x) {
  if (M & sat) x = x > 0 ? (x < 1 ? x : (T)1) : (T)0;   // NaN to 0
  return flush<M>(x);
}
// Evaluates f(x...) in the rounding of M. The empty asm keeps the compiler from working it out in another one.
template <unsigned M, class F, class... T> inline auto directed(F f, T... x) {
  if constexpr (!(M & (rz | rm | rp))) return f(x...);
  else {
    int before = fegetround();
    fesetround(M & rz ? FE_TOWARDZERO : M & rm ? FE_DOWNWARD : FE_UPWARD);
    (([&] { asm volatile("" : "+m"(x) : : "memory"); }()), ...);
    auto r = f(x...);
    asm volatile("" : "+m"(r) : : "memory");
    fesetround(before);
    return r;
  }
}
template <unsigned M, class F, class... T> inline auto compute(F f, T... x) { return finish<M>(directed<M>(f, flush<M>(x)...)); }
template <unsigned M, class T> ONCE T add(T a, T b) { return compute<M>([](T x, T y) { return x + y; }, a, b); }
template <unsigned M, class T> ONCE T sub(T a, T b) { return compute<M>([](T x, T y) { return x - y; }, a, b); }
template <unsigned M, class T> ONCE T mul(T a, T b) { return compute<M>([](T x, T y) { return x * y; }, a, b); }
template <unsigned M, class T> ONCE T div(T a, T b) { return compute<M>([](T x, T y) { return x / y; }, a, b); }
inline f32 fused(f32 a, f32 b, f32 c) { return fmaf(a, b, c); }
inline f64 fused(f64 a, f64 b, f64 c) { return ::fma(a, b, c); }
template <unsigned M, class T> ONCE T fma(T a, T b, T c) { return compute<M>([](T x, T y, T z) { return fused(x, y, z); }, a, b, c); }
inline f32 root(f32 x) { return sqrtf(x); }
inline f64 root(f64 x) { return sqrt(x); }
template <unsigned M, class T> ONCE T square_root(T a) { return compute<M>([](T x) { return root(x); }, a); }
template <unsigned M, class F> ONCE f32 unary(f32 a, F f) { return compute<M>(f, a); }
inline f32 reciprocal_root(f32 x) { return (f32)(1 / sqrt((f64)x)); }
// rcp and rsqrt .approx.ftz.f64 read and write the upper 32 bits only
inline f64 upper_word(f64 x) { return as<f64>(bits(x) & 0xffffffff00000000ull); }

template <unsigned M, class T> inline T smaller(T a, T b) {
  if (a != a || b != b) return M & NaN ? (T)NAN : a != a ? b : a;
  return a < b || (a == b && signbit(a)) ? a : b;               // -0 is below +0
}
template <unsigned M, class T> ONCE T minimum(T a, T b) {
  a = flush<M>(a), b = flush<M>(b);
  if (M & xorsign) return (T)copysign(smaller<M>((T)fabs(a), (T)fabs(b)), signbit(a) != signbit(b) ? -1.0 : 1.0);
  return smaller<M>(a, b);
}
template <unsigned M, class T> ONCE T maximum(T a, T b) {
  a = flush<M>(a), b = flush<M>(b);
  if (M & xorsign) return (T)copysign(-smaller<M>((T)-fabs(a), (T)-fabs(b)), signbit(a) != signbit(b) ? -1.0 : 1.0);
  return -smaller<M>(-a, -b);
}
template <class T> inline bool test_finite(T x) { return isfinite(x); }
template <class T> inline bool test_infinite(T x) { return isinf(x); }
template <class T> inline bool test_number(T x) { return !isnan(x); }
template <class T> inline bool test_notanumber(T x) { return isnan(x); }
template <class T> inline bool test_normal(T x) { return isnormal(x); }
template <class T> inline bool test_subnormal(T x) { return fpclassify(x) == FP_SUBNORMAL; }

// ---- conversions ---------------------------------------------------------------------------------------------------------
inline f64 rni(f64 x) { return nearbyint(x); }
inline f64 rzi(f64 x) { return trunc(x); }
inline f64 rmi(f64 x) { return floor(x); }
inline f64 rpi(f64 x) { return ceil(x); }
inline f64 rni(f16 x) { return nearbyint(to_f64(x)); }
inline f64 rzi(f16 x) { return trunc(to_f64(x)); }
inline f64 rmi(f16 x) { return floor(to_f64(x)); }
inline f64 rpi(f16 x) { return ceil(to_f64(x)); }

// A whole number of a double (exact for every source type but f64 itself, where it is one already), saturated.
template <class To> ONCE To to_integer(f64 x, bool from_double) {
  if (x != x) return from_double || sizeof(To) == 8 ? (To)((u64)1 << (width<To> - 1)) : (To)0;
  if (x <= (f64)lowest<To>) return lowest<To>;
  return x >= (f64)highest<To> ? highest<To> : (To)x;
}

// x as a number of `precision` bits with exponents from `lowest_exponent` up, none above `most`
template <unsigned M> inline f64 round_to(f64 x, int precision, int lowest_exponent, f64 most) {
  if (x == 0 || !isfinite(x)) return x;
  int exponent = ilogb(x) < lowest_exponent ? lowest_exponent : ilogb(x);
  f64 step = ldexp(1.0, exponent - precision + 1), n = x / step;
  f64 r = step * (M & rz ? trunc(n) : M & rm ? floor(n) : M & rp ? ceil(n) : nearbyint(n));
  if (fabs(r) <= most) return copysign(r, x);
  bool away = !(M & (rz | rm | rp)) || (M & rm && x < 0) || (M & rp && x > 0);
  return copysign(away ? INFINITY : most, x);
}
template <class To> struct Narrow;
template <> struct Narrow<f64> { template <unsigned M> static f64 from(f64 x) { return x; } };
template <> struct Narrow<f32> {
  template <unsigned M> static f32 from(f64 x) { return (f32)(M & (rz | rm | rp) ? round_to<M>(x, 24, -126, 0x1.fffffep127) : x); }
};
template <> struct Narrow<tf32> {
  template <unsigned M> static tf32 from(f64 x) { return {bits((f32)round_to<M>(x, 11, -126, 0x1.ffcp127))}; }
};
template <> struct Narrow<f16> {
  template <unsigned M> static f16 from(f64 x) { return {emulator::double_to_half(M & (rz | rm | rp) ? round_to<M>(x, 11, -14, 65504) : x)}; }
};
template <> struct Narrow<bf16> {
  template <unsigned M> static bf16 from(f64 x) { return {emulator::float_to_bfloat16((f32)round_to<M>(x, 8, -126, 0x1.fep127))}; }
};
template <unsigned M, class To, class From> ONCE To convert(From from) {
  f64 x = to_f64(flush<M>(from));
  if (M & relu) x = x > 0 ? x : x != x ? x : 0;
  if (M & sat) x = x > 0 ? (x < 1 ? x : 1) : 0;
  To r = Narrow<To>::template from<M>(x);
  if constexpr (sizeof(To) == 4) return flush<M>(r);   // a 16-bit float keeps its subnormals
  else return r;
}
inline u32 two(u16 low, u16 high) { return (u32)high << 16 | low; }
template <class T> struct Half { typedef T type; };
template <> struct Half<f16x2> { typedef f16 type; };
template <> struct Half<bf16x2> { typedef bf16 type; };
template <unsigned M, class To> ONCE To convert_two(f32 high, f32 low) {   // the first source is the upper half
  typedef typename Half<To>::type H;
  return {two(convert<M, H>(low).bits, convert<M, H>(high).bits)};
}
template <unsigned M, class To, class From> ONCE To from_integer(From x) {
  if constexpr (sizeof(To) == 8) return directed<M>([](From v) { return (f64)v; }, x);
  else if constexpr (sizeof(To) == 4) return finish<M>(directed<M>([](From v) { return (f32)v; }, x));
  else return Narrow<To>::template from<M>(directed<M>([](From v) { return (f64)v; }, x));
}

// ---- 16-bit floats ---------------------------------------------------------------------------------------------------------
template <unsigned M, class H> inline f64 half_in(H x) {
  f64 v = to_f64(x);
  return M & ftz && sizeof(H) == 2 && fabs(v) < (__is_same(H, f16) ? 0x1p-14 : 0x1p-126) ? copysign(0.0, v) : v;
}
template <unsigned M, class H> inline H half_out(f64 x) {
  if (M & relu) x = x > 0 || x != x ? x : 0;
  if (M & sat) x = x > 0 ? (x < 1 ? x : 1) : 0;
  H r = Narrow<H>::template from<exact>(x);
  if (M & ftz && fabs(to_f64(r)) < (__is_same(H, f16) ? 0x1p-14 : 0x1p-126)) r.bits &= 0x8000;
  return r;
}
template <unsigned M, class H, class F> inline H on_halves(F f, H a, H b, H c) {
  return half_out<M, H>(f(half_in<M>(a), half_in<M>(b), half_in<M>(c)));
}
template <unsigned M, class T, class F> inline T on_pairs(F f, T a, T b, T c) {
  typedef typename Half<T>::type H;
  auto low = [](u32 x) { return H{(u16)x}; };
  auto high = [](u32 x) { return H{(u16)(x >> 16)}; };
  return {two(on_halves<M>(f, low(a.bits), low(b.bits), low(c.bits)).bits, on_halves<M>(f, high(a.bits), high(b.bits), high(c.bits)).bits)};
}
template <unsigned M, class T, class F> inline T halves(T a, T b, F f) {
  auto g = [f](f64 x, f64 y, f64) { return f(x, y); };
  if constexpr (sizeof(T) == 2) return on_halves<M>(g, a, b, b);
  else return on_pairs<M>(g, a, b, b);
}
template <unsigned M, class T> inline T halves_fma(T a, T b, T c) {
  auto g = [](f64 x, f64 y, f64 z) { return ::fma(x, y, z); };
  if constexpr (sizeof(T) == 2) return on_halves<M>(g, a, b, c);
  else return on_pairs<M>(g, a, b, c);
}

// ---- comparisons: the plain ones are false where a NaN takes part, those in u are true ----------------------------------------
template <class T> inline bool compare_ne(T a, T b) { return a < b || a > b; }
template <class T> inline bool compare_equ(T a, T b) { return !compare_ne(a, b); }
template <class T> inline bool compare_neu(T a, T b) { return !(a == b); }
template <class T> inline bool compare_ltu(T a, T b) { return !(a >= b); }
template <class T> inline bool compare_leu(T a, T b) { return !(a > b); }
template <class T> inline bool compare_gtu(T a, T b) { return !(a <= b); }
template <class T> inline bool compare_geu(T a, T b) { return !(a < b); }
template <class T> inline bool compare_num(T a, T b) { return a == a && b == b; }
template <class T> inline bool compare_nan(T a, T b) { return !compare_num(a, b); }
}  // namespace ptx
