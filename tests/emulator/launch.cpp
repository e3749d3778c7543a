// A launch, block by block.
#include <alloca.h>
#include <stdio.h>

#include "internal.h"

namespace emulator {
Globals g;
const Observer* observer;
Launch* launch;
const Kernel* kernel;
void** kernel_arguments;

namespace {
void run_block() {
  begin_clocks();
  begin_barriers();
  begin_copies();
  begin_readers();
  begin_wgmma();
  begin_shared(false);
  run_threads();
  if (!failed && live) deadlock();
  if (!failed) end_shared();
  if (!failed) end_wgmma();
  if (!failed && launch->checks & COUNT && observer) observer->block_end();
  g.current = nullptr;
}

void run_grid() {
  const Launch& l = *launch;
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
  begin_launch_of_threads(*l);
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

    begin_signals();
    if (l->checks & COUNT && observer) observer->launch_begin();
    const FloatMode before = float_mode();
    if (l->flush) set_float_mode(before | FLUSH);
    run_grid();
    set_float_mode(before);
    end_signals();
  }
  if (!take_buffers(*l, failed, l->message, l->message_bytes)) failed = true;
  l->switches = counts.switches;
  l->barriers = counts.barriers;
  l->collectives = counts.collectives;
  g.current = nullptr;
  g.checking = 0;
  launch = nullptr;
  return failed;
}
