// The CUDA C++ of a kernel as C++: what the source tier puts in front of a text. It includes nothing of the system,
// which keeps a module's compilation short, as NVRTC includes nothing.
#pragma once
#include "cuda_math.h"
#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __managed__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __inline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#define __restrict __restrict__

// ---- vector types
// ------------------------------------------------------------------------------------------------------
#define EMULATOR_VECTORS(Type, Name, a2, a3, a4)                              \
  struct Name##1 { Type x; };                                                 \
  struct alignas(a2) Name##2 { Type x, y; };                                  \
  struct Name##3 { Type x, y, z; };                                           \
  struct alignas(a4) Name##4 { Type x, y, z, w; };                            \
  inline Name##1 make_##Name##1(Type x) { return {x}; }                       \
  inline Name##2 make_##Name##2(Type x, Type y) { return {x, y}; }            \
  inline Name##3 make_##Name##3(Type x, Type y, Type z) { return {x, y, z}; } \
  inline Name##4 make_##Name##4(Type x, Type y, Type z, Type w) { return {x, y, z, w}; }
EMULATOR_VECTORS(signed char, char, 2, 1, 4)
EMULATOR_VECTORS(unsigned char, uchar, 2, 1, 4)
EMULATOR_VECTORS(short, short, 4, 2, 8)
EMULATOR_VECTORS(unsigned short, ushort, 4, 2, 8)
EMULATOR_VECTORS(int, int, 8, 4, 16)
EMULATOR_VECTORS(long long, longlong, 16, 8, 16)
EMULATOR_VECTORS(unsigned long long, ulonglong, 16, 8, 16)
EMULATOR_VECTORS(float, float, 8, 4, 16)
EMULATOR_VECTORS(double, double, 16, 8, 16)
struct uint1 {
  unsigned x;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
using uint3 = emulator::Index3;
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint1 make_uint1(unsigned x) { return {x}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
using dim3 = emulator::Index3;

#define threadIdx (emulator::g.current->index)
#define blockIdx (emulator::g.blockIdx)
#define blockDim (emulator::g.blockDim)
#define gridDim (emulator::g.gridDim)
#define warpSize 32

// ---- barriers and warps
// ----------------------------------------------------------------------------------------------------
namespace emulator {
struct Shuffle {
  enum Kind { INDEX, UP, DOWN, XOR } kind;
  int argument, width;
  uint64_t value, result;
};
EMULATOR_UNCHECKED inline void shuffle_lanes(unsigned mask, void* const slot[32]) {
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    Shuffle& s = *(Shuffle*)slot[lane];
    const int first = lane / s.width * s.width, end = first + s.width;
    int from = lane;
    if (s.kind == Shuffle::INDEX) from = first + (int)((unsigned)s.argument % (unsigned)s.width);
    if (s.kind == Shuffle::UP && lane - s.argument >= first) from = lane - s.argument;
    if (s.kind == Shuffle::DOWN && lane + s.argument < end) from = lane + s.argument;
    if (s.kind == Shuffle::XOR && (lane ^ s.argument) < end) from = lane ^ s.argument;
    s.result = mask >> from & 1 ? ((Shuffle*)slot[from])->value : ~0ull;  // of a lane that does not take part: anything
  }
}
template <class T>
EMULATOR_UNCHECKED inline T shuffle(Shuffle::Kind kind, unsigned mask, T value, int argument, int width, Site site) {
  static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
  if (width < 1 || width > 32 || width & (width - 1))
    fault(site, "shuffle of width %d: it must be a power of two up to 32", width);
  Shuffle s = {kind, argument, width, 0, 0};
  memcpy(&s.value, &value, sizeof(T));
  warp_collective(mask, shuffle_lanes, &s, site);
  memcpy(&value, &s.result, sizeof(T));
  return value;
}

struct Vote {
  long long value, result;
};
enum class Reduction { BALLOT, ADD, MIN, MAX, AND, OR, XOR, MATCH_ANY };
template <Reduction R>
EMULATOR_UNCHECKED void reduce_lanes(unsigned mask, void* const slot[32]) {
  long long all = 0;
  bool first = true;
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    const long long v = ((Vote*)slot[lane])->value;
    if (R == Reduction::BALLOT)
      all |= (long long)(v != 0) << lane;
    else if (first)
      all = v;
    else if (R == Reduction::ADD)
      all = (long long)((unsigned long long)all + (unsigned long long)v);
    else if (R == Reduction::MIN)
      all = v < all ? v : all;
    else if (R == Reduction::MAX)
      all = v > all ? v : all;
    else if (R == Reduction::AND)
      all &= v;
    else if (R == Reduction::OR)
      all |= v;
    else if (R == Reduction::XOR)
      all ^= v;
    first = false;
  }
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    Vote& mine = *(Vote*)slot[lane];
    mine.result = all;
    if (R != Reduction::MATCH_ANY) continue;
    mine.result = 0;
    for (int other = 0; other < 32; other++)
      if (mask >> other & 1 && ((Vote*)slot[other])->value == mine.value) mine.result |= 1ll << other;
  }
}
template <Reduction R>
EMULATOR_UNCHECKED inline long long reduce(unsigned mask, long long value, Site site) {
  Vote vote = {value, 0};
  warp_collective(mask, reduce_lanes<R>, &vote, site);
  return vote.result;
}
}  // namespace emulator

