// The access checker: bounds, races, reads of shared memory that nobody has written.
//
// A byte of memory has a Cell: who wrote it last and when, who read it last and when. "When" is the number of the epoch,
// which each barrier of the block ends, and of the warp's own epoch, which __syncwarp ends. Two accesses by different
// threads are ordered if an epoch ended between them. Blocks are never ordered, but for atomics among themselves.
#include <stdio.h>
#include "internal.h"

namespace emulator {
uint32_t epoch, launch_first_epoch, block_first_epoch;

namespace {
struct Who { uint32_t epoch; uint16_t warp_epoch; unsigned thread; };

struct Checker {
  const bool shared, races, unwritten;
  const Access kind;
  const Site site;
  const unsigned me, my_warp;
  const uint16_t my_warp_epoch;
  const uint64_t offset;      // of the first byte, for messages
  const int argument;

  // Whether an access that was made then happens before this one.
  bool ordered(Who then) const {
    if (then.epoch < launch_first_epoch) return true;    // a former launch: no access at all
    if (then.epoch < block_first_epoch) return shared;   // another block
    if (then.thread == me || then.epoch != epoch) return true;
    return then.thread / 32 == my_warp && then.warp_epoch != my_warp_epoch;
  }

  [[noreturn]] __attribute__((noinline)) void race(unsigned i, const char* mine, const char* theirs, Who then) const {
    char where[200];
    if (shared) describe_shared(where, sizeof where, (uint32_t)(offset + i));
    else snprintf(where, sizeof where, "byte %lu of argument %d", (unsigned long)(offset + i), argument);
    const char* whose = then.epoch < block_first_epoch ? " of another block" : "";
    fault(site, "race on %s: %s here and %s by thread %u%s, with nothing in between that orders them", where, mine, theirs, then.thread, whose);
  }

  void check(Cell* cells, unsigned bytes) const {
    for (unsigned i = 0; i < bytes; i++) {
      Cell& c = cells[i];
      const Who writer = {c.write_epoch, c.write_warp_epoch, (unsigned)(c.writer & THREAD_BITS)};
      if (shared) {
        const bool fresh = c.write_epoch >= block_first_epoch;
        if (c.writer & IN_FLIGHT && fresh) in_flight(i, writer.thread);
        if (unwritten && kind == READ && !fresh) never_written(i);
      }
      if (races && !ordered(writer) && !(kind == ATOMIC && c.writer & BY_ATOMIC))
        race(i, kind == READ ? "read" : "written", "written", writer);
      if (kind == READ) note_read(c);
      else {
        if (races) check_readers(c, i);
        c.write_epoch = epoch;
        c.write_warp_epoch = my_warp_epoch;
        c.writer = (uint16_t)(me | (kind == ATOMIC ? BY_ATOMIC : 0));
      }
    }
  }

  void check_readers(const Cell& c, unsigned i) const {
    const Who reader = {c.read_epoch, c.read_warp_epoch, (unsigned)(c.reader & THREAD_BITS)};
    const bool now = c.read_epoch == epoch;
    const bool many = now && (c.reader & MANY_WARPS || (c.reader & MANY_LANES && (reader.thread / 32 != my_warp || c.read_warp_epoch == my_warp_epoch)));
    if (many || !ordered(reader)) race(i, "written", many ? "read by several threads, last" : "read", reader);
  }

  // Only the last reader is kept, with flags for others of the same epoch.
  void note_read(Cell& c) const {
    uint16_t flags = 0;
    const unsigned last = c.reader & THREAD_BITS;
    if (c.read_epoch == epoch) {
      flags = c.reader & MANY_WARPS;
      if (last / 32 != my_warp) flags |= MANY_WARPS;
      else if (c.read_warp_epoch == my_warp_epoch) flags |= (uint16_t)(c.reader & MANY_LANES) | (last != me ? MANY_LANES : 0);
    }
    c.read_epoch = epoch;
    c.read_warp_epoch = my_warp_epoch;
    c.reader = (uint16_t)(me | flags);
  }

  [[noreturn]] __attribute__((noinline)) void in_flight(unsigned i, unsigned thread) const {
    char where[200];
    describe_shared(where, sizeof where, (uint32_t)(offset + i));
    fault(site, "%s of %s while cp.async of thread %u to it is under way: a wait is missing", kind == READ ? "read" : "write", where, thread);
  }
  [[noreturn]] __attribute__((noinline)) void never_written(unsigned i) const {
    char where[200];
    describe_shared(where, sizeof where, (uint32_t)(offset + i));
    fault(site, "read of %s, which no thread of the block has written", where);
  }
};
}  // namespace

void begin_checks() {
  if (epoch < 0xf0000000u) return;   // rather than let the numbers begin again and old cells look new
  forget_cells();
  epoch = 0;
  launch_first_epoch = 1;
}

void mark_in_flight(const void* shared, unsigned bytes, bool on) {
  Cell* c = shared_cells((uint32_t)((const char*)shared - g.shared));
  for (unsigned i = 0; i < bytes; i++) c[i].writer = (uint16_t)(on ? c[i].writer | IN_FLIGHT : c[i].writer & ~IN_FLIGHT);
}

void check_access(const void* pointer, unsigned bytes, Access kind, Site site) {
  if (!launch || !g.current) return;   // statics of a module, while it is loaded
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
      Checker{true, (checks & RACES) != 0, (checks & UNWRITTEN) != 0, kind, site, t.linear, t.warp, warp_epoch, offset, -1}.check(shared_cells(offset), bytes);
    return;
  }
  if (p >= &__ehdr_start && p < &_end) return;   // threadIdx and its kin
  if (in_stack(p)) return;
  for (int i = 0; i < buffer_count; i++) {
    DeviceBuffer& b = buffers[i];
    if (p < b.data || p >= b.data + b.bytes) continue;
    if (p + bytes > b.data + b.bytes) break;
    if (checks & COUNT && observer) observer->access(p, bytes, kind, false, site);
    if (checks & RACES)
      Checker{false, true, false, kind, site, t.linear, t.warp, warp_epoch, (uint64_t)(p - b.data), b.argument}.check(cells_of(b) + (p - b.data), bytes);
    return;
  }
  if (!(checks & BOUNDS)) return;
  if (p >= kernel->image_begin && p < kernel->image_end) return;   // constants
  char where[200];
  describe(where, sizeof where, p);
  fault(site, "%s of %u bytes out of bounds, %s", kind == READ ? "read" : "write", bytes, where);
}
}  // namespace emulator
