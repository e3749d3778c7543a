// cp.async, mbarrier and bulk copies. A copy is delivered when it is issued, or as late as the waits allow, or at
// random: a kernel that waits as it must gives the same result with each.
#include <stdlib.h>

#include <algorithm>
#include <map>
#include <vector>

#include "internal.h"

namespace emulator {
namespace {
void deliver(Copy& c) {
  if (c.delivered) return;
  busy_at = c.site;
  memcpy(c.to, c.from, c.source_bytes);
  memset(c.to + c.source_bytes, 0, c.bytes - c.source_bytes);
  c.delivered = true;
}

// Ends the wait of all copies of groups before `group`, and of those before number `number`: from here on they belong to
// the running thread's own past.
void settle(unsigned group, unsigned number, Site site) {
  State& s = state();
  unsigned n = 0;
  while (n < s.copy_count && (s.copies[n].group < group || s.copies[n].number < number)) {
    Copy& c = s.copies[n++];
    deliver(c);
    if (launch->checks & (RACES | UNWRITTEN)) {
      mark_in_flight(c.to, c.bytes, false);
      const int checks = launch->checks;
      const_cast<Launch*>(launch)->checks &= ~COUNT;  // counted when it was issued
      check_access(c.to, c.bytes, WRITE, site);
      const_cast<Launch*>(launch)->checks = checks;
    }
  }
  s.copy_count -= n;
  memmove(s.copies, s.copies + n, s.copy_count * sizeof(Copy));
}
}  // namespace

void copy_async(void* shared, const void* source, unsigned bytes, unsigned source_bytes, Site site) {
  if (bytes != 4 && bytes != 8 && bytes != 16) fault(site, "cp.async copies 4, 8 or 16 bytes, not %u", bytes);
  if (source_bytes > bytes) fault(site, "cp.async: %u bytes of the source for a copy of %u", source_bytes, bytes);
  if ((uintptr_t)shared % bytes) fault(site, "cp.async of %u bytes to a misaligned shared address", bytes);
  if (source_bytes && (uintptr_t)source % bytes) fault(site, "cp.async of %u bytes from a misaligned address", bytes);
  if (!in_arena(shared)) fault(site, "cp.async to an address outside of shared memory");
  if (source_bytes) access(source, source_bytes, READ, site);
  access(shared, bytes, WRITE, site);
  State& s = state();
  if (s.copy_count == s.copy_capacity) {
    s.copy_capacity = s.copy_capacity ? 2 * s.copy_capacity : 16;
    s.copies = (Copy*)realloc(s.copies, s.copy_capacity * sizeof(Copy));
    if (!s.copies) abort();
  }
  Copy& c = s.copies[s.copy_count++];
  c = {(char*)shared, (const char*)source, bytes, source_bytes, s.open_group, s.issued++, false, site};
  if (launch->async_copies == AT_ISSUE || (launch->async_copies == AT_RANDOM && random_bits() & 1)) {
    deliver(c);
  } else {
    busy_at = site;
    volatile char touched = source_bytes ? *(const char*)source : 0;  // a fault shows here, not at the wait
    (void)touched;
    memset(shared, POISON, bytes);
  }
  if (launch->checks & (RACES | UNWRITTEN)) mark_in_flight(shared, bytes, true);
}

void copy_commit(Site) { state().open_group++; }

void copy_wait(unsigned pending, Site site) {
  const unsigned open = state().open_group;
  if (open > pending) settle(open - pending, 0, site);
}

void copy_wait_all(Site site) {
  copy_commit(site);
  copy_wait(0, site);
}

// ---- mbarrier
// --------------------------------------------------------------------------------------------------------
namespace {
struct MBarrier {
  unsigned count, pending;
  int64_t bytes;
  unsigned phase;
  Clock coming, over;  // what those knew who have arrived in this phase, and in all before it
};
struct Bulk {
  uint32_t to;
  const void* from;
  uint32_t bytes, mbarrier;
  Site site;
};
std::map<uint32_t, MBarrier> mbarriers;
std::vector<Bulk> bulks;
// Arrivals that wait for the copies which a thread had issued before.
struct Arrival {
  Thread* thread;
  uint32_t mbarrier;
  unsigned copies;  // those before this number
  uint32_t stamp;
  Site site;
};
std::vector<Arrival> arrivals_to_come;
uint64_t idle;  // waits since something last happened

MBarrier& find(uint32_t address, Site site) {
  auto it = mbarriers.find(address);
  if (it == mbarriers.end()) fault(site, "the mbarrier at shared address %u was not initialised", address);
  return it->second;
}

void step(MBarrier& m) {
  idle = 0;
  if (m.pending || m.bytes) return;
  m.phase ^= 1;
  m.pending = m.count;
  for (unsigned i = 0; i < thread_count; i++) m.over.at[i] = std::max(m.over.at[i], m.coming.at[i]);
}

void deliver(const Bulk& b) {
  busy_at = b.site;
  access(b.from, b.bytes, READ, b.site);
  access(g.shared + b.to, b.bytes, WRITE, b.site);
  if (launch->checks & RACES) written_by_async_proxy(b.to, b.bytes);
  memcpy(g.shared + b.to, b.from, b.bytes);
  MBarrier& m = find(b.mbarrier, b.site);
  m.bytes -= b.bytes;
  release(g.current->linear, m.coming);
  step(m);
}
}  // namespace

void begin_copies() {
  for (unsigned i = 0; i < thread_count; i++) states[i].copy_count = states[i].open_group = states[i].issued = 0;
  mbarriers.clear();
  bulks.clear();
  arrivals_to_come.clear();
  idle = 0;
}

void mbarrier_init(uint32_t address, unsigned count, Site site) {
  if (address % 8) fault(site, "the mbarrier at shared address %u is not aligned to 8 bytes", address);
  if (!count) fault(site, "an mbarrier for 0 arrivals");
  access(g.shared + address, 8, WRITE, site);
  mbarriers[address] = {count, count, 0, 0, {}, {}};
  in_parts = true;
}

void mbarrier_invalidate(uint32_t address, Site site) {
  find(address, site);
  mbarriers.erase(address);
}

void mbarrier_expect(uint32_t address, uint32_t bytes, Site site) {
  find(address, site).bytes += bytes;
  idle = 0;
}

namespace {
MBarrier& arrive(uint32_t address, unsigned arrivals, Site site) {
  MBarrier& m = find(address, site);
  if (m.pending < arrivals)
    fault(site, "more arrivals at the mbarrier at shared address %u than the %u it counts", address, m.count);
  m.pending -= arrivals;
  return m;
}

// The copies are there, and the arrival tells of them: as of when it was asked for.
void come(const Arrival& a) {
  Thread* const running = g.current;
  const uint32_t now = epoch;
  g.current = a.thread;
  epoch = a.stamp;
  settle(0, a.copies, a.site);
  g.current = running;
  epoch = now;
  MBarrier& m = arrive(a.mbarrier, 1, a.site);
  m.coming.at[a.thread->linear] = std::max(m.coming.at[a.thread->linear], a.stamp);
  step(m);
}

// Lets arrivals come that satisfy `is_due`, and before each of them the earlier ones of its thread, whose copies are there.
template <class IsDue>
void let_come(IsDue is_due) {
  static bool has_later[MAX_THREADS];
  memset(has_later, 0, sizeof has_later);
  std::vector<Arrival> due, left;
  for (size_t i = arrivals_to_come.size(); i-- > 0;) {
    const Arrival& a = arrivals_to_come[i];
    bool& comes = has_later[a.thread->linear];
    comes = comes || is_due(a);
    (comes ? due : left).push_back(a);
  }
  arrivals_to_come.assign(left.rbegin(), left.rend());
  for (size_t i = due.size(); i-- > 0;) come(due[i]);
}
}  // namespace

void end_copies() {
  if (!arrivals_to_come.empty()) let_come([](const Arrival& a) { return a.thread == g.current; });
  if (state().copy_count) settle(~0u, 0, Site{nullptr, 0});
}

uint64_t mbarrier_arrive(uint32_t address, unsigned arrivals, uint32_t bytes, Site site) {
  const uint64_t before = find(address, site).phase;
  MBarrier& m = arrive(address, arrivals, site);
  m.bytes += bytes;
  release(g.current->linear, m.coming);
  step(m);
  return before;
}

void mbarrier_arrive_after_copies(uint32_t address, bool increments, Site site) {
  if (increments) find(address, site).pending++;
  arrivals_to_come.push_back({g.current, address, state().issued, epoch++, site});
  if (launch->async_copies == AT_ISSUE || (launch->async_copies == AT_RANDOM && random_bits() & 1))
    let_come([](const Arrival& a) { return a.thread == g.current; });
}

namespace {
bool is_over(uint32_t address, unsigned parity, Site site) {
  const MBarrier& m = find(address, site);
  if (m.phase == parity) return false;
  acquire(g.current->linear, m.over);
  return true;
}
}  // namespace

bool mbarrier_try_wait(uint32_t address, unsigned parity, Site site) {
  if (is_over(address, parity, site)) return true;
  for (size_t i = 0; i < bulks.size();)
    if (bulks[i].mbarrier == address) {
      const Bulk b = bulks[i];
      bulks.erase(bulks.begin() + (long)i);
      deliver(b);
    } else
      i++;
  // Late arrivals come when all threads wait; at random, some whenever one waits.
  if (!arrivals_to_come.empty()) {
    if (launch->async_copies == AT_RANDOM)
      let_come([](const Arrival&) { return (random_bits() & 1) != 0; });
    else if (idle > 2 * (uint64_t)live)
      let_come([=](const Arrival& a) { return a.mbarrier == address; });
  }
  if (is_over(address, parity, site)) return true;
  if (++idle > 1000000)
    fault(site, "waits for ever for phase %u of the mbarrier at shared address %u", parity, address);
  give_way();
  return is_over(address, parity, site);
}

void bulk_copy(uint32_t shared, const void* source, uint32_t bytes, uint32_t mbarrier, Site site) {
  if (shared % 16 || (uintptr_t)source % 16 || bytes % 16)
    fault(site, "cp.async.bulk: an address or size that is no multiple of 16");
  if ((uint64_t)shared + bytes > ARENA) fault(site, "cp.async.bulk to an address outside of shared memory");
  find(mbarrier, site);
  const Bulk b = {shared, source, bytes, mbarrier, site};
  if (launch->async_copies == AT_ISSUE || (launch->async_copies == AT_RANDOM && random_bits() & 1)) return deliver(b);
  access(g.shared + shared, bytes, WRITE, site);
  memset(g.shared + shared, POISON, bytes);
  bulks.push_back(b);
}
}  // namespace emulator
