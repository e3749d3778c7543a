// A matrix product by tiles, on the multiply-add units, shared by direct.cu and direct_weights.cu.
//
//                       TILE_N
//                  +-------------+        A block of THREADS threads makes TILE_M x TILE_N sums, TILE_K products at a
//                  |  b[k][n]    | TILE_K time. Both factors wait in shared memory, k first, so that a thread finds the
//                  +-------------+        rows and columns that it multiplies side by side. There are two buffers: while
//     TILE_K                              one is multiplied, the next step's numbers are on their way from global memory
//   +--------+     +-------------+        into registers, and are stored into the other buffer afterwards.
//   |        |     |             |
//   | a[k][m]|     |   sums      |        A thread makes THREAD_M x THREAD_N of them: chunks of WIDTH rows, THREADS_M
//   |        |     |             |        chunks apart, by chunks of WIDTH columns, THREADS_N chunks apart. A chunk is
//   +--------+     +-------------+ TILE_M one access of shared memory (16 bytes).
//
//   -DTILE_M= -DTILE_N= -DTILE_K= -DTHREAD_M= -DTHREAD_N=
//
// In a step, a thread reads THREAD_M + THREAD_N numbers from shared memory per THREAD_M * THREAD_N multiply-adds: with
// 8 x 8, a quarter of a number each. A warp is 4 x 8 threads, so that the 8 lanes which read together need 4 chunks of
// one factor and 2 of the other, each from banks of its own.
//
// Long sums are made of short ones: after DEPTH products a thread adds its sums to an array of collected sums and starts
// anew. The error of a sum of K float32 products grows with K / DEPTH + DEPTH rather than with K.
#pragma once
#include "conv.cuh"

constexpr int WIDTH = sizeof(F) < 16 ? 16 / (int)sizeof(F) : 1;
constexpr int VECTOR = sizeof(T) == 1 ? 8 : 16 / (int)sizeof(T);  // elements of one access of global memory
constexpr int RESULTS = 16 / (int)sizeof(A);                      // sums of one access; WIDTH where they are as long as factors
constexpr int THREADS_M = TILE_M / THREAD_M, THREADS_N = TILE_N / THREAD_N, THREADS = THREADS_M * THREADS_N;
constexpr int RESIDENT = THREADS < 512 ? 512 / THREADS : 1;  // blocks for which a multiprocessor shall have registers
constexpr bool CROWDED = THREAD_M * THREAD_N * (int)sizeof(A) / 4 >= 64 && (THREADS < 256 || IS_16_BIT || sizeof(index_t) == 8);
constexpr int UNROLL = CROWDED ? 1 : 2;  // with more the loads would spill
constexpr int DEPTH = 512;
constexpr int DEPTH_STEPS = DEPTH / TILE_K;

static_assert(THREAD_M % WIDTH == 0 && THREAD_N % WIDTH == 0, "a thread makes whole chunks");
static_assert(TILE_M % THREAD_M == 0 && TILE_N % THREAD_N == 0, "whole threads make a tile");
static_assert(THREADS % TILE_M == 0 || TILE_M % THREADS == 0, "each thread loads the same rows at every step");
static_assert(THREADS % TILE_N == 0 || TILE_N % THREADS == 0, "each thread loads the same columns at every step");
static_assert(TILE_M % 16 == 0 && TILE_N % 16 == 0, "16 rows or columns are loaded side by side");
static_assert(TILE_K % (2 * VECTOR) == 0, "two accesses of global memory side by side");
static_assert(THREADS >= TILE_K, "a thread for each product of a step");

// One chunk more than the tile is wide, so that stores along k go to banks of their own.
struct alignas(16) Buffers {
  F a[2][TILE_K][TILE_M + WIDTH];
  F b[2][TILE_K][TILE_N + WIDTH];
};

