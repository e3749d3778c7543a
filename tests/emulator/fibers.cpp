// Fibers, the scheduler, barriers, warp collectives, faults, and the launch itself.
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <time.h>
#include <unistd.h>
#include <dlfcn.h>
#include <new>
#include <utility>
#include "internal.h"

namespace emulator {
Globals g;
const Observer* observer;
const Launch* launch;
const Kernel* kernel;
Thread threads[MAX_THREADS];
State states[MAX_THREADS];
Warp warps[MAX_WARPS];
Site busy_at;

namespace {
void** kernel_arguments;
void* scheduler;                     // its context while a fiber runs
unsigned thread_count, live, runnable;
uint64_t random_state;
bool failed;
uint64_t switches, barriers, collectives;

struct Barrier { unsigned arrived, count, votes, result; Site site; } block_barriers[16];

// ---- fibers --------------------------------------------------------------------------------------------------------
constexpr size_t STACK = 256 * 1024, GUARD = 4096;
struct Stack { char* begin; } stacks[MAX_THREADS];
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
  *--top = nullptr;                             // a return address, so that the entry finds its stack aligned
  *--top = (void*)run_thread;
  for (int i = 0; i < 6; i++) *--top = nullptr;   // the saved registers
  return top;
}
#else
// Where nobody wrote the switch in assembly: the C library's, which asks the kernel for the signal mask each time.
ucontext_t contexts[MAX_THREADS + 1];   // of the threads, and of whoever launches
void emulator_switch(void** save, void* to) {
  *save = &contexts[save == &scheduler ? MAX_THREADS : (unsigned)((State*)save - states)];   // context comes first in State
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
    void* p = mmap(nullptr, GUARD + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
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

// ---- the scheduler: rounds, in each of which every thread that can run has its turn ---------------------------------------
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
      switches++;
      return &s;
    }
    turn = 0;
    if (launch->order == RANDOM)
      for (unsigned i = thread_count - 1; i > 0; i--) std::swap(turns[i], turns[(uint64_t)random_bits() * (i + 1) >> 32]);
  }
}

// The running thread lets others run; it goes on in its next turn, if it can then.
void give_way() {
  State& me = state();
  State* next = next_thread();
  if (next == &me) return;
  if (next && next->stack < 0 && !give_stack(*next)) {
    snprintf(launch->message, launch->message_bytes, "no memory for the stacks of %u threads", thread_count);
    failed = true;
    next = nullptr;
  }
  emulator_switch(&me.context, next ? next->context : scheduler);
}

void finish_thread() {
  end_copies();
  Thread& t = *g.current;
  State& s = state();
  Warp& w = warps[t.warp];
  for (int i = 0; i < w.waiting; i++)
    if (w.collectives[i].mask >> t.lane & 1)
      fault(w.collectives[i].site, "lane %u exits while others wait for it here (mask %08x)", t.lane, w.collectives[i].mask);
  s.status = EXITED;
  live--;
  runnable--;
  w.live &= ~(1u << t.lane);
  for (int id = 0; id < 16; id++) {            // __syncthreads waits for the threads that have not exited
    Barrier& b = block_barriers[id];
    if (b.arrived && b.count == 0 && b.arrived == live) barrier_arrive(id, 0, Site{nullptr, 0});
  }
}

// What a fiber runs: a thread, and behind it those that have not begun. A kernel in which none waits takes one fiber.
void run_thread() {
  for (;;) {
    kernel->entry(kernel_arguments);
    finish_thread();
    State& me = state();
    const int stack = me.stack;
    me.stack = -1;
    State* next = next_thread();
    if (next && next->stack < 0) {
      next->stack = stack;
      continue;
    }
    free_stacks[free_stack_count++] = stack;   // nobody takes it before the switch
    emulator_switch(&me.context, next ? next->context : scheduler);
    abort();
  }
}

// ---- barriers ------------------------------------------------------------------------------------------------------
bool same(Site a, Site b) {
  return a.line == b.line && (a.where == b.where || (a.line != Site::CODE && a.where && b.where && !strcmp(a.where, b.where)));
}

void release(int id) {
  Barrier& b = block_barriers[id];
  if (b.count == 0 || b.count >= thread_count) epoch++;
  b.result = b.votes;
  b.arrived = b.votes = 0;
  barriers++;
  for (unsigned i = 0; i < thread_count; i++)
    if (states[i].status == AT_BARRIER && states[i].barrier == id) {
      states[i].status = RUNNABLE;
      runnable++;
    }
}

