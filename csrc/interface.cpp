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

// Multiply-accumulates of `rounds` rounds in float32 (0) or float64 (1), on the calling thread: to be timed.
[[gnu::visibility("default")]] std::int64_t reconv_peak(std::int64_t type, std::int64_t rounds) {
  return reconv::kernels().peak[type](rounds);
}

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

// tensors: csrc/separable.hpp.
[[gnu::visibility("default")]] int reconv_separable(std::int64_t type, const reconv::SeparableShape *shape,
                                                    const void *const *tensors) {
  return reconv::kernels().separable[type](*shape, tensors, &on_threads);
}

// tensors: DeformTensors of csrc/deform.hpp.
[[gnu::visibility("default")]] int reconv_deform(std::int64_t backward, std::int64_t type,
                                                 const reconv::DeformShape *shape,
                                                 const reconv::DeformTensors *tensors) {
  const reconv::Kernels &all = reconv::kernels();
  return (backward ? all.deform_gradients : all.deform)[type](*shape, *tensors, &on_threads);
}
}