// The rows and columns of the tile that a thread multiplies: chunk number m (n) of each row of chunks.
struct Place {
  int m, n;
};
__device__ __forceinline__ Place place_of(int thread) {
  if (THREADS_M % 4 || THREADS_N % 8) return Place{thread / THREADS_N, thread % THREADS_N};
  const int lane = thread % 32, warp = thread / 32, across = THREADS_N / 8 > 0 ? THREADS_N / 8 : 1;
  return Place{warp / across * 4 + ((lane & 16) >> 3 | (lane & 1)), warp % across * 8 + (lane >> 1 & 7)};
}
__device__ __forceinline__ int row_of_tile(Place place, int i) {
  return i / WIDTH * (THREADS_M * WIDTH) + place.m * WIDTH + i % WIDTH;
}
__device__ __forceinline__ int column_of_tile(Place place, int j) {
  return j / WIDTH * (THREADS_N * WIDTH) + place.n * WIDTH + j % WIDTH;
}

__device__ __forceinline__ void multiply(const Buffers& shared, int buffer, Place place, A (&sums)[THREAD_M][THREAD_N]) {
  typedef Pack<F, WIDTH> Chunk;
  const F* rows = &shared.a[buffer][0][place.m * WIDTH];
  const F* columns = &shared.b[buffer][0][place.n * WIDTH];
#pragma unroll UNROLL
  for (int k = 0; k < TILE_K; k++, rows += TILE_M + WIDTH, columns += TILE_N + WIDTH) {
    Chunk a[THREAD_M / WIDTH], b[THREAD_N / WIDTH];
#pragma unroll
    for (int i = 0; i < THREAD_M / WIDTH; i++)
      a[i] = *reinterpret_cast<const Chunk*>(rows + i * (THREADS_M * WIDTH));
#pragma unroll
    for (int j = 0; j < THREAD_N / WIDTH; j++)
      b[j] = *reinterpret_cast<const Chunk*>(columns + j * (THREADS_N * WIDTH));
#pragma unroll
    for (int i = 0; i < THREAD_M; i++)
#pragma unroll
      for (int j = 0; j < THREAD_N; j++)
        sums[i][j] = mul_add(a[i / WIDTH].at[i % WIDTH], b[j / WIDTH].at[j % WIDTH], sums[i][j]);
  }
}

__device__ __forceinline__ void clear(A (&sums)[THREAD_M][THREAD_N]) {
#pragma unroll
  for (int i = 0; i < THREAD_M; i++)
#pragma unroll
    for (int j = 0; j < THREAD_N; j++) sums[i][j] = zero<A>();
}

// How the threads of a block share out a factor's numbers of one step, V neighbours at a time.
//
// Along<V, TILE>: neighbours along k, to be spread over V rows of the buffer. A warp takes two lots of 16 rows or columns
// of the tile: they cover whole sectors of 32 bytes, and no two of their stores share a bank. With V = 1 a warp takes one k.
template <int V, int TILE>
struct Along {
  static constexpr int LOTS = TILE * TILE_K / V, SLOTS = (LOTS + THREADS - 1) / THREADS;
  static constexpr int ROWS = V > 1 && 2 * TILE > THREADS ? 2 * TILE / THREADS : V == 1 && TILE > THREADS ? TILE / THREADS : 1;
  __device__ __forceinline__ static int row(int slot) {  // the same for all slots equal modulo ROWS
    const int lot = (int)threadIdx.x + slot % ROWS * THREADS;
    return V == 1 ? lot % TILE : lot % 16 + lot / 32 % (TILE / 16) * 16;
  }
  __device__ __forceinline__ static int k(int slot) {  // in units of V
    const int lot = (int)threadIdx.x + slot * THREADS;
    return V == 1 ? lot / TILE : lot / 16 % 2 + lot / (2 * TILE) * 2;
  }
  __device__ __forceinline__ static bool has(int slot) {
    return LOTS % THREADS == 0 || (int)threadIdx.x + slot * THREADS < LOTS;
  }
};

