// The weight gradient of a convolution on tensor cores: a matrix product summed over pixels.
//
//   dw[(t, c), k]  =  sum over m of  x[m at t, c]  dy[m, k]        m = (n, o, p, q)   a product per output pixel
//
//                     (t, c) across                 k across
//     x               +-------+                     +-------+
//   +-----------+  m  | . . . |                     |   dy  |     Both factors are read pixel by pixel: each row in shared
//   |  . . .    | --> | . . . |   summed            |       |     memory belongs to a pixel, and holds x at the tile's taps
//   |  . . .    | on  | . . . |   downwards         |       |     and channels, or the pixel's channels of dy. A thread
//   +-----------+     +-------+                     +-------+     copies the same tap and channel of every step.
//
// Layouts, channels last, C-contiguous: x (n, x[0], x[1], x[2], c), dy (n, y[0], y[1], y[2], k), dw (taps, c / groups, k),
// partials (plan.splits, elements of dw) of float, or null for 1 split.
//
// Launch: block (THREADS), grid (jobs) with jobs = tiles_n * tiles_m * groups * splits; dynamic shared memory SHARED_BYTES
// of this file, which gpuconv/algorithms/cuda/implicit_gemm.py computes in the same way. More blocks than jobs do no harm.
// COPY=16 takes arrays aligned to 16 bytes whose channels per group, in and out, are multiples of 16 bytes; COPY=4 of 4
// bytes; COPY=2 takes all. There are few weights and many pixels: the pixels are split until the device is full, and
// split_k_reduce.cu adds the partial sums in order.
//
// Cost: 2 n y taps c k / groups FLOP (three times that as three TF32 products), sizeof(T) (x + dy + dw) bytes, and
// 8 splits * dw for the partial sums. The rates of implicit_gemm.cu.
//
// needs: sm_80
// budget: implicit_gemm_weight_grad 168 registers
#include "jobs.cuh"
#include "mma.cuh"

// The part of a pixel's window in a chunk of the tile's rows: a tap, from the window's start, and a channel; -1 for none.
struct alignas(16) View {
  int shift[3], channel;
};

// The start of the tile in the result, and the size of the result from there on.
struct Result {
  i64 start, partial;
  int height, width;
};

typedef AcrossK<TILE_M> Seen;
typedef AcrossK<TILE_N> Outputs;
constexpr int STAGE = STAGE_BYTES<Seen, Outputs>;
constexpr int SHARED_BYTES =
    STAGES * STAGE > TILE_M * RESULT_PITCH * SIZE ? STAGES * STAGE : TILE_M * RESULT_PITCH * SIZE;
constexpr int UNROLL = COPY < 16 ? 2 : 1;  // with more the addresses would spill

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
implicit_gemm_weight_grad(const T* __restrict__ x, const T* __restrict__ dy, T* dw, float* partials, const Conv g,
                          const WeightPlan plan) {
  extern __shared__ __align__(16) char shared[];
  const int thread = (int)threadIdx.x;

  Job job;
  if (!job_of(plan, 1, g.groups, job)) return;
  const int n0 = job.tile_n * TILE_N, group = job.group, split = job.split;
  const int m0 = job.tile_m * TILE_M;

  const int depth = g.c / g.groups, width = g.k / g.groups;
  const int height = g.kernel[0] * g.kernel[1] * g.kernel[2] * depth;
  const int pixels = g.n * g.y[0] * g.y[1] * g.y[2];
  const int all_steps = (pixels + TILE_K - 1) / TILE_K;
  const int begin = (int)((i64)all_steps * split / plan.splits), end = (int)((i64)all_steps * (split + 1) / plan.splits);

  // A thread copies the same tap and channel, and the same output channel, of every pixel. They are in shared memory:
  // registers are for sums.
  constexpr int ACROSS = TILE_M / COPIED, COPIES = TILE_N / COPIED;
  __shared__ View views[ACROSS];
  __shared__ int channels[COPIES];  // -1: there is none
  __shared__ Result result;
  if (thread == 0)
    result = Result{(i64)m0 * g.k + (group * width + n0), (i64)split * height * g.k, height - m0, width - n0};
  if (thread < ACROSS) {
    View view = {{0, 0, 0}, -1};
    if (m0 + thread * COPIED < height) {
      int tap = divide(m0 + thread * COPIED, plan.by_depth, view.channel);
#pragma unroll
      for (int axis = 2; axis >= 0; axis--) {
        view.shift[axis] = tap % g.kernel[axis] * g.dilation[axis] - g.pad[axis];
        tap /= g.kernel[axis];
      }
      view.channel += group * depth;
    }
    views[thread] = view;
  }
  if (thread < COPIES) {
    const int column = n0 + thread * COPIED;
    channels[thread] = column < width ? group * width + column : -1;
  }
  __syncthreads();

  int first_pixel = begin * TILE_K;  // of the step that is loaded next
  const auto load = [&](char* stage) {
    const View view = views[thread % ACROSS];
#pragma unroll UNROLL
    for (int i = 0; i < TILE_K * ACROSS / THREADS; i++) {
      const int k = thread / ACROSS + i * (THREADS / ACROSS), pixel = first_pixel + k;
      bool inside = view.channel >= 0 && pixel < pixels;
      int rest = inside ? pixel : 0, at[3];
      rest = divide(rest, g.by_y[2], at[2]);
      rest = divide(rest, g.by_y[1], at[1]);
      i64 offset = divide(rest, g.by_y[0], at[0]);
#pragma unroll
      for (int axis = 0; axis < 3; axis++) {
        const int position = at[axis] * g.stride[axis] + view.shift[axis];
        inside = inside && (u32)position < (u32)g.x[axis];
        offset = offset * g.x[axis] + position;
      }
      bring(stage, Seen::byte(thread % ACROSS * COPIED, k), inside ? x + (offset * g.c + view.channel) : x, inside);
    }
    char* const outputs = stage + Seen::BYTES;
    const int channel = channels[thread % COPIES];
#pragma unroll UNROLL
    for (int i = 0; i < TILE_K * COPIES / THREADS; i++) {
      const int k = thread / COPIES + i * (THREADS / COPIES);
      const bool inside = first_pixel + k < pixels && channel >= 0;
      bring(outputs, Outputs::byte(thread % COPIES * COPIED, k),
            inside ? dy + ((i64)(first_pixel + k) * g.k + channel) : dy, inside);
    }
    first_pixel += TILE_K;
  };

  Sums sums;
  const Place place = place_of(thread);
  product<Seen, Outputs>(sums, shared, end - begin, place, load);
  const Result r = result;
  write(sums, shared, place, dw, plan.splits > 1 ? partials + r.partial : nullptr, r.width, nullptr, 0, 0,
        [&](int row) { return row < r.height ? r.start + (i64)row * g.k : (i64)-1; });
}
