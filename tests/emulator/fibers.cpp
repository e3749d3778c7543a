// Fibers, and the scheduler: which thread runs when.
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <utility>

#include "internal.h"

namespace emulator {
Thread threads[MAX_THREADS];
State states[MAX_THREADS];
unsigned thread_count, live, runnable;
Counts counts;

namespace {
void* launcher;  // the context of whoever launches, while a fiber runs
uint64_t random_state;

// ---- fibers --------------------------------------------------------------------------------------------------------
constexpr size_t STACK = 256 * 1024, GUARD = 4096;
struct Stack {
  char* begin;
} stacks[MAX_THREADS];
int free_stacks[MAX_THREADS], free_stack_count, stack_count;

void run_thread();

#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
extern "C" void emulator_switch(void** save, void* to);
asm(R"(
.text
.p2align 4
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch,.-emulator_switch
)");

void* new_context(char* begin, size_t bytes) {
  void** top = (void**)(begin + bytes);
  *--top = nullptr;  // a return address, so that the entry finds its stack aligned
  *--top = (void*)run_thread;
  for (int i = 0; i < 6; i++) *--top = nullptr;  // the saved registers
  return top;
}
#else
// Where nobody wrote the switch in assembly: the C library's, which asks the kernel for the signal mask each time.
ucontext_t contexts[MAX_THREADS + 1];  // of the threads, and of whoever launches
void emulator_switch(void** save, void* to) {
  *save =
      &contexts[save == &launcher ? MAX_THREADS : (unsigned)((State*)save - states)];  // context comes first in State
  swapcontext((ucontext_t*)*save, (ucontext_t*)to);
}
void* new_context(char* begin, size_t bytes) {
  ucontext_t* context = &contexts[g.current->linear];
  getcontext(context);
  context->uc_stack.ss_sp = begin;
  context->uc_stack.ss_size = bytes;
  context->uc_link = nullptr;
  makecontext(context, run_thread, 0);
  return context;
}
#endif

// A thread has a stack from its first step to its last: where none waits, all run on one, which stays in the cache.
bool give_stack(State& s) {
  if (!free_stack_count) {
    if (stack_count == (int)MAX_THREADS) return false;
    void* p = mmap(nullptr, GUARD + STACK, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (p == MAP_FAILED) return false;
    mprotect(p, GUARD, PROT_NONE);
    stacks[stack_count].begin = (char*)p + GUARD;
    free_stacks[free_stack_count++] = stack_count++;
  }
  s.stack = free_stacks[--free_stack_count];
  // stacks begin at different sets of the cache
  s.context = new_context(stacks[s.stack].begin, STACK - (size_t)(s.stack % 61) * 192);
  return true;
}

// ---- the scheduler: rounds, in each of which every thread that can run has its turn
// ---------------------------------------
uint16_t turns[MAX_THREADS];
unsigned turn;

// The thread whose turn it is next, made the current one; null if all have exited, or wait.
State* next_thread() {
  if (!runnable) return nullptr;
  for (;;) {
    for (; turn < thread_count; turn++) {
      State& s = states[turns[turn]];
      if (s.status != RUNNABLE) continue;
      g.current = &threads[turns[turn++]];
      counts.switches++;
      return &s;
    }
    turn = 0;
    if (launch->order == RANDOM)
      for (unsigned i = thread_count - 1; i > 0; i--)
        std::swap(turns[i], turns[(uint64_t)random_bits() * (i + 1) >> 32]);
  }
}

}  // namespace

void give_way() {
  State& me = state();
  State* next = next_thread();
  if (next == &me) return;
  if (next && next->stack < 0 && !give_stack(*next)) {
    complain(Site{nullptr, 0}, "no memory for the stacks of %u threads", thread_count);
    next = nullptr;
  }
  emulator_switch(&me.context, next ? next->context : launcher);
}

namespace {
// What a fiber runs: a thread, and behind it those that have not begun. A kernel in which none waits takes one fiber.
void run_thread() {
  for (;;) {
    kernel->entry(kernel_arguments);
    end_copies();
    State& me = state();
    me.status = EXITED;
    live--;
    runnable--;
    leave_barriers();
    const int stack = me.stack;
    me.stack = -1;
    State* next = next_thread();
    if (next && next->stack < 0) {
      next->stack = stack;
      continue;
    }
    free_stacks[free_stack_count++] = stack;  // nobody takes it before the switch
    emulator_switch(&me.context, next ? next->context : launcher);
    abort();
  }
}

}  // namespace

void leave_for_good() {
  emulator_switch(&state().context, launcher);
  abort();
}

void begin_launch_of_threads(const Launch& l) {
  random_state = 0x9E3779B97F4A7C15ull ^ ((uint64_t)l.seed << 1);
  thread_count = l.block.x * l.block.y * l.block.z;
  counts = Counts{};
  for (unsigned i = 0; i < thread_count; i++) {
    const Index3 index = {i % l.block.x, i / l.block.x % l.block.y, i / (l.block.x * l.block.y)};
    threads[i] = {index, i, i % 32, i / 32, &states[i]};
    turns[i] = (uint16_t)(l.order == DOWN ? thread_count - 1 - i : i);
  }
  free_stack_count = 0;
  for (int i = stack_count - 1; i >= 0; i--) free_stacks[free_stack_count++] = i;  // a failed launch left some in use
}

void run_threads() {
  for (unsigned i = 0; i < thread_count; i++) {
    states[i].status = RUNNABLE;
    states[i].stack = -1;
  }
  live = runnable = thread_count;
  turn = thread_count;  // a new round
  State* first = next_thread();
  if (!give_stack(*first)) return complain(Site{nullptr, 0}, "no memory for the stack of a thread");
  emulator_switch(&launcher, first->context);
}

uint32_t random_bits() {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return (uint32_t)(random_state * 0x2545F4914F6CDD1Dull >> 32);
}

bool in_stack(const void* pointer) {
  const char* begin = stacks[state().stack].begin;
  return (const char*)pointer >= begin && (const char*)pointer < begin + STACK;
}

bool in_any_stack_guard(const void* pointer) {
  for (int i = 0; i < stack_count; i++)
    if ((const char*)pointer < stacks[i].begin && (const char*)pointer >= stacks[i].begin - GUARD) return true;
  return false;
}
}  // namespace emulator