// Across<V, TILE>: neighbours along the tile's rows or columns, contiguous in the buffer as well.
template <int V, int TILE>
struct Across {
  static constexpr int LOTS = TILE * TILE_K / V, SLOTS = (LOTS + THREADS - 1) / THREADS;
  static constexpr int ROWS = TILE / V > THREADS ? TILE / V / THREADS : 1;
  __device__ __forceinline__ static int row(int slot) {
    return ((int)threadIdx.x + slot % ROWS * THREADS) % (TILE / V) * V;
  }
  __device__ __forceinline__ static int k(int slot) { return ((int)threadIdx.x + slot * THREADS) / (TILE / V); }
  __device__ __forceinline__ static bool has(int slot) {
    return LOTS % THREADS == 0 || (int)threadIdx.x + slot * THREADS < LOTS;
  }
};

template <int V, class Element>
__device__ __forceinline__ Pack<Element, V> load(const Element* __restrict__ from) {
  return *reinterpret_cast<const Pack<Element, V>*>(from);
}

template <int V, class Element = T>
__device__ __forceinline__ Pack<Element, V> nothing() {
  Pack<Element, V> zeros;
#pragma unroll
  for (int i = 0; i < V; i++) zeros.at[i] = zero<Element>();
  return zeros;
}

template <int V, class Element, int LENGTH>
__device__ __forceinline__ void store_along(F (&buffer)[TILE_K][LENGTH], int k, int row, Pack<Element, V> numbers,
                                            bool conjugate) {
#pragma unroll
  for (int i = 0; i < V; i++) {
    const F number = to_factor(numbers.at[i]);
    buffer[k * V + i][row] = conjugate ? conj(number) : number;
  }
}

template <int V, class Element, int LENGTH>
__device__ __forceinline__ void store_across(F (&buffer)[TILE_K][LENGTH], int k, int row, Pack<Element, V> numbers,
                                             bool conjugate) {
  constexpr int N = V < WIDTH ? V : WIDTH;
#pragma unroll
  for (int i = 0; i < V; i += N) {
    Pack<F, N> chunk;
#pragma unroll
    for (int j = 0; j < N; j++) {
      const F number = to_factor(numbers.at[i + j]);
      chunk.at[j] = conjugate ? conj(number) : number;
    }
    *reinterpret_cast<Pack<F, N>*>(&buffer[k][row + i]) = chunk;
  }
}

// The start of a window, or the step from there to one of its taps: the positions, and the offset of the element that is
// there if no position leaves the array, so that the sum of two offsets is the element that a tap reads. With start[0]
// NOWHERE there is no such window or tap. Far out in the padding an offset may not fit an index; but the sum does, and
// unsigned numbers come back to it.
#if defined(INDEX64) && INDEX64
typedef u64 Offset;
#else
typedef u32 Offset;
#endif
constexpr int NOWHERE = (int)0x80000000;  // below all positions
struct alignas(sizeof(Offset) == 4 ? 16 : 8) Window {
  int start[3];
  Offset offset;
};

// Adds the position along the next axis, which is `size` long, to an offset.
__device__ __forceinline__ Offset along_axis(Offset offset, int size, int position) {
  return offset * (Offset)size + (Offset)position;
}

// Whether a tap of a window reads an element of an array of pixels, and its offset.
__device__ __forceinline__ bool lands(const Window window, const Window tap, const int (&size)[3], int channels,
                                      int pad_mode, index_t& element) {
  bool inside = window.start[0] != NOWHERE && tap.start[0] != NOWHERE;
  Offset offset = window.offset + tap.offset;
  if (pad_mode == 0) {
#pragma unroll
    for (int axis = 0; axis < 3; axis++) inside = inside && (u32)(window.start[axis] + tap.start[axis]) < (u32)size[axis];
  } else if (inside) {
    struct Position {
      int at, size;
    } positions[3];
#pragma unroll
    for (int axis = 0; axis < 3; axis++) positions[axis] = {window.start[axis] + tap.start[axis], size[axis]};
    Offset away = 0;  // pixels from there to the one that it repeats
    in_turn<1, 3>(positions, [&](Position one) {
      away = along_axis(away, one.size, source(one.at, one.size, pad_mode)) - (Offset)one.at;
      return one;
    });
    offset += away * (Offset)channels;
  }
  element = (index_t)offset;
  return inside;
}

