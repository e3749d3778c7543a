// The runtime of the emulator: one CUDA block at a time, one fiber a CUDA thread, all on one thread of the host.
//
// Both tiers run on it: the source tier (cuda_surface.h, ptx_stand_in.h) and the PTX tier. It is built once into a
// shared object of its own; a module (the kernels of one text) is another, linked against it. A module exports one
// `Kernel emulator_kernel_<name>` for each kernel (EMULATOR_KERNEL_RECORD below).
//
// All of this may be called from within a kernel only, unless it says otherwise.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define EMULATOR_EXPORT __attribute__((visibility("default")))
#define EMULATOR_UNCHECKED __attribute__((no_sanitize("thread", "undefined")))

namespace emulator {

// ---- where something happens in the source -------------------------------------------------------------------------
// Either a file and line, or (line == CODE) an address in the code of a module, which the launcher turns into one.
struct Site {
  static constexpr int CODE = -1;
  const char* where;
  int line;
  // As a default argument this is the place of the call, as std::source_location::current() is.
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  static Site code(const void* address) { return {(const char*)address, CODE}; }
};

struct Index3 {
  unsigned x, y, z;
};

// ---- threads -----------------------------------------------------------------------------------------------------
struct Thread {
  Index3 index;                 // threadIdx
  unsigned linear, lane, warp;  // number in the block, lane in the warp, number of the warp
  struct State* state;          // the runtime's own
};

struct Globals {
  Thread* current;  // the running thread
  Index3 blockIdx, blockDim, gridDim;
  char* shared;     // shared memory address 0 as ldmatrix, cp.async and mbarrier see it (32-bit addresses)
  int checking;     // the Check bits of this launch; 0 where nothing is checked
  unsigned launch;  // number of this launch
  unsigned dynamic_shared_bytes;
};
extern EMULATOR_EXPORT Globals g;

// Ends the launch as a KernelFault; the message gets block and thread put in front. Ends the running thread for good:
// destructors do not run. `site` is put in front too.
[[noreturn]] EMULATOR_EXPORT void fault(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// ---- barriers ----------------------------------------------------------------------------------------------------
// bar.sync id, count. count == 0: all threads that have not exited. Threads of one barrier must come from one site.
EMULATOR_EXPORT void barrier(int id, unsigned count, Site site);
// barrier.red: the same with a vote of all who come. Returns the number of threads whose predicate holds.
EMULATOR_EXPORT unsigned barrier_count(int id, unsigned count, bool predicate, Site site);
// bar.arrive: counts for the barrier without waiting.
EMULATOR_EXPORT void barrier_arrive(int id, unsigned count, Site site);

// ---- warp collectives ----------------------------------------------------------------------------------------------
// Waits until every lane of `mask` has called with the same mask, function and site; then `function(mask, slot)` runs
// once, where slot[lane] is what that lane gave (null outside the mask), and all lanes go on. null function:
// __syncwarp.
typedef void (*WarpFunction)(unsigned mask, void* const slot[32]);
EMULATOR_EXPORT void warp_collective(unsigned mask, WarpFunction function, void* slot, Site site);
inline void warp_sync(unsigned mask, Site site) { warp_collective(mask, nullptr, nullptr, site); }
EMULATOR_EXPORT unsigned active_lanes();  // lanes of the warp that have not exited

// ---- shared memory
// --------------------------------------------------------------------------------------------------- A static
// __shared__ variable. Declared once as a C++ static; `shared_address` may be kept for ever, `shared_enter` must be
// called by each thread before its first use in a launch (cheap).
struct SharedVariable {
  unsigned size, alignment;
  const char* name;
  unsigned offset, launch;  // filled by the runtime
};
EMULATOR_EXPORT void* shared_address(SharedVariable& variable);
EMULATOR_EXPORT void shared_register(SharedVariable& variable);
inline void shared_enter(SharedVariable& variable) {
  if (__builtin_expect(variable.launch != g.launch, 0)) shared_register(variable);
}
EMULATOR_EXPORT void* dynamic_shared(unsigned alignment);  // extern __shared__; may be called at any time
inline void* shared_pointer(uint32_t address) { return g.shared + address; }
EMULATOR_EXPORT uint32_t shared_offset(const void* pointer,
                                       Site site = Site::here());  // cvta.to.shared; a fault elsewhere

// ---- checked memory accesses
// -----------------------------------------------------------------------------------------
enum Access : int { READ = 0, WRITE = 1, ATOMIC = 2 };
enum Check : int { BOUNDS = 1, RACES = 2, UNWRITTEN = 4, COUNT = 8 };  // COUNT: tell `observer`
// Does nothing unless g.checking. Call it before the access itself.
EMULATOR_EXPORT void check_access(const void* pointer, unsigned bytes, Access kind, Site site);
inline void access(const void* pointer, unsigned bytes, Access kind, Site site) {
  if (__builtin_expect(g.checking, 0)) check_access(pointer, bytes, kind, site);
}
// With COUNT in the checks, each access to shared or global memory (cp.async, ldmatrix and atomics too) is told to
// `access`, and the end of each block to `block_end`. Set by a module when it is loaded, or null.
struct Observer {
  void (*launch_begin)();
  void (*access)(const void* pointer, unsigned bytes, Access kind, bool shared, Site site);
  void (*block_end)();
};
extern EMULATOR_EXPORT const Observer* observer;

// An atomic read-modify-write. Nothing else runs meanwhile, so it needs no atomic instruction.
template <class T, class F>
EMULATOR_UNCHECKED inline T atomic(T* pointer, F change, Site site) {
  if ((uintptr_t)pointer % sizeof(T)) fault(site, "misaligned atomic of %u bytes", (unsigned)sizeof(T));
  access(pointer, sizeof(T), ATOMIC, site);
  T before, after;
  memcpy(&before, pointer, sizeof(T));
  after = change(before);
  memcpy(pointer, &after, sizeof(T));
  return before;
}

// ---- cp.async ------------------------------------------------------------------------------------------------------
// Copies bytes (4, 8, 16) to shared memory, `source_bytes` of them from `source`, zeros behind.
EMULATOR_EXPORT void copy_async(void* shared, const void* source, unsigned bytes, unsigned source_bytes, Site site);
EMULATOR_EXPORT void copy_commit(Site site);                  // cp.async.commit_group
EMULATOR_EXPORT void copy_wait(unsigned pending, Site site);  // cp.async.wait_group
EMULATOR_EXPORT void copy_wait_all(Site site);                // cp.async.wait_all: the uncommitted ones too

// ---- mbarrier
// --------------------------------------------------------------------------------------------------------
EMULATOR_EXPORT void mbarrier_init(uint32_t address, unsigned count, Site site);
EMULATOR_EXPORT void mbarrier_invalidate(uint32_t address, Site site);
// Counts `arrivals`, after adding `bytes` to what the phase waits for. Returns the state (the parity before).
EMULATOR_EXPORT uint64_t mbarrier_arrive(uint32_t address, unsigned arrivals, uint32_t bytes, Site site);
EMULATOR_EXPORT void mbarrier_expect(uint32_t address, uint32_t bytes, Site site);  // expect_tx alone
// Whether the phase of that parity is over. If not, other threads run first. Fails the launch if that goes on for ever.
EMULATOR_EXPORT bool mbarrier_try_wait(uint32_t address, unsigned parity, Site site);
// cp.async.mbarrier.arrive.noinc: arrives when all copies this thread has issued are there
EMULATOR_EXPORT void mbarrier_arrive_after_copies(uint32_t address, bool increments, Site site);
// cp.async.bulk, global to shared
EMULATOR_EXPORT void bulk_copy(uint32_t shared, const void* source, uint32_t bytes, uint32_t mbarrier, Site site);

// ---- 16-bit and TF32 numbers (usable anywhere)
// --------------------------------------------------------------------------
EMULATOR_EXPORT float half_to_float(uint16_t bits);
EMULATOR_EXPORT uint16_t float_to_half(float value);    // to nearest even; every NaN is 0x7fff, as a GPU writes it
EMULATOR_EXPORT uint16_t double_to_half(double value);  // rounded once
EMULATOR_EXPORT uint16_t float_to_bfloat16(float value);
inline float bfloat16_to_float(uint16_t bits) {
  uint32_t u = (uint32_t)bits << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
EMULATOR_EXPORT uint32_t float_to_tf32(float value);  // cvt.rna.tf32.f32: to nearest, ties away from zero

// ---- warp matrix operations: each lane gives its registers
// ----------------------------------------------------------------
enum class Mma { F16, BF16, TF32 };  // m16n8k16, m16n8k16, m16n8k8; float accumulators
EMULATOR_EXPORT void mma_sync(Mma kind, float d[4], const uint32_t* a, const uint32_t* b, const float c[4], Site site);
// ldmatrix .x1 .x2 .x4 (count), .trans: registers[0..count) of the lane
EMULATOR_EXPORT void ldmatrix(uint32_t* registers, int count, bool transposed, uint32_t address, Site site);

// ---- wgmma.mma_async, m64nNk16, both operands in shared memory: D += A B. d: the lane's n / 2 registers of D.
struct Wgmma {
  bool bf16;
  int n;
  bool a_mn_major, b_mn_major;
};
EMULATOR_EXPORT void wgmma_fence(Site site);
EMULATOR_EXPORT void wgmma_issue(Wgmma kind, float* const* d, uint64_t a, uint64_t b, Site site);
EMULATOR_EXPORT void wgmma_commit(Site site);
EMULATOR_EXPORT void wgmma_wait(unsigned pending, Site site);
EMULATOR_EXPORT void proxy_fence(Site site);  // fence.proxy.async

// ---- what a module exports
// ------------------------------------------------------------------------------------------------- `signature`: one
// token a parameter: kind and bytes ("i4" signed, "u4" unsigned, "f4" float, "b1" bool, "s72" struct, "?8" any), behind
// P for a pointer and C for a pointer to const: "Pf4", "Cu2", "P?0" (void, or not known), "Cs8" (to structs).
struct Kernel {
  void (*entry)(void** arguments);  // arguments[i] points to the value of parameter i
  const char* signature;
  unsigned max_threads;     // of __launch_bounds__; 0: none given
  const char* image_begin;  // where the module itself lies in memory: its constants may be read
  const char* image_end;
};

// ---- a launch, as launcher.py asks for it (mirrored there field by field)
// ----------------------------------------------------
struct Buffer {
  void* host;
  uint64_t bytes;
  int writable;  // 0: must come back unchanged
  int argument;  // the first argument that points into it, for messages
  char* device;  // out: where its copy lies while the kernel runs
};
struct Argument {  // parameter i: either `value`, or the device address of byte `offset` of a buffer
  void* value;
  int64_t buffer;  // -1: it is a value
  uint64_t offset;
};
enum Order : int { UP, DOWN, RANDOM };
enum AsyncCopies : int { AT_ISSUE, LATE, AT_RANDOM };
enum MmaRounding : int { TO_NEAREST, TOWARDS_ZERO, AS_HOPPER };
struct Launch {
  Index3 grid, block;
  unsigned shared_bytes;
  int order;
  unsigned seed;
  int async_copies;
  int checks;
  int buffer_count, argument_count;
  int slide;  // 0: a buffer ends at its unreadable page; 1: it begins at one (256-byte aligned)
  int mma_rounding;
  int flush;  // 1: the arithmetic of the host takes and gives zero for denormal numbers
  Buffer* buffers;
  Argument* arguments;
  char* message;
  uint64_t message_bytes;
  uint64_t switches, barriers, collectives;  // out: what was done
  uint64_t seconds;                          // of computing, after which a kernel is taken for one that never ends
  unsigned shared_limit;                     // the most shared memory of a block, static and dynamic together
  unsigned static_bytes;                     // out: that of the variables which the launch has come to
};
}  // namespace emulator

extern "C" EMULATOR_EXPORT int emulator_launch(const emulator::Kernel* kernel,
                                               emulator::Launch* launch);  // 0, or 1: see message

extern "C" {  // the linker's own: begin and end of this shared object
extern char __ehdr_start __attribute__((visibility("hidden")));
extern char _end __attribute__((visibility("hidden")));
}
#define EMULATOR_KERNEL_RECORD(name, entry, signature, max_threads)         \
  extern "C" EMULATOR_EXPORT const emulator::Kernel emulator_kernel_##name; \
  const emulator::Kernel emulator_kernel_##name = {entry, signature, max_threads, &__ehdr_start, &_end};
