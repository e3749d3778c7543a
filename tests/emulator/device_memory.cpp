// Device buffers in wide moats of unreadable pages, and shared memory with redzones.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>
#include <vector>

#include "internal.h"

namespace emulator {
DeviceBuffer* buffers;
int buffer_count;

// ---- device buffers ------------------------------------------------------------------------------------------------
namespace {
constexpr size_t PAGE = 4096, MARGIN = 64, KEPT_BYTES = 256u << 20;
constexpr size_t MOAT = 64u << 20;  // of addresses alone: a wrong index should not reach what belongs to somebody else
std::vector<DeviceBuffer> in_use;
std::multimap<size_t, DeviceBuffer> kept;  // by room: mapping anew would cost more than a small launch
size_t kept_bytes;

size_t weight(const DeviceBuffer& b) { return b.room * (b.cells ? 1 + sizeof(Cell) : 1); }

void* map(size_t bytes, int protection) {
  void* p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}

// Memory for `room` bytes in its moat, or null.
char* map_moated(size_t room) {
  char* p = (char*)map(room + 2 * MOAT, PROT_NONE);
  return p && !mprotect(p + MOAT, room, PROT_READ | PROT_WRITE) ? p + MOAT : nullptr;
}

void unmap(DeviceBuffer& b) {
  munmap(b.begin - MOAT, b.room + 2 * MOAT);
  if (b.cells) munmap(b.cells, b.room * sizeof(Cell));
}

bool get(size_t room, DeviceBuffer& b) {
  auto it = kept.find(room);
  if (it != kept.end()) {
    b = it->second;
    kept_bytes -= weight(b);
    kept.erase(it);
    return true;
  }
  b = {nullptr, 0, 0, map_moated(room), room, nullptr};
  return b.begin;
}

void put_back(DeviceBuffer& b) {
  if (kept_bytes + weight(b) > KEPT_BYTES) return unmap(b);
  kept_bytes += weight(b);
  kept.emplace(b.room, b);
}

// The first byte of the margins that is not as it was filled, or null.
const char* hurt(const DeviceBuffer& b) {
  for (const char* p = b.begin; p < b.data; p++)
    if ((unsigned char)*p != POISON) return p;
  for (const char* p = b.data + b.bytes; p < b.begin + b.room; p++)
    if ((unsigned char)*p != POISON) return p;
  return nullptr;
}
}  // namespace

const char* bring_buffers(Launch& l) {
  in_use.clear();
  for (int i = 0; i < l.buffer_count; i++) {
    Buffer& host = l.buffers[i];
    const size_t room = (host.bytes + MARGIN + PAGE - 1) / PAGE * PAGE;
    DeviceBuffer b;
    if (!get(room, b)) return "no memory for the device's copy of an array";
    // at the end, with no better alignment than 16 bytes; and with none where the array itself begins between two such
    const size_t beyond = (uintptr_t)host.host % 16;
    const size_t offset = (l.slide ? 0 : (room - host.bytes - beyond) / 16 * 16) + beyond;
    b.data = b.begin + offset;
    b.bytes = host.bytes;
    b.argument = host.argument;
    memset(b.begin, POISON, offset);
    memset(b.data + b.bytes, POISON, room - offset - b.bytes);
    memcpy(b.data, host.host, b.bytes);
    host.device = b.data;
    in_use.push_back(b);
  }
  buffers = in_use.data();
  buffer_count = (int)in_use.size();
  return nullptr;
}

bool take_buffers(Launch& l, bool failed, char* message, size_t bytes) {
  for (size_t i = 0; i < in_use.size() && !failed; i++) {
    const DeviceBuffer& b = in_use[i];
    char where[160];
    if (const char* p = hurt(b)) {
      describe(where, sizeof where, p);
      snprintf(message, bytes, "write out of bounds, %s", where);
      failed = true;
    } else if (!l.buffers[i].writable && memcmp(l.buffers[i].host, b.data, b.bytes)) {
      snprintf(message, bytes, "write to argument %d, an array that is read-only", b.argument);
      failed = true;
    }
  }
  for (size_t i = 0; i < in_use.size(); i++) {
    if (!failed && l.buffers[i].writable) memcpy(l.buffers[i].host, in_use[i].data, in_use[i].bytes);
    put_back(in_use[i]);
  }
  in_use.clear();
  buffer_count = 0;
  return !failed;
}

Cell* cells_of(DeviceBuffer& b) {
  if (!b.cells) {
    b.cells = (Cell*)map(b.room * sizeof(Cell), PROT_READ | PROT_WRITE);
    if (!b.cells)
      fault(Site{nullptr, 0}, "no memory to check accesses to a buffer of %lu bytes", (unsigned long)b.bytes);
  }
  return b.cells + (b.data - b.begin);
}

int describe(char* text, size_t bytes, const char* address) {
  const DeviceBuffer* nearest = nullptr;
  uint64_t distance = MOAT;  // further away it belongs to nothing
  bool before = false;
  for (int i = 0; i < (int)in_use.size(); i++) {
    const DeviceBuffer& b = in_use[i];
    const bool is_before = address < b.data;
    const uint64_t d = is_before ? b.data - address : address - (b.data + b.bytes);
    if (!is_before && address < b.data + b.bytes) {
      return snprintf(text, bytes, "from byte %ld of argument %d (%lu bytes) over its end", (long)(address - b.data),
                      b.argument, (unsigned long)b.bytes);
    }
    if (d < distance) distance = d, nearest = &b, before = is_before;
  }
  if (!nearest)
    return snprintf(text, bytes, "at address %p, far from every array%s", (const void*)address,
                    (uintptr_t)address < 4096 ? ": a null pointer" : "");
  return snprintf(text, bytes, "%lu bytes %s argument %d (%lu bytes)", (unsigned long)distance,
                  before ? "before" : "past the end of", nearest->argument, (unsigned long)nearest->bytes);
}

const char* unreadable() {
  static const char* page = (const char*)map(PAGE, PROT_NONE);
  return page;
}

// ---- shared memory
// ---------------------------------------------------------------------------------------------------
namespace {
Cell* arena_cells;
std::vector<SharedVariable*> active;          // static variables that this launch has reached
std::map<const char*, unsigned> static_ends;  // by module: where its next variable goes

char* arena() {
  static char* begin = [] {
    char* p = map_moated(ARENA);
    if (!p) abort();
    return p;
  }();
  return begin;
}

void poison(const SharedVariable& v) {
  memset(g.shared + v.offset, POISON, v.size);
  memset(g.shared + v.offset + v.size, POISON, REDZONE / 2);
}

void check_redzone(uint32_t from, unsigned bytes, const char* name) {
  for (unsigned i = 0; i < bytes && !failed; i++)
    if ((unsigned char)g.shared[from + i] != POISON)
      complain(Site{nullptr, 0},
               "write out of bounds, %u bytes past the end of shared memory %s (seen at the end of the block)", i,
               name);
}
}  // namespace

void prepare_arena() { g.shared = arena(); }

void begin_shared(bool first_block) {
  if (first_block) {
    active.clear();
    launch->static_bytes = 0;
    return;
  }
  for (const SharedVariable* v : active) poison(*v);
  memset(g.shared + DYNAMIC_BEGIN, POISON, launch->shared_bytes + REDZONE);
}

void end_shared() {
  for (const SharedVariable* v : active) check_redzone(v->offset + v->size, REDZONE / 2, v->name);
  check_redzone(DYNAMIC_BEGIN + launch->shared_bytes, REDZONE, "(dynamic)");
}

void* shared_address(SharedVariable& v) {
  if (v.offset) return g.shared + v.offset;
  unsigned& end = static_ends.try_emplace(kernel->image_begin, STATIC_BEGIN).first->second;
  v.offset = (end + v.alignment - 1) / v.alignment * v.alignment;
  // aligned as declared and no better: a float array that is read as float4 must say __align__(16)
  if (v.alignment < 16 && v.offset % 16 == 0) v.offset += v.alignment;
  end = v.offset + v.size + REDZONE;
  if (end > ARENA)
    fault(Site{nullptr, 0}, "the static shared memory of all kernels of the module is more than the emulator has");
  return g.shared + v.offset;
}

void shared_register(SharedVariable& v) {
  v.launch = g.launch;
  launch->static_bytes += v.size;
  if (launch->static_bytes > STATIC_LIMIT)
    fault(Site{nullptr, 0}, "more than %u bytes of static shared memory", STATIC_LIMIT);
  if (launch->static_bytes + launch->shared_bytes > launch->shared_limit)
    fault(Site{nullptr, 0}, "%u bytes of static and %u of dynamic shared memory, but a block may have %u together",
          launch->static_bytes, launch->shared_bytes, launch->shared_limit);
  poison(v);
  active.push_back(&v);
}

void* dynamic_shared(unsigned alignment) {
  if (launch && alignment > 16)
    fault(Site{nullptr, 0}, "dynamic shared memory is aligned to 16 bytes, %u are wanted", alignment);
  return arena() + DYNAMIC_BEGIN;
}

uint32_t shared_offset(const void* pointer, Site site) {
  if (!in_arena(pointer)) fault(site, "%p is no address in shared memory", pointer);
  return (uint32_t)((const char*)pointer - g.shared);
}

bool in_shared_variable(uint32_t offset, unsigned bytes) {
  if (offset >= DYNAMIC_BEGIN && offset + bytes <= DYNAMIC_BEGIN + launch->shared_bytes) return true;
  for (const SharedVariable* v : active)
    if (offset >= v->offset && offset + bytes <= v->offset + v->size) return true;
  return false;
}

int describe_shared(char* text, size_t bytes, uint32_t offset) {
  for (const SharedVariable* v : active)
    if (offset + REDZONE / 2 > v->offset && offset < v->offset + v->size + REDZONE / 2)
      return snprintf(text, bytes, "byte %d of shared %s (%u bytes)", (int)(offset - v->offset), v->name, v->size);
  return snprintf(text, bytes, "byte %d of dynamic shared memory (%u bytes)", (int)(offset - DYNAMIC_BEGIN),
                  launch->shared_bytes);
}

Cell* shared_cells(uint32_t offset) {
  if (!arena_cells) arena_cells = (Cell*)map(ARENA * sizeof(Cell), PROT_READ | PROT_WRITE);
  if (!arena_cells) abort();
  return arena_cells + offset;
}

void forget_cells() {
  if (arena_cells) munmap(arena_cells, ARENA * sizeof(Cell));
  arena_cells = nullptr;
  for (auto& entry : kept) unmap(entry.second);
  kept.clear();
  kept_bytes = 0;
}
}  // namespace emulator
