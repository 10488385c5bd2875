// What there is of one instruction set; compiled once per set, as the kernels are.
#include "kernels.hpp"

#ifndef RECONV_ISA
#error "RECONV_ISA must name the instruction set that this file is compiled for"
#endif

#define RECONV_TEXT(name) RECONV_QUOTED(name)
#define RECONV_QUOTED(name) #name

namespace reconv::RECONV_ISA {

template <class T> int direct(std::int64_t, const DirectShape *, const T *const *, Parallel);
template <class T> int depthwise(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);
template <class T> int planar(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);

Kernels table() {
  return {RECONV_TEXT(RECONV_ISA),
          &direct<float>,
          &direct<double>,
          {{&depthwise<float>, &depthwise<double>, &depthwise<bf16>}, {&planar<float>, &planar<double>, &planar<bf16>}}};
}

} // namespace reconv::RECONV_ISA
