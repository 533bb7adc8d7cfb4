#include "nn/dit.h"

#include <cmath>
#include <cstring>

#include "nn/check.h"
#include "nn/custom.h"
#include "nn/portable/portable.h"

namespace sde::nn {
namespace {

// This thread's share [begin, end) of `rows`.
struct Share {
    int64_t begin, end;
    Share(int64_t rows, const kernels::Team& team)
        : begin(rows * team.rank() / team.size()), end(rows * (team.rank() + 1) / team.size()) {}
};

std::vector<int64_t> axes_of(const Shape& shape) {
    return {shape.dims().rbegin(), shape.dims().rend()};
}

// A tensor whose data the graph keeps, as a store keeps those of parameters: not planned, not set.
template <class T>
ggml_tensor* kept(Graph& graph, ggml_type type, const Shape& shape, std::vector<T> values) {
    const std::vector<int64_t> ne = axes_of(shape);
    if (graph.is_portable()) return graph.add_constant(type, ne, values.data());
    ggml_tensor* raw =
        ggml_new_tensor(graph.context(), type, static_cast<int>(ne.size()), ne.data());
    raw->data = graph.keep(std::move(values))->data();
    return raw;
}

struct PatchSpec {
    static constexpr const char* kName = "patches";
    int64_t rows, columns;  // of patches, in all pictures of the batch and in one row
    int64_t channels, patch;
    PatchOrder order;
    bool from_tokens;
};

void run_patches(PatchSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    const float* from = source(dst, 0);
    auto* to = static_cast<float*>(dst->data);
    const int64_t patch = spec.patch, channels = spec.channels, area = patch * patch;
    const Share share(spec.rows, team);
    for (int64_t row = share.begin; row < share.end; ++row)
        for (int64_t column = 0; column < spec.columns; ++column)
            for (int64_t i = 0; i < area; ++i) {
                const int64_t token = (row * spec.columns + column) * area * channels;
                const int64_t y = row * patch + i / patch, x = column * patch + i % patch;
                const int64_t pixel = (y * spec.columns * patch + x) * channels;
                const bool planar = spec.order == PatchOrder::ChannelYX;
                const int64_t first = planar ? i : i * channels, step = planar ? area : 1;
                for (int64_t c = 0; c < channels; ++c) {
                    const int64_t value = token + first + c * step;
                    if (spec.from_tokens)
                        to[pixel + c] = from[value];
                    else
                        to[value] = from[pixel + c];
                }
            }
}

// Operands 1 and 2 are scale and shift; one with stride 0 is the same for the whole batch.
struct ModulatedNormSpec {
    static constexpr const char* kName = "modulated_norm";
    kernels::LayerNorm op;
    int64_t batch, scale_stride, shift_stride;
};

void run_modulated_norm(ModulatedNormSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    kernels::LayerNorm op = spec.op;
    const int64_t elements = op.rows * op.width;
    for (int64_t n = 0; n < spec.batch; ++n) {
        op.input = source(dst, 0) + n * elements;
        op.gamma = source(dst, 1) + n * spec.scale_stride;
        op.beta = source(dst, 2) + n * spec.shift_stride;
        op.output = static_cast<float*>(dst->data) + n * elements;
        kernels::layer_norm(op, team);
    }
}

struct ChooseSpec {
    static constexpr const char* kName = "choose_tokens";
    int64_t batch, tokens, width;
};

void run_choose(ChooseSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    const float *x = source(dst, 0), *mask = source(dst, 1), *instead = source(dst, 2);
    const Share share(spec.batch * spec.tokens, team);
    for (int64_t row = share.begin; row < share.end; ++row) {
        const bool own = mask[row] != 0;
        const float* from = own ? x + row * spec.width : instead + row % spec.tokens * spec.width;
        std::memcpy(static_cast<float*>(dst->data) + row * spec.width, from,
                    static_cast<size_t>(spec.width) * sizeof(float));
    }
}

// ggml_custom_4d() takes fewer tensors than an operator has places for.
constexpr size_t kMostSources = GGML_MAX_SRC - 1;

struct JoinSpec {
    static constexpr const char* kName = "join_heads";
    struct Part {
        int x, gamma, beta, table;
        int64_t tokens, first;
        float eps;
        HeadNorm::Kind kind;
    };
    std::vector<Part> parts;
    int64_t batch, tokens, heads, head_dim;
};

float inverse_rms(const float* x, int64_t count, float eps) {
    constexpr int64_t kSums = 8;  // side by side, for the sake of vectors and of rounding
    float sums[kSums] = {};
    int64_t i = 0;
    for (; i + kSums <= count; i += kSums)
        for (int64_t j = 0; j < kSums; ++j) sums[j] += x[i + j] * x[i + j];
    for (; i < count; ++i) sums[0] += x[i] * x[i];
    double total = 0;
    for (float sum : sums) total += static_cast<double>(sum);
    return static_cast<float>(1.0 / std::sqrt(total / static_cast<double>(count) + eps));
}

void center(float* x, int64_t count) {
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += static_cast<double>(x[i]);
    const auto mean = static_cast<float>(total / static_cast<double>(count));
    for (int64_t i = 0; i < count; ++i) x[i] -= mean;
}

// Operands that are absent have the index Sources::kAbsent.
struct ScaledNormSpec {
    int gamma, factor, residual;
    int64_t rows, tokens, width, factor_stride;
    float eps;
};

void run_scaled_norm(ScaledNormSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    const Share share(spec.rows, team);
    const float* gamma = source(dst, spec.gamma);
    for (int64_t row = share.begin; row < share.end; ++row) {
        const float* from = source(dst, 0) + row * spec.width;
        auto* to = static_cast<float*>(dst->data) + row * spec.width;
        const float inverse = inverse_rms(from, spec.width, spec.eps);
        for (int64_t i = 0; i < spec.width; ++i) to[i] = from[i] * inverse * gamma[i];
        if (const float* factor = source(dst, spec.factor)) {
            factor += row / spec.tokens * spec.factor_stride;
            for (int64_t i = 0; i < spec.width; ++i) to[i] *= factor[i];
        }
        if (const float* residual = source(dst, spec.residual)) {
            residual += row * spec.width;
            for (int64_t i = 0; i < spec.width; ++i) to[i] += residual[i];
        }
    }
}

void turn(float* x, const float* cosines, int64_t head_dim) {
    const float* sines = cosines + head_dim / 2;
    for (int64_t i = 0; i < head_dim / 2; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosines[i] - b * sines[i];
        x[2 * i + 1] = b * cosines[i] + a * sines[i];
    }
}

void run_join(JoinSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    const int64_t width = spec.heads * spec.head_dim;
    const Share share(spec.batch * spec.tokens, team);
    for (int64_t row = share.begin; row < share.end; ++row) {
        int64_t token = row % spec.tokens;
        const int64_t n = row / spec.tokens;
        const JoinSpec::Part* part = spec.parts.data();
        for (; token >= part->tokens; ++part) token -= part->tokens;
        const float* from = source(dst, part->x) + (n * part->tokens + token) * width;
        const float *gamma = source(dst, part->gamma), *beta = source(dst, part->beta);
        const float* table = source(dst, part->table);
        auto* to = static_cast<float*>(dst->data) + row * width;
        std::memcpy(to, from, static_cast<size_t>(width) * sizeof(float));
        for (float* head = to; (gamma || table) && head < to + width; head += spec.head_dim) {
            if (gamma) {
                // Layer norm is RMS norm of what lies around the mean.
                if (part->kind == HeadNorm::Kind::Layer) center(head, spec.head_dim);
                const float factor = inverse_rms(head, spec.head_dim, part->eps);
                for (int64_t i = 0; i < spec.head_dim; ++i) head[i] *= factor * gamma[i];
            }
            for (int64_t i = 0; beta && i < spec.head_dim; ++i) head[i] += beta[i];
            if (table) turn(head, table + (part->first + token) * spec.head_dim, spec.head_dim);
        }
    }
}

}  // namespace

Tensor constant(Graph& graph, const Shape& shape, std::vector<float> values) {
    if (static_cast<int64_t>(values.size()) != shape.elements())
        throw Error(ErrorKind::Parameter, "a constant " + shape.text() + " was given " +
                                              std::to_string(values.size()) + " values");
    return {graph, kept(graph, GGML_TYPE_F32, shape, std::move(values)), shape};
}

Tensor constant_ids(Graph& graph, std::vector<int32_t> values) {
    const Shape shape{static_cast<int64_t>(values.size())};
    return {graph, kept(graph, GGML_TYPE_I32, shape, std::move(values)), shape};
}

Tensor patchify(const Tensor& x, int64_t patch, PatchOrder order) {
    expect(x.rank() == 4 && x.size(2) % patch == 0 && x.size(3) % patch == 0,
           "patchify() takes a feature map of whole patches of " + std::to_string(patch), x);
    if (x.graph().is_portable()) return portable::patchify(x, patch, order);
    const int64_t rows = x.size(2) / patch, columns = x.size(3) / patch;
    const Shape shape{x.size(0), rows * columns, x.size(1) * patch * patch};
    Sources sources;
    sources.add(x);
    const PatchSpec spec{x.size(0) * rows, columns, x.size(1), patch, order, false};
    return {x.graph(), custom(x.graph(), axes_of(shape), sources, spec, run_patches), shape};
}

Tensor unpatchify(const Tensor& x, int64_t height, int64_t width, int64_t patch, PatchOrder order) {
    const int64_t area = patch * patch;
    const bool fits = x.rank() == 3 && height % patch == 0 && width % patch == 0 &&
                      x.size(1) * area == height * width && x.size(2) % area == 0;
    expect(fits && ggml_is_contiguous(x.raw()),
           "unpatchify() takes the patches of " + std::to_string(height) + " x " +
               std::to_string(width),
           x);
    if (x.graph().is_portable()) return portable::unpatchify(x, height, width, patch, order);
    const Shape shape{x.size(0), x.size(2) / area, height, width};
    Sources sources;
    sources.add(x);
    const PatchSpec spec{x.size(0) * (height / patch), width / patch, shape[1], patch, order, true};
    ggml_tensor* raw =
        custom(x.graph(), {shape[1], width, height, shape[0]}, sources, spec, run_patches);
    return {x.graph(), raw, shape};
}

Tensor concat_tokens(const std::vector<Tensor>& parts) {
    std::vector<HeadTokens> plain;
    for (const Tensor& part : parts) {
        if (plain.size() == kMostSources) plain = {{join_heads(plain, part.size(-1))}};
        plain.push_back({part});
    }
    return join_heads(plain, parts.front().size(-1));
}

Tensor slice_tokens(const Tensor& x, int64_t start, int64_t count) {
    expect(x.rank() == 3 && start >= 0 && count > 0 && start + count <= x.size(1),
           "tokens " + std::to_string(start) + " to " + std::to_string(start + count) +
               " were asked for",
           x);
    ggml_tensor* raw = x.raw();
    ggml_tensor* view =
        ggml_view_3d(x.graph().context(), raw, x.size(2), count, x.size(0), raw->nb[1], raw->nb[2],
                     static_cast<size_t>(start) * raw->nb[1]);
    if (!ggml_is_contiguous(view)) view = ggml_cont(x.graph().context(), view);
    return {x.graph(), view, Shape{x.size(0), count, x.size(2)}};
}

Tensor add_to_tokens(const Tensor& x, int64_t start, const Tensor& more) {
    const bool fits = x.rank() == 3 && more.rank() == 3 && x.size(0) == more.size(0) &&
                      x.size(2) == more.size(2) && start >= 0 && start + more.size(1) <= x.size(1);
    expect(fits,
           "add_to_tokens() adds " + more.shape().text() + " from token " + std::to_string(start) +
               " on",
           x);
    ggml_tensor* raw = x.raw();
    ggml_tensor* sum = ggml_acc(x.graph().context(), raw, more.raw(), raw->nb[1], raw->nb[2],
                                raw->nb[3], static_cast<size_t>(start) * raw->nb[1]);
    return {x.graph(), sum, x.shape()};
}

Tensor concat_last(const Tensor& a, const Tensor& b) {
    expect(a.rank() == 3, "concat_last() takes [N, tokens, width]", a);
    expect(b.rank() == 3, "concat_last() takes [N, tokens, width]", b);
    // As feature maps of one column.
    return tokens(concat_channels(feature_map(a, a.size(1), 1), feature_map(b, b.size(1), 1)));
}

Tensor modulated_norm(const Tensor& x, const Tensor& scale, const Tensor& shift, float eps) {
    expect(x.rank() == 3 && ggml_is_contiguous(x.raw()),
           "modulated_norm() takes [N, tokens, width]", x);
    const Shape wanted{x.size(0), x.size(2)};
    expect(scale.shape() == wanted, "a modulation's scale must be " + wanted.text(), scale);
    expect(shift.shape() == wanted, "a modulation's shift must be " + wanted.text(), shift);
    if (x.graph().is_portable())
        return portable::layer_norm(x, eps, scale.raw(), shift.raw(), true);
    ModulatedNormSpec spec{};
    spec.op.rows = x.size(1);
    spec.op.width = x.size(2);
    spec.op.eps = eps;
    spec.op.gamma_offset = 1;
    spec.batch = x.size(0);
    spec.scale_stride = row_stride(scale);
    spec.shift_stride = row_stride(shift);
    Sources sources;
    sources.add(x);
    sources.add(scale);
    sources.add(shift);
    return {x.graph(), custom(x.graph(), axes_of(x.shape()), sources, spec, run_modulated_norm),
            x.shape()};
}

Tensor ShiftedNorm::operator()(const Tensor& x, const Tensor& shift) const {
    expect(x.rank() == 3 && x.size(2) == width_ && ggml_is_contiguous(x.raw()),
           "a shifted norm takes [N, tokens, " + std::to_string(width_) + "]", x);
    const Shape wanted{x.size(0), width_};
    expect(shift.shape() == wanted, "a norm's shift must be " + wanted.text(), shift);
    ModulatedNormSpec spec{};
    spec.op.rows = x.size(1);
    spec.op.width = width_;
    spec.op.eps = eps_;
    spec.batch = x.size(0);
    const Tensor sum{x.graph(), ggml_add(x.graph().context(), shift.raw(), beta_), wanted};
    if (x.graph().is_portable()) return portable::layer_norm(x, eps_, gamma_, sum.raw());
    spec.shift_stride = row_stride(sum);
    Sources sources;
    sources.add(x);
    sources.add(gamma_);
    sources.add(sum);
    return {x.graph(), custom(x.graph(), axes_of(x.shape()), sources, spec, run_modulated_norm),
            x.shape()};
}

Tensor choose_tokens(const Tensor& x, const Tensor& mask, const Tensor& instead) {
    expect(x.rank() == 3 && ggml_is_contiguous(x.raw()), "choose_tokens() takes [N, tokens, width]",
           x);
    const Shape wanted_mask{x.size(0), x.size(1)}, wanted{1, x.size(1), x.size(2)};
    expect(mask.shape() == wanted_mask, "a mask of tokens is " + wanted_mask.text(), mask);
    expect(instead.shape() == wanted, "tokens to take instead are " + wanted.text(), instead);
    if (x.graph().is_portable()) return portable::choose_tokens(x, mask, instead);
    Sources sources;
    sources.add(x);
    sources.add(mask);
    sources.add(instead);
    const ChooseSpec spec{x.size(0), x.size(1), x.size(2)};
    return {x.graph(), custom(x.graph(), axes_of(x.shape()), sources, spec, run_choose), x.shape()};
}

Tensor ScaledRmsNorm::operator()(const Tensor& x, const Tensor& factor,
                                 const Tensor& residual) const {
    expect(x.rank() == 3 && x.size(2) == width_ && ggml_is_contiguous(x.raw()),
           "an RMS norm of tokens takes [N, tokens, " + std::to_string(width_) + "]", x);
    const Shape wanted{x.size(0), width_};
    if (factor)
        expect(factor.shape() == wanted, "a norm's factor must be " + wanted.text(), factor);
    if (residual)
        expect(residual.shape() == x.shape() && ggml_is_contiguous(residual.raw()),
               "a norm's residual must be " + x.shape().text(), residual);
    if (x.graph().is_portable())
        return portable::scaled_rms_norm(x, eps_, gamma_, factor, residual);
    Sources sources;
    sources.add(x);
    const int gamma = sources.add(gamma_), scale = sources.add(factor),
              rest = sources.add(residual);
    const ScaledNormSpec spec{gamma,
                              scale,
                              rest,
                              x.size(0) * x.size(1),
                              x.size(1),
                              width_,
                              factor ? row_stride(factor) : 0,
                              eps_};
    return {x.graph(), custom(x.graph(), axes_of(x.shape()), sources, spec, run_scaled_norm),
            x.shape()};
}

Tensor rotary_constant(Graph& graph, const Positions& positions, const std::vector<int64_t>& axes,
                       double theta) {
    int64_t head_dim = 0;
    for (int64_t axis : axes) head_dim += axis;
    std::vector<float> table(positions.size() * static_cast<size_t>(head_dim));
    float* cosines = table.data();
    for (const std::vector<float>& token : positions) {
        float* sines = cosines + head_dim / 2;
        int64_t pair = 0;
        for (size_t a = 0; a < axes.size(); ++a)
            for (int64_t i = 0; i < axes[a]; i += 2, ++pair) {
                const double share = static_cast<double>(i) / static_cast<double>(axes[a]);
                const double angle = static_cast<double>(token.at(a)) / std::pow(theta, share);
                cosines[pair] = static_cast<float>(std::cos(angle));
                sines[pair] = static_cast<float>(std::sin(angle));
            }
        cosines += head_dim;
    }
    return constant(graph, Shape{static_cast<int64_t>(positions.size()), head_dim},
                    std::move(table));
}

Tensor sincos_constant(Graph& graph, int64_t height, int64_t width, int64_t values, double span) {
    constexpr double kTheta = 10000;
    const int64_t quarter = values / 4;
    std::vector<float> table;
    const auto add = [&](int64_t at, int64_t count) {
        const double place = static_cast<double>(at) * span / static_cast<double>(count);
        const auto angle = [&](int64_t i) {
            return place / std::pow(kTheta, static_cast<double>(i) / static_cast<double>(quarter));
        };
        for (int64_t i = 0; i < quarter; ++i)
            table.push_back(static_cast<float>(std::sin(angle(i))));
        for (int64_t i = 0; i < quarter; ++i)
            table.push_back(static_cast<float>(std::cos(angle(i))));
    };
    for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x) {
            add(x, width);
            add(y, height);
        }
    return constant(graph, Shape{height * width, 4 * quarter}, std::move(table));
}

