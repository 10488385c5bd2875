// Convolution of few channels a group: vectors of positions.
#include "simd.hpp"

namespace reconv::RECONV_ISA {

template <class S>
int planar(const ConvShape &, const void *, const void *, const void *, const void *, Parallel) {
  return 1;
}

template int planar<float>(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);
template int planar<double>(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);
template int planar<bf16>(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);

} // namespace reconv::RECONV_ISA
