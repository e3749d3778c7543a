// The access checker: bounds, races, reads of shared memory that nobody has written.
//
// A byte of memory has a Cell: who wrote it last and when, who read it last and when. "When" is an epoch (clocks.cpp),
// and the warp's own epoch, which __syncwarp ends. Two accesses by different threads are ordered if the second knows of
// the first one. Blocks are never ordered, but for atomics among themselves.
#include <stdio.h>

#include <unordered_map>
#include <vector>

#include "internal.h"

namespace emulator {
namespace {
struct Reader {
  unsigned thread;
  uint32_t epoch;
};
// Who has read a byte of shared memory, where it is several threads and not all are ordered alike.
std::unordered_map<uint32_t, std::vector<Reader>> readers;

struct Who {
  uint64_t bits;
  uint32_t epoch() const { return (uint32_t)(bits >> 32); }
  uint16_t warp_epoch() const { return (uint16_t)(bits >> 16); }
  unsigned thread() const { return (unsigned)(bits & THREAD_BITS); }
};

struct Checker {
  const bool shared, races, unwritten;
  const Access kind;
  const Site site;
  const unsigned me, my_warp;
  const uint16_t my_warp_epoch;
  const uint64_t offset;  // of the first byte, for messages
  const int argument;
  const uint64_t now = (uint64_t)epoch << 32 | (uint64_t)my_warp_epoch << 16 | me;

  // Whether an access that was made then happens before this one.
  bool ordered(Who then) const {
    if (then.epoch() < launch_first_epoch) return true;   // a former launch: no access at all
    if (then.epoch() < block_first_epoch) return shared;  // another block
    if (knows(me, then.thread(), then.epoch())) return true;
    return then.thread() / 32 == my_warp && then.warp_epoch() != my_warp_epoch;
  }

  [[noreturn]] __attribute__((noinline)) void race(unsigned i, const char* mine, const char* theirs, Who then) const {
    char where[200];
    if (shared)
      describe_shared(where, sizeof where, (uint32_t)(offset + i));
    else
      snprintf(where, sizeof where, "byte %lu of argument %d", (unsigned long)(offset + i), argument);
    const char* whose = then.epoch() < block_first_epoch ? " of another block" : "";
    fault(site, "race on %s: %s here and %s by thread %u%s, with nothing in between that orders them", where, mine,
          theirs, then.thread(), whose);
  }

  // Words are mostly accessed as a whole, and their bytes have one history: it is checked once for the four.
  void check(Cell* c, unsigned bytes) const {
    unsigned i = 0;
    for (; i + 4 <= bytes; i += 4, c += 4) {
      const bool alike = !((c[0].write ^ c[1].write) | (c[0].write ^ c[2].write) | (c[0].write ^ c[3].write) |
                           (c[0].read ^ c[1].read) | (c[0].read ^ c[2].read) | (c[0].read ^ c[3].read));
      for (unsigned k = 0; k < (alike ? 1 : 4); k++) check(c[k], i + k);
      if (!alike) continue;
      if (kind == READ)
        c[1].read = c[2].read = c[3].read = c[0].read;
      else
        c[1].write = c[2].write = c[3].write = c[0].write;
    }
    for (; i < bytes; i++) check(*c++, i);
  }

  void check(Cell& c, unsigned i) const {
    const Who writer = {c.write};
    if (shared) {
      const bool fresh = writer.epoch() >= block_first_epoch;
      if (c.write & IN_FLIGHT && fresh) in_flight(i, writer.thread());
      if (unwritten && kind == READ && !fresh) never_written(i);
    }
    if (races && !ordered(writer) && !(kind == ATOMIC && c.write & BY_ATOMIC))
      race(i, kind == READ ? "read" : "written", "written", writer);
    if (kind == READ) {
      const uint64_t others = others_that_read(Who{c.read});
      if (others && shared && in_parts) remember_reader(Who{c.read}, (uint32_t)offset + i);
      c.read = now | others;
    } else {
      if (races) check_readers(Who{c.read}, i);
      c.write = now | (kind == ATOMIC ? BY_ATOMIC : 0);
    }
  }

  // Only the last reader is kept, with flags for others since the last barrier of the block.
  uint64_t others_that_read(Who last) const {
    if (last.epoch() < known_to_all) return 0;
    if (last.thread() / 32 != my_warp) return MANY_WARPS;
    if (last.warp_epoch() != my_warp_epoch) return last.bits & MANY_WARPS;
    return (last.bits & (MANY_WARPS | MANY_LANES)) | (last.thread() != me ? MANY_LANES : 0);
  }

  void remember_reader(Who last, uint32_t at) const {
    std::vector<Reader>& known = readers[at];
    if (!(last.bits & (MANY_WARPS | MANY_LANES))) known = {{last.thread(), last.epoch()}};
    for (Reader& reader : known)
      if (reader.thread == me) {
        reader.epoch = epoch;
        return;
      }
    known.push_back({me, epoch});
  }

