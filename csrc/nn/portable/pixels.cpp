#include "nn/portable/planes.h"
#include "nn/portable/portable.h"

namespace sde::nn::portable {
namespace {

// [a, b, c, d] -> [a, c, b, d] in ggml's axes, copied.
ggml_tensor* swap_middle(ggml_context* context, ggml_tensor* x, int64_t a, int64_t b, int64_t c,
                         int64_t d) {
    return ggml_cont(context,
                     ggml_permute(context, ggml_reshape_4d(context, x, a, b, c, d), 0, 2, 1, 3));
}

// [a, b, rest] -> [b, a, rest], copied.
ggml_tensor* swap_first(ggml_context* context, ggml_tensor* x, int64_t a, int64_t b) {
    const int64_t rest = ggml_nelements(x) / (a * b);
    return ggml_cont(context, ggml_transpose(context, ggml_reshape_3d(context, x, a, b, rest)));
}

// Channels last, a square of r x r points of c channels is [c r, r] where rows of the square stand
// one behind the other; its places in a row of the picture are [c r, columns, r].
ggml_tensor* squares_of(const Tensor& x, int64_t r) {
    return swap_middle(context_of(x), x.raw(), x.size(1) * r, x.size(3) / r, r,
                       x.size(0) * x.size(2) / r);
}

ggml_tensor* from_squares(ggml_context* context, ggml_tensor* squares, const Shape& picture,
                          int64_t r) {
    ggml_tensor* rows = swap_middle(context, squares, picture[1] * r, r, picture[3] / r,
                                    picture[0] * picture[2] / r);
    return ggml_reshape_4d(context, rows, picture[1], picture[3], picture[2], picture[0]);
}

}  // namespace

Tensor concat_channels(const Tensor& a, const Tensor& b) {
    return {a.graph(), ggml_concat(context_of(a), a.raw(), b.raw(), 0),
            Shape{a.size(0), a.size(1) + b.size(1), a.size(2), a.size(3)}};
}

Tensor average_pool_2x(const Tensor& given) {
    const int64_t height = (given.size(2) + 1) / 2, width = (given.size(3) + 1) / 2;
    // An odd edge counts twice: the mean stays that of the pixels that are there.
    const int64_t last_row = given.size(2) - 1, last_column = given.size(3) - 1;
    const bool is_odd = 2 * height != given.size(2) || 2 * width != given.size(3);
    const auto clamped = [&](int64_t y, int64_t x) {
        return std::pair{std::min(y, last_row), std::min(x, last_column)};
    };
    const Tensor x = is_odd ? rearranged(given, 2 * height, 2 * width, clamped) : given;
    ggml_context* context = context_of(x);
    ggml_tensor* raw = x.raw();
    const auto every_other = [&](size_t row, size_t column) {
        return ggml_view_4d(context, raw, raw->ne[0], width, height, raw->ne[3], 2 * raw->nb[1],
                            2 * raw->nb[2], raw->nb[3], row * raw->nb[2] + column * raw->nb[1]);
    };
    ggml_tensor* sum = ggml_add(context, ggml_add(context, every_other(0, 0), every_other(0, 1)),
                                ggml_add(context, every_other(1, 0), every_other(1, 1)));
    return {x.graph(), ggml_scale(context, sum, 0.25f), Shape{x.size(0), x.size(1), height, width}};
}

Tensor mean_pixels(const Tensor& x) {
    ggml_context* context = context_of(x);
    const int64_t pixels = x.size(2) * x.size(3);
    ggml_tensor* by_channel = ggml_reshape_3d(context, planes(x), pixels, x.size(1), x.size(0));
    const Shape shape{x.size(0), 1, x.size(1)};
    return {x.graph(),
            ggml_reshape_3d(context, ggml_mean(context, by_channel), shape[2], 1, shape[0]), shape};
}

Tensor pixel_shuffle(const Tensor& x, int64_t r) {
    const Shape shape{x.size(0), x.size(1) / (r * r), x.size(2) * r, x.size(3) * r};
    ggml_tensor* squares = swap_first(context_of(x), x.raw(), r * r, shape[1]);
    return {x.graph(), from_squares(context_of(x), squares, shape, r), shape};
}

Tensor pixel_unshuffle(const Tensor& x, int64_t r) {
    const Shape shape{x.size(0), x.size(1) * r * r, x.size(2) / r, x.size(3) / r};
    ggml_tensor* channels = swap_first(context_of(x), squares_of(x, r), x.size(1), r * r);
    return {x.graph(),
            ggml_reshape_4d(context_of(x), channels, shape[1], shape[3], shape[2], shape[0]),
            shape};
}

Tensor patchify(const Tensor& x, int64_t patch, PatchOrder order) {
    if (order == PatchOrder::ChannelYX)
        return tokens(patch == 1 ? x : portable::pixel_unshuffle(x, patch));
    const Shape shape{x.size(0), x.size(2) / patch * (x.size(3) / patch),
                      x.size(1) * patch * patch};
    return {x.graph(),
            ggml_reshape_3d(context_of(x), squares_of(x, patch), shape[2], shape[1], shape[0]),
            shape};
}

Tensor unpatchify(const Tensor& x, int64_t height, int64_t width, int64_t patch, PatchOrder order) {
    const Shape shape{x.size(0), x.size(2) / (patch * patch), height, width};
    if (order == PatchOrder::YXChannel)
        return {x.graph(), from_squares(context_of(x), x.raw(), shape, patch), shape};
    const Tensor map = feature_map(x, height / patch, width / patch);
    return patch == 1 ? map : portable::pixel_shuffle(map, patch);
}

Tensor prelu(const Tensor& x, ggml_tensor* slopes) {
    ggml_context* context = context_of(x);
    ggml_tensor* above = ggml_relu(context, x.raw());
    ggml_tensor* below = ggml_sub(context, x.raw(), above);
    return {x.graph(), ggml_add(context, above, ggml_mul(context, below, slopes)), x.shape()};
}

Tensor rearranged(const Tensor& x, int64_t height, int64_t width, const PixelSource& from) {
    ggml_context* context = context_of(x);
    const int64_t pixels = x.size(2) * x.size(3);
    std::vector<int32_t> index;
    for (int64_t n = 0; n < x.size(0); ++n)
        for (int64_t row = 0; row < height; ++row)
            for (int64_t column = 0; column < width; ++column) {
                const auto [y, at] = from(row, column);
                index.push_back(static_cast<int32_t>(n * pixels + y * x.size(3) + at));
            }
    const Shape shape{x.size(0), x.size(1), height, width};
    ggml_tensor* flat = ggml_reshape_2d(context, x.raw(), x.size(1), x.size(0) * pixels);
    const Tensor rows =
        take_rows(x.graph(), flat, index, Shape{static_cast<int64_t>(index.size()), x.size(1)});
    return {x.graph(), ggml_reshape_4d(context, rows.raw(), shape[1], width, height, shape[0]),
            shape};
}

}  // namespace sde::nn::portable
