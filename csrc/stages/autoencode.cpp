#include "stages/autoencode.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "runtime/memory.h"
#include "stages/tiles.h"

namespace sde {
namespace {

// One direction of an autoencoder as a map between two pixel grids whose sizes have the ratio
// in_scale : out_scale.
struct Direction {
    Runner& runner;
    std::string input;
    int64_t in_scale, out_scale;  // grid points per latent
    CancelCheck cancel;

    // `piece` is [1, C, h, w]; `circular` are the axes along which it is a whole ring.
    HostArray operator()(HostArray piece, int64_t circular) const {
        HostArrays inputs;
        inputs[input] = std::move(piece);
        HostArrays outputs = runner.run(inputs, {{"circular", circular}}, cancel);
        return std::move(outputs.begin()->second);
    }
};

// Weights of the points of the tile at `start`, `scale` points per latent, by which tiles are
// blended. At a side that has a neighbour they rise linearly over the middle half of the overlap:
// the outer quarter, which lacks most of its surroundings, is left to the neighbour.
std::vector<float> ramp(const Cuts& cuts, int64_t start, int64_t scale) {
    const int64_t points = cuts.size * scale, width = cuts.overlap * scale;
    std::vector<float> weights(static_cast<size_t>(points), 1.0f);
    for (int64_t i = 0; i < width; ++i) {
        const float at = (static_cast<float>(i) + 0.5f) / static_cast<float>(width);
        const float rise = std::clamp(2.0f * at - 0.5f, 0.0f, 1.0f);
        if (cuts.ring || start > 0) weights[i] = std::min(weights[i], rise);
        if (cuts.ring || start + cuts.size < cuts.total)
            weights[points - 1 - i] = std::min(weights[points - 1 - i], rise);
    }
    return weights;
}

// A picture [C, rows, columns] that is the weighted mean of tiles.
class Blend {
  public:
    Blend(float* picture, int64_t channels, int64_t rows, int64_t columns)
        : picture_(picture),
          channels_(channels),
          rows_(rows),
          columns_(columns),
          weights_(static_cast<size_t>(rows * columns), 0.0f) {}

    void add(const HostArray& tile, int64_t top, int64_t left, const std::vector<float>& down,
             const std::vector<float>& across) {
        const int64_t height = tile.shape[2], width = tile.shape[3];
        for (int64_t y = 0; y < height; ++y)
            for (int64_t x = 0; x < width; ++x) {
                const int64_t at = (top + y) % rows_ * columns_ + (left + x) % columns_;
                const float weight = down[y] * across[x];
                weights_[at] += weight;
                for (int64_t c = 0; c < channels_; ++c)
                    picture_[c * rows_ * columns_ + at] +=
                        weight * tile.floats[(c * height + y) * width + x];
            }
    }

    void finish() {
        for (int64_t c = 0; c < channels_; ++c)
            for (int64_t i = 0; i < rows_ * columns_; ++i)
                picture_[c * rows_ * columns_ + i] /= weights_[i];
    }

  private:
    float* picture_;
    int64_t channels_, rows_, columns_;
    std::vector<float> weights_;
};

// For all pictures, once their shape is known. Throws OutOfMemory.
void make_room(HostArray& pictures) {
    const auto count = static_cast<size_t>(pictures.shape.elements());
    before_allocation("the pictures", count * sizeof(float));
    pictures.floats.reserve(count);
}

// Blends the tiles of picture `n` into `out`, which gets its shape from the first tile.
void run_tiled(const Direction& run, const HostArray& in, int64_t n, const Tiling& tiling,
               HostArray& out) {
    const int64_t in_s = run.in_scale, out_s = run.out_scale;
    const Cuts down(in.shape[2] / in_s, tiling.size, tiling.overlap, tiling.circular & kCircularY);
    const Cuts across(in.shape[3] / in_s, tiling.size, tiling.overlap,
                      tiling.circular & kCircularX);
    // A tile that spans an axis wraps around inside the network, the others by their neighbours.
    const int64_t circular =
        tiling.circular & ((down.whole() ? kCircularY : 0) | (across.whole() ? kCircularX : 0));
    const int64_t rows = down.total * out_s, columns = across.total * out_s;
    std::optional<Blend> blend;
    for (int64_t top : down.starts())
        for (int64_t left : across.starts()) {
            const HostArray tile =
                run(cut(in, n, 1, top * in_s, left * in_s, down.size * in_s, across.size * in_s),
                    circular);
            const int64_t channels = tile.shape[1];
            if (out.floats.empty()) {
                out.shape = Shape{in.shape[0], channels, rows, columns};
                make_room(out);
                out.floats.assign(static_cast<size_t>(out.shape.elements()), 0.0f);
            }
            if (!blend)
                blend.emplace(out.floats.data() + n * channels * rows * columns, channels, rows,
                              columns);
            blend->add(tile, top * out_s, left * out_s, ramp(down, top, out_s),
                       ramp(across, left, out_s));
        }
    blend->finish();
}

HostArray run_all(const Direction& run, const HostArray& in, const Tiling& tiling) {
    if (in.shape.rank() != 4)
        throw Error(ErrorKind::Parameter,
                    "a picture or its latents are [N, C, H, W], not " + in.shape.text());
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
        const HostArray one = run(cut(in, n, 1, 0, 0, in.shape[2], in.shape[3]), tiling.circular);
        if (n == 0) {
            out.shape = Shape{in.shape[0], one.shape[1], one.shape[2], one.shape[3]};
            make_room(out);
        }
        out.floats.insert(out.floats.end(), one.floats.begin(), one.floats.end());
    }
    return out;
}

}  // namespace

HostArray decode_latents(Runner& decoder, const HostArray& latents, int64_t factor,
                         const Tiling& tiling, const CancelCheck& cancel) {
    return run_all({decoder, "latents", 1, factor, cancel}, latents, tiling);
}

HostArray encode_image(Runner& encoder, const HostArray& image, int64_t factor,
                       const Tiling& tiling, const CancelCheck& cancel) {
    return run_all({encoder, "image", factor, 1, cancel}, image, tiling);
}

HostArray upscale_image(Runner& upscaler, const HostArray& image, int64_t factor, int64_t grid,
                        const Tiling& tiling, const CancelCheck& cancel) {
    if (factor < 1 || grid < 1)
        throw Error(ErrorKind::Parameter, "an upscaler's factor and grid are 1 or more");
    return run_all({upscaler, "image", grid, grid * factor, cancel}, image, tiling);
}

}  // namespace sde
