// The kernels of one instruction set, and the choice of the best set that this processor has.
#pragma once

#include <atomic>

#include "conv.hpp"
#include "deform.hpp"
#include "direct.hpp"
#include "separable.hpp"

namespace reconv {

enum Family { depthwise, planar, dense, families };     // of ConvKernel; the order is reconv.ops.native's
enum Type { float32, float64, bfloat16, types };

struct Kernels {
  const char *isa;
  std::int64_t (*peak[2])(std::int64_t rounds); // of float and double
  DirectKernel<float> direct_f32;
  DirectKernel<double> direct_f64;
  ConvKernel conv[families][types];
  SeparableKernel separable[types];
  DeformKernel deform[types], deform_gradients[types];
  const std::atomic<std::int64_t> *refused; // bytes of scratch memory that could not be had, the last time
};
const Kernels &kernels();

} // namespace reconv
