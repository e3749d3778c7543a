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
// COPY=16 takes arrays aligned to 16 bytes whose channels per group, in and out, are multiples of 16 bytes; COPY=8 and
// COPY=4 of so many; COPY=2 takes all. There are few weights and many pixels: the pixels are split until the device is
// full, and split_k_reduce.cu adds the partial sums in order. With a gradient per sample the grid has a row per sample
// (conv.cuh).
//
// Cost: 2 n y taps c k / groups FLOP (three times that as three TF32 products), sizeof(T) (x + dy + dw) bytes, and
// 8 splits * dw for the partial sums. The rates of implicit_gemm.cu.
//
// needs: sm_80
// budget: implicit_gemm_weight_grad 240 registers
// budget: implicit_gemm_weight_grad 335 instructions per 64 HMMA where float16 bfloat16 TILE_N=128
// budget: implicit_gemm_weight_grad 265 instructions per 32 HMMA where float16 bfloat16 TILE_M=128 TILE_N=64
// budget: implicit_gemm_weight_grad 180 instructions per 16 HMMA where float16 bfloat16 TILE_M=64 COPY=16
// budget: implicit_gemm_weight_grad 355 instructions per 32 HMMA where float32 PRODUCTS=1 TILE_M=128
// budget: implicit_gemm_weight_grad 250 instructions per 16 HMMA where float32 PRODUCTS=1 TILE_M=64 COPY=16
// budget: implicit_gemm_weight_grad 830 instructions per 96 HMMA where float32 PRODUCTS=3 TILE_M=128
// budget: implicit_gemm_weight_grad 510 instructions per 48 HMMA where float32 PRODUCTS=3 TILE_M=64 COPY=16
// budget: implicit_gemm_weight_grad 130 instructions per 4 HMMA where float16 bfloat16 TILE_M=32
// budget: implicit_gemm_weight_grad 170 instructions per 4 HMMA where float32 PRODUCTS=1 TILE_M=32
// budget: implicit_gemm_weight_grad 270 instructions per 12 HMMA where float32 PRODUCTS=3 TILE_M=32
#include "jobs.cuh"
#include "mma.cuh"

// A place on the three axes: where a pixel's window begins, but for the padding; or the tap in a chunk of the tile's rows,
// from there. They are added without sign. A pixel that is not there is far out on the first axis, and a tap on the second:
// their sum is outside of every image.
typedef Pack<u32, 4> At;
constexpr u32 FAR = 0x80000000u;

// A table of such places, and how many numbers each is away from the first; apart, so that no two lanes meet in a bank.
template <int COUNT>
struct Places {
  At at[COUNT];
  i64 offset[COUNT];
};

// The start of the tile in the result, and the size of the result from there on.
struct Result {
  i64 start, partial;
  int height, width;
};

typedef AcrossK<TILE_M> Seen;
typedef AcrossK<TILE_N> Outputs;
constexpr int STAGE = STAGE_BYTES<Seen, Outputs>;
constexpr int SHARED_BYTES = PIPELINE_BYTES<STAGE>;
constexpr int UNROLL = COPY < 8 ? 2 : 8;  // with more the addresses would spill

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
  __shared__ Places<ACROSS> views;
  __shared__ int channels[COPIES];  // -1: there is none
  __shared__ Result result;
  if (thread == 0)
    result = Result{blockIdx.y * weights_length(g) + (i64)m0 * g.k + (group * width + n0),
                    ((i64)blockIdx.y * (plan.splits - 1) + split) * height * g.k, height - m0, width - n0};
  if (thread < ACROSS) {
    At view = {{0, FAR, 0, 0}};
    i64 offset = 0;
    if (m0 + thread * COPIED < height) {
      int channel, shift[3];
      int tap = divide(m0 + thread * COPIED, plan.by_depth, channel);
#pragma unroll
      for (int axis = 2; axis >= 0; axis--) {
        shift[axis] = tap % g.kernel[axis] * g.dilation[axis] - g.pad[axis];
        tap /= g.kernel[axis];
        view.at[axis] = (u32)shift[axis];
      }
      offset = (((i64)shift[0] * g.x[1] + shift[1]) * g.x[2] + shift[2]) * g.c + (group * depth + channel);
    }
    views.at[thread] = view;
    views.offset[thread] = offset + blockIdx.y * image_length(g.x, g.c);
  }
  if (thread < COPIES) {
    const int column = n0 + thread * COPIED;
    channels[thread] = column < width ? group * width + column : -1;
  }

  // The pixels of the step that is loaded next, which the first threads look up one step ahead.
  __shared__ Places<TILE_K> table[2];
  int next = begin * TILE_K + thread;  // the pixel that this thread looks up
  const auto look_up = [&](Places<TILE_K>& seen) {
    int rest = next, at[3];
    rest = divide(rest, g.by_y[2], at[2]);
    rest = divide(rest, g.by_y[1], at[1]);
    i64 offset = divide(rest, g.by_y[0], at[0]);
#pragma unroll
    for (int axis = 0; axis < 3; axis++) {
      at[axis] *= g.stride[axis];
      offset = offset * g.x[axis] + at[axis];
    }
    seen.at[thread] = At{{next < pixels ? (u32)at[0] : FAR, (u32)at[1], (u32)at[2], 0}};
    seen.offset[thread] = offset * g.c;
    next += TILE_K;
  };
  if (thread < TILE_K) look_up(table[0]);
  __syncthreads();

  constexpr int PIXELS_AT_ONCE = THREADS / ACROSS, OUTPUTS_AT_ONCE = THREADS / COPIES;
  const int own_pixel = thread / ACROSS, own_output = thread / COPIES;
  const int channel = channels[thread % COPIES];
  const T* output = of_sample(dy, image_length(g.y, g.k)) + ((i64)(begin * TILE_K + own_output) * g.k + channel);
  int outputs_left = channel >= 0 ? pixels - begin * TILE_K - own_output : 0;
  u32 turn = 0;
  const auto load = [&](Shared stage) {
    const At view = views.at[thread % ACROSS];
    const T* const from = x + views.offset[thread % ACROSS];
#pragma unroll UNROLL
    for (int i = 0; i < TILE_K / PIXELS_AT_ONCE; i++) {
      const int k = own_pixel + i * PIXELS_AT_ONCE;
      const At seen = table[turn].at[k];
      bool inside = true;
#pragma unroll
      for (int axis = 0; axis < 3; axis++) inside = inside && seen.at[axis] + view.at[axis] < (u32)g.x[axis];
      bring(stage + Seen::byte(thread % ACROSS * COPIED, k), from + table[turn].offset[k], inside);
    }
    turn ^= 1;
    if (thread < TILE_K) look_up(table[turn]);
    const Shared outputs = stage + Seen::BYTES;
#pragma unroll UNROLL
    for (int i = 0; i < TILE_K / OUTPUTS_AT_ONCE; i++) {
      const int k = i * OUTPUTS_AT_ONCE;
      bring(outputs + Outputs::byte(thread % COPIES * COPIED, own_output + k), output + (i64)k * g.k, k < outputs_left);
    }
    output += (i64)TILE_K * g.k;
    outputs_left -= TILE_K;
  };

  Sums sums;
  const Place place = place_of(thread);
  product<Seen, Outputs>(sums, Shared{shared, smem_u32(shared)}, end - begin, place, load);
  const Result r = result;
  write(sums, shared, place, dw, plan.splits > 1 ? partials + r.partial : nullptr, r.width, nullptr, 0, 0,
        [&](int row) { return row < r.height ? r.start + (i64)row * g.k : (i64)-1; });
}
