// A matrix product by tiles on tensor cores, shared by implicit_gemm.cu and implicit_gemm_weights.cu.
//
//                         TILE_N
//                    +-------------+           A block makes TILE_M x TILE_N sums. Both factors go from global into shared
//                    |   b [k, n]  | TILE_K    memory by asynchronous copies, STAGES - 1 steps of TILE_K products ahead of
//                    +-------------+           the multiplication, so that a step's data are there when it begins.
//      TILE_K
//     +--------+     +------+------+           A warp makes WARP_M x WARP_N of the sums, out of fragments of 16 x 8 that are
//     |        |     | warp |      |           spread over its lanes:  lane = 4 * g + t  holds sums (g, 2t), (g, 2t + 1),
//     | a [m,k]|     +------+      |           (g + 8, 2t), (g + 8, 2t + 1)  of each (PTX ISA, "mma.m16n8k16").
//     |        |     |             | TILE_M
//     +--------+     +-------------+
//
//   -DDTYPE= 0, 1 (16-bit floats) or 2 (float32 as TF32)    -DTILE_M= -DTILE_N=    -DCOPY= bytes of one copy: 16, 8, 4 or 2
//   -DPRODUCTS= TF32 products per product: 1, or 3 for the precision of float32; 1 with 16-bit floats
//
// Three products (Ootomo & Yokota, "Recovering single precision accuracy from Tensor Cores while surpassing the FP32
// theoretical peak performance", 2022): with a = big + small, both TF32, a * b is big * big + big * small + small * big to
// 22 bits. Tensor cores round sums towards zero, and by more than the last place, so that even short sums show it: a step
// adds up its small products first, for beside large sums they would lose the most, and after every step its sums are
// added to those that are kept, rounded to nearest, and the tensor cores start anew from what that rounded off (Kahan,
// "Further remarks on reducing truncation errors", 1965). The error then is that of a step's sums, however many steps
// there are. An infinity, in an array or as a sum, becomes NaN.
//
// Shared memory that is read one column at a time would come from one bank: chunks of 16 bytes are permuted within 128
// bytes (xor with the row) so that the eight rows of a fragment are in different banks; 32-bit numbers that are read along
// k have a gap of 8 numbers after each row instead.
#pragma once
#include "conv.cuh"

#if DTYPE > 2
#error "tensor cores take float16, bfloat16 and float32 as TF32"
#endif

constexpr int STAGES = 4;
constexpr int SIZE = sizeof(T);        // bytes of a number
constexpr int CHUNK = 16 / SIZE;       // numbers in 16 bytes
constexpr int TILE_K = 64 / SIZE;      // products per step
constexpr int MMA_K = 32 / SIZE;       // products per instruction
constexpr int WARP_M = TILE_M * TILE_N > 64 * 64 ? 64 : TILE_M / 2, WARP_N = TILE_N > 64 ? 64 : TILE_N == 64 ? 32 : 16;
constexpr int WARPS_M = TILE_M / WARP_M, WARPS_N = TILE_N / WARP_N, THREADS = 32 * WARPS_M * WARPS_N;
constexpr int SUMS = WARP_M * WARP_N / 32 * (PRODUCTS == 3 ? 2 : 1);    // of a thread
constexpr int RESIDENT = SUMS >= 128 ? 2 : SUMS == 64 ? 3 : 4;         // blocks for which there shall be registers
constexpr int ROWS = WARP_M / 16, COLUMNS = WARP_N / 8;  // fragments of a warp

typedef float Sums[ROWS][COLUMNS][4];

// ---------------------------------------------------------------------------------------------------------- shared memory

// The stages of the pipeline, or a place in them, in the two forms that instructions take. The compiler drops the one that
// a kernel does not use.
struct Shared {
  char* bytes;
  u32 address;
};
__device__ __forceinline__ Shared operator+(Shared shared, u32 offset) {
  return Shared{shared.bytes + offset, shared.address + offset};
}

// A factor with k innermost, in TILE rows of 64 bytes; byte() is the offset of number `k` of row `at`.
//
// A fragment is 16 numbers of the tile by MMA_K. fragment() is its offset: from the first one of a lane, whose offset is
// `first` and whose row or column is a multiple of the warp's, each is a constant away, by xor or by addition.
template <int TILE>
struct AlongK {
  static constexpr bool K_FIRST = false;
  static constexpr int BYTES = TILE * 64;
  __device__ __forceinline__ static u32 chunk(int at, int number) { return (u32)(at * 64 + ((number ^ (at >> 1 & 3)) << 4)); }
  __device__ __forceinline__ static u32 byte(int at, int k) { return chunk(at, k / CHUNK) + (u32)(k % CHUNK * SIZE); }
  __device__ __forceinline__ static u32 fragment(u32 first, int number, int step) {
    return (first ^ (u32)(step * 32)) + (u32)(number * 16 * 64);
  }
};

