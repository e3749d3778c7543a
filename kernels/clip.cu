// Gradients scaled so that the Euclidean norm of all of them together is at most `limit`: in place, by two kernels.
//
//   clip_squares   sums[block] = the squares of the block's elements           clip_scale   g = g (limit / norm)
//
//   g0               g1       g2 ...        vectors of T, up to 16 of them per launch, each with its own length
//   |blocks of 0...| |of 1..| |of 2.
//   0 ... ends[0]-1  ends[0]                block i of a launch writes sums[first + i]; gradients that are more than one launch
//                                           takes have sums from another `first` on
//
// A norm must neither overflow nor vanish where all elements are finite. Squares of 16-bit floats and of float32 are summed
// in float64, which holds them all. For float64 there are three sums: of large elements times 2**-538, of small ones times
// 2**600, and of all others (Blue, "A portable Fortran program to find the Euclidean norm of a vector", 1978). The norm is
// made from the sums that matter, and stays scaled. If it is at most `limit` nothing changes, not even a NaN's bits; a norm
// that is NaN makes all elements NaN, and an infinite one makes the finite ones zero.
//
// Every block of clip_scale adds up all sums, in one order: how they were spread is known from the sizes alone, so that each
// run gives the same bits.
//
// Layouts: vectors of T, null where there are fewer than 16; sums (PARTS, `total`) of double, where `total` is the number of
// blocks of all launches of clip_squares. No two vectors overlap.
// Launch: block (256), grid (ends[15]); no dynamic shared memory. Threads loop over the elements, and over the sums.
// Cost: sizeof(T) bytes for each element, read twice and written once; floor: these over 4.3 TB/s on an H200, where the
// gradients of a layer are often bound by the two launches instead.
//
// budget: clip_squares 48 registers
// budget: clip_scale 64 registers
#include "conv.cuh"

constexpr int THREADS = 256;
constexpr int PARTS = DTYPE == 3 ? 3 : 1;  // sums of squares: of all but extreme elements, of large and of small ones
constexpr double LARGE = 1.997919072202235e146, SMALL = 1.4916681462400413e-154;       // 2**486, 2**-511
constexpr double SHRINK = 1.1113793747425387e-162;                                     // 2**-538
constexpr double GROW = 4.149515568880993e180, BACK = 2.409919865102884e-181;          // 2**600, 2**-600

struct ClipSizes {
  i64 counts[16];
  int ends[16];
};

// The vector of a block, and its place among the blocks of that vector.
struct Share {
  T* from;
  i64 count;
  int block, blocks;
};

#define TAKE(i)                                                                                          \
  if (block >= sizes.ends[i - 1])                                                                        \
    share = Share{g##i, sizes.counts[i], block - sizes.ends[i - 1], sizes.ends[i] - sizes.ends[i - 1]};
#define SHARE_OF_BLOCK                                                                     \
  const int block = (int)blockIdx.x;                                                       \
  Share share = {g0, sizes.counts[0], block, sizes.ends[0]};                               \
  TAKE(1) TAKE(2) TAKE(3) TAKE(4) TAKE(5) TAKE(6) TAKE(7) TAKE(8) TAKE(9) TAKE(10) TAKE(11) \
  TAKE(12) TAKE(13) TAKE(14) TAKE(15)

// Calls visit(element) for every element of this thread.
template <class Visit>
__device__ __forceinline__ void each(const Share& share, Visit visit) {
  const i64 stride = (i64)share.blocks * THREADS;
  for (i64 i = (i64)share.block * THREADS + threadIdx.x; i < share.count; i += stride) visit(share.from[i]);
}

// The sum of a number of each thread, in an order that does not vary; every thread gets it.
__device__ __forceinline__ double summed(double own, double* shared) {
  const int thread = (int)threadIdx.x;
  shared[thread] = own;
  __syncthreads();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if (thread < half) shared[thread] += shared[thread + half];
    __syncthreads();
  }
  const double sum = shared[0];
  __syncthreads();
  return sum;
}

extern "C" __global__ void __launch_bounds__(256)
    clip_squares(T* g0, T* g1, T* g2, T* g3, T* g4, T* g5, T* g6, T* g7, T* g8, T* g9, T* g10, T* g11, T* g12, T* g13,
                 T* g14, T* g15, double* sums, const ClipSizes sizes, int first, int total) {
  __shared__ double shared[THREADS];
  SHARE_OF_BLOCK
  double parts[PARTS] = {};
  each(share, [&](const T& element) {
    const double value = (double)to_acc(element);
#if DTYPE == 3
    const double size = fabs(value);
    const int part = size > LARGE ? 1 : size < SMALL ? 2 : 0;
    const double scaled = part == 1 ? value * SHRINK : part == 2 ? value * GROW : value;
#pragma unroll
    for (int i = 0; i < PARTS; i++) parts[i] += part == i ? scaled * scaled : 0.0;
#else
    parts[0] = fma(value, value, parts[0]);
#endif
  });
#pragma unroll
  for (int i = 0; i < PARTS; i++) {
    const double sum = summed(parts[i], shared);
    if (threadIdx.x == 0) sums[i * total + first + block] = sum;
  }
}

extern "C" __global__ void __launch_bounds__(256)
    clip_scale(T* g0, T* g1, T* g2, T* g3, T* g4, T* g5, T* g6, T* g7, T* g8, T* g9, T* g10, T* g11, T* g12, T* g13,
               T* g14, T* g15, double* sums, const ClipSizes sizes, int total, double limit) {
  __shared__ double shared[THREADS];
  SHARE_OF_BLOCK
  double parts[PARTS];
#pragma unroll
  for (int i = 0; i < PARTS; i++) {
    double own = 0.0;
    for (int at = (int)threadIdx.x; at < total; at += THREADS) own += sums[i * total + at];
    parts[i] = summed(own, shared);
  }
  double unit = 1.0, square = parts[0];  // the norm is sqrt(square) / unit
#if DTYPE == 3
  if (parts[1] > 0.0) {  // small ones do not count beside a large one
    unit = SHRINK, square = parts[1] + parts[0] * SHRINK * SHRINK;
  } else if (parts[0] == 0.0) {
    unit = GROW, square = parts[2];
  } else {
    square += parts[2] * BACK * BACK;
  }
#endif
  const double norm = sqrt(square);
  if (norm <= limit * unit) return;
  const double scale = limit / norm;
  each(share, [&](T& element) { element = from_acc((A)((double)to_acc(element) * unit * scale)); });
}
