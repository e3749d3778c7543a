// The jobs of a product by tiles, one per block: shared by direct.cu, implicit_gemm.cu and their weight gradients. The host
// makes the plans in gpuconv/algorithms/cuda/implicit_product.py.
//
//   job  =  (((split * groups + group) * tiles_m + tile_m) * parts + part) * tiles_n + tile_n
//
// so that blocks which read the same rows run side by side.
#pragma once
#include "conv.cuh"

// Rows are pixels. `outs` are the outputs of the largest part along each axis (axes.cuh), or without parts all outputs, and
// `tap_stride` is the distance between the taps of a part. A sample's bias begins `bias_length` after that of the sample
// before: 0 if all share one.
struct ProductPlan {
  int outs[3], parts[3], tap_stride[3];
  int tiles_m, tiles_n, splits, activation, bias_length;
  FastDiv by_outs[3], by_depth;
};

// Rows are taps and channels, and products are summed over pixels.
struct WeightPlan {
  int tiles_m, tiles_n, splits;
  FastDiv by_depth;
};

struct Job {
  int tile_m, tile_n, group, split;
  u32 part;
};

// The job of this block. The result is false if there is none: more blocks than jobs do no harm.
template <class Plan>
__device__ __forceinline__ bool job_of(const Plan& plan, u32 parts, int groups, Job& job) {
  u32 rest = blockIdx.x;
  job.tile_n = (int)(rest % (u32)plan.tiles_n);
  rest /= (u32)plan.tiles_n;
  job.part = rest % parts;
  rest /= parts;
  job.tile_m = (int)(rest % (u32)plan.tiles_m);
  rest /= (u32)plan.tiles_m;
  job.group = (int)(rest % (u32)groups);
  job.split = (int)(rest / (u32)groups);
  return rest / (u32)groups < (u32)plan.splits;
}
