// What Python calls, through ctypes: plain C functions over pointers. Nothing here knows torch.
#include "kernels.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace {

// PyTorch's threads are OpenMP's as well, and its library is the one that is loaded: both share one team.
void on_threads(int threads, std::int64_t count, std::int64_t grain, reconv::Body body, const void *context) {
#if defined(_OPENMP)
  const std::int64_t parts = count / grain;
  const int team = static_cast<int>(parts < threads ? parts : threads);
  if (team > 1 && !omp_in_parallel()) {
#pragma omp parallel num_threads(team)
    {
      const std::int64_t each = omp_get_num_threads(), mine = omp_get_thread_num();
      body(context, count * mine / each, count * (mine + 1) / each);
    }
    return;
  }
#endif
  body(context, 0, count);
}

} // namespace

extern "C" {

[[gnu::visibility("default")]] const char *reconv_isa() { return reconv::kernels().isa; }

[[gnu::visibility("default")]] int reconv_direct_f32(std::int64_t count, const reconv::DirectShape *shapes,
                                                     const float *const *tensors) {
  return reconv::kernels().direct_f32(count, shapes, tensors, &on_threads);
}

[[gnu::visibility("default")]] int reconv_direct_f64(std::int64_t count, const reconv::DirectShape *shapes,
                                                     const double *const *tensors) {
  return reconv::kernels().direct_f64(count, shapes, tensors, &on_threads);
}

// tensors: x, w, b, y.
[[gnu::visibility("default")]] int reconv_conv(std::int64_t family, std::int64_t type, const reconv::ConvShape *shape,
                                               const void *const *tensors) {
  return reconv::kernels().conv[family][type](*shape, tensors[0], tensors[1], tensors[2], tensors[3], &on_threads);
}
}