Tensor join_heads(const std::vector<HeadTokens>& parts, int64_t head_dim) {
    const Tensor& model = parts.front().x;
    expect(model.rank() == 3 && model.size(2) % head_dim == 0,
           "join_heads() takes [N, tokens, heads * " + std::to_string(head_dim) + "]", model);
    if (parts.size() == 1 && !parts[0].norm && !parts[0].rotary.table) return model;
    JoinSpec spec{{}, model.size(0), 0, model.size(2) / head_dim, head_dim};
    Sources sources;
    Tensor joined;
    for (const auto& [x, norm, rotary] : parts) {
        const bool fits = x.rank() == 3 && x.size(0) == spec.batch && x.size(2) == model.size(2);
        expect(fits && ggml_is_contiguous(x.raw()),
               "tokens to join must fit " + model.shape().text(), x);
        if (rotary.table) {
            const bool table_fits = rotary.table.rank() == 2 &&
                                    rotary.table.size(0) >= rotary.first + x.size(1) &&
                                    rotary.table.size(1) == head_dim;
            expect(table_fits, "the rotary table must fit " + x.shape().text(), rotary.table);
        }
        if (model.graph().is_portable()) {
            Tensor part = x;
            if (norm)
                part = portable::head_norm(x, head_dim, norm->eps_, norm->gamma_, norm->beta_,
                                           norm->kind_ == HeadNorm::Kind::Layer);
            if (rotary.table)
                part = portable::rotate(part, rotary.table, rotary.first, head_dim, true);
            joined = joined ? concat_tokens(joined, part) : part;
            continue;
        }
        spec.parts.push_back({sources.add(x), sources.add(norm ? norm->gamma_ : nullptr),
                              sources.add(norm ? norm->beta_ : nullptr), sources.add(rotary.table),
                              x.size(1), rotary.first, norm ? norm->eps_ : 0.0f,
                              norm ? norm->kind_ : HeadNorm::Kind::Rms});
        spec.tokens += x.size(1);
    }
    if (joined) return joined;
    expect(sources.tensors().size() <= kMostSources, "too many streams of tokens to join", model);
    const Shape shape{spec.batch, spec.tokens, model.size(2)};
    return {model.graph(), custom(model.graph(), axes_of(shape), sources, spec, run_join), shape};
}

Tensor PositionTable::middle(Graph& graph, int64_t height, int64_t width) const {
    if (height > side_ || width > side_)
        throw Error(ErrorKind::Parameter,
                    std::to_string(height) + " x " + std::to_string(width) +
                        " patches were asked for, the network knows the positions of " +
                        std::to_string(side_) + " x " + std::to_string(side_));
    const int64_t top = (side_ - height) / 2, left = (side_ - width) / 2;
    std::vector<int32_t> rows;
    for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x)
            rows.push_back(static_cast<int32_t>((top + y) * side_ + left + x));
    const Shape count{height * width};
    ggml_tensor* ids = kept(graph, GGML_TYPE_I32, count, std::move(rows));
    return {graph, ggml_get_rows(graph.context(), weight_, ids), Shape{count[0], width_}};
}

}  // namespace sde::nn
