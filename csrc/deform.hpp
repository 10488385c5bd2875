// A deformable convolution of two dimensions, as the kernels are told it. Nothing here knows torch.
#pragma once

#include "conv.hpp"

namespace reconv {

// y[n, o, p] = b[o] + Σ_{c, k} w[o, c, k] · mask[n, k, p] · x[n, c, s·p + d·k − before + offset[n, k, p]], where x is
// interpolated linearly along both axes and 0 outside of the map. The channels of an offset group share their offsets.
// All fields are 64-bit: reconv.ops.deform_native.
struct DeformShape {
  std::int64_t batch, groups, offset_groups, in_channels, out_channels; // channels of all groups
  Axis axes[2];
  std::int64_t channels_last; // whether x lies so; all other tensors are contiguous, as x is otherwise
  std::int64_t threads;
};

// mask, bias and whichever gradient is not wanted are null.
struct DeformTensors {
  const void *x, *offset, *mask, *w, *bias;
  void *y;            // what forward writes
  const void *y_grad; // what backward reads; it writes the others
  void *x_grad, *offset_grad, *mask_grad, *w_grad, *bias_grad;
};

// Returns 0, or 1 where memory ran out. The result does not depend on the number of threads.
using DeformKernel = int (*)(const DeformShape &shape, const DeformTensors &tensors, Parallel parallel);

} // namespace reconv
