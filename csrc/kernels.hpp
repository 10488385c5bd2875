// The kernels of one instruction set, and the choice of the best set that this processor has.
#pragma once

#include "conv.hpp"
#include "direct.hpp"

namespace reconv {

enum Family { depthwise, planar, families };            // of ConvKernel; the order is reconv.ops.native's
enum Type { float32, float64, bfloat16, types };

struct Kernels {
  const char *isa;
  DirectKernel<float> direct_f32;
  DirectKernel<double> direct_f64;
  ConvKernel conv[families][types];
};
const Kernels &kernels();

} // namespace reconv
