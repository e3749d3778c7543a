// im2col: the window of each output of a convolution, written out as one row of a matrix (Chellapilla, Puri & Simard,
// "High performance convolutional neural networks for document processing", 2006).
//
//     x (n, d, h, w, c)                     cols (m, t r s c),  m = (n, o, p, q): one row per output
//
//     +---+---+---+---+                     m       r0s0   r0s1   r1s0   r1s1      kernel 2 x 2
//     | a | b | c | d |                     (0,0)   a      b      e      f
//     +---+---+---+---+                     (0,1)   b      c      f      g         each letter is c values, which are
//     | e | f | g | h |                     (0,2)   c      d      g      h         contiguous on both sides
//     +---+---+---+---+                     ...
//
// With groups each group has a matrix of its own: cols (g, m, t r s c/g). The launch makes a strip of `count` rows from
// row `first` on; row 0 of cols is row `first` of the whole matrix.
//
// Values are moved and never interpreted, so the kernel knows words of BYTES bytes (1, 2, 4, 8, 16) and no dtype: the
// host takes the widest word that divides the channels of a group and both addresses, and g.c counts words. That is 16
// bytes for 8 channels of float16, and the 4 of one float for the 3 channels of a picture, or the 2 of one bfloat16.
//
//     launch   block (bx, by): bx neighbouring threads along a row, by rows; at most 256
//              grid (blocks along m, blocks along a row): any; shared bytes 0
//     align    x and cols at multiples of BYTES
//
// A thread keeps one column, decodes its tap once, and walks down the rows, ROWS at a time: this many loads are in flight
// together. Decoding a row takes one multiplication per axis. The stores of a warp are contiguous wherever a matrix row has
// 32 words or rows follow each other, and its loads are contiguous for c words.
//
// Bytes: every element of cols is written once, every element of x is read once from memory and then from the caches,
// taps - 1 times more. Floor: (|x| + |cols|) / copy bandwidth. In strips that fit the L2 cache cols never leaves it.
// Occupancy: 48 registers, 5 blocks of 256 threads per SM (62%), with 4 words per thread in flight: 20 KB per SM at 4 bytes.
//
// budget: im2col 64 registers
#include "conv.cuh"

#if BYTES == 1
typedef u8 Word;
#elif BYTES == 2
typedef u16 Word;
#elif BYTES == 4
typedef u32 Word;
#elif BYTES == 8
typedef uint2 Word;
#elif BYTES == 16
typedef uint4 Word;
#else
#error "BYTES is 1, 2, 4, 8 or 16"
#endif

constexpr int ROWS = sizeof(index_t) == 8 ? 2 : 4;  // long indices take the registers of two

extern "C" __global__ void __launch_bounds__(256, 4)
    im2col(const u8* __restrict__ x_bytes, u8* __restrict__ cols_bytes, const Conv g, index_t first, index_t count) {
  const Word* const x = (const Word*)x_bytes;
  Word* const cols = (Word*)cols_bytes;
  const int c_group = g.c / g.groups;
  const int width = g.kernel[0] * g.kernel[1] * g.kernel[2] * c_group;  // words in a row of one group
  const index_t step = (index_t)gridDim.x * blockDim.y * ROWS;

  for (index_t column = (index_t)blockIdx.y * blockDim.x + threadIdx.x; column < (index_t)width * g.groups;
       column += (index_t)gridDim.y * blockDim.x) {
    const int group = (int)(column / width), j = (int)(column - (index_t)group * width);
    const int tap = j / c_group, plane = tap / g.kernel[2];
    const int r[3] = {plane / g.kernel[1], plane % g.kernel[1], tap % g.kernel[2]};
    const int c = group * c_group + j % c_group;
    Word* const to = cols + (index_t)group * count * width + j;

    for (index_t top = (index_t)blockIdx.x * blockDim.y * ROWS + threadIdx.y; top < count; top += step) {
      int samples[ROWS], at[3][ROWS];
#pragma unroll
      for (int i = 0; i < ROWS; i++) {
        const index_t row = top + i * (int)blockDim.y;
        const Output out = output_of(g, first + (row < count ? row : top));
        samples[i] = out.n;
#pragma unroll
        for (int axis = 0; axis < 3; axis++)
          at[axis][i] = out.at[axis] * g.stride[axis] + r[axis] * g.dilation[axis] - g.pad[axis];
      }
#pragma unroll
      for (int axis = 0; axis < 3; axis++) sources<ROWS>(at[axis], g.x[axis], g.pad_mode);
      Word words[ROWS];
#pragma unroll
      for (int i = 0; i < ROWS; i++) {
        words[i] = Word{};
        if (at[0][i] >= 0 && at[1][i] >= 0 && at[2][i] >= 0)
          words[i] = x[((((index_t)samples[i] * g.x[0] + at[0][i]) * g.x[1] + at[1][i]) * g.x[2] + at[2][i]) * g.c + c];
      }
#pragma unroll
      for (int i = 0; i < ROWS; i++) {
        const index_t row = top + i * (int)blockDim.y;
        if (row < count) to[row * width] = words[i];
      }
    }
  }
}
