// A tile of a matrix product on Hopper's tensor cores (wgmma), both factors in shared memory: layouts, the ring of stages
// between the warps that copy and those that multiply, and the way out. Kernels that use it know no bits of descriptors.
//
//   -DTILE_M= -DTILE_N=   sums of a block     DTYPE is 0 or 1
//
// A block has CONSUMERS warpgroups, which come first, because wgmma wants warps 4 n to 4 n + 3, and then PRODUCERS threads.
// A step is STEP_K = 64 products of each sum: 128 bytes of a row of a factor.
//
//   producers    wait until a stage is empty, copy a step into it by cp.async, arrive at `full` when the copies are there
//   consumers    wait until it is full, multiply; when the step before is done, arrive at `empty`, a lane of each warp
//
// What only a GPU can confirm (tests/first_contact.py asks it first): that the fence of a consumer, behind its wait, makes
// copies of cp.async visible to wgmma, as the PTX ISA says of generic writes; that a matrix base offset of 0 is right where
// patterns begin at multiples of 1024 bytes; and that the swizzle is one of absolute addresses.
#pragma once
#include "conv.cuh"

constexpr int STEP_K = 64;
constexpr int CONSUMERS = TILE_M % 192 == 0 ? 3 : 2;
constexpr int RESIDENT = TILE_M * TILE_N <= 128 * 128 ? 2 : 1;  // blocks that a multiprocessor has room for
constexpr int PRODUCERS = RESIDENT == 2 ? 64 : 128;
constexpr int CONSUMING = 128 * CONSUMERS, THREADS = CONSUMING + PRODUCERS;
constexpr int BLOCKS_M = TILE_M / 64 / CONSUMERS;  // blocks of 64 rows of a warpgroup
constexpr int STAGE = (TILE_M + TILE_N) * STEP_K * 2;
constexpr int STAGES = (RESIDENT == 2 ? 100 : 204) * 1024 / STAGE;
constexpr int SHARED_BYTES = STAGES * STAGE + 1024;  // dynamic memory begins at no multiple of 1024
static_assert(BLOCKS_M * CONSUMERS * 64 == TILE_M, "every warpgroup has as many rows");

typedef float Sums[BLOCKS_M][TILE_N / 2];

// ---------------------------------------------------------------------------------------------------------- layouts

// Both have rows of 128 bytes, whose chunks of 16 bytes are permuted by the row: wgmma's 128-byte swizzle, of addresses, so
// tiles begin at multiples of 1024 bytes. chunk() is where chunk `number` of a row is; first() the descriptor of a tile,
// which is a number of 16 bytes further for the next 16 of k, and for the next 64 of m or n. The PTX ISA calls the distances
// of 8 rows the stride, and that of the next 64 of m or n the leading dimension's, which K-major tiles do not use.
constexpr u64 SWIZZLE_128 = 1ull << 62, EIGHT_ROWS = (u64)(8 * 128 >> 4) << 32;

// k innermost: a row of a step per row (or column) of the tile.
template <int TILE>
struct KMajor {
  static constexpr int MN_MAJOR = 0, BYTES = TILE * 128;
  static constexpr u32 NEXT_K16 = 32 >> 4, NEXT_64 = 64 * 128 >> 4;
  __device__ __forceinline__ static u32 chunk(int row, int number) { return (u32)(row * 128 + ((number ^ (row & 7)) << 4)); }
  __device__ __forceinline__ static u64 first(u32 address) { return SWIZZLE_128 | EIGHT_ROWS | 1ull << 16 | address >> 4; }
};

