// Puts the accesses of the threads together into requests of warps, and counts what each request costs.
#include "traffic.h"

#include <stdio.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "internal.h"

namespace emulator {
namespace {
struct Request {
  uint64_t address[32];
  uint32_t lanes;
  unsigned bytes;   // of one lane
  Access kind;
  Space space;
  Site site;
};
struct Cost { uint64_t units, ideal; };
struct Row { uint64_t requests, bytes, units, ideal, worst; };

std::unordered_map<uint64_t, Request> requests;   // of the running block
std::map<std::tuple<std::string, int, int, int>, Row> rows;
std::string text;

uint64_t mix(uint64_t h, uint64_t x) {
  h = (h ^ x) * 0x9E3779B97F4A7C15ull;
  return h ^ h >> 29;
}

// The addresses of lanes [first, last) in order, each once.
std::vector<uint64_t> distinct(const Request& r, int first, int last) {
  std::vector<uint64_t> found;
  for (int lane = first; lane < last; lane++)
    if (r.lanes >> lane & 1) found.push_back(r.address[lane]);
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

// Sectors of 32 bytes that are touched, against those that hold as many bytes as are asked for.
Cost sectors(const Request& r) {
  const uint64_t none = ~(uint64_t)0;
  uint64_t count = 0, last = none;
  auto addresses = distinct(r, 0, 32);
  for (uint64_t a : addresses)
    for (uint64_t s = a / 32; s <= (a + r.bytes - 1) / 32; s++)
      if (last == none || s > last) count++, last = s;
  return {count, (addresses.size() * r.bytes + 31) / 32};
}

// A wavefront serves 32 banks, one 4-byte word each. Lanes with 8 bytes go in two halves, with 16 bytes in four quarters.
Cost wavefronts(const Request& r) {
  Cost cost{0, 0};
  int lanes = r.bytes <= 4 ? 32 : 128 / (int)r.bytes;
  for (int first = 0; first < 32; first += lanes) {
    std::vector<uint64_t> words;
    for (uint64_t a : distinct(r, first, first + lanes))
      for (uint64_t w = a / 4; w <= (a + r.bytes - 1) / 4; w++) words.push_back(w);
    words.erase(std::unique(words.begin(), words.end()), words.end());
    unsigned in_bank[32] = {}, worst = 0;
    for (uint64_t w : words) worst = std::max(worst, ++in_bank[w % 32]);
    cost.units += worst;
    cost.ideal += (words.size() + 31) / 32;
  }
  return cost;
}

void settle(const Request& r) {
  uint64_t bytes = (uint64_t)__builtin_popcount(r.lanes) * r.bytes;
  Cost cost = r.space == SHARED ? wavefronts(r) : r.space == GLOBAL ? sectors(r) : Cost{(bytes + 31) / 32, (bytes + 31) / 32};
  Row& row = rows[{r.site.where, r.site.line, r.space, r.kind}];
  row.requests++;
  row.bytes += bytes;
  row.units += cost.units;
  row.ideal += cost.ideal;
  row.worst = std::max(row.worst, cost.units);
}

void launch_begin() { requests.clear(), rows.clear(); }
void block_end() {
  for (auto& entry : requests) settle(entry.second);
  requests.clear();
}
void nothing(const void*, unsigned, Access, bool, Site) {}
const Observer counter = {launch_begin, nothing, block_end};
[[gnu::constructor]] void observe() { observer = &counter; }
}  // namespace

void count_request(const void* pointer, unsigned bytes, Access kind, Space space, Site site, unsigned instruction, uint64_t pass) {
  if (space == GENERIC) space = in_arena(pointer) ? SHARED : in_stack(pointer) ? LOCAL : GLOBAL;
  if (space == CONST || !bytes) return;
  const Thread& thread = *g.current;
  Request& r = requests[mix(mix(mix(0, (uint64_t)instruction << 3 | space), thread.warp), pass)];
  if (r.lanes >> thread.lane & 1) settle(r), r.lanes = 0;   // a second visit that no counter tells from the first
  r.address[thread.lane] = space == SHARED ? (uint64_t)((const char*)pointer - g.shared) : (uint64_t)pointer;
  r.lanes |= 1u << thread.lane;
  r.bytes = bytes, r.kind = kind, r.space = space, r.site = site;
}
}  // namespace emulator

extern "C" const char* emulator_traffic() {
  using namespace emulator;
  text.clear();
  for (auto& [key, row] : rows) {
    auto& [where, line, space, kind] = key;
    char numbers[160];
    snprintf(numbers, sizeof numbers, "\t%d\t%d\t%d\t%llu\t%llu\t%llu\t%llu\t%llu\n", line, space, kind,
             (unsigned long long)row.requests, (unsigned long long)row.bytes, (unsigned long long)row.units,
             (unsigned long long)row.ideal, (unsigned long long)row.worst);
    text += where + numbers;
  }
  return text.c_str();
}
