// A convolution, or its input gradient, as a matrix product whose rows are pixels: the positions that a row reads along
// each axis. Shared by direct.cu and implicit_gemm.cu.
//
// The input gradient falls into parts of stride 1 (gpuconv/algorithms/adjoint.py), one per remainder of a position modulo
// the stride.
#pragma once
#include "jobs.cuh"

// Along one axis: output i of this part has position  out_first + i * out_step,  and through its tap j it reads position
// first + i * scale + j * step  of the other array. That tap is number  tap_first + j * tap_step  of the kernel.
struct Axis {
  int outs, out_first, out_step;
  int first, scale, step, taps;
  int tap_first, tap_step;
};

__device__ __forceinline__ Axis forward_axis(const Conv& g, int axis) {
  return Axis{g.y[axis], 0, 1, -g.pad[axis], g.stride[axis], g.dilation[axis], g.kernel[axis], 0, 1};
}

// Output p of the convolution reads  p * stride + r * dilation - pad,  so input  h = part + i * stride  meets tap r at
// p = i + (part + pad - r * dilation) / stride  where that is whole: for some first r, then for every tap_stride-th one.
// `rest` is (part + pad - tap * dilation) modulo the stride, and each tap lowers it by `residue_step`, cyclically.
__device__ __forceinline__ Axis backward_axis(const Conv& g, const ProductPlan& plan, int axis, int part) {
  const int stride = g.stride[axis], dilation = g.dilation[axis], tap_stride = plan.tap_stride[axis];
  const int residue_step = dilation % stride;
  int rest = (part % stride + g.pad[axis] % stride) % stride, tap = 0;
  const int last = g.kernel[axis] < tap_stride ? g.kernel[axis] : tap_stride;
  while (rest && tap < last) {
    rest = rest < residue_step ? rest + (stride - residue_step) : rest - residue_step;
    tap++;
  }
  const int outs = (g.x[axis] - 1 - part) / stride + 1;
  if (tap == last) return Axis{outs, part, stride, 0, 1, 0, 0, 0, 0};
  const int first = (int)(((i64)part + g.pad[axis] - (i64)tap * dilation) / stride);
  const int step = (int)((i64)dilation * tap_stride / stride);
  return Axis{outs, part, stride, first, 1, -step, (g.kernel[axis] - 1 - tap) / tap_stride + 1, tap, tap_stride};
}
