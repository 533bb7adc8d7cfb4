#include "stages/autoencode.h"

#include <algorithm>

#include "base/error.h"

namespace sde {
namespace {

// One direction of an autoencoder as a map between two pixel grids whose sizes have the ratio
// in_scale : out_scale.
struct Direction {
    Runner& runner;
    std::string input, output;
    int64_t in_scale, out_scale;  // grid points per latent
    CancelCheck cancel;

    // `piece` is [1, C, h, w].
    HostArray operator()(HostArray piece) const {
        HostArrays inputs;
        inputs[input] = std::move(piece);
        return std::move(runner.run(inputs, {}, cancel).at(output));
    }
};

// Start positions of tiles of `size` that cover [0, total), the last one flush with the end.
std::vector<int64_t> tile_starts(int64_t total, int64_t size, int64_t overlap) {
    std::vector<int64_t> starts{0};
    while (starts.back() + size < total)
        starts.push_back(std::min(starts.back() + size - overlap, total - size));
    return starts;
}

// A weight that rises linearly over the overlap at every side that has a neighbour; tiles are
// blended by it.
std::vector<float> ramp(int64_t size, int64_t overlap, bool before, bool after) {
    std::vector<float> weights(static_cast<size_t>(size), 1.0f);
    for (int64_t i = 0; i < overlap; ++i) {
        const float rise = (static_cast<float>(i) + 0.5f) / static_cast<float>(overlap);
        if (before) weights[i] = std::min(weights[i], rise);
        if (after) weights[size - 1 - i] = std::min(weights[size - 1 - i], rise);
    }
    return weights;
}

HostArray cut(const HostArray& whole, int64_t n, int64_t top, int64_t left, int64_t height,
              int64_t width) {
    const int64_t channels = whole.shape[1], rows = whole.shape[2], columns = whole.shape[3];
    HostArray piece;
    piece.shape = Shape{1, channels, height, width};
    piece.floats.resize(static_cast<size_t>(channels * height * width));
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t y = 0; y < height; ++y) {
            const float* from =
                whole.floats.data() + ((n * channels + c) * rows + top + y) * columns + left;
            std::copy(from, from + width, piece.floats.data() + (c * height + y) * width);
        }
    return piece;
}

// Blends the tiles of picture `n` into `out`, which gets its shape from the first tile.
void run_tiled(const Direction& run, const HostArray& in, int64_t n, const Tiling& tiling,
               HostArray& out) {
    const int64_t in_s = run.in_scale, out_s = run.out_scale;
    const int64_t h = in.shape[2] / in_s, w = in.shape[3] / in_s;
    const int64_t tile_h = std::min(tiling.size, h), tile_w = std::min(tiling.size, w);
    const int64_t rows = h * out_s, columns = w * out_s, overlap = tiling.overlap * out_s;
    std::vector<float> weight_sum(static_cast<size_t>(rows * columns), 0.0f);
    const auto blend = [&](const HostArray& tile, int64_t top, int64_t left) {
        const int64_t channels = tile.shape[1], th = tile.shape[2], tw = tile.shape[3];
        const auto down = ramp(th, overlap, top > 0, top + tile_h < h);
        const auto across = ramp(tw, overlap, left > 0, left + tile_w < w);
        float* picture = out.floats.data() + n * channels * rows * columns;
        for (int64_t y = 0; y < th; ++y)
            for (int64_t x = 0; x < tw; ++x) {
                const int64_t at = (top * out_s + y) * columns + left * out_s + x;
                const float weight = down[y] * across[x];
                weight_sum[at] += weight;
                for (int64_t c = 0; c < channels; ++c)
                    picture[c * rows * columns + at] += weight * tile.floats[(c * th + y) * tw + x];
            }
    };
    for (int64_t top : tile_starts(h, tile_h, tiling.overlap))
        for (int64_t left : tile_starts(w, tile_w, tiling.overlap)) {
            const HostArray tile =
                run(cut(in, n, top * in_s, left * in_s, tile_h * in_s, tile_w * in_s));
            if (out.floats.empty()) {
                out.shape = Shape{in.shape[0], tile.shape[1], rows, columns};
                out.floats.assign(static_cast<size_t>(out.shape.elements()), 0.0f);
            }
            blend(tile, top, left);
        }
    const int64_t channels = out.shape[1];
    float* picture = out.floats.data() + n * channels * rows * columns;
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < rows * columns; ++i)
            picture[c * rows * columns + i] /= weight_sum[i];
}

HostArray run_all(const Direction& run, const HostArray& in, const Tiling& tiling) {
    if (in.shape.rank() != 4)
        throw Error(ErrorKind::Parameter,
                    "an autoencoder takes [N, C, H, W], not " + in.shape.text());
    if (in.shape[2] % run.in_scale || in.shape[3] % run.in_scale)
        throw Error(ErrorKind::Parameter, "width and height must be multiples of " +
                                              std::to_string(run.in_scale) + ", not " +
                                              std::to_string(in.shape[3]) + " x " +
                                              std::to_string(in.shape[2]));
    if (tiling.size < 0 || tiling.overlap < 0 || (tiling.size && 2 * tiling.overlap > tiling.size))
        throw Error(ErrorKind::Parameter, "tiles may overlap by at most half of their size");
    const int64_t h = in.shape[2] / run.in_scale, w = in.shape[3] / run.in_scale;
    const bool whole = tiling.size == 0 || (h <= tiling.size && w <= tiling.size);
    HostArray out;
    for (int64_t n = 0; n < in.shape[0]; ++n) {
        if (!whole) {
            run_tiled(run, in, n, tiling, out);
            continue;
        }
        const HostArray one = run(cut(in, n, 0, 0, in.shape[2], in.shape[3]));
        if (n == 0) out.shape = Shape{in.shape[0], one.shape[1], one.shape[2], one.shape[3]};
        out.floats.insert(out.floats.end(), one.floats.begin(), one.floats.end());
    }
    return out;
}

}  // namespace

HostArray decode_latents(Runner& decoder, const HostArray& latents, int64_t factor,
                         const Tiling& tiling, const CancelCheck& cancel) {
    return run_all({decoder, "latents", "image", 1, factor, cancel}, latents, tiling);
}

HostArray encode_image(Runner& encoder, const HostArray& image, int64_t factor,
                       const Tiling& tiling, const CancelCheck& cancel) {
    return run_all({encoder, "image", "moments", factor, 1, cancel}, image, tiling);
}

}  // namespace sde
