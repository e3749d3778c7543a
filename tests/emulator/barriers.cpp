// Barriers of the block, and collectives of a warp.
#include "internal.h"

namespace emulator {
Warp warps[MAX_WARPS];

namespace {
struct Barrier {
  unsigned arrived, count, votes, result;
  Site site;
  Clock clock;  // what those who came knew, if they are not all threads
} block_barriers[16];

void release(int id) {
  Barrier& b = block_barriers[id];
  const bool whole = b.count == 0 || b.count >= thread_count;
  if (whole) know_everything();
  b.result = b.votes;
  b.arrived = b.votes = 0;
  counts.barriers++;
  for (unsigned i = 0; i < thread_count; i++)
    if (states[i].status == AT_BARRIER && states[i].barrier == id) {
      if (!whole) acquire(i, b.clock);
      states[i].status = RUNNABLE;
      runnable++;
    }
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
  if (count && count < thread_count) {
    in_parts = true;
    if (b.arrived == 1) b.clock = Clock{};
    release(g.current->linear, b.clock);
  }
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
  if (site.where || site.line) arrive(id, count, false, site);  // else: a thread exited, and may be the last waited for
  Barrier& b = block_barriers[id];
  if (b.arrived == (b.count ? b.count : live)) release(id);
}

void begin_barriers() {
  for (Barrier& b : block_barriers) b = Barrier{};
  for (unsigned w = 0; w * 32 < thread_count; w++) {
    const unsigned lanes = thread_count - w * 32;
    warps[w].live = lanes >= 32 ? ~0u : (1u << lanes) - 1;
    warps[w].epoch = 0;
    warps[w].waiting = 0;
  }
}

void leave_barriers() {
  Thread& t = *g.current;
  Warp& w = warps[t.warp];
  for (int i = 0; i < w.waiting; i++)
    if (w.collectives[i].mask >> t.lane & 1)
      fault(w.collectives[i].site, "lane %u exits while others wait for it here (mask %08x)", t.lane,
            w.collectives[i].mask);
  w.live &= ~(1u << t.lane);
  for (int id = 0; id < 16; id++) {  // __syncthreads waits for the threads that have not exited
    Barrier& b = block_barriers[id];
    if (b.arrived && b.count == 0 && b.arrived == live) barrier_arrive(id, 0, Site{nullptr, 0});
  }
}

// ---- warp collectives
// ------------------------------------------------------------------------------------------------
void warp_collective(unsigned mask, WarpFunction function, void* slot, Site site) {
  Thread& t = *g.current;
  Warp& w = warps[t.warp];
  State& s = state();
  counts.collectives++;
  if (!(mask >> t.lane & 1)) fault(site, "lane %u is not in its own mask %08x", t.lane, mask);
  if (mask & ~w.live)
    fault(site, "mask %08x names lanes that have exited or do not exist (there are %08x)", mask, w.live);
  Warp::Collective* mine = nullptr;
  for (int i = 0; i < w.waiting; i++) {
    Warp::Collective& c = w.collectives[i];
    const bool meant = c.mask == mask && c.function == function && same(c.site, site);
    // Another part of the warp goes its own way; but whoever waits for this lane there cannot be waited for here.
    if (!meant && !(c.mask >> t.lane & 1 && c.arrived & mask)) continue;
    if (!meant) {
      char other[300];
      place(other, sizeof other, c.site);
      fault(site, "the warp diverged: lane %u is here with mask %08x, others wait at %s with mask %08x", t.lane, mask,
            other, c.mask);
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
  if (function)
    function(mask, slots);
  else if ((mask & w.live) == w.live)
    w.epoch++;  // __syncwarp orders memory
  if (!function && in_parts) join_lanes(first, mask);
  for (unsigned lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) {
      states[first + lane].status = RUNNABLE;
      runnable++;
    }
}

unsigned active_lanes() { return warps[g.current->warp].live; }
}  // namespace emulator
