// wgmma.mma_async of 16-bit numbers, by the PTX ISA ("Asynchronous Warpgroup Level Matrix Multiply-Accumulate"): matrix
// descriptors, the canonical layouts and their swizzles, the fragment of D, groups; and what orders its reads.
//
// Operands are looked at when it is issued and again when it is waited for: nothing may change them in between. Meanwhile
// the registers of its sums hold NaN. With checks, each 16 bytes that it reads must be there (written, not under way in a
// cp.async, known to all lanes) and must have gone through a proxy fence, by the writer before it told of them, or by all
// lanes after they had learned of them; and who writes there later must know that the reads are over.
#include <vector>

#include "internal.h"

namespace emulator {
namespace {
constexpr unsigned CHUNKS = ARENA / 16;

// ---- descriptors ----------------------------------------------------------------------------------------------------
struct Descriptor {
  uint32_t start, leading, stride;  // in bytes
  uint32_t wide;                    // chunks of 16 bytes in a row: 1 where nothing is swizzled
};

Descriptor decode(uint64_t bits, Site site) {
  constexpr uint64_t RESERVED = 3ull << 14 | 3ull << 30 | 7ull << 46 | 0x3ffull << 52;
  if (bits & RESERVED) fault(site, "wgmma: descriptor %016llx has reserved bits", (unsigned long long)bits);
  if (bits >> 49 & 7) fault(site, "wgmma: a descriptor with a base offset, which is not modelled");
  static const uint32_t WIDE[4] = {1, 8, 4, 2};
  const auto field = [&](int from) { return (uint32_t)(bits >> from & 0x3fff) << 4; };
  return {field(0), field(16), field(32), WIDE[bits >> 62]};
}

// Where element (mn, k) of an operand begins.
uint32_t address_of(const Descriptor& d, bool mn_major, uint32_t mn, uint32_t k) {
  uint32_t at;
  const uint32_t row = 16 * d.wide;  // bytes
  if (!mn_major && d.wide == 1)
    at = mn / 8 * d.stride + mn % 8 * 16 + k / 8 * d.leading + k % 8 * 2;
  else if (!mn_major)
    at = mn / 8 * d.stride + mn % 8 * row + k * 2;
  else if (d.wide == 1)
    at = mn / 8 * d.stride + mn % 8 * 2 + k / 8 * d.leading + k % 8 * 16;
  else
    at = mn / (8 * d.wide) * d.leading + mn % (8 * d.wide) * 2 + k / 8 * d.stride + k % 8 * row;
  const uint32_t address = d.start + at;
  return address ^ (address >> 7 & (d.wide - 1)) << 4;
}

// ---- what is known of 16 bytes of shared memory -----------------------------------------------------------------------
struct Written {
  uint32_t stamp, fenced;  // fenced: the stamp of the writer's own fence behind it, or 0
  unsigned thread;
} written[CHUNKS];
std::vector<uint32_t> unfenced[MAX_THREADS];  // what a thread has written since its last fence
struct Fence {
  uint32_t own, all, known[MAX_THREADS];
} fences[MAX_THREADS];
uint8_t being_read[CHUNKS][MAX_WARPS];  // by operations under way
uint32_t was_read[CHUNKS][MAX_WARPS];   // stamps
uint32_t readers[CHUNKS];               // a bit a warp, for both
std::vector<uint32_t> touched;          // whose readers are not 0

bool fence_knew(unsigned thread, unsigned other, uint32_t stamp) {
  const Fence& f = fences[thread];
  if (thread == other) return f.own > stamp;
  return f.own >= block_first_epoch && (stamp < f.all || f.known[other] >= stamp);
}

void check_read(uint32_t chunk, unsigned warp, Site site) {
  const Written& w = written[chunk];
  char where[200];
  const auto name = [&] {
    describe_shared(where, sizeof where, chunk * 16);
    return where;
  };
  if (is_in_flight(chunk * 16, 16))
    fault(site, "wgmma reads %s while cp.async to it is under way: a wait is missing", name());
  if (w.stamp < block_first_epoch) {
    if (launch->checks & UNWRITTEN) fault(site, "wgmma reads %s, which no thread of the block has written", name());
    return;
  }
  for (unsigned lane = 0; lane < 32; lane++) {
    const unsigned me = warp * 32 + lane;
    if (!knows(me, w.thread, w.stamp))
      fault(site, "race on %s: read by wgmma here and written by thread %u, with nothing in between that orders them",
            name(), w.thread);
    if (!(w.fenced && knows(me, w.thread, w.fenced)) && !fence_knew(me, w.thread, w.stamp))
      fault(site, "wgmma reads %s, which thread %u has written, with no fence.proxy.async in between", name(), w.thread);
  }
}

// ---- operations under way ---------------------------------------------------------------------------------------------
struct Operation {
  Wgmma kind;
  uint64_t a, b;
  unsigned group;
  float* sums;                     // lane 0's first: whose they are
  std::vector<uint16_t> operands;  // as they were at first
  std::vector<uint32_t> chunks;
  Site site;
};
struct Sums {
  std::vector<float*> at[32];  // where they belong
  std::vector<float> value[32];
};
struct OfWarp {
  std::vector<Operation> under_way;
  std::vector<Sums> sums;
  unsigned open_group;
  bool fenced;
  size_t issued;
} of_warp[MAX_WARPS];
struct Issued {
  Wgmma kind;
  uint64_t a, b;
  Site site;
};
std::vector<Issued> of_warpgroup[MAX_WARPS / 4];

// The operands of a warp: its 16 rows of a, and all of b.
std::vector<uint16_t> look(const Operation& o, unsigned warp, std::vector<uint32_t>* chunks) {
  std::vector<uint16_t> numbers;
  numbers.reserve(16 * 16 + (size_t)o.kind.n * 16);
  const auto take = [&](uint64_t bits, bool mn_major, uint32_t first, uint32_t count) {
    const Descriptor d = decode(bits, o.site);
    for (uint32_t mn = first; mn < first + count; mn++)
      for (uint32_t k = 0; k < 16; k++) {
        const uint32_t address = address_of(d, mn_major, mn, k);
        if (address + 2 > ARENA) fault(o.site, "wgmma: an operand lies outside of shared memory");
        uint16_t number;
        memcpy(&number, g.shared + address, 2);
        numbers.push_back(number);
        if (chunks && (chunks->empty() || chunks->back() != address / 16)) chunks->push_back(address / 16);
      }
  };
  take(o.a, o.kind.a_mn_major, warp % 4 * 16, 16);
  take(o.b, o.kind.b_mn_major, 0, (uint32_t)o.kind.n);
  return numbers;
}

void unique(std::vector<uint32_t>& chunks) {  // MN-major, each comes up for every one of its numbers
  static uint32_t seen[CHUNKS], round;
  round++;
  size_t kept = 0;
  for (const uint32_t chunk : chunks)
    if (seen[chunk] != round) seen[chunk] = round, chunks[kept++] = chunk;
  chunks.resize(kept);
}

Sums* sums_of(OfWarp& w, const float* first) {
  for (Sums& s : w.sums)
    if (s.at[0][0] == first) return &s;
  return nullptr;
}

void finish(OfWarp& w, const Operation& o, unsigned warp) {
  if (look(o, warp, nullptr) != o.operands) fault(o.site, "an operand of wgmma changes while it is under way");
  for (const uint32_t chunk : o.chunks) {
    being_read[chunk][warp]--;
    was_read[chunk][warp] = epoch;
  }
  const auto number = [&](uint16_t bits) { return o.kind.bf16 ? bfloat16_to_float(bits) : half_to_float(bits); };
  Sums& sums = *sums_of(w, o.sums);
  float a[16][16], b[16][8], part[16][8];
  const uint16_t* next = o.operands.data();
  for (auto& row : a)
    for (float& x : row) x = number(*next++);
  for (int n = 0; n < o.kind.n; n += 8) {
    for (int column = 0; column < 8; column++)
      for (auto& row : b) row[column] = number(*next++);
    const auto sum = [&](int row, int column) -> float& {  // the fragment of D: those of m16n8 side by side
      return sums.value[row % 8 * 4 + column / 2][(size_t)(n / 2 + row / 8 * 2 + column % 2)];
    };
    for (int row = 0; row < 16; row++)
      for (int column = 0; column < 8; column++) part[row][column] = sum(row, column);
    multiply_16x8x16(part, a, b);
    for (int row = 0; row < 16; row++)
      for (int column = 0; column < 8; column++) sum(row, column) = part[row][column];
  }
}

struct Slot {
  Wgmma kind;
  float* const* d;
  uint64_t a, b;
  Site site;
};

bool alike(const Wgmma& a, const Wgmma& b) {
  return a.bf16 == b.bf16 && a.n == b.n && a.a_mn_major == b.a_mn_major && a.b_mn_major == b.b_mn_major;
}

void issue(unsigned, void* const slot[32]) {
  const unsigned warp = g.current->warp;
  OfWarp& w = of_warp[warp];
  const Slot& s = *(const Slot*)slot[0];
  for (int lane = 1; lane < 32; lane++) {
    const Slot& other = *(const Slot*)slot[lane];
    if (other.a != s.a || other.b != s.b) fault(s.site, "wgmma: the descriptors of lanes 0 and %d differ", lane);
  }
  std::vector<Issued>& together = of_warpgroup[warp / 4];
  if (w.issued == together.size()) {
    together.push_back({s.kind, s.a, s.b, s.site});
  } else {
    const Issued& first = together[w.issued];
    if (first.a != s.a || first.b != s.b || !alike(first.kind, s.kind))
      fault(s.site, "wgmma: warp %u does not take part in that of its warpgroup", warp);
  }
  w.issued++;
  if (!w.fenced) fault(s.site, "wgmma without wgmma.fence since its sums were accessed");
  if (!sums_of(w, s.d[0])) {
    w.sums.emplace_back();
    for (int lane = 0; lane < 32; lane++) {
      float* const* const d = ((const Slot*)slot[lane])->d;
      for (int i = 0; i < s.kind.n / 2; i++) {
        w.sums.back().at[lane].push_back(d[i]);
        w.sums.back().value[lane].push_back(*d[i]);
        memset(d[i], POISON, sizeof(float));
      }
    }
  }
  Operation o = {s.kind, s.a, s.b, w.open_group, s.d[0], {}, {}, s.site};
  o.operands = look(o, warp, &o.chunks);
  unique(o.chunks);
  for (const uint32_t chunk : o.chunks) {
    if (launch->checks & RACES) check_read(chunk, warp, o.site);
    if (!readers[chunk]) touched.push_back(chunk);
    readers[chunk] |= 1u << warp;
    being_read[chunk][warp]++;
  }
  w.under_way.push_back(static_cast<Operation&&>(o));
}

void settle(unsigned, void* const slot[32]) {
  const unsigned warp = g.current->warp, before = *(const unsigned*)slot[0];
  OfWarp& w = of_warp[warp];
  size_t done = 0;
  while (done < w.under_way.size() && w.under_way[done].group < before) finish(w, w.under_way[done++], warp);
  if (!done) return;
  w.under_way.erase(w.under_way.begin(), w.under_way.begin() + (long)done);
  for (size_t i = 0; i < w.sums.size();) {
    Sums& sums = w.sums[i];
    bool busy = false;
    for (const Operation& o : w.under_way) busy = busy || o.sums == sums.at[0][0];
    if (busy) {
      i++;
      continue;
    }
    for (int lane = 0; lane < 32; lane++)
      for (size_t v = 0; v < sums.at[lane].size(); v++) *sums.at[lane][v] = sums.value[lane][v];
    w.sums.erase(w.sums.begin() + (long)i);
    w.fenced = false;
  }
}

void fence_sums(unsigned, void* const*) { of_warp[g.current->warp].fenced = true; }
void commit(unsigned, void* const*) { of_warp[g.current->warp].open_group++; }

void whole_warp(WarpFunction function, void* slot, const char* what, Site site) {
  const unsigned last = g.current->warp / 4 * 4 + 3;
  if (last * 32 + 32 > thread_count) fault(site, "%s in a warpgroup that is not whole", what);
  warp_collective(~0u, function, slot, site);
}
}  // namespace

void begin_wgmma() {
  for (unsigned w = 0; w * 32 < thread_count; w++) {
    of_warp[w].under_way.clear();
    of_warp[w].sums.clear();
    of_warp[w].open_group = 0;
    of_warp[w].fenced = false;
    of_warp[w].issued = 0;
  }
  for (auto& together : of_warpgroup) together.clear();
  for (unsigned t = 0; t < thread_count; t++) unfenced[t].clear();
  for (const uint32_t chunk : touched) {
    readers[chunk] = 0;
    memset(being_read[chunk], 0, sizeof being_read[chunk]);
  }
  touched.clear();
}

void end_wgmma() {
  for (unsigned w = 0; w * 32 < thread_count; w++) {
    const std::vector<Issued>& together = of_warpgroup[w / 4];
    if (of_warp[w].issued < together.size())
      return complain(together[of_warp[w].issued].site, "wgmma: warp %u does not take part in that of its warpgroup", w);
    if (!of_warp[w].under_way.empty())
      return complain(of_warp[w].under_way[0].site, "the kernel ends with this wgmma under way: a wait is missing");
  }
}

void written_generically(uint32_t offset, unsigned bytes, Site site) {
  const unsigned me = g.current->linear;
  for (uint32_t chunk = offset / 16; chunk <= (offset + bytes - 1) / 16; chunk++) {
    for (unsigned warp = 0; readers[chunk] >> warp; warp++) {
      if (!(readers[chunk] >> warp & 1)) continue;
      bool over = false;
      for (unsigned lane = 0; lane < 32 && !being_read[chunk][warp]; lane++)
        over = over || knows(me, warp * 32 + lane, was_read[chunk][warp]);
      if (over) continue;
      char where[200];
      describe_shared(where, sizeof where, offset);
      fault(site, "race on %s: written here and read by wgmma of warp %u, with nothing in between that orders them", where,
            warp);
    }
    Written& w = written[chunk];
    const bool is_listed = w.thread == me && !w.fenced && w.stamp >= block_first_epoch;
    w = {epoch, 0, me};
    if (!is_listed) unfenced[me].push_back(chunk);
  }
}

void written_by_async_proxy(uint32_t offset, unsigned bytes) {
  for (uint32_t chunk = offset / 16; chunk <= (offset + bytes - 1) / 16; chunk++)
    written[chunk].fenced = written[chunk].stamp;
}

void proxy_fence(Site) {
  const unsigned me = g.current->linear;
  for (const uint32_t chunk : unfenced[me])
    if (written[chunk].thread == me && !written[chunk].fenced) written[chunk].fenced = epoch;
  unfenced[me].clear();
  Fence& f = fences[me];
  epoch++;  // whoever is told of anything from here on is told of the fence
  f.own = epoch;
  f.all = known_to_all;
  memcpy(f.known, known_by(me), thread_count * sizeof(uint32_t));
}

void wgmma_fence(Site site) { whole_warp(fence_sums, nullptr, "wgmma.fence", site); }
void wgmma_commit(Site site) { whole_warp(commit, nullptr, "wgmma.commit_group", site); }
void wgmma_wait(unsigned pending, Site site) {
  const unsigned open = of_warp[g.current->warp].open_group;
  unsigned before = open > pending ? open - pending : 0;
  whole_warp(settle, &before, "wgmma.wait_group", site);
}
void wgmma_issue(Wgmma kind, float* const* d, uint64_t a, uint64_t b, Site site) {
  if (kind.n < 8 || kind.n > 256 || kind.n % 8) fault(site, "wgmma of %d columns", kind.n);
  Slot s = {kind, d, a, b, site};
  whole_warp(issue, &s, "wgmma", site);
}
}  // namespace emulator
