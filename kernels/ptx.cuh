// Every instruction that C++ has no word for, one function each. Nothing else in this folder may use asm.
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

// To the nearest, ties to even; what is too large becomes infinite.
__device__ __forceinline__ u16 f32_to_f16(float f) {
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(f));
  return bits;
}

// A bfloat16 is the upper half of a float.
__device__ __forceinline__ float bf16_to_f32(u16 bits) { return __uint_as_float((u32)bits << 16); }

// To the nearest, ties to even. Before sm_80 in integers: adding to the bits below the cut carries where it must.
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

// The address of shared memory as 32 bits, the form in which asynchronous copies and ldmatrix take it.
__device__ __forceinline__ u32 smem_u32(const void* p) {
  u32 address;
  asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(address) : "l"(p));
  return address;
}
