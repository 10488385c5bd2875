// Direct convolution of channels-last maps: no im2col, nothing but a padded copy of a small input.
#pragma once

#include "conv.hpp"

namespace reconv {

// y[n, p, o] = b[o] + Σ_{i, j, c} w[o, i, j, c] · x[n, s·p + d·(i, j) − (top, left), c]
// x has its channels side by side; y is (N, out_h, out_w, out_channels), dense, before it is pooled.
// reconv.ops.direct fills this in.
struct DirectShape {
  std::int64_t batch, height, width, in_channels, out_channels, out_h, out_w;
  std::int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  std::int64_t top, bottom, left, right; // zeros around x
  std::int64_t x_n, x_h, x_w;            // strides of x, in elements
  std::int64_t w_o, w_c, w_h, w_w;       // strides of w
  std::int64_t threads, relu; // relu: what is negative becomes 0
  std::int64_t pool;          // then each pool × pool square of outputs becomes its largest; 1: none
};

// `count` convolutions one after the other. tensors: x, y, then w and b of each, where b may be null.
// Returns 0, or 1 where memory ran out.
template <class T>
using DirectKernel = int (*)(std::int64_t count, const DirectShape *shapes, const T *const *tensors, Parallel);

} // namespace reconv