// A factor with k outermost, in TILE_K rows of TILE numbers; byte() is the offset of number `at` of row `k`.
template <int TILE>
struct AcrossK {
  static constexpr bool K_FIRST = true;
  static constexpr int PITCH = TILE * SIZE + (SIZE == 4 ? 32 : 0);
  static constexpr int BYTES = TILE_K * PITCH;
  __device__ __forceinline__ static u32 chunk(int k, int number) {
    if constexpr (SIZE == 4) return (u32)(k * PITCH + (number << 4));
    return (u32)(k * PITCH + ((number ^ (TILE < 64 ? k >> 1 & 3 : k & 7)) << 4));
  }
  __device__ __forceinline__ static u32 byte(int at, int k) { return chunk(k, at / CHUNK) + (u32)(at % CHUNK * SIZE); }
  __device__ __forceinline__ static u32 fragment(u32 first, int number, int step) {
    const u32 across = (u32)(number * 16 * SIZE);
    return (SIZE == 4 ? first + across : first ^ across) + (u32)(step * MMA_K * PITCH);
  }
};

// Brings COPY bytes into shared memory, or zeros where there is nothing to bring; `from` may then point anywhere.
__device__ __forceinline__ void bring(Shared to, const T* from, bool there) {
#if COPY == 16
  cp_async_16(to.address, from, there ? 16 : 0);
#elif COPY == 8
  cp_async_8(to.address, from, there ? 8 : 0);
#elif COPY == 4
  cp_async_4(to.address, from, there ? 4 : 0);
#else
  *reinterpret_cast<T*>(to.bytes) = there ? *from : zero<T>();
#endif
}
constexpr int COPIED = COPY / SIZE;  // numbers of one copy

// ---------------------------------------------------------------------------------------------------------- fragments

__device__ __forceinline__ u32 number_at(Shared at) { return *reinterpret_cast<const u32*>(at.bytes); }

// The offset of what a lane reads of the first fragment of a, and of b, from row or column `at` on.
template <class Layout>
__device__ __forceinline__ u32 first_of_a(int at, int lane) {
  if constexpr (!Layout::K_FIRST) return Layout::chunk(at + (lane & 15), lane >> 4);
  if constexpr (SIZE == 2) return Layout::chunk((lane & 7) + (lane >> 4 << 3), at / 8 + (lane >> 3 & 1));
  return Layout::byte(at + (lane >> 2), lane & 3);
}
template <class Layout>
__device__ __forceinline__ u32 first_of_b(int at, int lane) {
  if constexpr (!Layout::K_FIRST) return Layout::chunk(at + (lane & 7) + (lane >> 4 << 3), lane >> 3 & 1);
  if constexpr (SIZE == 2) return Layout::chunk(lane & 15, at / 8 + (lane >> 4));
  return Layout::byte(at + (lane >> 2), lane & 3);
}

template <class Layout>
__device__ __forceinline__ void load_a(u32 (&a)[4], Shared tile, u32 first, int number, int step) {
  const Shared at = tile + Layout::fragment(first, number, step);
  if constexpr (!Layout::K_FIRST) {
    ldmatrix_x4(a, at.address);
  } else if constexpr (SIZE == 2) {
    ldmatrix_x4_trans(a, at.address);
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = number_at(at + Layout::byte((i & 1) * 8, (i >> 1) * 4));
  }
}

// Two neighbouring fragments of b.
template <class Layout>
__device__ __forceinline__ void load_b(u32 (&b)[2][2], Shared tile, u32 first, int number, int step) {
  const Shared at = tile + Layout::fragment(first, number, step);
  if constexpr (SIZE == 2 || !Layout::K_FIRST) {
    u32 both[4];
    if constexpr (Layout::K_FIRST)
      ldmatrix_x4_trans(both, at.address);
    else
      ldmatrix_x4(both, at.address);
    b[0][0] = both[0], b[0][1] = both[1], b[1][0] = both[2], b[1][1] = both[3];
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) b[i >> 1][i & 1] = number_at(at + Layout::byte((i >> 1) * 8, (i & 1) * 4));
  }
}

__device__ __forceinline__ void mma(float (&sums)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if DTYPE == 0
  mma_16816_f16(sums, a, b);
#elif DTYPE == 1
  mma_16816_bf16(sums, a, b);
#else
  mma_1688_tf32(sums, a, b);
#endif
}

// Rounds numbers from float32 bits to TF32; with three products, `small` gets the remainders.
template <int N>
__device__ __forceinline__ void split(u32 (&big)[N], u32 (&small)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) {
#if DTYPE == 2 && PRODUCTS == 3
    const float whole = __uint_as_float(big[i]);
    big[i] = f32_to_tf32(whole);  // to the nearest: cut off, small * small, which is left out, would add up
    small[i] = __float_as_uint(whole - __uint_as_float(big[i]));  // tensor cores do not look at the last 13 of its bits
#elif DTYPE == 2
    big[i] = f32_to_tf32(__uint_as_float(big[i]));
#endif
  }
}

