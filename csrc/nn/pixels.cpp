// Operators of ops.h on pixels: shuffles, padding, cropping, channel offsets.
#include <algorithm>
#include <cstring>

#include "nn/check.h"
#include "nn/custom.h"
#include "nn/ops.h"
#include "nn/portable/portable.h"

namespace sde::nn {
namespace {

// This thread's share [begin, end) of `rows`.
struct Share {
    int64_t begin, end;
    Share(int64_t rows, const kernels::Team& team)
        : begin(rows * team.rank() / team.size()), end(rows * (team.rank() + 1) / team.size()) {}
};

struct ShuffleSpec {
    int64_t rows, columns, channels, r;  // of the picture with the larger points: rows = N * height
    bool apart;                          // true: from many channels to many points
};

void run_shuffle(ShuffleSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    const float* in = source(dst, 0);
    auto* out = static_cast<float*>(dst->data);
    const int64_t r = spec.r, few = spec.channels, many = few * r * r;
    const Share share(spec.rows * r, team);  // rows of small points
    for (int64_t row = share.begin; row < share.end; ++row)
        for (int64_t column = 0; column < spec.columns * r; ++column) {
            const int64_t small = (row * spec.columns * r + column) * few;
            const int64_t large = (row / r * spec.columns + column / r) * many;
            const int64_t within = row % r * r + column % r;
            for (int64_t c = 0; c < few; ++c) {
                const int64_t deep = large + c * r * r + within;
                if (spec.apart)
                    out[small + c] = in[deep];
                else
                    out[deep] = in[small + c];
            }
        }
}

struct OffsetSpec {
    int64_t points;
    std::vector<float> values;
};

void run_offset(OffsetSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    const float* in = source(dst, 0);
    auto* out = static_cast<float*>(dst->data);
    const Share share(spec.points, team);
    const auto channels = static_cast<int64_t>(spec.values.size());
    for (int64_t p = share.begin; p < share.end; ++p)
        for (int64_t c = 0; c < channels; ++c)
            out[p * channels + c] = in[p * channels + c] + spec.values[c];
}

struct FrameSpec {
    int64_t batch, channels, in_height, in_width, height, width;
};

// The point that stands at `i` of an axis of `size` points mirrored at its ends.
int64_t mirrored(int64_t i, int64_t size) {
    if (size == 1) return 0;
    const int64_t period = 2 * (size - 1), at = i % period;
    return std::min(at, period - at);
}

void run_frame(FrameSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    const float* in = source(dst, 0);
    auto* out = static_cast<float*>(dst->data);
    const Share share(spec.batch * spec.height, team);
    const int64_t kept = std::min(spec.width, spec.in_width);
    const auto point = static_cast<size_t>(spec.channels) * sizeof(float);
    for (int64_t row = share.begin; row < share.end; ++row) {
        const int64_t from_row =
            row / spec.height * spec.in_height + mirrored(row % spec.height, spec.in_height);
        const float* from = in + from_row * spec.in_width * spec.channels;
        float* to = out + row * spec.width * spec.channels;
        std::memcpy(to, from, point * static_cast<size_t>(kept));
        for (int64_t x = kept; x < spec.width; ++x)
            std::memcpy(to + x * spec.channels, from + mirrored(x, spec.in_width) * spec.channels,
                        point);
    }
}

Tensor framed(const Tensor& x, int64_t height, int64_t width) {
    if (height == x.size(2) && width == x.size(3)) return x;
    if (x.graph().is_portable())
        return portable::rearranged(x, height, width, [&](int64_t row, int64_t column) {
            return std::pair{mirrored(row, x.size(2)), mirrored(column, x.size(3))};
        });
    Sources sources;
    sources.add(x);
    const FrameSpec spec{x.size(0), x.size(1), x.size(2), x.size(3), height, width};
    const Shape shape{x.size(0), x.size(1), height, width};
    return {x.graph(),
            custom(x.graph(), {shape[1], width, height, shape[0]}, sources, spec, run_frame),
            shape};
}

Tensor shuffled(const Tensor& x, const Shape& shape, int64_t r, bool apart) {
    const Shape& large = apart ? x.shape() : shape;
    Sources sources;
    sources.add(x);
    const int64_t channels = apart ? shape[1] : x.size(1);
    const ShuffleSpec spec{large[0] * large[2], large[3], channels, r, apart};
    return {x.graph(),
            custom(x.graph(), {shape[1], shape[3], shape[2], shape[0]}, sources, spec, run_shuffle),
            shape};
}

}  // namespace

Tensor add_per_channel(const Tensor& x, const std::vector<float>& values) {
    expect(x.rank() == 4 && x.size(1) == static_cast<int64_t>(values.size()),
           "add_per_channel() takes [N, " + std::to_string(values.size()) + ", H, W]", x);
    if (x.graph().is_portable()) {
        ggml_tensor* offsets = x.graph().add_constant(GGML_TYPE_F32, {x.size(1)}, values.data());
        return {x.graph(), ggml_add(x.graph().context(), x.raw(), offsets), x.shape()};
    }
    Sources sources;
    sources.add(x);
    const OffsetSpec spec{x.size(0) * x.size(2) * x.size(3), values};
    return {
        x.graph(),
        custom(x.graph(), {x.size(1), x.size(3), x.size(2), x.size(0)}, sources, spec, run_offset),
        x.shape()};
}

Tensor pixel_shuffle(const Tensor& x, int64_t r) {
    expect(x.rank() == 4 && r > 0 && x.size(1) % (r * r) == 0,
           "a pixel shuffle by " + std::to_string(r) + " takes a multiple of its square channels",
           x);
    if (r == 1) return x;
    if (x.graph().is_portable()) return portable::pixel_shuffle(x, r);
    return shuffled(x, {x.size(0), x.size(1) / (r * r), x.size(2) * r, x.size(3) * r}, r, true);
}

Tensor pixel_unshuffle(const Tensor& x, int64_t r) {
    expect(x.rank() == 4 && r > 0 && x.size(2) % r == 0 && x.size(3) % r == 0,
           "a pixel unshuffle takes height and width that are multiples of " + std::to_string(r),
           x);
    if (r == 1) return x;
    if (x.graph().is_portable()) return portable::pixel_unshuffle(x, r);
    return shuffled(x, {x.size(0), x.size(1) * r * r, x.size(2) / r, x.size(3) / r}, r, false);
}

Tensor pad_mirrored(const Tensor& x, int64_t height, int64_t width) {
    expect(x.rank() == 4 && height >= x.size(2) && width >= x.size(3),
           "pad_mirrored() makes a feature map larger", x);
    return framed(x, height, width);
}

Tensor crop(const Tensor& x, int64_t height, int64_t width) {
    expect(x.rank() == 4 && height > 0 && width > 0 && height <= x.size(2) && width <= x.size(3),
           "crop() makes a feature map smaller", x);
    return framed(x, height, width);
}

}  // namespace sde::nn