// k outermost: for each 64 rows (or columns) of the tile a row per k.
template <int TILE>
struct MNMajor {
  static constexpr int MN_MAJOR = 1, BYTES = TILE * 128, BLOCK = STEP_K * 128;
  static constexpr u32 NEXT_K16 = 16 * 128 >> 4, NEXT_64 = BLOCK >> 4;
  __device__ __forceinline__ static u32 chunk(int k, int number) {
    return (u32)(number / 8 * BLOCK + k * 128 + (((number & 7) ^ (k & 7)) << 4));
  }
  __device__ __forceinline__ static u64 first(u32 address) {
    return SWIZZLE_128 | EIGHT_ROWS | (u64)(BLOCK >> 4) << 16 | address >> 4;
  }
};

// ---------------------------------------------------------------------------------------------------------- the ring

struct Ring {
  u64 full[STAGES], empty[STAGES];
};
// By one thread, before a barrier of the block.
__device__ __forceinline__ void begin(Ring& ring) {
  for (int stage = 0; stage < STAGES; stage++) {
    mbarrier_init(smem_u32(&ring.full[stage]), PRODUCERS);
    mbarrier_init(smem_u32(&ring.empty[stage]), 4 * CONSUMERS);
  }
}

// The stage whose turn it is, and the parity of the round.
struct Turn {
  int stage;
  u32 round;
};
__device__ __forceinline__ void next(Turn& turn) {
  if (++turn.stage == STAGES) turn.stage = 0, turn.round ^= 1;
}

__device__ __forceinline__ void wait(const u64& barrier, u32 parity) {
  while (!mbarrier_try_wait(smem_u32(&barrier), parity)) {
  }
}
__device__ __forceinline__ void wait_until_empty(const Ring& ring, Turn turn) {
  wait(ring.empty[turn.stage], turn.round ^ 1);  // in the first round all are
}
__device__ __forceinline__ void fill_when_copied(Ring& ring, Turn turn) { cp_async_arrive(smem_u32(&ring.full[turn.stage])); }

__device__ __forceinline__ char* aligned_stages(char* dynamic) { return dynamic + (0u - smem_u32(dynamic) & 1023u); }

template <int N>
__device__ __forceinline__ void touched(float (&sums)[BLOCKS_M][N]) {
#pragma unroll
  for (int m = 0; m < BLOCKS_M; m++) touched(sums[m]);
}

// Begins sums += a b for a step, of the tile of a at `a` and that of b behind it.
template <class LayoutA, class LayoutB>
__device__ __forceinline__ void issue(Sums& sums, u32 a, int warpgroup) {
  const u64 first_a = LayoutA::first(a) + (u32)(warpgroup * BLOCKS_M) * LayoutA::NEXT_64;
  const u64 first_b = LayoutB::first(a + LayoutA::BYTES);
  touched(sums);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < STEP_K / 16; k++)
#pragma unroll
    for (int m = 0; m < BLOCKS_M; m++) {
      const u64 of_a = first_a + (k * LayoutA::NEXT_K16 + m * LayoutA::NEXT_64), of_b = first_b + k * LayoutB::NEXT_K16;
#if DTYPE == 0
      wgmma_f16<LayoutA::MN_MAJOR, LayoutB::MN_MAJOR>(sums[m], of_a, of_b);
#else
      wgmma_bf16<LayoutA::MN_MAJOR, LayoutB::MN_MAJOR>(sums[m], of_a, of_b);
#endif
    }
  wgmma_commit();
}

// sums = a b over `steps` steps, by a thread of the consumers. A step is under way while the next one is waited for.
template <class LayoutA, class LayoutB>
__device__ __forceinline__ void multiply(Sums& sums, Ring& ring, u32 stages, int steps) {
  const int warpgroup = (int)threadIdx.x / 128, lane = (int)threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < BLOCKS_M; m++)
#pragma unroll
    for (int i = 0; i < TILE_N / 2; i++) sums[m][i] = 0.0f;
  Turn turn = {0, 0};
  int before = 0;
  for (int step = 0; step < steps; step++) {
    wait(ring.full[turn.stage], turn.round);
    fence_proxy_async();
    issue<LayoutA, LayoutB>(sums, stages + (u32)(turn.stage * STAGE), warpgroup);
    wgmma_wait<1>();
    if (step > 0 && lane == 0) mbarrier_arrive(smem_u32(&ring.empty[before]));
    before = turn.stage;
    next(turn);
  }
  wgmma_wait<0>();
  touched(sums);
}

