#include "nn/layers.h"

#include <algorithm>

#include "nn/check.h"
#include "nn/custom.h"
#include "nn/portable/portable.h"

namespace sde::nn {
namespace {

// Which operands of a custom operator belong to its epilogue.
struct EpilogueSources {
    int bias, batch_bias, residual, gate;
    Activation activation;
    bool residual_inside;
    int64_t gate_stride;

    EpilogueSources() = default;
    EpilogueSources(Sources& sources, ggml_tensor* bias_tensor, const Epilogue& epilogue)
        : bias(sources.add(bias_tensor)),
          batch_bias(sources.add(epilogue.batch_bias)),
          residual(sources.add(epilogue.residual)),
          gate(sources.add(epilogue.gate)),
          activation(epilogue.activation),
          residual_inside(epilogue.residual_inside),
          gate_stride(epilogue.gate ? row_stride(epilogue.gate) : 0) {}

    kernels::Epilogue resolve(const ggml_tensor* dst) const {
        return {source(dst, bias), source(dst, batch_bias), source(dst, residual),
                activation,        residual_inside,         source(dst, gate),
                gate_stride};
    }
};

void check_epilogue(const Epilogue& epilogue, const Shape& output) {
    if (epilogue.residual) {
        expect(epilogue.residual.shape() == output, "a residual must be " + output.text(),
               epilogue.residual);
        expect(ggml_is_contiguous(epilogue.residual.raw()), "a residual must be contiguous",
               epilogue.residual);
    }
    const Shape wanted{output[0], output.rank() == 4 ? output[1] : output[-1]};
    if (epilogue.batch_bias)
        expect(epilogue.batch_bias.shape() == wanted, "a batch bias must be " + wanted.text(),
               epilogue.batch_bias);
    if (epilogue.gate)
        expect(epilogue.gate.shape() == wanted, "a gate must be " + wanted.text(), epilogue.gate);
}

// A kernel that multiplies by a weight and ends in an epilogue; operand 0 is the input, 1 the
// weight.
template <class Op>
struct WeightedSpec {
    static constexpr const char* kName = Op::kName;
    Op op;
    EpilogueSources epilogue;
};

template <class Op, void (*kernel)(const Op&, kernels::Team&)>
void run_weighted(WeightedSpec<Op> spec, const ggml_tensor* dst, kernels::Team& team) {
    spec.op.input = source(dst, 0);
    spec.op.weight.data = dst->src[1]->data;
    spec.op.output = static_cast<float*>(dst->data);
    spec.op.epilogue = spec.epilogue.resolve(dst);
    kernel(spec.op, team);
}

void run_group_norm(kernels::GroupNorm op, const ggml_tensor* dst, kernels::Team& team) {
    op.input = source(dst, 0);
    op.gamma = source(dst, 1);
    op.beta = source(dst, 2);
    op.output = static_cast<float*>(dst->data);
    kernels::group_norm(op, team);
}

void run_layer_norm(kernels::LayerNorm op, const ggml_tensor* dst, kernels::Team& team) {
    op.input = source(dst, 0);
    op.gamma = source(dst, 1);
    op.beta = source(dst, 2);
    op.output = static_cast<float*>(dst->data);
    kernels::layer_norm(op, team);
}

struct PReluSpec {
    int64_t points, channels;
};

void run_prelu(PReluSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    const float *in = source(dst, 0), *slopes = source(dst, 1);
    auto* out = static_cast<float*>(dst->data);
    const int64_t end = spec.points * (team.rank() + 1) / team.size();
    for (int64_t p = spec.points * team.rank() / team.size(); p < end; ++p)
        for (int64_t c = 0; c < spec.channels; ++c) {
            const float x = in[p * spec.channels + c];
            out[p * spec.channels + c] = x < 0 ? x * slopes[c] : x;
        }
}

struct LookupSpec {
    static constexpr const char* kName = "lookup";
    int64_t tokens, width, entries;
};

void run_lookup(LookupSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    const auto* ids = static_cast<const int32_t*>(dst->src[0]->data);
    const ggml_tensor* table = dst->src[1];
    const float* learned = source(dst, 2);
    const ggml_to_float_t to_float = ggml_get_type_traits(table->type)->to_float;
    const int64_t end = spec.tokens * (team.rank() + 1) / team.size();
    for (int64_t t = spec.tokens * team.rank() / team.size(); t < end; ++t) {
        float* to = static_cast<float*>(dst->data) + t * spec.width;
        const char* row = static_cast<const char*>(table->data) + ids[t] * table->nb[1];
        if (ids[t] >= spec.entries)
            std::copy_n(learned + (ids[t] - spec.entries) * spec.width, spec.width, to);
        else if (table->type == GGML_TYPE_F32)
            std::copy_n(reinterpret_cast<const float*>(row), spec.width, to);
        else
            to_float(row, to, spec.width);
    }
}

kernels::Weight describe(const ggml_tensor* weight) {
    return {nullptr, weight->type, weight->ne[1], weight->ne[0]};
}

// The convolution of x by a kernel stored as the matrix [out, in * kernel * kernel].
Tensor convolve(const Tensor& x, ggml_tensor* weight, ggml_tensor* bias,
                const Conv2dOptions& options, const Epilogue& epilogue, bool upsample_2x) {
    WeightedSpec<kernels::Conv2d> spec{};
    kernels::Conv2d& op = spec.op;
    op.batch = x.size(0);
    op.height = x.size(2);
    op.width = x.size(3);
    op.in_channels = x.size(1);
    op.weight = describe(weight);
    op.kernel_h = op.kernel_w = options.kernel;
    op.stride = options.stride;
    const int pad =
        options.pad ? (options.kernel - 1) / 2 : 0;  // none where the kernel is even: patches
    op.pad_top = op.pad_left = options.pad_right_bottom_only ? 0 : pad;
    op.pad_bottom = op.pad_right = pad;
    op.upsample2x = upsample_2x;
    if (x.graph().arithmetic() == Arithmetic::Precise) op.method = kernels::ConvMethod::Direct;
    op.fast = x.graph().is_fast();
    op.circular_x = x.graph().circular_x();
    op.circular_y = x.graph().circular_y();
    const int64_t grown = upsample_2x ? 2 : 1;
    const auto out_size = [&](int64_t size, int before, int after) {
        return (size * grown + before + after - options.kernel) / options.stride + 1;
    };
    const Shape shape{op.batch, op.weight.rows, out_size(op.height, op.pad_top, op.pad_bottom),
                      out_size(op.width, op.pad_left, op.pad_right)};
    expect(shape[2] > 0 && shape[3] > 0, "the feature map is too small for a convolution", x);
    check_epilogue(epilogue, shape);

    x.graph().add_work(shape.elements() * op.weight.row_elements);
    if (x.graph().is_portable()) return portable::conv2d(op, x, weight, bias, epilogue, shape);

    Sources sources;
    sources.add(x);
    sources.add(weight);
    spec.epilogue = EpilogueSources(sources, bias, epilogue);
    ggml_tensor* raw = custom(x.graph(), {shape[1], shape[3], shape[2], shape[0]}, sources, spec,
                              run_weighted<kernels::Conv2d, kernels::conv2d>);
    return {x.graph(), raw, shape};
}

// The last axis of x multiplied by the matrix [out, in].
Tensor multiply_by(const Tensor& x, ggml_tensor* weight, ggml_tensor* bias,
                   const Epilogue& epilogue) {
    std::vector<int64_t> dims = x.shape().dims();
    dims.back() = weight->ne[1];
    const Shape shape(dims);
    check_epilogue(epilogue, shape);
    if (x.graph().is_portable()) return portable::linear(x, weight, bias, epilogue, shape);
    WeightedSpec<kernels::Linear> spec{};
    spec.op.in_features = x.size(-1);
    spec.op.rows = x.shape().elements() / spec.op.in_features;
    spec.op.rows_per_batch = spec.op.rows / x.size(0);
    spec.op.weight = describe(weight);
    spec.op.fast = x.graph().is_fast();
    x.graph().add_work(shape.elements() * spec.op.in_features);
    Sources sources;
    sources.add(x);
    sources.add(weight);
    spec.epilogue = EpilogueSources(sources, bias, epilogue);
    const std::vector<int64_t> ne(dims.rbegin(), dims.rend());
    return {x.graph(),
            custom(x.graph(), ne, sources, spec, run_weighted<kernels::Linear, kernels::linear>),
            shape};
}

// The gains of adapters lie along the axis that is fastest in memory: channels, or the last one.
Tensor with_gains(const Tensor& hidden, ggml_tensor* gains) {
    return {hidden.graph(), ggml_mul(hidden.graph().context(), hidden.raw(), gains),
            hidden.shape()};
}

// `layer(epilogue)` with what adapters add to its sum, `side(epilogue)`: the side path carries the
// residual, and its result is the layer's own residual, so that nothing is added in a pass of its
// own.
template <class Layer, class Side>
Tensor joined(const Epilogue& epilogue, const Layer& layer, const Side& side) {
    const bool outside = epilogue.residual && !epilogue.residual_inside &&
                         (epilogue.activation != Activation::None || epilogue.gate);
    Epilogue inner = epilogue;
    inner.residual = side(Epilogue{.residual = outside ? Tensor{} : epilogue.residual});
    inner.residual_inside = true;
    const Tensor sum = layer(inner);
    return outside ? add(sum, epilogue.residual) : sum;
}

}  // namespace

Conv2d::Conv2d(const Scope& scope, int64_t in, int64_t out, Conv2dOptions options)
    : in_(in),
      options_(options),
      weight_(scope.matrix("weight", Shape{out, in, options.kernel, options.kernel})),
      bias_(options.bias ? scope.vector("bias", out) : nullptr),
      beside_(scope.beside("weight")) {}

Tensor Conv2d::enlarged(const Tensor& x, int64_t height, int64_t width,
                        const Epilogue& epilogue) const {
    if (x.rank() == 4 && height == 2 * x.size(2) && width == 2 * x.size(3))
        return apply(x, epilogue, true);
    return apply(resize_nearest(x, height, width), epilogue, false);
}

Tensor Conv2d::apply(const Tensor& x, const Epilogue& epilogue, bool upsample_2x) const {
    expect(x.rank() == 4 && x.size(1) == in_,
           "a convolution takes [N, " + std::to_string(in_) + ", H, W]", x);
    const auto layer = [&](const Epilogue& with) {
        return convolve(x, weight_, bias_, options_, with, upsample_2x);
    };
    if (!beside_->down) return layer(epilogue);
    return joined(epilogue, layer, [&](const Epilogue& with) {
        const Tensor hidden = convolve(x, beside_->down, nullptr, options_, {}, upsample_2x);
        return convolve(with_gains(hidden, beside_->gains), beside_->up, nullptr, {.kernel = 1},
                        with, false);
    });
}

Linear::Linear(const Scope& scope, int64_t in, int64_t out, bool bias)
    : in_(in),
      weight_(scope.matrix("weight", Shape{out, in})),
      bias_(bias ? scope.vector("bias", out) : nullptr),
      beside_(scope.beside("weight")) {}

Tensor Linear::operator()(const Tensor& x, const Epilogue& epilogue) const {
    expect((x.rank() == 2 || x.rank() == 3) && x.size(-1) == in_,
           "a linear layer takes " + std::to_string(in_) + " values on the last axis", x);
    expect(ggml_is_contiguous(x.raw()), "a linear layer takes a contiguous tensor", x);
    const auto layer = [&](const Epilogue& with) { return multiply_by(x, weight_, bias_, with); };
    if (!beside_->down) return layer(epilogue);
    return joined(epilogue, layer, [&](const Epilogue& with) {
        const Tensor hidden = multiply_by(x, beside_->down, nullptr, {});
        return multiply_by(with_gains(hidden, beside_->gains), beside_->up, nullptr, with);
    });
}

GroupNorm::GroupNorm(const Scope& scope, int64_t channels, int64_t groups, float eps)
    : channels_(channels),
      groups_(groups),
      eps_(eps),
      gamma_(scope.vector("weight", channels)),
      beta_(scope.vector("bias", channels)) {
    if (groups <= 0 || channels % groups != 0)
        throw Error(ErrorKind::Parameter, std::to_string(channels) +
                                              " channels cannot be parted into " +
                                              std::to_string(groups) + " groups");
}

Tensor GroupNorm::apply(const Tensor& x, bool silu, bool in_place) const {
    expect(x.rank() == 4 && x.size(1) == channels_,
           "a group norm takes [N, " + std::to_string(channels_) + ", H, W]", x);
    if (x.graph().is_portable()) return portable::group_norm(x, groups_, eps_, gamma_, beta_, silu);
    kernels::GroupNorm op{};
    op.batch = x.size(0);
    op.pixels = x.size(2) * x.size(3);
    op.channels = channels_;
    op.groups = groups_;
    op.eps = eps_;
    op.silu = silu;
    Sources sources;
    sources.add(x);
    sources.add(gamma_);
    sources.add(beta_);
    if (in_place)
        return {x.graph(), custom_in_place(x.graph(), sources, op, run_group_norm), x.shape()};
    const std::vector<int64_t> ne(x.raw()->ne, x.raw()->ne + 4);
    return {x.graph(), custom(x.graph(), ne, sources, op, run_group_norm), x.shape()};
}

Tensor ChannelNorm::operator()(const Tensor& x) const {
    expect(x.rank() == 4 && x.size(1) == channels_,
           "a norm over channels takes [N, " + std::to_string(channels_) + ", H, W]", x);
    constexpr float kEps = 1e-24f;  // keeps points that are zero
    ggml_context* context = x.graph().context();
    return {x.graph(), ggml_mul(context, ggml_rms_norm(context, x.raw(), kEps), gamma_), x.shape()};
}

FeatureNorm::FeatureNorm(const Scope& scope, int64_t channels, int64_t groups, float eps)
    : norm_([&]() -> std::variant<GroupNorm, ChannelNorm> {
          if (groups == 0) return ChannelNorm(scope, channels);
          return GroupNorm(scope, channels, groups, eps);
      }()) {}

Tensor FeatureNorm::operator()(const Tensor& x) const {
    return std::visit([&](const auto& norm) { return norm(x); }, norm_);
}

Tensor FeatureNorm::then_silu(const Tensor& x) const {
    if (auto* group = std::get_if<GroupNorm>(&norm_)) return group->then_silu(x);
    return activate((*this)(x), Activation::Silu);
}

Tensor FeatureNorm::then_silu_in_place(const Tensor& x) const {
    // The steps of the other norm find out by themselves that nothing else reads x.
    if (auto* group = std::get_if<GroupNorm>(&norm_)) return group->then_silu_in_place(x);
    return then_silu(x);
}

PRelu::PRelu(const Scope& scope, int64_t channels)
    : channels_(channels), slopes_(scope.vector("weight", channels)) {}

Tensor PRelu::operator()(const Tensor& x) const {
    expect(x.rank() == 4 && x.size(1) == channels_,
           "a PReLU takes [N, " + std::to_string(channels_) + ", H, W]", x);
    if (x.graph().is_portable()) return portable::prelu(x, slopes_);
    Sources sources;
    sources.add(x);
    sources.add(slopes_);
    const PReluSpec spec{x.size(0) * x.size(2) * x.size(3), channels_};
    const std::vector<int64_t> ne(x.raw()->ne, x.raw()->ne + 4);
    return {x.graph(), custom(x.graph(), ne, sources, spec, run_prelu), x.shape()};
}

LayerNorm::LayerNorm(const Scope& scope, int64_t width, float eps)
    : width_(width),
      eps_(eps),
      gamma_(scope.vector("weight", width)),
      beta_(scope.vector("bias", width)) {}

Tensor LayerNorm::operator()(const Tensor& x) const {
    expect(x.rank() <= 3 && x.size(-1) == width_,
           "a layer norm takes " + std::to_string(width_) + " values on the last axis", x);
    if (x.graph().is_portable()) return portable::layer_norm(x, eps_, gamma_, beta_);
    kernels::LayerNorm op{};
    op.rows = x.shape().elements() / width_;
    op.width = width_;
    op.eps = eps_;
    Sources sources;
    sources.add(x);
    sources.add(gamma_);
    sources.add(beta_);
    const std::vector<int64_t> ne(x.raw()->ne, x.raw()->ne + 4);
    return {x.graph(), custom(x.graph(), ne, sources, op, run_layer_norm), x.shape()};
}

RmsNorm::RmsNorm(const Scope& scope, int64_t width, float eps, bool plus_one)
    : width_(width), eps_(eps), plus_one_(plus_one), gamma_(scope.vector("weight", width)) {}

Tensor RmsNorm::operator()(const Tensor& x) const {
    expect(x.rank() <= 3 && x.size(-1) == width_,
           "an RMS norm takes " + std::to_string(width_) + " values on the last axis", x);
    ggml_context* context = x.graph().context();
    ggml_tensor* gamma = plus_one_ ? ggml_scale_bias(context, gamma_, 1.0f, 1.0f) : gamma_;
    return {x.graph(), ggml_mul(context, ggml_rms_norm(context, x.raw(), eps_), gamma), x.shape()};
}

Embedding::Embedding(const Scope& scope, int64_t entries, int64_t width)
    : entries_(entries), width_(width), weight_(scope.matrix("weight", Shape{entries, width})) {}

Tensor Embedding::operator()(const Tensor& ids) const {
    expect(ids.rank() == 2, "ids are [N, tokens]", ids);
    ggml_context* context = ids.graph().context();
    ggml_tensor* flat = ggml_reshape_1d(context, ids.raw(), ids.shape().elements());
    const Shape shape{ids.size(0), ids.size(1), width_};
    ggml_tensor* rows = ggml_get_rows(context, weight_, flat);
    return {ids.graph(), ggml_reshape_3d(context, rows, width_, ids.size(1), ids.size(0)), shape};
}

Tensor Embedding::operator()(const Tensor& ids, const Tensor& learned) const {
    expect(ids.rank() == 2, "ids are [N, tokens]", ids);
    expect(learned.rank() == 2 && learned.size(1) == width_,
           "learned vectors are [M, " + std::to_string(width_) + "]", learned);
    if (ids.graph().is_portable()) return portable::lookup(ids, weight_, learned);
    Sources sources;
    sources.add(ids);
    sources.add(weight_);
    sources.add(learned);
    const Shape shape{ids.size(0), ids.size(1), width_};
    const LookupSpec spec{ids.shape().elements(), width_, entries_};
    return {ids.graph(),
            custom(ids.graph(), {shape[2], shape[1], shape[0]}, sources, spec, run_lookup), shape};
}

Tensor Embedding::rows(Graph& graph, int64_t count) const {
    if (count > entries_)
        throw Error(ErrorKind::Parameter, std::to_string(count) +
                                              " positions were asked for, the network has " +
                                              std::to_string(entries_));
    const Shape shape{count, width_};
    if (graph.is_portable())
        return portable::take_rows(graph, weight_, portable::first_rows(count), shape);
    ggml_context* context = graph.context();
    ggml_tensor* view = ggml_view_2d(context, weight_, width_, count, weight_->nb[1], 0);
    ggml_tensor* values = ggml_cast(context, view, GGML_TYPE_F32);
    return {graph, values, shape};
}

LearnedTokens::LearnedTokens(const Scope& scope, const std::string& name, int64_t tokens,
                             int64_t width)
    : tokens_(tokens), width_(width), weight_(scope.matrix(name, Shape{tokens, width})) {}

Tensor LearnedTokens::operator()(Graph& graph, int64_t batch) const {
    const Shape shape{batch, tokens_, width_};
    if (graph.is_portable())
        return portable::take_rows(graph, weight_, portable::first_rows(tokens_, batch), shape);
    ggml_context* context = graph.context();
    ggml_tensor* values = ggml_cast(context, weight_, GGML_TYPE_F32);
    ggml_tensor* repeated = ggml_repeat_4d(context, values, width_, tokens_, batch, 1);
    return {graph, repeated, shape};
}

}  // namespace sde::nn
