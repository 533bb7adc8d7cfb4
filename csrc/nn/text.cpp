#include "nn/text.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "nn/check.h"
#include "nn/custom.h"
#include "nn/portable/portable.h"

namespace sde::nn {
namespace {

const int32_t* integers(const ggml_tensor* dst, int index) {
    return static_cast<const int32_t*>(dst->src[index]->data);
}

// This thread's share [begin, end) of `rows`.
struct Share {
    int64_t begin, end;
    Share(int64_t rows, const kernels::Team& team)
        : begin(rows * team.rank() / team.size()), end(rows * (team.rank() + 1) / team.size()) {}
};

struct TableSpec {
    int64_t tokens, dims;
    std::vector<double> frequencies;  // one per pair
    std::vector<int> axes;            // which of the positions turns a pair
};

void run_table(TableSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    const int64_t pairs = spec.dims / 2;
    const Share share(spec.tokens, team);
    for (int64_t t = share.begin; t < share.end; ++t) {
        float* row = static_cast<float*>(dst->data) + t * spec.dims;
        for (int64_t i = 0; i < pairs; ++i) {
            const double angle = integers(dst, spec.axes[i])[t] * spec.frequencies[i];
            row[i] = static_cast<float>(std::cos(angle));
            row[pairs + i] = static_cast<float>(std::sin(angle));
        }
    }
}

struct RotateSpec {
    static constexpr const char* kName = "rotate";
    int64_t tokens, heads, head_dim, dims;
    bool interleaved;
};

void run_rotate(RotateSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    const float *x = source(dst, 0), *table = source(dst, 1);
    const int64_t pairs = spec.dims / 2, width = spec.heads * spec.head_dim;
    const int64_t step = spec.interleaved ? 2 : 1, partner = spec.interleaved ? 1 : pairs;
    const Share share(spec.tokens, team);
    for (int64_t t = share.begin; t < share.end; ++t) {
        const float *cosines = table + t * spec.dims, *sines = cosines + pairs;
        for (int64_t head = 0; head < spec.heads; ++head) {
            const int64_t at = t * width + head * spec.head_dim;
            const float* from = x + at;
            float* to = static_cast<float*>(dst->data) + at;
            for (int64_t i = 0; i < pairs; ++i) {
                const float a = from[i * step], b = from[i * step + partner];
                to[i * step] = a * cosines[i] - b * sines[i];
                to[i * step + partner] = b * cosines[i] + a * sines[i];
            }
            std::memcpy(to + spec.dims, from + spec.dims,
                        (spec.head_dim - spec.dims) * sizeof(float));
        }
    }
}

struct MaskSpec {
    int64_t batch, tokens;
    PaddingMaskOptions options;
};

void run_mask(MaskSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    constexpr float kHidden = -std::numeric_limits<float>::infinity();
    const Share share(spec.batch * spec.tokens, team);
    for (int64_t row = share.begin; row < share.end; ++row) {
        const int64_t query = row % spec.tokens;
        const int32_t* words = integers(dst, 0) + (row - query);
        const bool sees_all = spec.options.padding_sees_all && !words[query];
        float* to = static_cast<float*>(dst->data) + row * spec.tokens;
        for (int64_t key = 0; key < spec.tokens; ++key) {
            const bool ahead = spec.options.causal && key > query;
            to[key] = sees_all || (words[key] && !ahead) ? 0.0f : kHidden;
        }
    }
}

struct DistanceSpec {
    int64_t buckets, heads, tokens, max_distance;
};

int64_t bucket_of(int64_t distance, const DistanceSpec& spec) {
    const int64_t each_way = spec.buckets / 2, single = each_way / 2;
    const int64_t ahead = distance > 0 ? each_way : 0, away = std::abs(distance);
    if (away < single) return ahead + away;
    // In single precision, as the reference implementations have it: where a bucket ends decides.
    const float part = std::log(static_cast<float>(away) / static_cast<float>(single)) /
                       static_cast<float>(std::log(static_cast<double>(spec.max_distance) /
                                                   static_cast<double>(single)));
    const auto wide = static_cast<int64_t>(part * static_cast<float>(each_way - single));
    return ahead + std::min(single + wide, each_way - 1);
}

void run_distance(DistanceSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    const float* table = source(dst, 0);
    auto* out = static_cast<float*>(dst->data);
    const int64_t distances = 2 * spec.tokens - 1;
    const Share share(distances, team);
    for (int64_t i = share.begin; i < share.end; ++i) {
        const float* row = table + bucket_of(i - spec.tokens + 1, spec) * spec.heads;
        for (int64_t head = 0; head < spec.heads; ++head) out[head * distances + i] = row[head];
    }
}

}  // namespace

Tensor rotary_table(const Tensor& positions, const RotaryOptions& options) {
    return rotary_table(std::vector<Tensor>{positions},
                        {options.dims, options.theta, options.divisors, {options.dims / 2}});
}

Tensor rotary_table(const std::vector<Tensor>& all, const RotaryOptions& options) {
    const Tensor& positions = all.front();
    expect(positions.rank() == 2, "positions are [N, tokens]", positions);
    int64_t turned = 0;
    for (int64_t section : options.sections) turned += section;
    expect(options.sections.size() == all.size() && turned == options.dims / 2,
           "several positions part the pairs of a head among them", positions);
    const auto pairs = static_cast<size_t>(options.dims / 2);
    expect(options.dims > 0 && options.dims % 2 == 0, "rotary positions turn pairs", positions);
    expect(options.divisors.empty() || options.divisors.size() == pairs,
           "rotary positions have one divisor per pair", positions);
    TableSpec spec{positions.shape().elements(), options.dims, {}, {}};
    for (size_t axis = 0; axis < all.size(); ++axis)
        spec.axes.insert(spec.axes.end(), static_cast<size_t>(options.sections[axis]),
                         static_cast<int>(axis));
    for (size_t i = 0; i < pairs; ++i) {
        const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(options.dims);
        const double divisor = options.divisors.empty() ? 1.0 : options.divisors[i];
        // References hold the frequencies in single precision.
        spec.frequencies.push_back(
            static_cast<float>(std::pow(static_cast<double>(options.theta), exponent) / divisor));
    }
    Sources sources;
    for (const Tensor& each : all) {
        expect_same(positions, each, "the positions of tokens");
        sources.add(each);
    }
    if (positions.graph().is_portable())
        return portable::rotary_table(all, spec.frequencies, spec.axes);
    const Shape shape{positions.size(0), positions.size(1), options.dims};
    return {positions.graph(),
            custom(positions.graph(), {shape[2], shape[1], shape[0]}, sources, spec, run_table),
            shape};
}

Tensor rotate(const Tensor& x, const Tensor& table, int64_t head_dim, bool interleaved) {
    expect(x.rank() == 3 && x.size(2) % head_dim == 0 && ggml_is_contiguous(x.raw()),
           "rotate() takes [N, tokens, heads * " + std::to_string(head_dim) + "]", x);
    const bool fits = table.rank() == 3 && table.size(0) == x.size(0) &&
                      table.size(1) == x.size(1) && table.size(2) <= head_dim;
    expect(fits, "the rotary table must fit " + x.shape().text(), table);
    if (x.graph().is_portable()) return portable::rotate(x, table, 0, head_dim, interleaved);
    const RotateSpec spec{x.size(0) * x.size(1), x.size(2) / head_dim, head_dim, table.size(2),
                          interleaved};
    Sources sources;
    sources.add(x);
    sources.add(table);
    return {x.graph(),
            custom(x.graph(), {x.size(2), x.size(1), x.size(0)}, sources, spec, run_rotate),
            x.shape()};
}

Tensor padding_mask(const Tensor& mask, const PaddingMaskOptions& options) {
    expect(mask.rank() == 2, "a mask of padding is [N, tokens]", mask);
    if (mask.graph().is_portable()) return portable::padding_mask(mask, options);
    const int64_t batch = mask.size(0), tokens = mask.size(1);
    Sources sources;
    sources.add(mask);
    return {mask.graph(),
            custom(mask.graph(), {tokens, tokens, batch}, sources, MaskSpec{batch, tokens, options},
                   run_mask),
            Shape{batch, tokens, tokens}};
}

Tensor distance_bias(const Tensor& table, int64_t tokens, int64_t max_distance) {
    const bool fits = table.rank() == 2 && table.size(0) >= 4 && table.size(0) % 4 == 0 &&
                      max_distance > table.size(0) / 4;
    expect(fits, "relative positions take [buckets, heads], buckets a multiple of 4", table);
    const DistanceSpec spec{table.size(0), table.size(1), tokens, max_distance};
    if (table.graph().is_portable()) {
        std::vector<int32_t> buckets;
        for (int64_t distance = 1 - tokens; distance < tokens; ++distance)
            buckets.push_back(static_cast<int32_t>(bucket_of(distance, spec)));
        return portable::distance_bias(table, buckets);
    }
    Sources sources;
    sources.add(table);
    const Shape shape{table.size(1), 2 * tokens - 1};
    return {table.graph(), custom(table.graph(), {shape[1], shape[0]}, sources, spec, run_distance),
            shape};
}

}  // namespace sde::nn