// ---------------------------------------------------------------------------------------------------------- the way out

constexpr int WAITING = TILE_N < 128 ? TILE_N : TILE_N % 128 ? TILE_N / 2 : 128;  // columns that wait in shared memory at a time
constexpr int PITCH = WAITING + 8;  // floats: of the rows that a warp writes and reads together no two meet in a bank
static_assert(CONSUMERS * 4 * 16 * PITCH * 4 <= STAGES * STAGE, "the sums of all warps wait in the stages");

// Eight neighbouring sums as they are, or as results.
__device__ __forceinline__ void put(const A (&sums)[8], float* to) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    Pack<float, 4> four;
#pragma unroll
    for (int i = 0; i < 4; i++) four.at[i] = sums[4 * half + i];
    reinterpret_cast<Pack<float, 4>*>(to)[half] = four;
  }
}
__device__ __forceinline__ void put(const A (&sums)[8], T* to) {
  Pack<T, 8> results;
#pragma unroll
  for (int i = 0; i < 8; i++) results.at[i] = from_acc(sums[i]);
  *reinterpret_cast<Pack<T, 8>*>(to) = results;
}

// Writes a tile of sums, by the consumers: its row r, of up to `width` numbers, a multiple of 8, goes to element `start(r)`
// (below 0: nowhere) of `out`, or of `partials` where there are any, as float32. The bias of the tile's first column is number
// `channel`. Each warp takes 16 rows at a time through shared memory, so that neighbouring lanes write neighbouring numbers.
template <class Start>
__device__ __forceinline__ void write(const Sums& sums, char* stages, T* out, float* partials, int width, const T* bias,
                                      int channel, int activation, Start start) {
  const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
  barrier_of(1, CONSUMING);  // every step is done: the stages are free
  float* const rows = reinterpret_cast<float*>(stages) + warp * (16 * PITCH);
#pragma unroll
  for (int m = 0; m < BLOCKS_M; m++)
#pragma unroll
    for (int first = 0; first < TILE_N; first += WAITING) {
#pragma unroll
      for (int c = 0; c < WAITING / 8; c++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const float* const pair = sums[m] + (first / 2 + c * 4 + half * 2);
          *reinterpret_cast<Pack<float, 2>*>(rows + ((half * 8 + lane / 4) * PITCH + c * 8 + lane % 4 * 2)) =
              Pack<float, 2>{{pair[0], pair[1]}};
        }
      __syncwarp();
      constexpr int ACROSS = WAITING / 8;
#pragma unroll 1
      for (int i = lane; i < 16 * ACROSS; i += 32) {
        const int row = i / ACROSS, column = i % ACROSS * 8;
        const i64 at = start((warp / 4 * BLOCKS_M + m) * 64 + warp % 4 * 16 + row);
        if (at < 0 || first + column >= width) continue;
        const float* const from = rows + (row * PITCH + column);
        const int second = lane & 4;  // of eight lanes, four begin with the second half: else two would meet in a bank
        const Pack<float, 4> a = *reinterpret_cast<const Pack<float, 4>*>(from + second);
        const Pack<float, 4> b = *reinterpret_cast<const Pack<float, 4>*>(from + (4 - second));
        A eight[8];
#pragma unroll
        for (int v = 0; v < 4; v++) eight[v] = second ? b.at[v] : a.at[v], eight[4 + v] = second ? a.at[v] : b.at[v];
        if (partials) {
          put(eight, partials + (at + first + column));
        } else {
          finish<8>(eight, bias, channel + first + column, activation);
          put(eight, out + (at + first + column));
        }
      }
      __syncwarp();
    }
}
