// Every instruction that C++ has no word for, one per function. Nothing else in this folder may use asm.
//
// 16-bit floats travel as their raw bits: no toolkit header is included anywhere, see README.md.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

__device__ __forceinline__ float f16_to_f32(u16 bits) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
  return f;
}

// Rounds to the nearest, ties to even; numbers that are too large become infinite.
__device__ __forceinline__ u16 f32_to_f16(float f) {
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(f));
  return bits;
}

// A bfloat16 is the upper half of a float.
__device__ __forceinline__ float bf16_to_f32(u16 bits) { return __uint_as_float((u32)bits << 16); }

// Rounds to the nearest, ties to even. Before sm_80 in integers: adding to the bits below the cut carries where it must.
__device__ __forceinline__ u16 f32_to_bf16(float f) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  u16 bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(f));
  return bits;
#else
  const u32 bits = __float_as_uint(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // a NaN, which the addition could turn into an infinity
  return (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}

// The address of shared memory as 32 bits, the form in which asynchronous copies and ldmatrix take it. The compiler sees
// through this one, and adds offsets to the 32 bits; through asm it does not.
__device__ __forceinline__ u32 smem_u32(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// A pointer into global memory that comes from memory itself: the compiler is told, and loads by it as by a parameter.
template <class Element>
__device__ __forceinline__ Element* in_global(Element* p) {
  __builtin_assume(__isGlobal(p));
  return p;
}

// ---- asynchronous copies from global to shared memory. `to` is aligned to the size of the copy. `bytes` of `from` are read
// (all, or 0), and the rest is filled with zeros: with 0 bytes `from` may point anywhere. The copies begun since the last
// commit are one group.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
__device__ __forceinline__ void cp_async_16(u32 to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_8(u32 to, const void* from, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_4(u32 to, const void* from, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's groups are in flight.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- matrices in fragments: lane = 4 * g + t

// Four matrices of 8 rows of 16 bytes; lane l gives the address of row l % 8 of matrix l / 8. Of each matrix a lane gets
// bytes 4t .. 4t + 3 of row g; transposed, the 16-bit numbers g of rows 2t and 2t + 1.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

// d += a b, with a (16, k) and b (k, 8): k = 16 for 16-bit floats, 8 for TF32; sums in float32, rounded towards zero.
__device__ __forceinline__ void mma_16816_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_16816_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_1688_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Rounds to the nearest TF32; NaN and infinities stay. The result is the bits of a float. Ties go to even where the device
// has an instruction for that, and before sm_90 away from zero, which takes three.
__device__ __forceinline__ u32 f32_to_tf32(float f) {
  u32 bits;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(bits) : "f"(f));
#else
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(f));
#endif
  return bits;
}
#endif

// ---- what Hopper alone has: asynchronous products of a warpgroup (four warps, the first a multiple of four), and mbarriers
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
// An mbarrier, 8 bytes of shared memory, counts arrivals; a phase is over when `count` have come, and the next begins.
__device__ __forceinline__ void mbarrier_init(u32 barrier, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives when all copies that this thread has begun are there. Without `noinc` it would not count as one of `count`.
__device__ __forceinline__ void cp_async_arrive(u32 barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
// Whether the phase of this parity is over: the first one has parity 0, and before it one of parity 1 is over. Waits a while.
__device__ __forceinline__ bool mbarrier_try_wait(u32 barrier, u32 parity) {
  u32 over;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(over) : "r"(barrier), "r"(parity) : "memory");
  return over != 0;
}
// __syncthreads() of `threads` threads, whole warps; numbers 1 to 15, as 0 is that of all.
__device__ __forceinline__ void barrier_of(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// wgmma reads shared memory by another path than other instructions. What this thread has written, and what it knows that
// others have, is there for the wgmma that follow.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Comes before the first wgmma, and before one whose sums were accessed since.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Makes a group of the wgmma since the last one.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most PENDING of this warp's groups are under way.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Tells the compiler that `d` is not what it was: behind a wait, or it reads sums before.
template <int N>
__device__ __forceinline__ void touched(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// d += a b, with a (64, 16) and b (16, 2 N), both in shared memory where descriptors say, with k innermost, or m or n
// (MN_MAJOR); sums in float32. A thread has the sums of row 16 * (warp % 4) + lane / 4 (+ 8 for the second two of each
// four), columns 8 * (i / 4) + 2 * (lane % 4) (+ 1). They may not be accessed until the wait.
#define SUMS_8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS_32(i) SUMS_8(i), SUMS_8(i + 8), SUMS_8(i + 16), SUMS_8(i + 24)
#define NAMES_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_32 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_64 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_96 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA(function, format, count, shape, names, operands, ...)                                       \
  template <int A_MN_MAJOR, int B_MN_MAJOR>                                                               \
  __device__ __forceinline__ void function(float (&d)[count], u64 a, u64 b) {                             \
    asm volatile("wgmma.mma_async.sync.aligned." shape "k16.f32." format " {" names "}, " operands ";"    \
                 : __VA_ARGS__ : "l"(a), "l"(b), "n"(A_MN_MAJOR), "n"(B_MN_MAJOR) : "memory");            \
  }
#define WGMMAS(function, format)                                                                                    \
  WGMMA(function, format, 32, "m64n64", NAMES_0, "%32, %33, 1, 1, 1, %34, %35", SUMS_32(0))                          \
  WGMMA(function, format, 64, "m64n128", NAMES_0 ", " NAMES_32, "%64, %65, 1, 1, 1, %66, %67", SUMS_32(0), SUMS_32(32)) \
  WGMMA(function, format, 96, "m64n192", NAMES_0 ", " NAMES_32 ", " NAMES_64, "%96, %97, 1, 1, 1, %98, %99",         \
        SUMS_32(0), SUMS_32(32), SUMS_32(64))                                                                        \
  WGMMA(function, format, 128, "m64n256", NAMES_0 ", " NAMES_32 ", " NAMES_64 ", " NAMES_96,                         \
        "%128, %129, 1, 1, 1, %130, %131", SUMS_32(0), SUMS_32(32), SUMS_32(64), SUMS_32(96))
WGMMAS(wgmma_f16, "f16.f16")
WGMMAS(wgmma_bf16, "bf16.bf16")
#endif
