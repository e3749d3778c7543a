// What the lanes of a warp do together: what the rows of ptx_warp.py call.
#pragma once
#include <initializer_list>

#include "ptx_memory.h"

namespace ptx {
// ---- votes and reductions: `Function` makes one value of those of all lanes -------------------------------------------
template <class T> struct Ballot { T value; u32 result; };
template <class T, u32 (*Function)(u32 mask, const T* value)> inline void gather(unsigned mask, void* const slot[32]) {
  T value[32] = {};
  for (int lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) value[lane] = ((Ballot<T>*)slot[lane])->value;
  u32 result = Function(mask, value);
  for (int lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) ((Ballot<T>*)slot[lane])->result = result;
}
template <class T, u32 (*Function)(u32, const T*)> inline u32 together(T value, u32 mask, emulator::Site site) {
  Ballot<T> mine = {value, 0};
  emulator::warp_collective(mask, gather<T, Function>, &mine, site);
  return mine.result;
}
inline u32 ballot(u32 mask, const pred* value) {
  u32 votes = 0;
  for (int lane = 0; lane < 32; lane++) votes |= (u32)(value[lane] && mask >> lane & 1) << lane;
  return votes;
}
inline u32 vote_any(u32 mask, const pred* value) { return ballot(mask, value) != 0; }
inline u32 vote_all(u32 mask, const pred* value) { return ballot(mask, value) == mask; }
inline u32 vote_uni(u32 mask, const pred* value) { return vote_all(mask, value) || !vote_any(mask, value); }
inline u32 vote_leader(u32 mask, const pred*) { return (u32)__builtin_ctz(mask); }
template <u32 (*Function)(u32, const pred*)> inline u32 vote(pred value, u32 mask, emulator::Site site) {
  return together<pred, Function>(value, mask, site);
}
template <class T, class F> inline u32 fold(u32 mask, const T* value, F combine) {
  T sum = value[__builtin_ctz(mask)];
  for (int lane = __builtin_ctz(mask) + 1; lane < 32; lane++)
    if (mask >> lane & 1) sum = combine(sum, value[lane]);
  return (u32)sum;
}
template <class T> inline u32 reduce_add(u32 m, const T* v) { return fold(m, v, [](T a, T b) { return (T)((u32)a + (u32)b); }); }
template <class T> inline u32 reduce_min(u32 m, const T* v) { return fold(m, v, [](T a, T b) { return a < b ? a : b; }); }
template <class T> inline u32 reduce_max(u32 m, const T* v) { return fold(m, v, [](T a, T b) { return a < b ? b : a; }); }
template <class T> inline u32 reduce_and(u32 m, const T* v) { return fold(m, v, [](T a, T b) { return (T)(a & b); }); }
template <class T> inline u32 reduce_or(u32 m, const T* v) { return fold(m, v, [](T a, T b) { return (T)(a | b); }); }
template <class T> inline u32 reduce_xor(u32 m, const T* v) { return fold(m, v, [](T a, T b) { return (T)(a ^ b); }); }
template <class T, u32 (*Function)(u32, const T*)> inline T reduce(T value, u32 mask, emulator::Site site) {
  return (T)together<T, Function>(value, mask, site);
}

template <class T> inline void match_lanes(unsigned mask, void* const slot[32]) {
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    auto* mine = (Ballot<T>*)slot[lane];
    for (int other = 0; other < 32; other++)
      if (mask >> other & 1) mine->result |= (u32)(((Ballot<T>*)slot[other])->value == mine->value) << other;
  }
}
template <class T> inline u32 match_any(T value, u32 mask, emulator::Site site) {
  Ballot<T> mine = {value, 0};
  emulator::warp_collective(mask, match_lanes<T>, &mine, site);
  return mine.result;
}

// ---- shuffles ------------------------------------------------------------------------------------------------------------
enum ShuffleKind { shuffle_up, shuffle_down, shuffle_bfly, shuffle_idx };
struct Shuffle {
  b32 given, lane, clamp;
  b32 value;
  pred in_range;
};
// The PTX manual's own words for the lane to read from: j, clamped to the segment that the mask in c cuts off.
template <ShuffleKind K> inline void exchange(unsigned mask, void* const slot[32]) {
  for (u32 lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    auto* mine = (Shuffle*)slot[lane];
    u32 b = mine->lane & 31, c = mine->clamp & 31, segment = mine->clamp >> 8 & 31;
    u32 most = (lane & segment) | (c & ~segment), least = lane & segment;
    s32 j = K == shuffle_up ? (s32)(lane - b) : K == shuffle_down ? (s32)(lane + b) : K == shuffle_bfly ? (s32)(lane ^ b) : (s32)(least | (b & ~segment));
    mine->in_range = K == shuffle_up ? j >= (s32)most : j <= (s32)most;
    if (!mine->in_range) j = (s32)lane;
    // a lane that takes no part has no value to give: poison
    mine->value = mask >> j & 1 ? ((Shuffle*)slot[j])->given : ~0u;
  }
}
template <ShuffleKind K> inline Shuffle shuffle(b32 value, b32 lane, b32 clamp, u32 mask, emulator::Site site) {
  Shuffle mine = {value, lane, clamp, 0, false};
  emulator::warp_collective(mask, exchange<K>, &mine, site);
  return mine;
}

// ---- matrix products -------------------------------------------------------------------------------------------------------
inline Vector<f32, 4> multiply(emulator::Mma kind, Vector<b32, 4> a, Vector<b32, 2> b, Vector<f32, 4> c, emulator::Site site) {
  Vector<f32, 4> d;
  emulator::mma_sync(kind, d.part, a.part, b.part, c.part, site);
  return d;
}
}  // namespace ptx
