#include "nn/portable/planes.h"
#include "nn/portable/portable.h"

namespace sde::nn::portable {
namespace {

// A vector [width], or one for each entry of the batch, in front of tokens [N, tokens, width].
ggml_tensor* before_tokens(ggml_context* context, ggml_tensor* values) {
    if (values->ne[1] == 1) return values;
    return ggml_view_3d(context, values, values->ne[0], 1, values->ne[1], values->nb[1],
                        values->nb[1], 0);
}

}  // namespace

Tensor group_norm(const Tensor& x, int64_t groups, float eps, ggml_tensor* gamma, ggml_tensor* beta,
                  bool silu) {
    ggml_context* context = context_of(x);
    const auto per_plane = [&](ggml_tensor* vector) {
        return ggml_reshape_3d(context, vector, 1, 1, vector->ne[0]);
    };
    ggml_tensor* y = ggml_group_norm(context, planes(x), static_cast<int>(groups), eps);
    y = ggml_add(context, ggml_mul(context, y, per_plane(gamma)), per_plane(beta));
    if (silu) y = ggml_silu(context, y);
    return from_planes(x.graph(), y, x.shape());
}

Tensor layer_norm(const Tensor& x, float eps, ggml_tensor* factor, ggml_tensor* shift,
                  bool plus_one) {
    ggml_context* context = context_of(x);
    ggml_tensor* y = ggml_norm(context, dense(context, x.raw()), eps);
    if (plus_one) factor = ggml_scale_bias(context, dense(context, factor), 1.0f, 1.0f);
    if (factor) y = ggml_mul(context, y, before_tokens(context, factor));
    if (shift) y = ggml_add(context, y, before_tokens(context, shift));
    return {x.graph(), y, x.shape()};
}

Tensor scaled_rms_norm(const Tensor& x, float eps, ggml_tensor* gamma, const Tensor& factor,
                       const Tensor& residual) {
    ggml_context* context = context_of(x);
    ggml_tensor* y = ggml_mul(context, ggml_rms_norm(context, x.raw(), eps), gamma);
    if (factor) y = ggml_mul(context, y, before_tokens(context, factor.raw()));
    if (residual) y = ggml_add(context, y, residual.raw());
    return {x.graph(), y, x.shape()};
}

Tensor head_norm(const Tensor& x, int64_t head_dim, float eps, ggml_tensor* gamma,
                 ggml_tensor* beta, bool is_layer) {
    ggml_context* context = context_of(x);
    ggml_tensor* heads = ggml_reshape_2d(context, dense(context, x.raw()), head_dim,
                                         x.shape().elements() / head_dim);
    heads = is_layer ? ggml_norm(context, heads, eps) : ggml_rms_norm(context, heads, eps);
    heads = ggml_mul(context, heads, gamma);
    if (beta) heads = ggml_add(context, heads, beta);
    return {x.graph(), ggml_reshape_3d(context, heads, x.size(2), x.size(1), x.size(0)), x.shape()};
}

Tensor normalized_guidance(const Tensor& features, const Tensor& away, const Tensor& figures) {
    ggml_context* context = context_of(features);
    ggml_tensor* given = dense(context, figures.raw());
    const auto figure = [&](size_t i) {  // [1, 1, N]
        return dense(context, ggml_view_3d(context, given, 1, 1, given->ne[1], given->nb[1],
                                           given->nb[1], i * sizeof(float)));
    };
    const auto l1_norm = [&](ggml_tensor* x) {
        return ggml_sum_rows(context, ggml_abs(context, dense(context, x)));
    };
    ggml_tensor *plain = features.raw(), *strength = figure(0), *alpha = figure(2);
    // plain + (strength - 1) (plain - away) is strength * plain - (strength - 1) * away.
    ggml_tensor* guided = ggml_add(context, plain,
                                   ggml_mul(context, ggml_sub(context, plain, away.raw()),
                                            ggml_scale_bias(context, strength, 1.0f, -1.0f)));
    // Both norms may be zero; then nothing is limited.
    constexpr float kTiny = 1e-30f;
    ggml_tensor* most = ggml_mul(context, l1_norm(plain), figure(1));
    ggml_tensor* limit =
        ggml_clamp(context,
                   ggml_div(context, ggml_scale_bias(context, most, 1.0f, kTiny),
                            ggml_scale_bias(context, l1_norm(guided), 1.0f, kTiny)),
                   0.0f, 1.0f);
    ggml_tensor* mixed =
        ggml_add(context, ggml_mul(context, guided, ggml_mul(context, limit, alpha)),
                 ggml_mul(context, plain, ggml_scale_bias(context, alpha, -1.0f, 1.0f)));
    return {features.graph(), mixed, features.shape()};
}

}  // namespace sde::nn::portable
