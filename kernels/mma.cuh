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
//   -DDTYPE= 0, 1 (16-bit floats) or 2 (float32 as TF32)    -DTILE_M= -DTILE_N=    -DCOPY= bytes of one copy: 16, 4 or 2
//   -DPRODUCTS= TF32 products per product: 1, or 3 for the precision of float32; 1 with 16-bit floats
//
// Three products (Ootomo & Yokota, "Recovering single precision accuracy from Tensor Cores while surpassing the FP32
// theoretical peak performance", 2022): with a = big + small, both TF32, a * b is big * big + big * small + small * big to
// 22 bits. Tensor cores round sums towards zero, and by more than the last place, so that even short sums show it: after
// every step their sums are added to those that are kept, rounded to nearest, and the tensor cores start anew from what
// that rounded off (Kahan, "Further remarks on reducing truncation errors", 1965). The error then is that of a step's
// sums, however many steps there are. An infinity, in an array or as a sum, becomes NaN.
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
constexpr int WARP_M = TILE_M * TILE_N >= 128 * 128 ? 64 : 32, WARP_N = 32;
constexpr int WARPS_M = TILE_M / WARP_M, WARPS_N = TILE_N / WARP_N, THREADS = 32 * WARPS_M * WARPS_N;
constexpr int RESIDENT = THREADS == 128 && PRODUCTS == 3 ? 3 : 512 / THREADS;  // blocks for which there shall be registers
constexpr int ROWS = WARP_M / 16, COLUMNS = WARP_N / 8;  // fragments of a warp

constexpr int MMA_UNROLL = PRODUCTS == 3 ? 1 : 2;  // with more the fragments would spill

typedef float Sums[ROWS][COLUMNS][4];

// ---------------------------------------------------------------------------------------------------------- shared memory

// A factor with k innermost, in TILE rows of 64 bytes; byte() is the offset of number `k` of row `at`.
template <int TILE>
struct AlongK {
  static constexpr bool K_FIRST = false;
  static constexpr int BYTES = TILE * 64;
  __device__ __forceinline__ static u32 chunk(int at, int number) { return (u32)(at * 64 + ((number ^ (at >> 1 & 3)) << 4)); }
  __device__ __forceinline__ static u32 byte(int at, int k) { return chunk(at, k / CHUNK) + (u32)(k % CHUNK * SIZE); }
};

// A factor with k outermost, in TILE_K rows of TILE numbers; byte() is the offset of number `at` of row `k`.
template <int TILE>
struct AcrossK {
  static constexpr bool K_FIRST = true;
  static constexpr int PITCH = TILE * SIZE + (SIZE == 4 ? 32 : 0);
  static constexpr int BYTES = TILE_K * PITCH;
  __device__ __forceinline__ static u32 chunk(int k, int number) {
    return (u32)(k * PITCH + ((SIZE == 4 ? number : number ^ (k & 7)) << 4));
  }
  __device__ __forceinline__ static u32 byte(int at, int k) { return chunk(k, at / CHUNK) + (u32)(at % CHUNK * SIZE); }
};

// Results wait here before they are written, in rows longer than the tile to avoid bank conflicts.
constexpr int RESULT_PITCH = TILE_N + 8;

// Brings COPY bytes into shared memory, or zeros where there is nothing to bring. `from` must be readable all the same.
__device__ __forceinline__ void bring(char* shared, u32 byte, const T* from, bool there) {
#if COPY == 16
  cp_async_16(smem_u32(shared + byte), from, there ? 16 : 0);
#elif COPY == 4
  cp_async_4(smem_u32(shared + byte), from, there ? 4 : 0);
#else
  *reinterpret_cast<T*>(shared + byte) = there ? *from : zero<T>();
#endif
}
constexpr int COPIED = COPY / SIZE;  // numbers of one copy

// ---------------------------------------------------------------------------------------------------------- fragments

__device__ __forceinline__ u32 number_at(const char* shared, u32 byte) { return *reinterpret_cast<const u32*>(shared + byte); }

template <class Layout>
__device__ __forceinline__ void load_a(u32 (&a)[4], const char* tile, int row, int step, int lane) {
  if constexpr (!Layout::K_FIRST) {
    ldmatrix_x4(a, smem_u32(tile + Layout::chunk(row + (lane & 15), step * 2 + (lane >> 4))));
  } else if constexpr (SIZE == 2) {
    const int k = step * MMA_K + (lane & 7) + (lane >> 4 << 3);
    ldmatrix_x4_trans(a, smem_u32(tile + Layout::chunk(k, row / 8 + (lane >> 3 & 1))));
  } else {
    const int g = lane >> 2, k = step * MMA_K + (lane & 3);
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = number_at(tile, Layout::byte(row + g + (i & 1) * 8, k + (i >> 1) * 4));
  }
}

// Two neighbouring fragments of b.
template <class Layout>
__device__ __forceinline__ void load_b(u32 (&b)[2][2], const char* tile, int column, int step, int lane) {
  if constexpr (SIZE == 2 || !Layout::K_FIRST) {
    u32 both[4];
    if constexpr (Layout::K_FIRST)
      ldmatrix_x4_trans(both, smem_u32(tile + Layout::chunk(step * MMA_K + (lane & 15), column / 8 + (lane >> 4))));
    else
      ldmatrix_x4(both, smem_u32(tile + Layout::chunk(column + (lane & 7) + (lane >> 4 << 3), step * 2 + (lane >> 3 & 1))));
    b[0][0] = both[0], b[0][1] = both[1], b[1][0] = both[2], b[1][1] = both[3];
  } else {
    const int g = lane >> 2, k = step * MMA_K + (lane & 3);
#pragma unroll
    for (int i = 0; i < 4; i++) b[i >> 1][i & 1] = number_at(tile, Layout::byte(column + g + (i >> 1) * 8, k + (i & 1) * 4));
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
    small[i] = f32_to_tf32(whole - __uint_as_float(big[i]));
#elif DTYPE == 2
    big[i] = f32_to_tf32(__uint_as_float(big[i]));
#endif
  }
}

