// A convolution as the kernels are told it: up to three spatial axes, tensors with strides. Nothing here knows torch.
#pragma once

#include <cstdint>

namespace reconv {

// One spatial axis. Tap k of output p meets the input at stride·p + dilation·k − before; beyond the input are zeros.
struct Axis {
  std::int64_t input, output, kernel, stride, dilation, before;
};

// In elements. Of weights, "batch" steps over output channels and "channel" over the input channels of a group.
struct Strides {
  std::int64_t batch, channel, axis[3];
};

// y[n, o, p] = b[o] + Σ_{c, k} w[o, c, k] · x[n, c, s·p + d·k − before], where o and c are of the same group.
enum class Pass : std::int64_t {
  forward,         // x, w, b -> y
  input_gradient,  // y, w, b -> x: x[n, c, q] = b[c] + Σ w[o, c, k] · y[n, o, p] over s·p + d·k − before = q;
                   // with b it is the transposed convolution
  weight_gradient, // x, y -> w: w[o, c, k] = Σ_{n, p} y[n, o, p] · x[n, c, s·p + d·k − before]
};

// All fields are 64-bit, so that Python fills it in as an array of integers: reconv.ops.native.
struct ConvShape {
  Pass pass;
  std::int64_t batch, groups, in_channels, out_channels; // channels of one group
  Axis axes[3];                                          // 1D and 2D have leading axes of size 1
  Strides x, w, y;
  std::int64_t threads;
  std::int64_t relu; // what is negative becomes 0 in what is written
};

// As stored; what is stored in bfloat16 is computed in float.
struct bf16 {
  std::uint16_t bits;
};

// Runs body(context, begin, end) over 0 … count, on as many threads as find a part of at least `grain`.
using Body = void (*)(const void *context, std::int64_t begin, std::int64_t end);
using Parallel = void (*)(int threads, std::int64_t count, std::int64_t grain, Body body, const void *context);

// Computes the pass. b may be null. Returns 0, or 1 where memory ran out.
// The result does not depend on the number of threads: each element is summed by one thread in one order.
using ConvKernel = int (*)(const ConvShape &shape, const void *x, const void *w, const void *b, const void *y,
                           Parallel parallel);

} // namespace reconv
