// What threads know of each other's accesses: vector clocks.
//
// Accesses are stamped with the epoch, which every release counts up. Who releases hands over what it knows, and itself
// up to now; who acquires knows all that from then on. A barrier of the whole block lets everyone know everything, which
// is one number. Stamps of former blocks and launches are below all of this one, so nothing is ever cleared.
#include <algorithm>

#include "internal.h"

namespace emulator {
uint32_t epoch, launch_first_epoch, block_first_epoch, known_to_all;
bool in_parts;

namespace {
uint32_t known[MAX_THREADS][MAX_THREADS];  // known[a][b]: up to which stamp a knows of what b did
}

void begin_clocks() {
  block_first_epoch = known_to_all = ++epoch;
  in_parts = false;
}

void know_everything() { known_to_all = ++epoch; }

bool knows(unsigned thread, unsigned other, uint32_t stamp) {
  return thread == other || stamp < known_to_all || known[thread][other] >= stamp;
}

void release(unsigned thread, Clock& into) {
  const uint32_t* const mine = known[thread];
  for (unsigned i = 0; i < thread_count; i++) into.at[i] = std::max(into.at[i], mine[i]);
  into.at[thread] = epoch++;
}

void acquire(unsigned thread, const Clock& from) {
  uint32_t* const mine = known[thread];
  for (unsigned i = 0; i < thread_count; i++) mine[i] = std::max(mine[i], from.at[i]);
}

void join_lanes(unsigned first, unsigned mask) {
  static Clock all;
  all = Clock{};
  for (unsigned lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) release(first + lane, all);
  for (unsigned lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) acquire(first + lane, all);
}

const uint32_t* known_by(unsigned thread) { return known[thread]; }
}  // namespace emulator
