// The kernels in their plainest form, in double precision on one thread. The tests compare with
// them; no model runs on them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/dispatch.h"

namespace sde::kernels {
namespace reference {
namespace {

double activate(double x, Activation activation) {
    constexpr double kSqrt2OverPi = 0.79788456080286536;
    switch (activation) {
        case Activation::None:
            return x;
        case Activation::Silu:
            return x / (1 + std::exp(-x));
        case Activation::Gelu:
            return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
        case Activation::GeluTanh:
            return 0.5 * x * (1 + std::tanh(kSqrt2OverPi * (x + 0.044715 * x * x * x)));
        case Activation::QuickGelu:
            return x / (1 + std::exp(-1.702 * x));
        case Activation::Relu:
            return std::max(x, 0.0);
        case Activation::LeakyRelu:
            return std::max(x, x * kLeakySlope);
    }
    return x;
}

std::vector<float> to_float(const Weight& weight) {
    const int64_t count = weight.rows * weight.row_elements;
    std::vector<float> values(count);
    if (weight.type == GGML_TYPE_F32)
        std::copy_n(static_cast<const float*>(weight.data), count, values.data());
    else
        ggml_get_type_traits(weight.type)->to_float(weight.data, values.data(), count);
    return values;
}

double finish(double sum, const Epilogue& e, int64_t channel, int64_t channels, int64_t batch,
              int64_t at) {
    if (e.bias) sum += e.bias[channel];
    if (e.batch_bias) sum += e.batch_bias[batch * channels + channel];
    const double residual = e.residual ? e.residual[at] : 0.0;
    sum = activate(e.residual_inside ? sum + residual : sum, e.activation);
    if (e.gate) sum *= e.gate[batch * e.gate_stride + channel];
    return e.residual_inside ? sum : sum + residual;
}

// The input row or column that a window position shows; -1 in the padding.
int64_t source_index(int64_t i, int64_t size, bool upsample2x, bool circular) {
    const int64_t seen = upsample2x ? 2 * size : size;
    if (circular) i = (i % seen + seen) % seen;
    if (i < 0 || i >= seen) return -1;
    return upsample2x ? i / 2 : i;
}

double window_sum(const Conv2d& op, const float* weight, int64_t n, int64_t oy, int64_t ox) {
    double sum = 0;
    for (int ky = 0; ky < op.kernel_h; ++ky) {
        for (int kx = 0; kx < op.kernel_w; ++kx) {
            const int64_t y = source_index(oy * op.stride - op.pad_top + ky, op.height,
                                           op.upsample2x, op.circular_y);
            const int64_t x = source_index(ox * op.stride - op.pad_left + kx, op.width,
                                           op.upsample2x, op.circular_x);
            if (y < 0 || x < 0) continue;
            const float* pixel = op.input + ((n * op.height + y) * op.width + x) * op.in_channels;
            for (int64_t c = 0; c < op.in_channels; ++c)
                sum += static_cast<double>(pixel[c]) *
                       weight[(c * op.kernel_h + ky) * op.kernel_w + kx];
        }
    }
    return sum;
}

void conv2d(const Conv2d& op, Team& team) {
    if (team.rank() == 0) {
        const int64_t scale = op.upsample2x ? 2 : 1;
        const int64_t height =
            (scale * op.height + op.pad_top + op.pad_bottom - op.kernel_h) / op.stride + 1;
        const int64_t width =
            (scale * op.width + op.pad_left + op.pad_right - op.kernel_w) / op.stride + 1;
        const std::vector<float> weight = to_float(op.weight);
        float* to = op.output;
        for (int64_t n = 0; n < op.batch; ++n)
            for (int64_t y = 0; y < height; ++y)
                for (int64_t x = 0; x < width; ++x)
                    for (int64_t c = 0; c < op.weight.rows; ++c, ++to)
                        *to = static_cast<float>(
                            finish(window_sum(op, &weight[c * op.weight.row_elements], n, y, x),
                                   op.epilogue, c, op.weight.rows, n, to - op.output));
    }
    team.barrier();
}

void linear(const Linear& op, Team& team) {
    if (team.rank() == 0) {
        const std::vector<float> weight = to_float(op.weight);
        const int64_t features = op.weight.rows;
        for (int64_t row = 0; row < op.rows; ++row) {
            const int64_t batch = op.rows_per_batch > 0 ? row / op.rows_per_batch : 0;
            for (int64_t c = 0; c < features; ++c) {
                double sum = 0;
                for (int64_t k = 0; k < op.in_features; ++k)
                    sum += static_cast<double>(op.input[row * op.in_features + k]) *
                           weight[c * op.in_features + k];
                const int64_t at = row * features + c;
                op.output[at] =
                    static_cast<float>(finish(sum, op.epilogue, c, features, batch, at));
            }
        }
    }
    team.barrier();
}

void attend(const Attention& op, int64_t batch, int64_t head, int64_t i) {
    const int64_t kv_head = head / (op.heads / op.kv_heads);
    const float* q = op.q + batch * op.q_batch_stride + i * op.q_token_stride + head * op.head_dim;
    const float* k = op.k + batch * op.k_batch_stride + kv_head * op.head_dim;
    const float* v = op.v + batch * op.v_batch_stride + kv_head * op.head_dim;
    const int64_t mask_batch = op.mask_index        ? op.mask_index[batch]
                               : op.mask_batch == 1 ? 0
                                                    : batch;
    const int64_t mask_row =
        (mask_batch * op.mask_heads + (op.mask_heads == 1 ? 0 : head)) * op.q_len + i;
    const int64_t keys = op.causal ? std::min(op.kv_len, i + 1) : op.kv_len;
    std::vector<double> weights(keys), sum(op.head_dim, 0.0);
    double highest = -std::numeric_limits<double>::infinity(), total = 0;
    for (int64_t j = 0; j < keys; ++j) {
        double score = 0;
        for (int64_t d = 0; d < op.head_dim; ++d)
            score += static_cast<double>(q[d]) * k[j * op.k_token_stride + d];
        score *= op.scale;
        if (op.softcap > 0) score = op.softcap * std::tanh(score / op.softcap);
        if (op.distance_bias)
            score += op.distance_bias[head * (op.q_len + op.kv_len - 1) + j - i + op.q_len - 1];
        if (op.mask) score += op.mask[mask_row * op.kv_len + j];
        weights[j] = score;
        highest = std::max(highest, weights[j]);
    }
    for (int64_t j = 0; j < keys && std::isfinite(highest); ++j) {
        const double weight = std::exp(weights[j] - highest);
        total += weight;
        for (int64_t d = 0; d < op.head_dim; ++d) sum[d] += weight * v[j * op.v_token_stride + d];
    }
    float* to = op.output + batch * op.output_batch_stride + i * op.output_token_stride +
                head * op.head_dim;
    for (int64_t d = 0; d < op.head_dim; ++d)
        to[d] = static_cast<float>(total > 0 ? sum[d] / total : 0.0);
}

void attention(const Attention& op, Team& team) {
    if (team.rank() == 0)
        for (int64_t batch = 0; batch < op.batch; ++batch)
            for (int64_t head = 0; head < op.heads; ++head)
                for (int64_t i = 0; i < op.q_len; ++i) attend(op, batch, head, i);
    team.barrier();
}

// Normalizes rows x columns values with the given row distance; scale and shift are indexed by
// column, and may be null.
void normalize(const float* x, float* y, int64_t rows, int64_t columns, int64_t stride, double eps,
               const float* gamma, const float* beta, bool silu, double gamma_offset = 0) {
    double mean = 0, variance = 0;
    const double count = static_cast<double>(rows * columns);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t c = 0; c < columns; ++c) mean += x[i * stride + c] / count;
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t c = 0; c < columns; ++c)
            variance += (x[i * stride + c] - mean) * (x[i * stride + c] - mean) / count;
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t c = 0; c < columns; ++c) {
            const double value = (x[i * stride + c] - mean) / std::sqrt(variance + eps);
            const double factor = gamma ? gamma[c] + gamma_offset : 1.0;
            const double scaled = value * factor + (beta ? beta[c] : 0.0);
            y[i * stride + c] =
                static_cast<float>(activate(scaled, silu ? Activation::Silu : Activation::None));
        }
    }
}

