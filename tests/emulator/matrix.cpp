// 16-bit and TF32 numbers, mma.sync and ldmatrix. Fragment layouts are those of the PTX ISA, "Matrix Fragments for
// mma".
#include <math.h>

#include "internal.h"
#ifdef __F16C__
#include <immintrin.h>
#endif

namespace emulator {
namespace {
uint32_t bits_of(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
float float_of(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
uint64_t bits_of(double d) {
  uint64_t u;
  memcpy(&u, &d, 8);
  return u;
}
double double_of(uint64_t u) {
  double d;
  memcpy(&d, &u, 8);
  return d;
}
}  // namespace

float half_to_float(uint16_t bits) {
#ifdef __F16C__
  return _cvtsh_ss(bits);
#else
  const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
  if (exponent) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
  return float_of(sign | bits_of((float)fraction * 0x1p-24f));
#endif
}

uint16_t double_to_half(double value) {
  uint64_t u;
  memcpy(&u, &value, 8);
  const uint16_t sign = (uint16_t)(u >> 48 & 0x8000);
  u &= ~(1ull << 63);
  if (u > 0x7ffull << 52) return 0x7fff;
  const int exponent = (int)(u >> 52) - 1023;
  if (exponent > 15) return sign | 0x7c00;
  if (exponent < -25) return sign;
  const uint64_t fraction = (u & ((1ull << 52) - 1)) | 1ull << 52;
  const int cut = exponent < -14 ? 42 + (-14 - exponent) : 42;
  uint64_t kept = fraction >> cut;
  const uint64_t rest = fraction & ((1ull << cut) - 1), half = 1ull << (cut - 1);
  if (rest > half || (rest == half && kept & 1)) kept++;
  return (
      uint16_t)(sign |
                (exponent < -14 ? kept : kept + ((uint64_t)(exponent + 14) << 10)));  // a carry goes into the exponent
}

uint16_t float_to_half(float value) {
#ifdef __F16C__
  if (value != value) return 0x7fff;
  return (uint16_t)_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#else
  return double_to_half(value);
#endif
}

uint16_t float_to_bfloat16(float value) {
  if (value != value) return 0x7fff;
  const uint32_t u = bits_of(value);
  return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

uint32_t float_to_tf32(float value) {
  if (value != value) return 0x7fffffff;
  const uint32_t u = bits_of(value);
  return (u & 0x7f800000) == 0x7f800000 ? u : (u + 0x1000) & 0xffffe000u;
}

// ---- mma.sync
// ----------------------------------------------------------------------------------------------------------
namespace {
struct Fragments {
  const uint32_t *a, *b;
  const float* c;
  float* d;
  Site site;
};

void all_lanes(unsigned mask, Site site) {
  if (mask != ~0u) fault(site, "mma and ldmatrix need all 32 lanes of the warp, mask %08x", mask);
}

// Adds the products of a row to its sums: made in double, and rounded once.
template <int K>
void add_nearest(double (&sum)[8], const float (&a)[K], const float (&b)[K][8]) {
  double products[8] = {};
  for (int k = 0; k < K; k++)
    for (int col = 0; col < 8; col++) products[col] += (double)a[k] * b[k][col];
  for (int col = 0; col < 8; col++) sum[col] = products[col] + sum[col];
}

// ... as devices do: BLOCK products and the sum are aligned to the largest of them, cut off BITS bits below its first,
// added up, and the sum is cut off to a float. An A100, which rounds the most of the devices from sm_80 on, takes K / 2
// products and 24 bits, a Hopper device K and 25 (Fasi et al., "Numerical behavior of NVIDIA tensor cores", 2021; Khattak &
// Mikaitis, "Accurate models of NVIDIA tensor cores", 2025).
template <int K, int BLOCK, int BITS>
void add_towards_zero(double (&sum)[8], const float (&a)[K], const float (&b)[K][8]) {
  constexpr uint64_t MAGNITUDE = ~0ull >> 1, INFINITE = 0x7ff;
  for (int k = 0; k < K; k += BLOCK) {
    double product[BLOCK][8], plain[8];
    uint64_t largest[8];
    for (int col = 0; col < 8; col++) largest[col] = bits_of(sum[col]) & MAGNITUDE, plain[col] = sum[col];
    for (int i = 0; i < BLOCK; i++)
      for (int col = 0; col < 8; col++) {
        product[i][col] = (double)a[k + i] * b[k + i][col];
        plain[col] += product[i][col];
        const uint64_t bits = bits_of(product[i][col]) & MAGNITUDE;
        largest[col] = bits > largest[col] ? bits : largest[col];
      }
    for (int col = 0; col < 8; col++) {
      const uint64_t exponent = largest[col] >> 52;
      if (exponent == INFINITE || exponent == 0) {  // NaN and infinities, and zeros
        sum[col] = plain[col];
        continue;
      }
      const double unit = double_of((exponent - BITS) << 52), per_unit = double_of((2046 - (exponent - BITS)) << 52);
      double units = trunc(sum[col] * per_unit);
      for (int i = 0; i < BLOCK; i++) units += trunc(product[i][col] * per_unit);
      sum[col] = double_of(bits_of(units * unit) & ~0x1fffffffull);
    }
  }
}

template <int K>
void add_products(double (&sum)[8], const float (&a)[K], const float (&b)[K][8]) {
  switch (launch->mma_rounding) {
    case TOWARDS_ZERO: return add_towards_zero<K, K / 2, 24>(sum, a, b);
    case AS_HOPPER: return add_towards_zero<K, K, 25>(sum, a, b);
    default: return add_nearest<K>(sum, a, b);
  }
}

template <int K>
__attribute__((noinline)) void multiply(float (&a)[16][K], float (&b)[K][8], void* const slot[32]) {
  for (int row = 0; row < 16; row++) {
    double sum[8];
    const auto lane_of = [&](int col) -> const Fragments& { return *(const Fragments*)slot[row % 8 * 4 + col / 2]; };
    for (int col = 0; col < 8; col++) sum[col] = lane_of(col).c[row / 8 * 2 + col % 2];
    add_products<K>(sum, a[row], b);
    for (int col = 0; col < 8; col++) lane_of(col).d[row / 8 * 2 + col % 2] = (float)sum[col];
  }
}

template <bool BF16>
float number(uint32_t pair, int which) {
  const uint16_t bits = (uint16_t)(pair >> 16 * which);
  return BF16 ? bfloat16_to_float(bits) : half_to_float(bits);
}

// Tensor cores take and give denormal numbers, whatever the rest of the kernel does. `multiply` is called, not inlined,
// so that no arithmetic moves out of the scope of this.
struct KeepsDenormals {
  const FloatMode before = float_mode();
  KeepsDenormals() { set_float_mode(before & ~FLUSH); }
  ~KeepsDenormals() { set_float_mode(before); }
};

template <bool BF16>
void mma_16816(unsigned mask, void* const slot[32]) {
  all_lanes(mask, ((Fragments*)g.current->state->slot)->site);
  const KeepsDenormals keeps;
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; lane++) {
    const Fragments& f = *(const Fragments*)slot[lane];
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int half = 0; half < 2; half++) {
      for (int r = 0; r < 4; r++) a[group + r % 2 * 8][pair + r / 2 * 8 + half] = number<BF16>(f.a[r], half);
      for (int r = 0; r < 2; r++) b[pair + r * 8 + half][group] = number<BF16>(f.b[r], half);
    }
  }
  multiply<16>(a, b, slot);
}

void mma_1688(unsigned mask, void* const slot[32]) {
  all_lanes(mask, ((Fragments*)g.current->state->slot)->site);
  const KeepsDenormals keeps;
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; lane++) {
    const Fragments& f = *(const Fragments*)slot[lane];
    const int group = lane / 4, t = lane % 4;
    // the hardware does not look at the low 13 bits
    for (int r = 0; r < 4; r++) a[group + r % 2 * 8][t + r / 2 * 4] = float_of(f.a[r] & 0xffffe000u);
    for (int r = 0; r < 2; r++) b[t + r * 4][group] = float_of(f.b[r] & 0xffffe000u);
  }
  multiply<8>(a, b, slot);
}
}  // namespace

namespace {
__attribute__((noinline)) void add_rows(float (&sums)[16][8], const float (&a)[16][16], const float (&b)[16][8]) {
  for (int row = 0; row < 16; row++) {
    double sum[8];
    for (int col = 0; col < 8; col++) sum[col] = sums[row][col];
    add_products<16>(sum, a[row], b);
    for (int col = 0; col < 8; col++) sums[row][col] = (float)sum[col];
  }
}
}  // namespace

void multiply_16x8x16(float (&sums)[16][8], const float (&a)[16][16], const float (&b)[16][8]) {
  const KeepsDenormals keeps;
  add_rows(sums, a, b);
}

void mma_sync(Mma kind, float d[4], const uint32_t* a, const uint32_t* b, const float c[4], Site site) {
  Fragments f = {a, b, c, d, site};
  warp_collective(~0u, kind == Mma::TF32 ? mma_1688 : kind == Mma::F16 ? mma_16816<false> : mma_16816<true>, &f, site);
}

// ---- ldmatrix
// ------------------------------------------------------------------------------------------------------------
namespace {
struct Rows {
  uint32_t address;
  uint32_t* registers;
  Site site;
};

template <int COUNT_, bool TRANSPOSED>
void load(unsigned mask, void* const slot[32]) {
  Thread* const me = g.current;
  all_lanes(mask, ((Rows*)me->state->slot)->site);
  for (int m = 0; m < COUNT_; m++) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; row++) {
      const int lane = m * 8 + row;  // who gives the address of this row
      const Rows& r = *(const Rows*)slot[lane];
      g.current = &threads[me->linear - me->lane + (unsigned)lane];
      if (r.address % 16)
        fault(r.site, "ldmatrix: the row of lane %d at shared address %u is not aligned to 16 bytes", lane, r.address);
      if (r.address + 16 > ARENA) fault(r.site, "ldmatrix: the row of lane %d is outside of shared memory", lane);
      access(g.shared + r.address, 16, READ, r.site);
      g.current = me;
      memcpy(matrix[row], g.shared + r.address, 16);
    }
    for (int lane = 0; lane < 32; lane++) {
      const int row = lane / 4, col = lane % 4 * 2;
      const uint16_t low = TRANSPOSED ? matrix[col][row] : matrix[row][col];
      const uint16_t high = TRANSPOSED ? matrix[col + 1][row] : matrix[row][col + 1];
      ((Rows*)slot[lane])->registers[m] = low | (uint32_t)high << 16;
    }
  }
}
}  // namespace

void ldmatrix(uint32_t* registers, int count, bool transposed, uint32_t address, Site site) {
  Rows rows = {address, registers, site};
  WarpFunction function;
  if (count == 4)
    function = transposed ? load<4, true> : load<4, false>;
  else if (count == 2)
    function = transposed ? load<2, true> : load<2, false>;
  else
    function = transposed ? load<1, true> : load<1, false>;
  warp_collective(~0u, function, &rows, site);
}
}  // namespace emulator
