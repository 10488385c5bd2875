// Direct convolution of channels-last maps: no im2col, nothing but a padded copy of a small input.
#pragma once

#include <cstdint>

namespace reconv {

// y[n, p, o] = b[o] + Σ_{i, j, c} w[o, i, j, c] · x[n, s·p + d·(i, j) − lo, c]
template <class T> struct Direct {
  const T *x, *w, *b; // b may be null
  T *y;               // (N, out_h, out_w, out_channels), dense
  std::int64_t batch, height, width, in_channels, out_channels, out_h, out_w;
  std::int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  std::int64_t top, bottom, left, right;       // padding
  std::int64_t x_n, x_h, x_w;                  // strides of x in elements; its channels are neighbours
  std::int64_t w_o, w_h, w_w, w_c;             // strides of w
};

// Runs body(context, begin, end) over 0 … count, on several threads where a part of at least `grain` is left for each.
using Body = void (*)(const void *context, std::int64_t begin, std::int64_t end);
using Parallel = void (*)(std::int64_t count, std::int64_t grain, Body body, const void *context);

template <class T> using DirectKernel = void (*)(const Direct<T> &, Parallel);

// The kernels of the best instruction set that this processor has.
struct Kernels {
  const char *isa;
  DirectKernel<float> direct_f32;
  DirectKernel<double> direct_f64;
};
const Kernels &kernels();

} // namespace reconv
