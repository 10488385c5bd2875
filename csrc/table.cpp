// What there is of one instruction set; compiled once per set, as the kernels are.
#include "kernels.hpp"
#include "simd.hpp"

#ifndef RECONV_ISA
#error "RECONV_ISA must name the instruction set that this file is compiled for"
#endif

#define RECONV_TEXT(name) RECONV_QUOTED(name)
#define RECONV_QUOTED(name) #name

namespace reconv::RECONV_ISA {

template <class T> std::int64_t peak(std::int64_t);
template <class T> int direct(std::int64_t, const DirectShape *, const T *const *, Parallel);
template <class T> int depthwise(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);
template <class T> int planar(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);
template <class T> int dense(const ConvShape &, const void *, const void *, const void *, const void *, Parallel);
template <class T> int separable(const SeparableShape &, const void *const *, Parallel);
template <class T> int deform(const DeformShape &, const DeformTensors &, Parallel);
template <class T> int deform_gradients(const DeformShape &, const DeformTensors &, Parallel);

Kernels table() {
  return {RECONV_TEXT(RECONV_ISA),
          {&peak<float>, &peak<double>},
          &direct<float>,
          &direct<double>,
          {{&depthwise<float>, &depthwise<double>, &depthwise<bf16>},
           {&planar<float>, &planar<double>, &planar<bf16>},
           {&dense<float>, &dense<double>, &dense<bf16>}},
          {&separable<float>, &separable<double>, &separable<bf16>},
          {&deform<float>, &deform<double>, &deform<bf16>},
          {&deform_gradients<float>, &deform_gradients<double>, &deform_gradients<bf16>},
          &refused};
}

} // namespace reconv::RECONV_ISA