// The offsets of a lane's first fragments in the tiles of a and b.
struct Firsts {
  u32 a, b;
};

// sums += a b for the TILE_K products of a step. Of three products the small ones come first, for all of the step: beside
// the large sums they would be lost.
template <class LayoutA, class LayoutB>
__device__ __forceinline__ void multiply(Sums& sums, Shared a_tile, Firsts first) {
  const Shared b_tile = a_tile + LayoutA::BYTES;
  constexpr int STEPS = TILE_K / MMA_K;
  u32 a[STEPS][ROWS][4], b[STEPS][COLUMNS][2];
#pragma unroll
  for (int step = 0; step < STEPS; step++) {
    u32 a_small[ROWS][4], b_small[COLUMNS][2];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      load_a<LayoutA>(a[step][i], a_tile, first.a, i, step);
      split(a[step][i], a_small[i]);
    }
#pragma unroll
    for (int j = 0; j < COLUMNS; j += 2) {
      load_b<LayoutB>(reinterpret_cast<u32(&)[2][2]>(b[step][j]), b_tile, first.b, j / 2, step);
      split(b[step][j], b_small[j]);
      split(b[step][j + 1], b_small[j + 1]);
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
      for (int j = 0; j < COLUMNS; j++) {
#if PRODUCTS == 3
        mma(sums[i][j], a_small[i], b[step][j]);
        mma(sums[i][j], a[step][i], b_small[j]);
#else
        mma(sums[i][j], a[step][i], b[step][j]);
#endif
      }
  }
#if PRODUCTS == 3
#pragma unroll
  for (int step = 0; step < STEPS; step++)
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
      for (int j = 0; j < COLUMNS; j++) mma(sums[i][j], a[step][i], b[step][j]);
#endif
}

__device__ __forceinline__ void clear(Sums& sums) {
#pragma unroll
  for (int i = 0; i < ROWS; i++)
#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
#pragma unroll
      for (int v = 0; v < 4; v++) sums[i][j][v] = 0.0f;
}

// Adds `part` to `sums`, and leaves in `part` what the rounding lost.
__device__ __forceinline__ void keep(Sums& sums, Sums& part) {
#pragma unroll
  for (int i = 0; i < ROWS; i++)
#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
#pragma unroll
      for (int v = 0; v < 4; v++) {
        const float sum = sums[i][j][v] + part[i][j][v];
        part[i][j][v] -= sum - sums[i][j][v];
        sums[i][j][v] = sum;
      }
}

// ---------------------------------------------------------------------------------------------------------- the product

struct Place {
  int lane, row, column;  // of the warp's first sum in the tile
};
__device__ __forceinline__ Place place_of(int thread) {
  const int warp = thread / 32;
  return Place{thread % 32, warp % WARPS_M * WARP_M, warp / WARPS_M * WARP_N};
}

template <class LayoutA, class LayoutB>
constexpr int STAGE_BYTES = LayoutA::BYTES + LayoutB::BYTES;

// In the end the stages hold 16 rows of each warp's sums. They are written by fragments and read by rows: so that no two
// lanes meet in a bank, rows are longer than the warp's, or where they are 16 long, every other pair has its halves swapped.
constexpr int SUM_PITCH = WARP_N == 16 ? 16 : WARP_N + 8;
__device__ __forceinline__ int sum_at(int row, int column) {
  return row * SUM_PITCH + (WARP_N == 16 ? column ^ (row & 2) << 2 : column);
}
template <int STAGE>
constexpr int PIPELINE_BYTES = STAGES * STAGE;
static_assert(STAGES * (TILE_M + TILE_N) * 64 >= THREADS / 32 * 16 * SUM_PITCH * 4, "the sums of a warp need more room");