void group_norm(const GroupNorm& op, Team& team) {
    const int64_t width = op.channels / op.groups;
    for (int64_t i = 0; team.rank() == 0 && i < op.batch * op.groups; ++i) {
        const int64_t group = i % op.groups * width,
                      at = i / op.groups * op.pixels * op.channels + group;
        normalize(op.input + at, op.output + at, op.pixels, width, op.channels, op.eps,
                  op.gamma + group, op.beta + group, op.silu);
    }
    team.barrier();
}

void layer_norm(const LayerNorm& op, Team& team) {
    for (int64_t row = 0; team.rank() == 0 && row < op.rows; ++row)
        normalize(op.input + row * op.width, op.output + row * op.width, 1, op.width, op.width,
                  op.eps, op.gamma, op.beta, false, op.gamma_offset);
    team.barrier();
}

void geglu(const Geglu& op, Team& team) {
    for (int64_t i = 0; team.rank() == 0 && i < op.rows * op.inner; ++i) {
        const float* row = op.input + i / op.inner * 2 * op.inner;
        const int64_t c = i % op.inner;
        op.output[i] = static_cast<float>(row[c] * activate(row[op.inner + c], Activation::Gelu));
    }
    team.barrier();
}

int64_t multiply_add(int64_t rounds) {
    volatile double sum = 0;
    for (int64_t i = 0; i < rounds; ++i) sum = sum * 0.5 + 1;
    return 2 * rounds;
}

}  // namespace

constexpr KernelTable kTable = {conv2d,     linear, attention,   group_norm,
                                layer_norm, geglu,  multiply_add};

}  // namespace reference

extern const KernelTable reference_kernels = reference::kTable;

}  // namespace sde::kernels
