// Depthwise convolution: vectors of channels.
#include "simd.hpp"

namespace reconv::RECONV_ISA {

template <class S>
int depthwise(const ConvShape &, const void *, const void *, const void *, const void *, Parallel) {
  return 1;
}

template int depthwise<float>(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);
template int depthwise<double>(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);
template int depthwise<bf16>(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);

} // namespace reconv::RECONV_ISA
