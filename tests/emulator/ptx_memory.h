// Memory as PTX sees it: what the rows of ptx_memory.py call.
#pragma once
#include "ptx_numbers.h"
#include "traffic.h"

namespace ptx {
using emulator::CONST;
using emulator::GENERIC;
using emulator::GLOBAL;
using emulator::LOCAL;
using emulator::SHARED;

// A static __shared__ variable, given its place when the first thread comes to it.
struct Shared {
  emulator::SharedVariable variable;
  char* place;
};
inline u64 address_of(Shared& shared) {
  if (!shared.place) shared.place = (char*)emulator::shared_address(shared.variable);
  emulator::shared_enter(shared.variable);
  return (u64)(shared.place - emulator::g.shared);
}

template <class T, int N> struct Vector { T part[N]; };

// Which instruction accesses memory: its line, its number in the function, and in which pass of the loops around it.
struct Place {
  emulator::Site site;
  unsigned instruction;
  u64 pass;
};
template <class... Pass> inline u64 passes(Pass... pass) {
  u64 all = 0;
  ((all = all * 0x100000001B3ull + pass), ...);
  return all;
}

inline void touch(const void* address, unsigned bytes, emulator::Access kind, emulator::Space space, const Place& place) {
  if (__builtin_expect(!emulator::g.checking, 1)) return;
  if (emulator::g.checking & emulator::COUNT)
    emulator::count_request(address, bytes, kind, space, place.site, place.instruction, place.pass);
  emulator::check_access(address, bytes, kind, place.site);
}
inline void aligned(const void* address, unsigned bytes, const char* what, const Place& place) {
  if ((uintptr_t)address % bytes) emulator::fault(place.site, "misaligned %s of %u bytes", what, bytes);
}

template <class T, int N> ONCE Vector<T, N> load(const void* address, emulator::Space space, Place place) {
  aligned(address, sizeof(T) * N, "read", place);
  touch(address, sizeof(T) * N, emulator::READ, space, place);
  Vector<T, N> value;
  memcpy(&value, address, sizeof value);
  return value;
}
template <class T, int N> ONCE void store(void* address, Vector<T, N> value, emulator::Space space, Place place) {
  aligned(address, sizeof(T) * N, "write", place);
  touch(address, sizeof(T) * N, emulator::WRITE, space, place);
  memcpy(address, &value, sizeof value);
}
template <class T, int N> inline Vector<T, N> load_parameter(const void* address) {
  Vector<T, N> value;
  memcpy(&value, address, sizeof value);
  return value;
}
template <class T, int N> inline void store_parameter(void* address, Vector<T, N> value) { memcpy(address, &value, sizeof value); }

template <class T, class F> inline T atomic(void* address, F change, emulator::Space space, Place place) {
  aligned(address, sizeof(T), "atomic", place);
  touch(address, sizeof(T), emulator::ATOMIC, space, place);
  T before, after;
  memcpy(&before, address, sizeof(T));
  after = change(before);
  memcpy(address, &after, sizeof(T));
  return before;
}

ONCE void copy_async(void* shared, const void* source, unsigned bytes, unsigned source_bytes, Place place) {
  if (emulator::g.checking & emulator::COUNT) {   // at issue; the runtime checks the accesses when it makes them
    emulator::count_request(source, source_bytes < bytes ? source_bytes : bytes, emulator::READ, GLOBAL, place.site, place.instruction, place.pass);
    emulator::count_request(shared, bytes, emulator::WRITE, SHARED, place.site, place.instruction, place.pass);
  }
  emulator::copy_async(shared, source, bytes, source_bytes, place.site);
}

template <int N, bool TRANSPOSED> ONCE Vector<b32, N> load_matrices(u32 address, Place place) {
  // lane i gives the address of row i % 8 of matrix i / 8
  if (emulator::g.checking & emulator::COUNT && emulator::g.current->lane < 8 * N)
    emulator::count_request(emulator::shared_pointer(address), 16, emulator::READ, SHARED, place.site, place.instruction, place.pass);
  Vector<b32, N> value;
  emulator::ldmatrix(value.part, N, TRANSPOSED, address, place.site);
  return value;
}
}  // namespace ptx
