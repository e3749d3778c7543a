// y = activation(sums + bias), rounded to the dtype of y: the epilogue of a product that another library made.
//
//     sums (m, k) of type A         bias (k) or null         y (m, k) of type T; may be sums itself where T is A
//
//     launch   block (256), grid (any, samples), shared bytes 0; several samples where each has a bias of its own (conv.cuh)
//              A thread takes as many elements as fill 16 bytes of sums (WIDE = 1: that number divides k, addresses are
//              multiples of 16), or one (WIDE = 0). `packs` counts them, by_packs divides by the packs of a row.
//
// Bytes: |sums| + |y|, each once. Floor: that / copy bandwidth. Occupancy: 32 registers, 8 blocks of 256 per SM (100%); with
// 64-bit offsets up to 44, 5 blocks.
//
// budget: epilogue 44 registers
// tight: float64 WIDE=0 INDEX64=1
// tight: complex64 WIDE=1 INDEX64=1
#include "conv.cuh"

constexpr int V = WIDE ? 16 / (int)sizeof(A) : 1;

extern "C" __global__ void __launch_bounds__(256, 4)
    epilogue(const A* sums, const T* __restrict__ bias, T* y, const FastDiv by_packs, index_t packs, int activation,
             int bias_length) {
  sums = of_sample(sums, (i64)packs * V);
  bias = of_sample(bias, bias_length);
  y = of_sample(y, (i64)packs * V);
  const index_t step = (index_t)gridDim.x * blockDim.x;
  for (index_t i = (index_t)blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += step) {
    int pack;
    divide(i, by_packs, pack);
    Pack<A, V> values = *(const Pack<A, V>*)(sums + i * V);
    finish<V>(values.at, bias, pack * V, activation);
    Pack<T, V> done;
#pragma unroll
    for (int v = 0; v < V; v++) done.at[v] = from_acc(values.at[v]);
    *(Pack<T, V>*)(y + i * V) = done;
  }
}
