// Faults: of the kernel's own doing, of memory, of time; and deadlocks.
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "internal.h"

namespace emulator {
bool failed;
Site busy_at;

bool same(Site a, Site b) {
  return a.line == b.line &&
         (a.where == b.where || (a.line != Site::CODE && a.where && b.where && !strcmp(a.where, b.where)));
}

int place(char* text, size_t bytes, Site site) {
  if (!site.where) return snprintf(text, bytes, "line %d", site.line);
  if (site.line != Site::CODE) {
    const char* slash = strrchr(site.where, '/');
    return snprintf(text, bytes, "%s:%d", slash ? slash + 1 : site.where, site.line);
  }
  Dl_info info;  // the launcher turns this into file:line; the address is that behind a call
  if (dladdr(site.where, &info) && info.dli_fname)
    return snprintf(text, bytes, "{%s+0x%lx}", info.dli_fname, (unsigned long)(site.where - (char*)info.dli_fbase - 1));
  return snprintf(text, bytes, "%p", (const void*)site.where);
}

static void report(Site site, const char* format, va_list arguments) {
  char* out = launch->message;
  size_t left = launch->message_bytes;
  auto wrote = [&](int n) {
    size_t k = n < 0 ? 0 : (size_t)n < left ? n : left - 1;
    out += k;
    left -= k;
  };
  if (site.where || site.line) {
    wrote(place(out, left, site));
    wrote(snprintf(out, left, ": "));
  }
  if (g.current) {
    const Index3 t = g.current->index;
    wrote(snprintf(out, left, "block (%u,%u,%u) thread (%u,%u,%u): ", g.blockIdx.x, g.blockIdx.y, g.blockIdx.z, t.x,
                   t.y, t.z));
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
  leave_for_good();
}

void complain(Site site, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  report(site, format, arguments);
  va_end(arguments);
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
  if (!launch || !g.current || (pid_t)syscall(SYS_gettid) != launching_thread) {  // not the kernel's
    for (int i = 0; i < SIGNAL_COUNT; i++)
      if (SIGNALS[i] == signal && signal != TIME_IS_UP) sigaction(signal, &former[i], nullptr);
    return;  // happens again, to whom it may concern
  }
  Site site = busy_at;
  const char* what = "access";
  const char* at = program_counter(context);
  const bool in_kernel = at >= kernel->image_begin && at < kernel->image_end;
  if (in_kernel) site = Site::code(at + 1);
  if (signal == TIME_IS_UP) {
    if (!in_kernel) return;  // the runtime is at work, and will have left when the signal comes again
    fault(site, "computes for more than %lu s (GPUCONV_EMULATOR_SECONDS), and is taken for a loop without end",
          (unsigned long)launch->seconds);
  }
#if defined(__x86_64__)
  if (signal == SIGSEGV) what = ((ucontext_t*)context)->uc_mcontext.gregs[REG_ERR] & 2 ? "write" : "read";
#endif
  if (signal == SIGFPE) fault(site, "division by zero, or of the lowest integer by -1");
  if (signal == SIGBUS || info->si_code == SI_KERNEL) fault(site, "misaligned access, or one by a wild pointer");
  const char* address = (const char*)info->si_addr;
  if (in_any_stack_guard(address)) fault(site, "stack overflow: more locals than the emulator has room for");
  char where[160];
  describe(where, sizeof where, address);
  fault(site, "%s out of bounds, %s", what, where);
}

}  // namespace

void deadlock() {
  struct Group {
    Site site;
    Status status;
    unsigned count, first;
  } groups[4];
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
    used +=
        snprintf(text + used, sizeof text - used, "%s %u at the %s of %s (thread %u first)", k ? "," : "",
                 groups[k].count, groups[k].status == AT_BARRIER ? "barrier" : "warp collective", at, groups[k].first);
    if (used >= (int)sizeof text) break;
  }
  snprintf(launch->message, launch->message_bytes, "block (%u,%u,%u): deadlock, all %u threads that are left wait:%s",
           g.blockIdx.x, g.blockIdx.y, g.blockIdx.z, live, text);
  failed = true;
}

// ---- signals during a launch --------------------------------------------------------------------------------------
namespace {
timer_t timer;
bool timed;
stack_t former_stack;
}  // namespace

void begin_signals() {
  static char signal_stack[64 * 1024];
  launching_thread = (pid_t)syscall(SYS_gettid);
  stack_t mine = {};
  mine.ss_sp = signal_stack;
  mine.ss_size = sizeof signal_stack;
  sigaltstack(&mine, &former_stack);
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int i = 0; i < SIGNAL_COUNT; i++) sigaction(SIGNALS[i], &action, &former[i]);
  struct sigevent event = {};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = TIME_IS_UP;
  event._sigev_un._tid = launching_thread;
  timed = !timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer);
  const struct itimerspec limit = {{0, 20'000'000}, {(time_t)launch->seconds, 0}};
  if (timed) timer_settime(timer, 0, &limit, nullptr);
}

void end_signals() {
  if (timed) timer_delete(timer);
  for (int i = 0; i < SIGNAL_COUNT; i++) sigaction(SIGNALS[i], &former[i], nullptr);
  sigaltstack(&former_stack, nullptr);
}
}  // namespace emulator