// sums = a b over `steps` steps. load(stage) starts the copies of the next step into the tiles of a stage, each time called
// for the step after the one before; all threads have then left the call before.
template <class LayoutA, class LayoutB, class Load>
__device__ __forceinline__ void product(Sums& sums, Shared shared, int steps, Place place, Load load) {
  constexpr u32 STAGE = STAGE_BYTES<LayoutA, LayoutB>;
  clear(sums);
#pragma unroll 1
  for (int step = 0; step < STAGES - 1; step++) {
    if (step < steps) load(shared + (u32)step * STAGE);
    cp_async_commit();
    __syncthreads();
  }
#if PRODUCTS == 3
  Sums part;
  clear(part);
#endif
  const Firsts first{first_of_a<LayoutA>(place.row, place.lane), first_of_b<LayoutB>(place.column, place.lane)};
  u32 stage = 0, filled = (STAGES - 1) * STAGE;  // offsets of the stage that is multiplied, and of the one before
  for (int step = 0; step < steps; step++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // every thread's copies are there, and everyone is done with the stage that is filled next
    if (step + STAGES - 1 < steps) load(shared + filled);
    cp_async_commit();
#if PRODUCTS == 3
    multiply<LayoutA, LayoutB>(part, shared + stage, first);
    keep(sums, part);
#else
    multiply<LayoutA, LayoutB>(sums, shared + stage, first);
#endif
    filled = stage;
    stage = stage == (STAGES - 1) * STAGE ? 0 : stage + STAGE;
  }
  cp_async_wait<0>();
  __syncthreads();
}

// Writes 16 rows of a warp's sums, which are in shared memory, from row and column `row` and `column` of the tile on.
template <int TOGETHER, class Out, class Start>
__device__ __forceinline__ void put(const float* rows, int row, int column, int lane, Out* out, int width, bool relu,
                                    Start start) {
  constexpr int ACROSS = WARP_N / TOGETHER;
#pragma unroll 1
  for (int i = lane; i < 16 * ACROSS; i += 32) {
    const int own_row = i / ACROSS, own_column = i % ACROSS * TOGETHER;
    const i64 at = start(row + own_row);
    if (at < 0 || column + own_column >= width) continue;
    const float* const from = rows + sum_at(own_row, own_column);
    Pack<float, TOGETHER> sums;
    if constexpr (TOGETHER == 8) {  // of eight lanes, four begin with the second half: else two would meet in a bank
      const int second = lane & 4;
      const Pack<float, 4> a = *reinterpret_cast<const Pack<float, 4>*>(from + second);
      const Pack<float, 4> b = *reinterpret_cast<const Pack<float, 4>*>(from + (4 - second));
#pragma unroll
      for (int v = 0; v < 4; v++) sums.at[v] = second ? b.at[v] : a.at[v], sums.at[4 + v] = second ? a.at[v] : b.at[v];
    } else {
      sums = *reinterpret_cast<const Pack<float, TOGETHER>*>(from);
    }
    Pack<Out, TOGETHER> results;
#pragma unroll
    for (int v = 0; v < TOGETHER; v++) {
      const float sum = relu && sums.at[v] < 0.0f ? 0.0f : sums.at[v];
      if constexpr (sizeof(Out) == sizeof(T))
        results.at[v] = from_acc(sum);
      else
        results.at[v] = sum;
    }
    *reinterpret_cast<Pack<Out, TOGETHER>*>(out + (at + column + own_column)) = results;
  }
}

// Writes a tile of sums: its row r, of up to `width` numbers, goes to element `start(r)` (below 0: nowhere) of `out`, or of
// `partials` where there are any, as float32. The bias of the tile's first column is number `channel`. Each warp takes its
// sums through shared memory, 16 rows at a time, so that neighbouring lanes write neighbouring numbers.
template <class Start>
__device__ __forceinline__ void write(const Sums& sums, char* shared, Place place, T* out, float* partials, int width,
                                      const T* bias, int channel, int activation, Start start) {
  float* const rows = reinterpret_cast<float*>(shared) + (int)threadIdx.x / 32 * (16 * SUM_PITCH);
  const int row = place.lane >> 2, column = (place.lane & 3) * 2;
  float shift[COLUMNS][2];
#pragma unroll
  for (int j = 0; j < COLUMNS; j++)
#pragma unroll
    for (int v = 0; v < 2; v++) {
      const int own = place.column + column + j * 8 + v;
      shift[j][v] = bias && !partials && own < width ? to_acc(bias[channel + own]) : 0.0f;
    }
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int j = 0; j < COLUMNS; j++) {
        const Pack<float, 2> pair = {{sums[i][j][half * 2] + shift[j][0], sums[i][j][half * 2 + 1] + shift[j][1]}};
        *reinterpret_cast<Pack<float, 2>*>(rows + sum_at(half * 8 + row, j * 8 + column)) = pair;
      }
    __syncwarp();
    if (partials) {
      put<(COPIED < 4 ? COPIED : 4)>(rows, place.row + i * 16, place.column, place.lane, partials, width, false, start);
    } else {
      if (activation > 1) {  // sigmoid and tanh are long, and here only once
#pragma unroll 1
        for (int v = place.lane; v < 16 * WARP_N; v += 32) {
          float& sum = rows[v / WARP_N * SUM_PITCH + v % WARP_N];
          sum = activated(sum, activation);
        }
        __syncwarp();
      }
      put<COPIED>(rows, place.row + i * 16, place.column, place.lane, out, width, activation == 1, start);
    }
    __syncwarp();
  }
}
