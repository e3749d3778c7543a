// The second stage of a sum that several blocks share (split-k): their partial sums are added in a fixed order, so the same
// call gives the same bits whichever block was first.
//
//   out[i]  =  activation( partials[0][i] + partials[1][i] + ... + bias[i % channels] )
//
//   partials   +------ count ------+
//   split 0    |  .  .  .  .  .  . |   A, C-contiguous; a thread goes down a column, its warp reads whole sectors
//   split 1    |  .  .  .  .  .  . |
//    ...       +-------------------+
//   out        |  .  .  .  .  .  . |   Y; bias (channels) or null
//
// Launch: block (any), grid (any, samples): each thread takes every (grid * block)-th element of its sample (conv.cuh). No
// dynamic shared memory.
// Cost: sizeof(A) * splits * count bytes read, sizeof(Y) * count written; floor: these over 4.3 TB/s on an H200, where
// short sums are bound by the launch instead.
//
// budget: split_k_reduce 64 registers
#include "conv.cuh"

struct ReducePlan {
  int splits, activation, bias_length;
  FastDiv by_channels;
};

extern "C" __global__ void split_k_reduce(const A* __restrict__ partials, const Y* __restrict__ bias,
                                          Y* __restrict__ out, index_t count, const ReducePlan plan) {
  partials = of_sample(partials, (i64)plan.splits * count);
  bias = of_sample(bias, plan.bias_length);
  out = of_sample(out, count);
  const index_t step = (index_t)gridDim.x * (index_t)blockDim.x;
  for (index_t i = (index_t)blockIdx.x * (index_t)blockDim.x + (index_t)threadIdx.x; i < count; i += step) {
    A sum = partials[i];
    for (int split = 1; split < plan.splits; split++) sum = add(sum, partials[split * count + i]);
    int channel;
    divide(i, plan.by_channels, channel);
    if (bias) sum = add(sum, from_result(bias[channel]));
    out[i] = to_result(activated(sum, plan.activation));
  }
}
