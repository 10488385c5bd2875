// What Python calls: plain C functions over pointers. Nothing here knows torch.
#include "kernels.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <pthread.h>

namespace {

std::atomic<bool> divided = false, orphaned = false; // whether work was ever; in a parent process

// A forked process has none of its parent's threads, for which libgomp would wait for ever.
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] { orphaned = divided.load(); });

// PyTorch's threads are OpenMP's as well, and its library is the one that is loaded: both share one team.
void on_threads(int threads, std::int64_t count, std::int64_t grain, reconv::Body body, const void *context) {
#if defined(_OPENMP)
  const std::int64_t parts = count / grain;
  const int team = static_cast<int>(parts < threads ? parts : threads);
  if (team > 1 && !orphaned && !omp_in_parallel()) {
    divided = true;
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

// The bytes that a kernel could not have, where it has failed.
std::int64_t missing(int failed) {
  const std::int64_t bytes = *reconv::kernels().refused;
  return !failed ? 0 : bytes ? bytes : 1;
}

} // namespace

extern "C" {

[[gnu::visibility("default")]] const char *reconv_isa() { return reconv::kernels().isa; }

// Multiply-accumulates of `rounds` rounds in float32 (0) or float64 (1), on the calling thread: to be timed.
[[gnu::visibility("default")]] std::int64_t reconv_peak(std::int64_t type, std::int64_t rounds) {
  return reconv::kernels().peak[type](rounds);
}

// Each kernel in one form, (which, type, shape, tensors): types are float32, float64 and bfloat16, and the tensors are
// pointers, null where there is none. Returns 0, or how many bytes could not be had.

// which: how many convolutions follow one another. tensors: csrc/direct.hpp.
[[gnu::visibility("default")]] std::int64_t reconv_direct(std::int64_t which, std::int64_t type,
                                                 const reconv::DirectShape *shapes, const void *const *tensors) {
  const reconv::Kernels &all = reconv::kernels();
  if (type == 0)
    return missing(all.direct_f32(which, shapes, reinterpret_cast<const float *const *>(tensors), &on_threads));
  return missing(all.direct_f64(which, shapes, reinterpret_cast<const double *const *>(tensors), &on_threads));
}

// which: the family. tensors: x, w, b, y.
[[gnu::visibility("default")]] std::int64_t reconv_conv(std::int64_t which, std::int64_t type, const reconv::ConvShape *shape,
                                               const void *const *tensors) {
  const reconv::ConvKernel kernel = reconv::kernels().conv[which][type];
  return missing(kernel(*shape, tensors[0], tensors[1], tensors[2], tensors[3], &on_threads));
}

// tensors: csrc/separable.hpp.
[[gnu::visibility("default")]] std::int64_t reconv_separable(std::int64_t, std::int64_t type,
                                                    const reconv::SeparableShape *shape, const void *const *tensors) {
  return missing(reconv::kernels().separable[type](*shape, tensors, &on_threads));
}

// which: 1 for the gradients. tensors: DeformTensors of csrc/deform.hpp.
[[gnu::visibility("default")]] std::int64_t reconv_deform(std::int64_t which, std::int64_t type,
                                                 const reconv::DeformShape *shape,
                                                 const reconv::DeformTensors *tensors) {
  const reconv::Kernels &all = reconv::kernels();
  return missing((which ? all.deform_gradients : all.deform)[type](*shape, *tensors, &on_threads));
}
}