  // Whether the many who have read a byte are remembered, and all of their reads happen before this.
  bool all_ordered(uint32_t at) const {
    auto found = readers.find(at);
    if (found == readers.end()) found = readers.find(at - at % 4);  // words are read as a whole
    if (found == readers.end()) return false;
    for (const Reader& reader : found->second)
      if (!knows(me, reader.thread, reader.epoch)) return false;
    return true;
  }

  void check_readers(Who last, unsigned i) const {
    const bool many_lanes =
        last.bits & MANY_LANES && (last.thread() / 32 != my_warp || last.warp_epoch() == my_warp_epoch);
    const bool many = last.epoch() >= known_to_all && (last.bits & MANY_WARPS || many_lanes);
    if (many && shared && in_parts && ordered(last) && all_ordered((uint32_t)offset + i)) return;
    if (many || !ordered(last)) race(i, "written", many ? "read by several threads, last" : "read", last);
  }

  [[noreturn]] __attribute__((noinline)) void in_flight(unsigned i, unsigned thread) const {
    char where[200];
    describe_shared(where, sizeof where, (uint32_t)(offset + i));
    fault(site, "%s of %s while cp.async of thread %u to it is under way: a wait is missing",
          kind == READ ? "read" : "write", where, thread);
  }
  [[noreturn]] __attribute__((noinline)) void never_written(unsigned i) const {
    char where[200];
    describe_shared(where, sizeof where, (uint32_t)(offset + i));
    fault(site, "read of %s, which no thread of the block has written", where);
  }
};
}  // namespace

void begin_checks() {
  if (epoch < 0xf0000000u) return;  // rather than let the numbers begin again and old cells look new
  forget_cells();
  epoch = 0;
  launch_first_epoch = 1;
}

void begin_readers() { readers.clear(); }

bool is_in_flight(uint32_t offset, unsigned bytes) {
  const Cell* c = shared_cells(offset);
  for (unsigned i = 0; i < bytes; i++)
    if (c[i].write & IN_FLIGHT && Who{c[i].write}.epoch() >= block_first_epoch) return true;
  return false;
}

void mark_in_flight(const void* shared, unsigned bytes, bool on) {
  Cell* c = shared_cells((uint32_t)((const char*)shared - g.shared));
  for (unsigned i = 0; i < bytes; i++) c[i].write = on ? c[i].write | IN_FLIGHT : c[i].write & ~IN_FLIGHT;
}

void check_access(const void* pointer, unsigned bytes, Access kind, Site site) {
  if (!launch || !g.current) return;  // statics of a module, while it is loaded
  const char* p = (const char*)pointer;
  const Thread& t = *g.current;
  const int checks = launch->checks;
  const uint16_t warp_epoch = (uint16_t)warps[t.warp].epoch;
  if (in_arena(p)) {
    const uint32_t offset = (uint32_t)(p - g.shared);
    if (checks & COUNT && observer) observer->access(p, bytes, kind, true, site);
    if (checks & BOUNDS && !in_shared_variable(offset, bytes)) {
      char where[200];
      describe_shared(where, sizeof where, offset);
      fault(site, "%s of %u bytes out of bounds, at %s", kind == READ ? "read" : "write", bytes, where);
    }
    if (checks & (RACES | UNWRITTEN))
      Checker{true, (checks & RACES) != 0, (checks & UNWRITTEN) != 0, kind, site, t.linear, t.warp, warp_epoch, offset,
              -1}
          .check(shared_cells(offset), bytes);
    if (checks & RACES && kind != READ) written_generically(offset, bytes, site);
    return;
  }
  if (p >= &__ehdr_start && p < &_end) return;                    // threadIdx and its kin
  if (p >= kernel->image_begin && p < kernel->image_end) return;  // constants, and the references to shared variables
  if (in_stack(p)) return;
  for (int i = 0; i < buffer_count; i++) {
    DeviceBuffer& b = buffers[i];
    if (p < b.data || p >= b.data + b.bytes) continue;
    if (p + bytes > b.data + b.bytes) break;
    if (checks & COUNT && observer) observer->access(p, bytes, kind, false, site);
    if (checks & RACES)
      Checker{false, true, false, kind, site, t.linear, t.warp, warp_epoch, (uint64_t)(p - b.data), b.argument}.check(
          cells_of(b) + (p - b.data), bytes);
    return;
  }
  if (!(checks & BOUNDS)) return;
  char where[200];
  describe(where, sizeof where, p);
  fault(site, "%s of %u bytes out of bounds, %s", kind == READ ? "read" : "write", bytes, where);
}
}  // namespace emulator