#define EMULATOR_SITE emulator::Site site = emulator::Site::here()
inline void __syncthreads(EMULATOR_SITE) { emulator::barrier(0, 0, site); }
inline int __syncthreads_count(int p, EMULATOR_SITE) { return (int)emulator::barrier_count(0, 0, p, site); }
inline int __syncthreads_or(int p, EMULATOR_SITE) { return emulator::barrier_count(0, 0, p, site) != 0; }
inline int __syncthreads_and(int p, EMULATOR_SITE) { return emulator::barrier_count(0, 0, !p, site) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_SITE) {
  if (mask == 0xffffffffu) mask &= emulator::active_lanes();  // the default serves a last, partial warp too
  emulator::warp_sync(mask, site);
}
#define EMULATOR_SHUFFLE(name, kind, Argument)                                                  \
  template <class T>                                                                            \
  inline T name(unsigned mask, T value, Argument argument, int width = 32, EMULATOR_SITE) {     \
    return emulator::shuffle(emulator::Shuffle::kind, mask, value, (int)argument, width, site); \
  }
EMULATOR_SHUFFLE(__shfl_sync, INDEX, int)
EMULATOR_SHUFFLE(__shfl_up_sync, UP, unsigned)
EMULATOR_SHUFFLE(__shfl_down_sync, DOWN, unsigned)
EMULATOR_SHUFFLE(__shfl_xor_sync, XOR, int)
inline unsigned __ballot_sync(unsigned mask, int p, EMULATOR_SITE) {
  return (unsigned)emulator::reduce<emulator::Reduction::BALLOT>(mask, p, site);
}
inline int __any_sync(unsigned mask, int p, EMULATOR_SITE) {
  return emulator::reduce<emulator::Reduction::OR>(mask, p != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int p, EMULATOR_SITE) {
  return emulator::reduce<emulator::Reduction::AND>(mask, p != 0, site) != 0;
}
inline unsigned __activemask() { return emulator::active_lanes(); }
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, EMULATOR_SITE) {
  long long bits = 0;
  memcpy(&bits, &value, sizeof(T));
  return (unsigned)emulator::reduce<emulator::Reduction::MATCH_ANY>(mask, bits, site);
}
#define EMULATOR_REDUCE(name, kind)                                              \
  inline unsigned name(unsigned mask, unsigned v, EMULATOR_SITE) {               \
    return (unsigned)emulator::reduce<emulator::Reduction::kind>(mask, v, site); \
  }                                                                              \
  inline int name(unsigned mask, int v, EMULATOR_SITE) {                         \
    return (int)emulator::reduce<emulator::Reduction::kind>(mask, v, site);      \
  }
EMULATOR_REDUCE(__reduce_add_sync, ADD)
EMULATOR_REDUCE(__reduce_min_sync, MIN)
EMULATOR_REDUCE(__reduce_max_sync, MAX)
EMULATOR_REDUCE(__reduce_and_sync, AND)
EMULATOR_REDUCE(__reduce_or_sync, OR)
EMULATOR_REDUCE(__reduce_xor_sync, XOR)
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap(EMULATOR_SITE) { emulator::fault(site, "__trap"); }

// ---- atomics: for each type that CUDA has them for
// ---------------------------------------------------------------------------
#define EMULATOR_ATOMIC(name, T, after)                                  \
  inline T name(T* p, T v, EMULATOR_SITE) {                              \
    return emulator::atomic(p, [=](T old) -> T { return after; }, site); \
  }                                                                      \
  inline T name##_block(T* p, T v, EMULATOR_SITE) { return name(p, v, site); }
#define EMULATOR_ATOMICS(T)                        \
  EMULATOR_ATOMIC(atomicExch, T, v)                \
  EMULATOR_ATOMIC(atomicMin, T, v < old ? v : old) \
  EMULATOR_ATOMIC(atomicMax, T, v > old ? v : old) \
  EMULATOR_ATOMIC(atomicAnd, T, (T)(old & v))      \
  EMULATOR_ATOMIC(atomicOr, T, (T)(old | v))       \
  EMULATOR_ATOMIC(atomicXor, T, (T)(old ^ v))
