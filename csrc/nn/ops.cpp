#include "nn/ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "nn/check.h"
#include "nn/custom.h"
#include "nn/portable/portable.h"

namespace sde::nn {
namespace {

// ggml axes (fastest first) of a tensor of this shape.
std::vector<int64_t> axes(const Shape& shape) {
    if (shape.rank() == 4) return {shape[1], shape[3], shape[2], shape[0]};
    return {shape.dims().rbegin(), shape.dims().rend()};
}

ggml_tensor* reshaped(Graph& graph, ggml_tensor* raw, const Shape& shape) {
    std::vector<int64_t> ne = axes(shape);
    ne.resize(4, 1);
    return ggml_reshape_4d(graph.context(), raw, ne[0], ne[1], ne[2], ne[3]);
}

// What a plain operator reads: many devices take only values that lie one behind the other.
ggml_tensor* readable(const Tensor& x) {
    const bool is_fine = !x.graph().is_portable() || ggml_is_contiguous(x.raw());
    return is_fine ? x.raw() : ggml_cont(x.graph().context(), x.raw());
}

struct ConcatSpec {
    static constexpr const char* kName = "concat";
    int64_t pixels, a_channels, b_channels;
};

void run_concat(ConcatSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    const float *a = source(dst, 0), *b = source(dst, 1);
    auto* out = static_cast<float*>(dst->data);
    const int64_t channels = spec.a_channels + spec.b_channels;
    const int64_t begin = spec.pixels * team.rank() / team.size();
    const int64_t end = spec.pixels * (team.rank() + 1) / team.size();
    for (int64_t p = begin; p < end; ++p) {
        std::memcpy(out + p * channels, a + p * spec.a_channels, spec.a_channels * sizeof(float));
        std::memcpy(out + p * channels + spec.a_channels, b + p * spec.b_channels,
                    spec.b_channels * sizeof(float));
    }
}

struct PoolSpec {
    int64_t batch, height, width, channels;
};

void run_average_pool(PoolSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    const float* in = source(dst, 0);
    auto* out = static_cast<float*>(dst->data);
    const int64_t height = (spec.height + 1) / 2, width = (spec.width + 1) / 2;
    const int64_t rows = spec.batch * height;
    const int64_t end = rows * (team.rank() + 1) / team.size();
    for (int64_t row = rows * team.rank() / team.size(); row < end; ++row) {
        const int64_t n = row / height, top = row % height * 2;
        const int64_t bottom = std::min(top + 2, spec.height);
        for (int64_t x = 0; x < width; ++x) {
            const int64_t left = 2 * x, right = std::min(left + 2, spec.width);
            const auto count = static_cast<float>((bottom - top) * (right - left));
            float* to = out + (row * width + x) * spec.channels;
            std::fill(to, to + spec.channels, 0.0f);
            for (int64_t i = top; i < bottom; ++i)
                for (int64_t j = left; j < right; ++j) {
                    const float* from =
                        in + ((n * spec.height + i) * spec.width + j) * spec.channels;
                    for (int64_t c = 0; c < spec.channels; ++c) to[c] += from[c] / count;
                }
        }
    }
}

struct MeanSpec {
    int64_t batch, pixels, channels;
};

void run_mean(MeanSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    const float* in = source(dst, 0);
    auto* out = static_cast<float*>(dst->data);
    const int64_t all = spec.batch * spec.channels;
    const int64_t end = all * (team.rank() + 1) / team.size();
    for (int64_t i = all * team.rank() / team.size(); i < end; ++i) {
        const float* from =
            in + i / spec.channels * spec.pixels * spec.channels + i % spec.channels;
        double sum = 0.0;
        for (int64_t p = 0; p < spec.pixels; ++p) sum += from[p * spec.channels];
        out[i] = static_cast<float>(sum / static_cast<double>(spec.pixels));
    }
}

struct AttentionSpec {
    static constexpr const char* kName = "attention";
    kernels::Attention op;
    int mask, distance_bias;
    std::vector<int32_t> mask_index;
};

void run_attention(AttentionSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    spec.op.q = source(dst, 0);
    spec.op.k = source(dst, 1);
    spec.op.v = source(dst, 2);
    spec.op.mask = source(dst, spec.mask);
    spec.op.mask_index = spec.mask_index.empty() ? nullptr : spec.mask_index.data();
    spec.op.distance_bias = source(dst, spec.distance_bias);
    spec.op.output = static_cast<float*>(dst->data);
    kernels::attention(spec.op, team);
}

struct NormalizedGuidanceSpec {
    int64_t batch, tokens, width;
};

void run_normalized_guidance(NormalizedGuidanceSpec spec, const ggml_tensor* dst,
                             kernels::Team& team) {
    const float *features = source(dst, 0), *away = source(dst, 1), *figures = source(dst, 2);
    auto* out = static_cast<float*>(dst->data);
    const int64_t rows = spec.batch * spec.tokens;
    const int64_t begin = rows * team.rank() / team.size();
    const int64_t end = rows * (team.rank() + 1) / team.size();
    for (int64_t row = begin; row < end; ++row) {
        const float *p = features + row * spec.width, *n = away + row * spec.width;
        const float* figure = figures + row / spec.tokens * 3;
        const float scale = figure[0], tau = figure[1], alpha = figure[2];
        double plain_norm = 0.0, guided_norm = 0.0;
        for (int64_t i = 0; i < spec.width; ++i) {
            plain_norm += std::fabs(p[i]);
            guided_norm += std::fabs(scale * p[i] - (scale - 1.0f) * n[i]);
        }
        const bool limited = guided_norm > tau * plain_norm;
        const float factor =
            limited ? static_cast<float>(tau * plain_norm / guided_norm) * alpha : alpha;
        for (int64_t i = 0; i < spec.width; ++i)
            out[row * spec.width + i] =
                factor * (scale * p[i] - (scale - 1.0f) * n[i]) + (1.0f - alpha) * p[i];
    }
}

void run_geglu(kernels::Geglu op, const ggml_tensor* dst, kernels::Team& team) {
    op.input = source(dst, 0);
    op.output = static_cast<float*>(dst->data);
    kernels::geglu(op, team);
}

}  // namespace

Tensor input(Graph& graph, const std::string& name, const Shape& shape) {
    return {graph, graph.add_input(name, GGML_TYPE_F32, axes(shape)), shape};
}

Tensor input_ids(Graph& graph, const std::string& name, const Shape& shape, int64_t limit) {
    return {graph, graph.add_id_input(name, axes(shape), limit), shape};
}

void output(const std::string& name, const Tensor& x) {
    Graph& graph = x.graph();
    ggml_tensor* raw = x.raw();
    // A view or an input cannot carry the output flag itself.
    if (raw->view_src || raw->op == GGML_OP_NONE || !ggml_is_contiguous(raw))
        raw = ggml_cont(graph.context(), raw);
    graph.add_output(name, raw, x.shape());
}

Tensor tokens(const Tensor& x) {
    expect(x.rank() == 4, "tokens() takes a feature map [N, C, H, W]", x);
    const Shape shape{x.size(0), x.size(2) * x.size(3), x.size(1)};
    return {x.graph(), reshaped(x.graph(), x.raw(), shape), shape};
}

Tensor feature_map(const Tensor& x, int64_t height, int64_t width) {
    expect(x.rank() == 3 && x.size(1) == height * width,
           "feature_map() takes tokens [N, " + std::to_string(height * width) + ", C]", x);
    const Shape shape{x.size(0), x.size(2), height, width};
    return {x.graph(), reshaped(x.graph(), x.raw(), shape), shape};
}

Tensor reshape(const Tensor& x, const Shape& shape) {
    expect(x.rank() != 4 && shape.rank() < 4 && x.shape().elements() == shape.elements(),
           "a reshape to " + shape.text() + " does not fit", x);
    return {x.graph(), reshaped(x.graph(), x.raw(), shape), shape};
}

Tensor add(const Tensor& a, const Tensor& b) {
    if (b.rank() == 1)
        expect(a.size(-1) == b.size(0) && a.rank() != 4,
               "a vector of " + std::to_string(b.size(0)) + " is added to the last axis", a);
    else
        expect_same(a, b, "add");
    return {a.graph(), ggml_add(a.graph().context(), a.raw(), b.raw()), a.shape()};
}

Tensor add_broadcast(const Tensor& a, const Tensor& b) {
    const bool fits =
        a.rank() == 3 && b.rank() == 2 && a.size(1) == b.size(0) && a.size(2) == b.size(1);
    expect(fits, "add_broadcast() adds " + b.shape().text() + " to [N, tokens, width]", a);
    return {a.graph(), ggml_add(a.graph().context(), a.raw(), b.raw()), a.shape()};
}

Tensor take_rows(const Tensor& x, const Tensor& rows) {
    expect(x.rank() == 3, "take_rows() takes [N, tokens, width]", x);
    expect(rows.rank() == 1, "take_rows() takes row numbers [M]", rows);
    ggml_context* context = x.graph().context();
    ggml_tensor* flat = ggml_reshape_2d(context, x.raw(), x.size(2), x.size(0) * x.size(1));
    return {x.graph(), ggml_get_rows(context, flat, rows.raw()), Shape{rows.size(0), x.size(2)}};
}

Tensor scale(const Tensor& x, float factor, float offset) {
    return {x.graph(), ggml_scale_bias(x.graph().context(), readable(x), factor, offset),
            x.shape()};
}

Tensor tanh(const Tensor& x) {
    return {x.graph(), ggml_tanh(x.graph().context(), readable(x)), x.shape()};
}

Tensor multiply(const Tensor& a, const Tensor& b) {
    expect_same(a, b, "multiply");
    return {a.graph(), ggml_mul(a.graph().context(), a.raw(), b.raw()), a.shape()};
}

Tensor activate(const Tensor& x, Activation activation) {
    ggml_context* context = x.graph().context();
    switch (activation) {
        case Activation::None:
            return x;
        case Activation::Silu:
            return {x.graph(), ggml_silu(context, readable(x)), x.shape()};
        case Activation::Gelu:
            return {x.graph(), ggml_gelu_erf(context, readable(x)), x.shape()};
        case Activation::GeluTanh:
            return {x.graph(), ggml_gelu(context, readable(x)), x.shape()};
        case Activation::QuickGelu:
            return {x.graph(), ggml_gelu_quick(context, readable(x)), x.shape()};
        case Activation::Relu:
            return {x.graph(), ggml_relu(context, readable(x)), x.shape()};
        case Activation::LeakyRelu:
            return leaky_relu(x, kernels::kLeakySlope);
    }
    return x;
}

Tensor leaky_relu(const Tensor& x, float slope) {
    ggml_tensor* raw = ggml_leaky_relu(x.graph().context(), readable(x), slope, false);
    return {x.graph(), raw, x.shape()};
}

Tensor concat_channels(const Tensor& a, const Tensor& b) {
    expect(a.rank() == 4, "concat_channels() takes feature maps", a);
    const bool fits =
        b.rank() == 4 && a.size(0) == b.size(0) && a.size(2) == b.size(2) && a.size(3) == b.size(3);
    expect(fits,
           "concat_channels() takes feature maps of one size, the first is " + a.shape().text(), b);
    if (a.graph().is_portable()) return portable::concat_channels(a, b);
    const Shape shape{a.size(0), a.size(1) + b.size(1), a.size(2), a.size(3)};
    Sources sources;
    sources.add(a);
    sources.add(b);
    const ConcatSpec spec{a.size(0) * a.size(2) * a.size(3), a.size(1), b.size(1)};
    return {a.graph(), custom(a.graph(), axes(shape), sources, spec, run_concat), shape};
}

Tensor concat_tokens(const Tensor& a, const Tensor& b) {
    expect(a.rank() == 3, "concat_tokens() takes [N, tokens, width]", a);
    expect(b.rank() == 3 && a.size(0) == b.size(0) && a.size(2) == b.size(2),
           "concat_tokens() takes tokens of one width, the first are " + a.shape().text(), b);
    constexpr int kTokens = 1;  // ggml's axis
    return {a.graph(), ggml_concat(a.graph().context(), a.raw(), b.raw(), kTokens),
            Shape{a.size(0), a.size(1) + b.size(1), a.size(2)}};
}

Tensor resize_nearest(const Tensor& x, int64_t height, int64_t width) {
    expect(x.rank() == 4 && height > 0 && width > 0, "resize_nearest() takes a feature map", x);
    ggml_tensor* raw = ggml_interpolate(x.graph().context(), x.raw(), x.size(1), width, height,
                                        x.size(0), GGML_SCALE_MODE_NEAREST);
    return {x.graph(), raw, Shape{x.size(0), x.size(1), height, width}};
}

Tensor average_pool_2x(const Tensor& x) {
    expect(x.rank() == 4, "average_pool_2x() takes a feature map", x);
    if (x.graph().is_portable()) return portable::average_pool_2x(x);
    const Shape shape{x.size(0), x.size(1), (x.size(2) + 1) / 2, (x.size(3) + 1) / 2};
    Sources sources;
    sources.add(x);
    const PoolSpec spec{x.size(0), x.size(2), x.size(3), x.size(1)};
    return {x.graph(), custom(x.graph(), axes(shape), sources, spec, run_average_pool), shape};
}

Tensor mean_pixels(const Tensor& x) {
    expect(x.rank() == 4, "mean_pixels() takes a feature map", x);
    if (x.graph().is_portable()) return portable::mean_pixels(x);
    const Shape shape{x.size(0), 1, x.size(1)};
    Sources sources;
    sources.add(x);
    const MeanSpec spec{x.size(0), x.size(2) * x.size(3), x.size(1)};
    return {x.graph(), custom(x.graph(), axes(shape), sources, spec, run_mean), shape};
}

Tensor add_to_pixels(const Tensor& x, const Tensor& values) {
    expect(x.rank() == 4, "add_to_pixels() takes a feature map", x);
    const Shape wanted{x.size(0), 1, x.size(1)};
    expect(values.shape() == wanted, "values for the pixels are " + wanted.text(), values);
    const Tensor sum{x.graph(), ggml_add(x.graph().context(), tokens(x).raw(), values.raw()),
                     tokens(x).shape()};
    return feature_map(sum, x.size(2), x.size(3));
}

Tensor slice_last(const Tensor& x, int64_t start, int64_t count) {
    expect(
        (x.rank() == 2 || x.rank() == 3) && start >= 0 && count > 0 && start + count <= x.size(-1),
        "entries " + std::to_string(start) + " to " + std::to_string(start + count) +
            " were asked for",
        x);
    std::vector<int64_t> dims = x.shape().dims();
    dims.back() = count;
    ggml_tensor* raw = x.raw();
    ggml_tensor* view =
        ggml_view_3d(x.graph().context(), raw, count, raw->ne[1], raw->ne[2], raw->nb[1],
                     raw->nb[2], static_cast<size_t>(start) * raw->nb[0]);
    return {x.graph(), view, Shape(dims)};
}

Tensor contiguous(const Tensor& x) {
    return {x.graph(), ggml_cont(x.graph().context(), x.raw()), x.shape()};
}

Tensor geglu(const Tensor& x) {
    expect(x.rank() == 3 && x.size(2) % 2 == 0, "geglu() takes [N, tokens, 2 * inner]", x);
    const Shape shape{x.size(0), x.size(1), x.size(2) / 2};
    if (x.graph().is_portable())
        return {x.graph(), ggml_geglu_erf_swapped(x.graph().context(), readable(x)), shape};
    Sources sources;
    sources.add(x);
    kernels::Geglu op{};
    op.rows = x.size(0) * x.size(1);
    op.inner = x.size(2) / 2;
    return {x.graph(), custom(x.graph(), axes(shape), sources, op, run_geglu), shape};
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v,
                 const AttentionOptions& options) {
    expect(q.rank() == 3 && q.size(2) % options.heads == 0,
           "attention queries are [N, tokens, heads * head_dim]", q);
    const int64_t kv_heads = options.kv_heads ? options.kv_heads : options.heads;
    const int64_t head_dim = q.size(2) / options.heads;
    const bool fits = options.heads % kv_heads == 0 && k.rank() == 3 && k.size(0) == q.size(0) &&
                      k.size(2) == kv_heads * head_dim;
    expect(fits, "attention keys must fit the queries " + q.shape().text(), k);
    expect_same(k, v, "attention keys and values");
    Sources sources;
    AttentionSpec spec{};
    sources.add(q);
    sources.add(k);
    sources.add(v);
    spec.mask = sources.add(options.mask);
    spec.distance_bias = sources.add(options.distance_bias);
    kernels::Attention& op = spec.op;
    op.batch = q.size(0);
    op.heads = options.heads;
    op.kv_heads = kv_heads;
    op.head_dim = head_dim;
    op.q_len = q.size(1);
    op.kv_len = k.size(1);
    const auto stride = [](const Tensor& x, int axis) {
        return static_cast<int64_t>(x.raw()->nb[axis] / sizeof(float));
    };
    op.q_token_stride = stride(q, 1);
    op.k_token_stride = stride(k, 1);
    op.v_token_stride = stride(v, 1);
    op.q_batch_stride = stride(q, 2);
    op.k_batch_stride = stride(k, 2);
    op.v_batch_stride = stride(v, 2);
    op.output_token_stride = q.size(2);
    op.output_batch_stride = q.size(1) * q.size(2);
    op.scale =
        options.scale != 0 ? options.scale : 1.0f / std::sqrt(static_cast<float>(op.head_dim));
    op.softcap = options.softcap;
    op.causal = options.causal;
    op.fast = q.graph().is_fast();
    q.graph().add_work(2 * q.shape().elements() * op.kv_len);
    if (!options.mask_index.empty()) {
        const Tensor& mask = options.mask;
        expect(mask.rank() == 3 && mask.size(0) % op.heads == 0 && mask.size(1) == op.q_len &&
                   mask.size(2) == op.kv_len,
               "masks by index are [M * heads, query tokens, key tokens]", mask);
        op.mask_heads = op.heads;
        op.mask_batch = mask.size(0) / op.heads;
        const auto known = [&](int32_t i) { return i >= 0 && i < op.mask_batch; };
        expect(static_cast<int64_t>(options.mask_index.size()) == op.batch &&
                   std::all_of(options.mask_index.begin(), options.mask_index.end(), known),
               "attention needs the index of a mask for every batch entry", q);
        spec.mask_index = options.mask_index;
    } else if (options.mask) {
        const Tensor& mask = options.mask;
        const bool mask_fits = mask.rank() == 3 &&
                               (mask.size(0) == 1 || mask.size(0) == op.batch) &&
                               mask.size(1) == op.q_len && mask.size(2) == op.kv_len;
        expect(mask_fits, "an attention mask is [1 or N, query tokens, key tokens]", mask);
        op.mask_batch = mask.size(0);
    }
    if (options.distance_bias) {
        const Shape wanted{op.heads, op.q_len + op.kv_len - 1};
        expect(options.distance_bias.shape() == wanted,
               "an attention's distance bias is " + wanted.text(), options.distance_bias);
    }
    if (q.graph().is_portable()) return portable::attention(q, k, v, options);
    return {q.graph(), custom(q.graph(), axes(q.shape()), sources, spec, run_attention), q.shape()};
}

Tensor normalized_guidance(const Tensor& features, const Tensor& away, const Tensor& figures) {
    expect(features.rank() == 3, "normalized_guidance() takes [N, tokens, width]", features);
    expect_same(features, away, "normalized_guidance()");
    expect(figures.rank() == 2 && figures.size(0) == features.size(0) && figures.size(1) == 3,
           "the figures of normalized_guidance() are [N, 3]", figures);
    if (features.graph().is_portable())
        return portable::normalized_guidance(features, away, figures);
    Sources sources;
    sources.add(features);
    sources.add(away);
    sources.add(figures);
    const NormalizedGuidanceSpec spec{features.size(0), features.size(1), features.size(2)};
    return {
        features.graph(),
        custom(features.graph(), axes(features.shape()), sources, spec, run_normalized_guidance),
        features.shape()};
}

Tensor timestep_embedding(const Tensor& timesteps, int64_t width) {
    expect(timesteps.rank() == 1, "timesteps are [N]", timesteps);
    expect(width % 2 == 0, "a timestep embedding has an even width", timesteps);
    constexpr int kMaxPeriod = 10000;
    ggml_tensor* raw = ggml_timestep_embedding(timesteps.graph().context(), timesteps.raw(),
                                               static_cast<int>(width), kMaxPeriod);
    return {timesteps.graph(), raw, Shape{timesteps.size(0), width}};
}

}  // namespace sde::nn
