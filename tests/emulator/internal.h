// What the files of the runtime share among themselves.
#pragma once
#include <stdarg.h>

#include "runtime.h"

namespace emulator {

constexpr unsigned MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / 32;
constexpr unsigned char POISON = 0xff;  // NaN in every float format, -1 in every integer

// Shared memory addresses. Both zones begin at a multiple of 16 and of no more, as kernels may rely on no more.
constexpr unsigned REDZONE = 64, DYNAMIC_BEGIN = 1024 + 16;
constexpr unsigned STATIC_BEGIN = 240 * 1024 + 16, STATIC_LIMIT = 48 * 1024, ARENA = 1024 * 1024;
inline bool in_arena(const void* p) { return (const char*)p >= g.shared && (const char*)p < g.shared + ARENA; }

// How the host rounds. FLUSH: denormal numbers are taken for zero and come out as zero, doubles as well as floats.
#if defined(__x86_64__)
typedef unsigned FloatMode;
constexpr FloatMode FLUSH = 0x8040;
inline FloatMode float_mode() { return __builtin_ia32_stmxcsr(); }
inline void set_float_mode(FloatMode mode) { __builtin_ia32_ldmxcsr(mode); }
#elif defined(__aarch64__)
typedef uint64_t FloatMode;
constexpr FloatMode FLUSH = 1 << 24;
inline FloatMode float_mode() {
  FloatMode mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
inline void set_float_mode(FloatMode mode) { asm volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
#else
typedef unsigned FloatMode;
constexpr FloatMode FLUSH = 0;
inline FloatMode float_mode() { return 0; }
inline void set_float_mode(FloatMode) {}
#endif

enum Status : int { RUNNABLE, AT_BARRIER, AT_COLLECTIVE, EXITED };

struct Copy {
  char* to;
  const char* from;
  unsigned bytes, source_bytes, group, number;
  bool delivered;
  Site site;
};

struct State {
  void* context;  // where to go on
  Status status;
  int stack;  // -1: has not begun, or has exited
  int barrier;
  Site site;  // where it waits
  void* slot;
  Copy* copies;  // cp.async under way, in the order of issue
  unsigned copy_count, copy_capacity, open_group, issued;  // issued: the number of the next one
};
inline State& state() { return *g.current->state; }

struct Warp {
  struct Collective {
    unsigned arrived, mask;
    WarpFunction function;
    Site site;
  };
  unsigned live;
  unsigned epoch;  // counts __syncwarp of all live lanes
  int waiting;
  Collective collectives[32];
};

// What is known of one byte of memory: who wrote it last and when, who read it last and when. Each is one number,
//   epoch << 32 | epoch of the warp << 16 | flags | thread (10 bits)
// Epochs count what orders accesses, over all blocks and launches of the process, so what an earlier block or launch left
// behind tells itself by its number, and nothing is ever cleared.
struct Cell {
  uint64_t write, read;
};
constexpr uint64_t THREAD_BITS = 1023;
constexpr uint64_t BY_ATOMIC = 1 << 10, IN_FLIGHT = 1 << 11;    // flags of a write
constexpr uint64_t MANY_LANES = 1 << 10, MANY_WARPS = 1 << 11;  // flags of a read

struct DeviceBuffer {  // the copy of a host array
  char* data;
  uint64_t bytes;
  int argument;
  char* begin;  // the readable pages around it
  uint64_t room;
  Cell* cells;
};

// launch.cpp
extern Launch* launch;  // null outside of a launch
extern const Kernel* kernel;
extern void** kernel_arguments;

// fibers.cpp
extern Thread threads[MAX_THREADS];
extern State states[MAX_THREADS];
extern unsigned thread_count, live, runnable;  // of the block; live: has not exited
struct Counts {
  uint64_t switches, barriers, collectives;
};
extern Counts counts;
void begin_launch_of_threads(const Launch& l);
void run_threads();                  // a block: until all threads have exited, or none can go on, or one has failed
void give_way();                     // the running thread lets others run; it goes on in its next turn, if it can then
[[noreturn]] void leave_for_good();  // ends run_threads()
uint32_t random_bits();
bool in_stack(const void* pointer);  // of the running thread
bool in_any_stack_guard(const void* pointer);

// barriers.cpp
extern Warp warps[MAX_WARPS];
void begin_barriers();
void leave_barriers();  // the running thread has exited

// faults.cpp
extern bool failed;
extern Site busy_at;  // what the runtime does for a kernel, should it meet a memory fault
bool same(Site a, Site b);
int place(char* text, size_t bytes, Site site);
void complain(Site site, const char* format, ...)
    __attribute__((format(printf, 2, 3)));  // fails the launch, and returns
void deadlock();
void begin_signals();
void end_signals();

// clocks.cpp
struct Clock {
  uint32_t at[MAX_THREADS];
};
extern uint32_t epoch, launch_first_epoch, block_first_epoch;
extern uint32_t known_to_all;  // what was done before this epoch, all threads of the block know of
extern bool in_parts;          // whether the block has what orders some of its threads: mbarriers, or barriers for some
void begin_clocks();
void know_everything();
bool knows(unsigned thread, unsigned other, uint32_t stamp);
void release(unsigned thread, Clock& into);
void acquire(unsigned thread, const Clock& from);
void join_lanes(unsigned first, unsigned mask);
const uint32_t* known_by(unsigned thread);

// checker.cpp
void begin_checks();
void begin_readers();
Cell* shared_cells(uint32_t offset);
void mark_in_flight(const void* shared, unsigned bytes, bool on);
bool is_in_flight(uint32_t offset, unsigned bytes);

// device_memory.cpp
extern DeviceBuffer* buffers;
extern int buffer_count;
const char* bring_buffers(Launch& l);                                    // null, or why not
bool take_buffers(Launch& l, bool failed, char* message, size_t bytes);  // whether all is well
Cell* cells_of(DeviceBuffer& buffer);
void forget_cells();
int describe(char* text, size_t bytes, const char* address);  // "8 bytes past the end of argument 2 (400 bytes)"
const char* unreadable();
void prepare_arena();
void begin_shared(bool first_block);  // poison
void end_shared();                    // redzones
bool in_shared_variable(uint32_t offset, unsigned bytes);
int describe_shared(char* text, size_t bytes, uint32_t offset);

// matrix.cpp
void multiply_16x8x16(float (&sums)[16][8], const float (&a)[16][16], const float (&b)[16][8]);

// wgmma.cpp
void begin_wgmma();
void end_wgmma();
void written_generically(uint32_t offset, unsigned bytes, Site site);  // to shared memory, by the running thread
void written_by_async_proxy(uint32_t offset, unsigned bytes);          // what was just said to be written

// async_copies.cpp
void begin_copies();
void end_copies();  // of the running thread

}  // namespace emulator