int place(char* text, size_t bytes, Site site) {
  if (!site.where) return snprintf(text, bytes, "line %d", site.line);
  if (site.line != Site::CODE) {
    const char* slash = strrchr(site.where, '/');
    return snprintf(text, bytes, "%s:%d", slash ? slash + 1 : site.where, site.line);
  }
  Dl_info info;   // the launcher turns this into file:line; the address is that behind a call
  if (dladdr(site.where, &info) && info.dli_fname)
    return snprintf(text, bytes, "{%s+0x%lx}", info.dli_fname, (unsigned long)(site.where - (char*)info.dli_fbase - 1));
  return snprintf(text, bytes, "%p", (const void*)site.where);
}

void arrive(int id, unsigned count, bool predicate, Site site) {
  if (id < 0 || id > 15) fault(site, "barrier %d: there are 0 to 15", id);
  if (count % 32) fault(site, "barrier %d: %u threads are no whole number of warps", id, count);
  Barrier& b = block_barriers[id];
  if (!b.arrived) {
    b.site = site;
    b.count = count;
  } else if (b.count != count) {
    fault(site, "barrier %d waits for %u threads here and for %u elsewhere", id, count, b.count);
  } else if (count == 0 && !same(b.site, site)) {
    char other[300];
    place(other, sizeof other, b.site);
    fault(site, "threads diverged: the barrier is reached here while others wait at that of %s", other);
  }
  b.arrived++;
  b.votes += predicate;
}

void wait(int id, Site site) {
  Barrier& b = block_barriers[id];
  State& s = state();
  s.status = AT_BARRIER;
  s.barrier = id;
  s.site = site;
  runnable--;
  if (b.arrived == (b.count ? b.count : live)) release(id);
  if (s.status != RUNNABLE || launch->order == RANDOM) give_way();
}
}  // namespace

void barrier(int id, unsigned count, Site site) {
  arrive(id, count, false, site);
  wait(id, site);
}

unsigned barrier_count(int id, unsigned count, bool predicate, Site site) {
  arrive(id, count, predicate, site);
  wait(id, site);
  return block_barriers[id].result;
}

void barrier_arrive(int id, unsigned count, Site site) {
  if (site.where || site.line) arrive(id, count, false, site);   // else: a thread exited, and may be the last waited for
  Barrier& b = block_barriers[id];
  if (b.arrived == (b.count ? b.count : live)) release(id);
}

// ---- warp collectives ------------------------------------------------------------------------------------------------
void warp_collective(unsigned mask, WarpFunction function, void* slot, Site site) {
  Thread& t = *g.current;
  Warp& w = warps[t.warp];
  State& s = state();
  collectives++;
  if (!(mask >> t.lane & 1)) fault(site, "lane %u is not in its own mask %08x", t.lane, mask);
  if (mask & ~w.live) fault(site, "mask %08x names lanes that have exited or do not exist (there are %08x)", mask, w.live);
  Warp::Collective* mine = nullptr;
  for (int i = 0; i < w.waiting; i++) {
    Warp::Collective& c = w.collectives[i];
    const bool meant = c.mask == mask && c.function == function && same(c.site, site);
    // Another part of the warp goes its own way; but whoever waits for this lane there cannot be waited for here.
    if (!meant && !(c.mask >> t.lane & 1 && c.arrived & mask)) continue;
    if (!meant) {
      char other[300];
      place(other, sizeof other, c.site);
      fault(site, "the warp diverged: lane %u is here with mask %08x, others wait at %s with mask %08x", t.lane, mask, other, c.mask);
    }
    mine = &c;
  }
  if (!mine) {
    mine = &w.collectives[w.waiting++];
    *mine = {0, mask, function, site};
  }
  mine->arrived |= 1u << t.lane;
  s.slot = slot;
  s.status = AT_COLLECTIVE;
  s.site = site;
  runnable--;
  if (mine->arrived != mask) return give_way();
  *mine = w.collectives[--w.waiting];
  void* slots[32];
  const unsigned first = t.linear - t.lane;
  for (unsigned lane = 0; lane < 32; lane++) slots[lane] = mask >> lane & 1 ? states[first + lane].slot : nullptr;
  if (function) function(mask, slots);
  else if ((mask & w.live) == w.live) w.epoch++;   // __syncwarp orders memory
  for (unsigned lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) {
      states[first + lane].status = RUNNABLE;
      runnable++;
    }
}

unsigned active_lanes() { return warps[g.current->warp].live; }

void yield() { give_way(); }

uint32_t random_bits() {   // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return (uint32_t)(random_state * 0x2545F4914F6CDD1Dull >> 32);
}

