// The functions of kernels/ptx.cuh in C++: the source tier puts this in the place of that file. Same names, same
// meaning.
#pragma once
#include "runtime.h"

#define PTX_SITE emulator::Site site = emulator::Site::here()

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

inline float f16_to_f32(u16 bits) { return emulator::half_to_float(bits); }
inline u16 f32_to_f16(float f) { return emulator::float_to_half(f); }
inline float bf16_to_f32(u16 bits) { return emulator::bfloat16_to_float(bits); }
inline u16 f32_to_bf16(float f) { return emulator::float_to_bfloat16(f); }
inline u32 smem_u32(const void* p, PTX_SITE) { return emulator::shared_offset(p, site); }

template <class Element>
inline Element* in_global(Element* p) {
  return p;
}

// ---- what waits for kernels of tensor cores
// ----------------------------------------------------------------------------
inline void cp_async_4(u32 to, const void* from, int bytes, PTX_SITE) {
  emulator::copy_async(emulator::shared_pointer(to), from, 4, (unsigned)bytes, site);
}
inline void cp_async_8(u32 to, const void* from, int bytes, PTX_SITE) {
  emulator::copy_async(emulator::shared_pointer(to), from, 8, (unsigned)bytes, site);
}
inline void cp_async_16(u32 to, const void* from, int bytes, PTX_SITE) {
  emulator::copy_async(emulator::shared_pointer(to), from, 16, (unsigned)bytes, site);
}
inline void cp_async_commit(PTX_SITE) { emulator::copy_commit(site); }
template <int PENDING>
inline void cp_async_wait(PTX_SITE) {
  emulator::copy_wait(PENDING, site);
}
inline void cp_async_wait_all(PTX_SITE) { emulator::copy_wait_all(site); }
inline u32 f32_to_tf32(float f) { return emulator::float_to_tf32(f); }
inline void mma_16816_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], PTX_SITE) {
  emulator::mma_sync(emulator::Mma::F16, d, a, b, d, site);
}
inline void mma_16816_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], PTX_SITE) {
  emulator::mma_sync(emulator::Mma::BF16, d, a, b, d, site);
}
inline void mma_1688_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], PTX_SITE) {
  emulator::mma_sync(emulator::Mma::TF32, d, a, b, d, site);
}
inline void ldmatrix_x1(u32 (&r)[1], u32 address, PTX_SITE) { emulator::ldmatrix(r, 1, false, address, site); }
inline void ldmatrix_x2(u32 (&r)[2], u32 address, PTX_SITE) { emulator::ldmatrix(r, 2, false, address, site); }
inline void ldmatrix_x4(u32 (&r)[4], u32 address, PTX_SITE) { emulator::ldmatrix(r, 4, false, address, site); }
inline void ldmatrix_x2_trans(u32 (&r)[2], u32 address, PTX_SITE) { emulator::ldmatrix(r, 2, true, address, site); }
inline void ldmatrix_x4_trans(u32 (&r)[4], u32 address, PTX_SITE) { emulator::ldmatrix(r, 4, true, address, site); }
inline void mbarrier_init(u32 barrier, u32 count, PTX_SITE) { emulator::mbarrier_init(barrier, count, site); }
inline void mbarrier_arrive(u32 barrier, PTX_SITE) { emulator::mbarrier_arrive(barrier, 1, 0, site); }
inline void mbarrier_arrive_expect(u32 barrier, u32 bytes, PTX_SITE) {
  emulator::mbarrier_arrive(barrier, 1, bytes, site);
}
inline bool mbarrier_try_wait(u32 barrier, u32 parity, PTX_SITE) {
  return emulator::mbarrier_try_wait(barrier, parity, site);
}
inline void cp_async_arrive(u32 barrier, PTX_SITE) {
  emulator::mbarrier_arrive_after_copies(barrier, false, site);
}
inline void barrier_of(int number, int threads, PTX_SITE) { emulator::barrier(number, (unsigned)threads, site); }
inline void fence_proxy_async(PTX_SITE) { emulator::proxy_fence(site); }
inline void wgmma_fence(PTX_SITE) { emulator::wgmma_fence(site); }
inline void wgmma_commit(PTX_SITE) { emulator::wgmma_commit(site); }
template <int PENDING>
inline void wgmma_wait(PTX_SITE) {
  emulator::wgmma_wait(PENDING, site);
}
template <int N>
inline void touched(float (&)[N]) {}
template <int A_MN_MAJOR, int B_MN_MAJOR, int N>
inline void wgmma(bool bf16, float (&d)[N], u64 a, u64 b, emulator::Site site) {
  float* registers[N];
  for (int i = 0; i < N; i++) registers[i] = d + i;
  emulator::wgmma_issue({bf16, 2 * N, A_MN_MAJOR != 0, B_MN_MAJOR != 0}, registers, a, b, site);
}
template <int A_MN_MAJOR, int B_MN_MAJOR, int N>
inline void wgmma_f16(float (&d)[N], u64 a, u64 b, PTX_SITE) {
  wgmma<A_MN_MAJOR, B_MN_MAJOR>(false, d, a, b, site);
}
template <int A_MN_MAJOR, int B_MN_MAJOR, int N>
inline void wgmma_bf16(float (&d)[N], u64 a, u64 b, PTX_SITE) {
  wgmma<A_MN_MAJOR, B_MN_MAJOR>(true, d, a, b, site);
}
inline void bulk_copy(u32 to, const void* from, u32 bytes, u32 barrier, PTX_SITE) {
  emulator::bulk_copy(to, from, bytes, barrier, site);
}
