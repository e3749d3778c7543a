// The windows of the rows of a tile, where a convolution or its input gradient is a matrix product whose first factor is
// gathered: shared by implicit_gemm.cu and wgmma.cu.
#pragma once
#include "axes.cuh"

// The start of the window of a row.
struct alignas(16) Window {
  int start[3], unused;
};
template <int ROWS>
struct Table {
  Window windows[ROWS];
  i64 offsets[ROWS];  // of the windows' starts, in numbers
  i64 results[ROWS];  // of the rows of the result; -1 where there is none
  Axis axes[3];
};

// What a pass reads and writes, and where its job lies in that.
template <bool BACK>
struct Pass {
  const int (&in_size)[3], (&out_size)[3];
  int in_channels, out_channels, depth, width;  // the last two per group
  __device__ __forceinline__ explicit Pass(const Conv& g)
      : in_size(BACK ? g.y : g.x), out_size(BACK ? g.x : g.y), in_channels(BACK ? g.k : g.c),
        out_channels(BACK ? g.c : g.k), depth(in_channels / g.groups), width(out_channels / g.groups) {}
};

// Lets all threads of a block fill the table of a job. Its results begin at column `column` of the group.
template <bool BACK, int ROWS>
__device__ __forceinline__ void fill(Table<ROWS>& table, const Conv& g, const ProductPlan& plan, const Job& job,
                                     const Pass<BACK>& pass, int column, int threads) {
  const int thread = (int)threadIdx.x;
  if (thread == 0) {
    u32 rest = job.part;
    for (int axis = 2; axis >= 0; axis--) {
      table.axes[axis] = BACK ? backward_axis(g, plan, axis, (int)(rest % (u32)plan.parts[axis])) : forward_axis(g, axis);
      rest /= (u32)plan.parts[axis];
    }
  }
  __syncthreads();
  for (int i = thread; i < ROWS; i += threads) {
    i64 m = (i64)job.tile_m * ROWS + i;
    int at[3];
    m = divide(m, plan.by_outs[2], at[2]);
    m = divide(m, plan.by_outs[1], at[1]);
    m = divide(m, plan.by_outs[0], at[0]);
    bool there = m < g.n;
    Window window = {{0, 0, 0}, 0};
    i64 offset = m + (i64)blockIdx.y * g.n, result = offset;  // counted from the first sample of all rows of blocks
#pragma unroll
    for (int axis = 0; axis < 3; axis++) {
      const Axis along = table.axes[axis];
      there = there && at[axis] < along.outs;
      if (!there) break;
      window.start[axis] = at[axis] * along.scale + along.first;
      offset = offset * pass.in_size[axis] + window.start[axis];
      result = result * pass.out_size[axis] + (at[axis] * along.out_step + along.out_first);
    }
    if (!there) window.start[0] = BACK ? -1 : -0x7fffffff - 1;  // taps lead down, or up: none leads back into the image
    table.windows[i] = window;
    table.offsets[i] = there ? offset * pass.in_channels + job.group * pass.depth : 0;
    table.results[i] = there ? result * pass.out_channels + job.group * pass.width + column : -1;
  }
  __syncthreads();
}