// sums += a b for the TILE_K products of a step.
template <class LayoutA, class LayoutB>
__device__ __forceinline__ void multiply(Sums& sums, const char* a_tile, const char* b_tile, int row, int column, int lane) {
#pragma unroll MMA_UNROLL
  for (int step = 0; step < TILE_K / MMA_K; step++) {
    u32 a[ROWS][4], b[COLUMNS][2], a_small[ROWS][4], b_small[COLUMNS][2];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      load_a<LayoutA>(a[i], a_tile, row + i * 16, step, lane);
      split(a[i], a_small[i]);
    }
#pragma unroll
    for (int j = 0; j < COLUMNS; j += 2) {
      load_b<LayoutB>(reinterpret_cast<u32(&)[2][2]>(b[j]), b_tile, column + j * 8, step, lane);
      split(b[j], b_small[j]);
      split(b[j + 1], b_small[j + 1]);
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
      for (int j = 0; j < COLUMNS; j++) {
#if PRODUCTS == 3
        mma(sums[i][j], a_small[i], b[j]);  // the small ones first: what they add up to is not lost
        mma(sums[i][j], a[i], b_small[j]);
#endif
        mma(sums[i][j], a[i], b[j]);
      }
  }
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

// sums = a b over `steps` steps. load(stage) starts the copies of the next step into the tiles of a stage, each time called
// for the step after the one before.
template <class LayoutA, class LayoutB, class Load>
__device__ __forceinline__ void product(Sums& sums, char* shared, int steps, Place place, Load load) {
  constexpr int STAGE = STAGE_BYTES<LayoutA, LayoutB>;
  clear(sums);
#pragma unroll
  for (int step = 0; step < STAGES - 1; step++) {
    if (step < steps) load(shared + step * STAGE);
    cp_async_commit();
  }
#if PRODUCTS == 3
  Sums part;
  clear(part);
#endif
  for (int step = 0; step < steps; step++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // every thread's copies are there, and everyone is done with the stage that is filled next
    if (step + STAGES - 1 < steps) load(shared + (step + STAGES - 1) % STAGES * STAGE);
    cp_async_commit();
    const char* const a = shared + step % STAGES * STAGE;
#if PRODUCTS == 3
    multiply<LayoutA, LayoutB>(part, a, a + LayoutA::BYTES, place.row, place.column, place.lane);
    keep(sums, part);
#else
    multiply<LayoutA, LayoutB>(sums, a, a + LayoutA::BYTES, place.row, place.column, place.lane);
#endif
  }
  cp_async_wait<0>();
  __syncthreads();
}

// Hands every pair of neighbouring sums to visit(row, column, first, second).
template <class Visit>
__device__ __forceinline__ void each_pair(const Sums& sums, Place place, Visit visit) {
#pragma unroll
  for (int i = 0; i < ROWS; i++)
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int j = 0; j < COLUMNS; j++)
        visit(place.row + i * 16 + half * 8 + (place.lane >> 2), place.column + j * 8 + (place.lane & 3) * 2,
              sums[i][j][half * 2], sums[i][j][half * 2 + 1]);
}

// Writes a tile of sums: its row r, of up to `width` numbers, goes to element `start(r)` (below 0: nowhere) of `out`, or of
// `partials` where there are any, as float32. The bias of the tile's first column is number `channel`.
template <class Start>
__device__ __forceinline__ void write(const Sums& sums, char* shared, Place place, T* out, float* partials, int width,
                                      const T* bias, int channel, int activation, Start start) {
  if (partials) {  // four lanes write 32 bytes side by side: whole sectors
    each_pair(sums, place, [&](int row, int column, float first, float second) {
      const i64 at = start(row);
      if (at < 0) return;
      if (COPY == 16 && column < width) {
        *reinterpret_cast<Pack<float, 2>*>(partials + (at + column)) = Pack<float, 2>{{first, second}};
      } else {
        if (column < width) partials[at + column] = first;
        if (column + 1 < width) partials[at + column + 1] = second;
      }
    });
    return;
  }
  T* const results = reinterpret_cast<T*>(shared);
  each_pair(sums, place, [&](int row, int column, float first, float second) {
    if (column >= width) return;
    Pack<T, 2> pair;
    pair.at[0] = from_acc(finish(first, bias, channel + column, activation));
    pair.at[1] = column + 1 < width ? from_acc(finish(second, bias, channel + column + 1, activation)) : zero<T>();
    *reinterpret_cast<Pack<T, 2>*>(results + (row * RESULT_PITCH + column)) = pair;
  });
  __syncthreads();
  constexpr int TOGETHER = COPY == 16 ? CHUNK : 1;
  for (int i = (int)threadIdx.x; i < TILE_M * TILE_N / TOGETHER; i += THREADS) {
    const int row = i / (TILE_N / TOGETHER), column = i % (TILE_N / TOGETHER) * TOGETHER;
    const i64 at = start(row);
    if (at < 0 || column >= width) continue;
    typedef Pack<T, TOGETHER> Together;
    *reinterpret_cast<Together*>(out + (at + column)) = *reinterpret_cast<const Together*>(results + (row * RESULT_PITCH + column));
  }
}
