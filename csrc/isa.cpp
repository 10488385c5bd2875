// Which kernels this processor can run.
#include "direct.hpp"

namespace reconv {

#define RECONV_DECLARE(isa)                                                                                            \
  namespace isa {                                                                                                      \
  template <class T> int direct(std::int64_t, const DirectShape *, const T *const *, Parallel);                                                           \
  }

RECONV_DECLARE(baseline)
#ifdef RECONV_X86
RECONV_DECLARE(avx2)
RECONV_DECLARE(avx512)
#endif

const Kernels &kernels() {
  static const Kernels chosen = [] {
#ifdef RECONV_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4"))
      return Kernels{"avx512", &avx512::direct<float>, &avx512::direct<double>};
    if (__builtin_cpu_supports("x86-64-v3"))
      return Kernels{"avx2", &avx2::direct<float>, &avx2::direct<double>};
#endif
    return Kernels{"baseline", &baseline::direct<float>, &baseline::direct<double>};
  }();
  return chosen;
}

} // namespace reconv
