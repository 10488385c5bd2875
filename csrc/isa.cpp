// Which kernels this processor can run; RECONV_ISA in the environment asks for lesser ones.
#include <cstdlib>
#include <cstring>

#include "kernels.hpp"

namespace reconv {

namespace baseline {
Kernels table();
}
#ifdef RECONV_X86
namespace avx2 {
Kernels table();
}
namespace avx512 {
Kernels table();
}
#endif

const Kernels &kernels() {
  static const Kernels chosen = [] {
    const char *asked = std::getenv("RECONV_ISA");
    const auto may = [&](const char *isa) { return !asked || std::strcmp(asked, isa) == 0; };
#ifdef RECONV_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4") && may("avx512"))
      return avx512::table();
    if (__builtin_cpu_supports("x86-64-v3") && may("avx2"))
      return avx2::table();
#endif
    return baseline::table();
  }();
  return chosen;
}

} // namespace reconv