EMULATOR_ATOMICS(int)
EMULATOR_ATOMICS(unsigned)
EMULATOR_ATOMICS(long long)
EMULATOR_ATOMICS(unsigned long long)
EMULATOR_ATOMIC(atomicExch, float, v)
EMULATOR_ATOMIC(atomicAdd, int, (int)((unsigned)old + (unsigned)v))  // wraps, as the hardware's does
EMULATOR_ATOMIC(atomicAdd, unsigned, old + v)
EMULATOR_ATOMIC(atomicAdd, unsigned long long, old + v)
EMULATOR_ATOMIC(atomicAdd, float, old + v)
EMULATOR_ATOMIC(atomicAdd, double, old + v)
EMULATOR_ATOMIC(atomicSub, int, (int)((unsigned)old - (unsigned)v))
EMULATOR_ATOMIC(atomicSub, unsigned, old - v)
EMULATOR_ATOMIC(atomicInc, unsigned, old >= v ? 0u : old + 1u)
EMULATOR_ATOMIC(atomicDec, unsigned, old == 0 || old > v ? v : old - 1u)
#define EMULATOR_CAS(T)                                                                      \
  inline T atomicCAS(T* p, T expected, T v, EMULATOR_SITE) {                                 \
    return emulator::atomic(p, [=](T old) -> T { return old == expected ? v : old; }, site); \
  }
EMULATOR_CAS(unsigned short)
EMULATOR_CAS(int)
EMULATOR_CAS(unsigned)
EMULATOR_CAS(unsigned long long)

// ---- loads and stores with a cache hint
// ----------------------------------------------------------------------------------------
#define EMULATOR_LOAD(name)   \
  template <class T>          \
  inline T name(const T* p) { \
    return *p;                \
  }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldlu)
EMULATOR_LOAD(__ldcv)
#define EMULATOR_STORE(name)    \
  template <class T>            \
  inline void name(T* p, T v) { \
    *p = v;                     \
  }
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stwt)
inline size_t __cvta_generic_to_shared(const void* p, EMULATOR_SITE) { return emulator::shared_offset(p, site); }

// ---- a kernel for the launcher
// ---------------------------------------------------------------------------------------------------
namespace emulator {
// The parameters of a kernel as the text of Kernel::signature, made while compiling.
template <class T>
struct Plain {
  using type = T;
};
template <class T>
struct Plain<const T> {
  using type = T;
};
template <class T, bool CLASS = __is_class(T) || __is_union(T)>
struct Token {
  static constexpr char kind = __is_enum(T) ? 'i' : T(0.5) != T(0) ? 'f' : T(-1) < T(0) ? 'i' : 'u';
  static constexpr unsigned size = sizeof(T);
};
template <class T>
struct Token<T, true> {
  static constexpr char kind = 's';
  static constexpr unsigned size = sizeof(T);
};
template <>
struct Token<bool, false> {
  static constexpr char kind = 'b';
  static constexpr unsigned size = 1;
};
template <>
struct Token<void, false> {
  static constexpr char kind = '?';
  static constexpr unsigned size = 0;
};
struct Signature {
  char text[512];
};
constexpr char* write_token(char* out, char kind, unsigned size) {
  *out++ = kind;
  unsigned scale = 1;
  while (size / scale >= 10) scale *= 10;
  for (; scale; scale /= 10) *out++ = (char)('0' + size / scale % 10);
  *out++ = ' ';
  return out;
}
template <class T>
struct Write {
  static constexpr char* to(char* out) { return write_token(out, Token<T>::kind, Token<T>::size); }
};
template <class T>
struct Write<T*> {
  static constexpr char* to(char* out) {
    *out++ = 'P';
    return Write<T>::to(out);
  }
};
template <class T>
struct Write<const T*> {
  static constexpr char* to(char* out) {
    *out++ = 'C';
    return Write<T>::to(out);
  }
};
template <class T>
struct Write<T* __restrict__> : Write<T*> {};
template <class T>
struct Write<T* const> : Write<T*> {};
template <class... A>
constexpr Signature signature() {
  Signature s = {};
  char* out = s.text;
  ((out = Write<typename Plain<A>::type>::to(out)), ...);
  return s;
}

template <unsigned... I>
struct Indices {};
template <unsigned N, unsigned... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <unsigned... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};
template <auto FUNCTION>
struct Entry;
template <class... A, void (*FUNCTION)(A...)>
struct Entry<FUNCTION> {
  static constexpr Signature text = signature<A...>();
  template <unsigned... I>
  EMULATOR_UNCHECKED static void call(void** a, Indices<I...>) {
    FUNCTION(*(typename Plain<A>::type*)a[I]...);
  }
  EMULATOR_UNCHECKED static void run(void** a) { call(a, typename MakeIndices<sizeof...(A)>::type{}); }
};
constexpr unsigned first_of(unsigned n = 0, ...) { return n; }
}  // namespace emulator
#define EMULATOR_KERNEL(name, ...)                                                           \
  EMULATOR_KERNEL_RECORD(name, emulator::Entry<name>::run, emulator::Entry<name>::text.text, \
                         emulator::first_of(__VA_ARGS__))