// The array in which sums are collected: the sums of one split of the products among `partials`, or the result itself if
// it can hold them. Null for 16-bit results that are not split: they are far less precise than one long float32 sum.
__device__ __forceinline__ A* collection(Y* out, A* partials, int splits, int split, index_t count) {
  if (splits > 1) return partials + split * count;
  return IS_16_BIT ? nullptr : reinterpret_cast<A*>(out);
}

// Calls visit(offset, sums) for each N neighbouring sums of a thread that belong to the result: start(i) is where row i of
// the thread begins in the result, or -1 if it is past the end, and the tile's columns end before number `width`.
template <int N, class Start, class Visit>
__device__ __forceinline__ void each_chunk(A (&sums)[THREAD_M][THREAD_N], Place place, int n0, int width, Start start,
                                           Visit visit) {
#pragma unroll
  for (int i = 0; i < THREAD_M; i++) {
    const index_t row = start(row_of_tile(place, i));
    if (row < 0) continue;
#pragma unroll
    for (int j = 0; j < THREAD_N; j += N) {
      const int n = n0 + column_of_tile(place, j);
      if (n < width) visit(row + n, &sums[i][j]);
    }
  }
}

// Adds what was collected before to the sums of a thread.
template <int N, class Start>
__device__ __forceinline__ void add_collected(A (&sums)[THREAD_M][THREAD_N], Place place, int n0, int width,
                                              const A* collected, Start start) {
  each_chunk<N>(sums, place, n0, width, start, [&](index_t to, A* chunk) {
    const Pack<A, N> before = *reinterpret_cast<const Pack<A, N>*>(collected + to);
#pragma unroll
    for (int j = 0; j < N; j++) chunk[j] = add(before.at[j], chunk[j]);
  });
}

// Writes the sums of a thread to where they are collected.
template <int N, class Start>
__device__ __forceinline__ void collect(A (&sums)[THREAD_M][THREAD_N], Place place, int n0, int width, A* collected,
                                        Start start) {
  each_chunk<N>(sums, place, n0, width, start, [&](index_t to, const A* chunk) {
    Pack<A, N> sum;
#pragma unroll
    for (int j = 0; j < N; j++) sum.at[j] = chunk[j];
    *reinterpret_cast<Pack<A, N>*>(collected + to) = sum;
  });
}

// Writes the results of a thread: activation(sums + bias), with the bias of column 0 first.
template <int N, class Start>
__device__ __forceinline__ void conclude(A (&sums)[THREAD_M][THREAD_N], Place place, int n0, int width, Y* out,
                                         const Y* __restrict__ bias, int activation, Start start) {
  if (bias) {
#pragma unroll
    for (int j = 0; j < THREAD_N; j++) {
      const int n = n0 + column_of_tile(place, j);
      const A shift = n < width ? from_result(bias[n]) : zero<A>();
#pragma unroll
      for (int i = 0; i < THREAD_M; i++) sums[i][j] = add(sums[i][j], shift);
    }
  }
  activate<THREAD_M * THREAD_N>(sums[0], activation);
  each_chunk<N>(sums, place, n0, width, start, [&](index_t to, const A* chunk) {
    Pack<Y, N> result;
#pragma unroll
    for (int j = 0; j < N; j++) result.at[j] = to_result(chunk[j]);
    *reinterpret_cast<Pack<Y, N>*>(out + to) = result;
  });
}
