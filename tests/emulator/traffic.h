// What the memory accesses of a launch cost a GPU: 32-byte sectors of global memory, wavefronts of shared memory.
#pragma once
#include "runtime.h"

namespace emulator {
enum Space : int { GLOBAL, SHARED, LOCAL, CONST, GENERIC };   // GENERIC: told by the address

// One thread's part in a request of its warp. `instruction` and `pass` (of the loops around it) say which request it is.
EMULATOR_EXPORT void count_request(
    const void* pointer, unsigned bytes, Access kind, Space space, Site site, unsigned instruction, uint64_t pass);
}  // namespace emulator

// The rows of the last launch: file, line, space, kind, requests, bytes, cost, ideal cost, the worst request; tabs between.
extern "C" EMULATOR_EXPORT const char* emulator_traffic();
