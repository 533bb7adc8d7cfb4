#include "nn/portable/planes.h"
#include "nn/portable/portable.h"

namespace sde::nn::portable {
namespace {

// [N, channels] in front of the pixels or tokens of a batch entry.
ggml_tensor* per_entry(const Tensor& values, const Shape& shape) {
    ggml_tensor* raw = values.raw();
    if (shape.rank() == 2) return raw;
    const bool is_map = shape.rank() == 4;
    return ggml_view_4d(values.graph().context(), raw, raw->ne[0], 1, is_map ? 1 : raw->ne[1],
                        is_map ? raw->ne[1] : 1, raw->nb[1], raw->nb[1],
                        raw->nb[1] * (is_map ? 1 : static_cast<size_t>(raw->ne[1])), 0);
}

}  // namespace

Tensor finish(const Tensor& sum, ggml_tensor* bias, const Epilogue& epilogue) {
    ggml_context* context = context_of(sum);
    const auto with = [&](ggml_tensor* raw) { return Tensor{sum.graph(), raw, sum.shape()}; };
    Tensor x = sum;
    if (bias) x = with(ggml_add(context, x.raw(), bias));
    if (epilogue.batch_bias)
        x = with(ggml_add(context, x.raw(), per_entry(epilogue.batch_bias, x.shape())));
    if (epilogue.residual && epilogue.residual_inside) x = add(x, epilogue.residual);
    x = activate(x, epilogue.activation);
    if (epilogue.gate) x = with(ggml_mul(context, x.raw(), per_entry(epilogue.gate, x.shape())));
    if (epilogue.residual && !epilogue.residual_inside) x = add(x, epilogue.residual);
    return x;
}

Tensor linear(const Tensor& x, ggml_tensor* weight, ggml_tensor* bias, const Epilogue& epilogue,
              const Shape& shape) {
    ggml_context* context = context_of(x);
    const int64_t in = x.size(-1), rows = x.shape().elements() / in;
    ggml_tensor* sum = product(context, weight, ggml_reshape_2d(context, x.raw(), in, rows));
    if (shape.rank() == 3) sum = ggml_reshape_3d(context, sum, shape[2], shape[1], shape[0]);
    return finish({x.graph(), sum, shape}, bias, epilogue);
}

}  // namespace sde::nn::portable
