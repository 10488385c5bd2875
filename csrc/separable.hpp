// A depthwise convolution of 2D maps, then a pointwise one, without the map between them.
#pragma once

#include "conv.hpp"

namespace reconv {

// y[n, o, p] = b[o] + Σ_c v[o, c] · m[c, p],  m[c, p] = a[c] + Σ_k w[c, k] · x[n, c, s·p + d·k − before]
// reconv.ops.separable_native fills this in.
struct SeparableShape {
  ConvShape depthwise; // forward, one channel a group; its first axis is of size 1, and y are the strides of the result
  std::int64_t out_channels, v_out, v_in; // of v, and its strides
  std::int64_t relu_between;              // what is negative in m becomes 0; depthwise.relu: in y
};

// tensors: x, w, a, v, b, y, of which a and b may be null. Returns 0, or 1 where memory ran out.
// The result does not depend on the number of threads.
using SeparableKernel = int (*)(const SeparableShape &shape, const void *const *tensors, Parallel parallel);

} // namespace reconv
