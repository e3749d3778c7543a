// The functions of kernels/ptx.cuh in C++: the source tier puts this in the place of that file. Same names, same meaning.
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
