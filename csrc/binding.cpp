// The kernels as PyTorch operators, through the part of its ABI that stays stable from version to version.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "direct.hpp"

namespace {

using torch::stable::Tensor;

void on_threads(std::int64_t count, std::int64_t grain, reconv::Body body, const void *context) {
  if (count <= grain)
    body(context, 0, count);
  else
    torch::stable::parallel_for(0, count, grain,
                                [&](std::int64_t begin, std::int64_t end) { body(context, begin, end); });
}

template <class T> const T *data(const Tensor &tensor) { return static_cast<const T *>(tensor.data_ptr()); }

// Sizes and dtypes were checked by the caller, in Python: reconv.ops.direct. Single integers, since lists cost more
// than the smallest convolutions.
Tensor direct_conv2d(const Tensor &x, const Tensor &w, const std::optional<Tensor> &b, std::int64_t stride_h,
                     std::int64_t stride_w, std::int64_t top, std::int64_t bottom, std::int64_t left,
                     std::int64_t right, std::int64_t dilation_h, std::int64_t dilation_w) {
  const auto xs = x.sizes(), xt = x.strides(), ws = w.sizes(), wt = w.strides();
  const std::int64_t out_h = (xs[2] + top + bottom - dilation_h * (ws[2] - 1) - 1) / stride_h + 1;
  const std::int64_t out_w = (xs[3] + left + right - dilation_w * (ws[3] - 1) - 1) / stride_w + 1;
  const std::int64_t sizes[] = {xs[0], ws[0], out_h, out_w};
  const std::int64_t strides[] = {out_h * out_w * ws[0], 1, out_w * ws[0], ws[0]};
  std::int32_t dtype;
  aoti_torch_get_dtype(x.get(), &dtype);
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(4, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &made));
  Tensor y(made);
  const auto run = [&]<class T>(reconv::DirectKernel<T> kernel) {
    kernel({.x = data<T>(x), .w = data<T>(w), .b = b ? data<T>(*b) : nullptr, .y = static_cast<T *>(y.data_ptr()),
            .batch = xs[0], .height = xs[2], .width = xs[3], .in_channels = xs[1], .out_channels = ws[0],
            .out_h = out_h, .out_w = out_w, .kernel_h = ws[2], .kernel_w = ws[3], .stride_h = stride_h,
            .stride_w = stride_w, .dilation_h = dilation_h, .dilation_w = dilation_w, .top = top, .bottom = bottom,
            .left = left, .right = right, .x_n = xt[0], .x_h = xt[2], .x_w = xt[3], .w_o = wt[0], .w_h = wt[2],
            .w_w = wt[3], .w_c = wt[1]},
           &on_threads);
  };
  if (sizes[0] * sizes[1] * sizes[2] * sizes[3] == 0)
    return y;
  if (dtype == aoti_torch_dtype_float64())
    run(reconv::kernels().direct_f64);
  else
    run(reconv::kernels().direct_f32);
  return y;
}

} // namespace

STABLE_TORCH_LIBRARY(reconv, library) {
  library.def("direct_conv2d(Tensor x, Tensor w, Tensor? b, int stride_h, int stride_w, int top, int bottom, int left, "
              "int right, int dilation_h, int dilation_w) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(reconv, CPU, library) { library.impl("direct_conv2d", TORCH_BOX(&direct_conv2d)); }

extern "C" [[gnu::visibility("default")]] const char *reconv_isa() { return reconv::kernels().isa; }
