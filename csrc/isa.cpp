// Which kernels this processor can run; RECONV_ISA in the environment asks for lesser ones.
#include <cstdlib>
#include <cstring>

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
    const char *asked = std::getenv("RECONV_ISA");
    const auto may = [&](const char *isa) { return !asked || std::strcmp(asked, isa) == 0; };
#ifdef RECONV_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4") && may("avx512"))
      return Kernels{"avx512", &avx512::direct<float>, &avx512::direct<double>};
    if (__builtin_cpu_supports("x86-64-v3") && may("avx2"))
      return Kernels{"avx2", &avx2::direct<float>, &avx2::direct<double>};
#endif
    return Kernels{"baseline", &baseline::direct<float>, &baseline::direct<double>};
  }();
  return chosen;
}

} // namespace reconv