// ---- faults ------------------------------------------------------------------------------------------------------------
void report(Site site, const char* format, va_list arguments) {
  char* out = launch->message;
  size_t left = launch->message_bytes;
  auto wrote = [&](int n) { size_t k = n < 0 ? 0 : (size_t)n < left ? n : left - 1; out += k; left -= k; };
  if (site.where || site.line) {
    wrote(place(out, left, site));
    wrote(snprintf(out, left, ": "));
  }
  if (g.current) {
    const Index3 t = g.current->index;
    wrote(snprintf(out, left, "block (%u,%u,%u) thread (%u,%u,%u): ", g.blockIdx.x, g.blockIdx.y, g.blockIdx.z, t.x, t.y, t.z));
  }
  wrote(vsnprintf(out, left, format, arguments));
  failed = true;
}

void fault(Site site, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  if (!launch || !g.current) {
    vfprintf(stderr, format, arguments);
    abort();
  }
  report(site, format, arguments);
  va_end(arguments);
  emulator_switch(&state().context, scheduler);   // which does not come back
  abort();
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

namespace {
constexpr int TIME_IS_UP = SIGVTALRM;
constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, TIME_IS_UP}, SIGNAL_COUNT = 4;
struct sigaction former[SIGNAL_COUNT];
pid_t launching_thread;

// Where the machine was when the signal came, if that can be said.
const char* program_counter(void* context) {
#if defined(__x86_64__)
  return (const char*)((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
  return (const char*)((ucontext_t*)context)->uc_mcontext.pc;
#else
  (void)context;
  return nullptr;
#endif
}

void on_signal(int signal, siginfo_t* info, void* context) {
  if (!launch || !g.current || (pid_t)syscall(SYS_gettid) != launching_thread) {   // not the kernel's
    for (int i = 0; i < SIGNAL_COUNT; i++)
      if (SIGNALS[i] == signal && signal != TIME_IS_UP) sigaction(signal, &former[i], nullptr);
    return;   // happens again, to whom it may concern
  }
  Site site = busy_at;
  const char* what = "access";
  const char* at = program_counter(context);
  const bool in_kernel = at >= kernel->image_begin && at < kernel->image_end;
  if (in_kernel) site = Site::code(at + 1);
  if (signal == TIME_IS_UP) {
    if (!in_kernel) return;   // the runtime is at work, and will have left when the signal comes again
    fault(site, "computes for more than %lu s (GPUCONV_EMULATOR_SECONDS), and is taken for a loop without end", (unsigned long)launch->seconds);
  }
#if defined(__x86_64__)
  if (signal == SIGSEGV) what = ((ucontext_t*)context)->uc_mcontext.gregs[REG_ERR] & 2 ? "write" : "read";
#endif
  if (signal == SIGFPE) fault(site, "division by zero, or of the lowest integer by -1");
  if (signal == SIGBUS || info->si_code == SI_KERNEL) fault(site, "misaligned access, or one by a wild pointer");
  const char* address = (const char*)info->si_addr;
  if (in_any_stack_guard(address)) fault(site, "stack overflow: more than %zu bytes of locals", STACK);
  char where[160];
  describe(where, sizeof where, address);
  fault(site, "%s out of bounds, %s", what, where);
}

// ---- the launch ----------------------------------------------------------------------------------------------------------
void deadlock() {
  struct Group { Site site; Status status; unsigned count, first; } groups[4];
  int n = 0;
  for (unsigned i = 0; i < thread_count; i++) {
    State& s = states[i];
    if (s.status == EXITED) continue;
    int k = 0;
    while (k < n && !(groups[k].status == s.status && same(groups[k].site, s.site))) k++;
    if (k == 4) continue;
    if (k == n) groups[n++] = {s.site, s.status, 0, i};
    groups[k].count++;
  }
  char text[1200] = "", at[300];
  int used = 0;
  for (int k = 0; k < n; k++) {
    place(at, sizeof at, groups[k].site);
    used += snprintf(text + used, sizeof text - used, "%s %u at the %s of %s (thread %u first)", k ? "," : "", groups[k].count,
                     groups[k].status == AT_BARRIER ? "barrier" : "warp collective", at, groups[k].first);
    if (used >= (int)sizeof text) break;
  }
  snprintf(launch->message, launch->message_bytes, "block (%u,%u,%u): deadlock, all %u threads that are left wait:%s", g.blockIdx.x,
           g.blockIdx.y, g.blockIdx.z, live, text);
  failed = true;
}

void run_block() {
  for (Barrier& b : block_barriers) b = Barrier{};
  for (unsigned w = 0; w * 32 < thread_count; w++) {
    const unsigned lanes = thread_count - w * 32;
    warps[w].live = lanes >= 32 ? ~0u : (1u << lanes) - 1;
    warps[w].epoch = 0;
    warps[w].waiting = 0;
  }
  for (unsigned i = 0; i < thread_count; i++) {
    states[i].status = RUNNABLE;
    states[i].stack = -1;
    states[i].copy_count = states[i].open_group = 0;
  }
  live = runnable = thread_count;
  block_first_epoch = ++epoch;
  begin_copies();
  begin_shared(false);
  turn = thread_count;   // a new round
  State* first = next_thread();
  if (!give_stack(*first)) {
    snprintf(launch->message, launch->message_bytes, "no memory for the stack of a thread");
    failed = true;
    return;
  }
  emulator_switch(&scheduler, first->context);   // comes back when no thread can go on
  if (!failed && live) deadlock();
  if (failed) return;
  end_shared();
  if (launch->checks & COUNT && observer) observer->block_end();
  g.current = nullptr;
}

void run_grid() {
  const Launch& l = *launch;
  for (unsigned i = 0; i < thread_count; i++) {
    threads[i] = {{i % l.block.x, i / l.block.x % l.block.y, i / (l.block.x * l.block.y)}, i, i % 32, i / 32, &states[i]};
    turns[i] = (uint16_t)(l.order == DOWN ? thread_count - 1 - i : i);
  }
  free_stack_count = 0;
  for (int i = stack_count - 1; i >= 0; i--) free_stacks[free_stack_count++] = i;   // a failed launch left some in use
  const uint64_t blocks = (uint64_t)l.grid.x * l.grid.y * l.grid.z;
  for (uint64_t k = 0; k < blocks && !failed; k++) {
    const uint64_t b = l.order == DOWN ? blocks - 1 - k : k;
    g.blockIdx = {(unsigned)(b % l.grid.x), (unsigned)(b / l.grid.x % l.grid.y), (unsigned)(b / l.grid.x / l.grid.y)};
    run_block();
  }
}
}  // namespace
}  // namespace emulator

int emulator_launch(const emulator::Kernel* which, emulator::Launch* l) {
  using namespace emulator;
  launch = l;
  kernel = which;
  failed = false;
  switches = barriers = collectives = 0;
  random_state = 0x9E3779B97F4A7C15ull ^ ((uint64_t)l->seed << 1);
  thread_count = l->block.x * l->block.y * l->block.z;
  launching_thread = (pid_t)syscall(SYS_gettid);
  busy_at = Site{nullptr, 0};
  prepare_arena();
  g.current = nullptr;
  g.blockDim = l->block;
  g.gridDim = l->grid;
  g.checking = l->checks;
  g.dynamic_shared_bytes = l->shared_bytes;
  g.launch++;
  launch_first_epoch = epoch + 1;
  begin_shared(true);
  if (l->checks) begin_checks();

  if (const char* why = bring_buffers(*l)) {
    snprintf(l->message, l->message_bytes, "%s", why);
    failed = true;
  } else {
    void** pointers = (void**)alloca(sizeof(void*) * (2 * l->argument_count + 1));
    char** addresses = (char**)(pointers + l->argument_count);
    for (int i = 0; i < l->argument_count; i++) {
      const Argument& a = l->arguments[i];
      addresses[i] = a.buffer >= 0 ? l->buffers[a.buffer].device + a.offset : (char*)unreadable();
      pointers[i] = a.buffer == -1 ? a.value : &addresses[i];
    }
    kernel_arguments = pointers;

    static char signal_stack[64 * 1024];
    stack_t mine = {}, theirs;
    mine.ss_sp = signal_stack;
    mine.ss_size = sizeof signal_stack;
    sigaltstack(&mine, &theirs);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < SIGNAL_COUNT; i++) sigaction(SIGNALS[i], &action, &former[i]);
    struct sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = TIME_IS_UP;
    event._sigev_un._tid = launching_thread;
    timer_t timer;
    const bool timed = !timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer);
    const struct itimerspec limit = {{0, 20'000'000}, {(time_t)l->seconds, 0}};
    if (timed) timer_settime(timer, 0, &limit, nullptr);
    if (l->checks & COUNT && observer) observer->launch_begin();
    run_grid();
    if (timed) timer_delete(timer);
    for (int i = 0; i < SIGNAL_COUNT; i++) sigaction(SIGNALS[i], &former[i], nullptr);
    sigaltstack(&theirs, nullptr);
  }
  if (!take_buffers(*l, failed, l->message, l->message_bytes)) failed = true;
  l->switches = switches;
  l->barriers = barriers;
  l->collectives = collectives;
  g.current = nullptr;
  g.checking = 0;
  launch = nullptr;
  return failed;
}
