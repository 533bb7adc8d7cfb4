#include "stages/tiles.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace sde {
namespace {

// Variance of a tile's weights where its side is 1 (Jimenez 2023).
constexpr float kVariance = 0.01f;

// The same square of everything that a step reads.
struct Tile {
    int64_t top, left, height, width;
};

HostArray cut_all(const HostArray& map, const Tile& tile) {
    return cut(map, 0, map.shape[0], tile.top, tile.left, tile.height, tile.width);
}

// A map of a control network: as large as the latents [.., rows, columns], or smaller by a power of
// two, rounded up.
HostArray cut_feature(const HostArray& map, const Tile& tile, int64_t rows) {
    const int64_t factor = (rows + map.shape[2] / 2) / map.shape[2];
    const auto up = [&](int64_t points) { return (points + factor - 1) / factor; };
    return cut_all(map, {tile.top / factor, tile.left / factor, up(tile.height), up(tile.width)});
}

Control cut_control(const Control& control, const Tile& tile, int64_t rows) {
    Control part = control;
    for (auto& [name, array] : part.inputs)
        if (array.shape.rank() == 4) array = cut_feature(array, tile, rows);
    return part;
}

// Per tile of an axis the share that each of its points has in the mean.
std::vector<std::vector<float>> shares(const Cuts& cuts, TiledDiffusion::Weights kind) {
    std::vector<float> weights(static_cast<size_t>(cuts.size), 1.0f);
    if (kind == TiledDiffusion::Weights::Gaussian)
        for (int64_t i = 0; i < cuts.size; ++i) {
            const float from_middle =
                (static_cast<float>(i) + 0.5f) / static_cast<float>(cuts.size) - 0.5f;
            weights[i] = std::exp(-from_middle * from_middle / (2.0f * kVariance));
        }
    const std::vector<int64_t> starts = cuts.starts();
    std::vector<float> sums(static_cast<size_t>(cuts.total), 0.0f);
    for (int64_t start : starts)
        for (int64_t i = 0; i < cuts.size; ++i) sums[(start + i) % cuts.total] += weights[i];
    std::vector<std::vector<float>> found;
    for (int64_t start : starts) {
        found.push_back(weights);
        for (int64_t i = 0; i < cuts.size; ++i) found.back()[i] /= sums[(start + i) % cuts.total];
    }
    return found;
}

// Adds a tile's values to maps [planes, rows, columns].
void add(std::vector<float>& sum, const std::vector<float>& values, const Tile& tile,
         const Shape& latents, const std::vector<float>& down, const std::vector<float>& across) {
    const int64_t rows = latents[2], columns = latents[3];
    for (int64_t plane = 0; plane < latents[0] * latents[1]; ++plane)
        for (int64_t y = 0; y < tile.height; ++y) {
            float* row = sum.data() + (plane * rows + (tile.top + y) % rows) * columns;
            const float* from = values.data() + (plane * tile.height + y) * tile.width;
            for (int64_t x = 0; x < tile.width; ++x)
                row[(tile.left + x) % columns] += down[y] * across[x] * from[x];
        }
}

// The calls of a step for one tile, and what they point to.
struct TileCalls {
    std::vector<Branch> branches;
    std::vector<Control> controls;
    std::vector<std::vector<float>> predictions;
    std::vector<BranchCall> calls;

    TileCalls(const std::vector<BranchCall>& whole, const Tile& tile, const Shape& latents,
              int64_t circular)
        : predictions(whole.size()), calls(whole) {
        std::vector<const Control*> known;
        for (const BranchCall& call : whole) {
            branches.push_back(*call.branch);
            HostArray& extra = branches.back().extra_channels;
            if (extra.shape.rank() == 4) extra = cut_all(extra, tile);
            for (const ActiveControl& active : call.controls)
                if (std::find(known.begin(), known.end(), active.control) == known.end())
                    known.push_back(active.control);
        }
        for (const Control* control : known)
            controls.push_back(cut_control(*control, tile, latents[2]));
        for (size_t i = 0; i < calls.size(); ++i) {
            calls[i].branch = &branches[i];
            calls[i].prediction = &predictions[i];
            calls[i].options["circular"] = circular;
            for (ActiveControl& active : calls[i].controls) {
                const auto at = std::find(known.begin(), known.end(), active.control);
                active.control = &controls[static_cast<size_t>(at - known.begin())];
            }
        }
    }
};

}  // namespace

Cuts::Cuts(int64_t total_, int64_t size_, int64_t overlap_, bool circular)
    : total(total_),
      size(size_ ? std::min(size_, total_) : total_),
      overlap(size < total_ ? overlap_ : 0),
      ring(circular && size < total_) {}

std::vector<int64_t> Cuts::starts() const {
    std::vector<int64_t> found{0};
    const int64_t stride = size - overlap, end = ring ? total + overlap : total;
    while (found.back() + size < end)
        found.push_back(ring ? found.back() + stride
                             : std::min(found.back() + stride, total - size));
    return found;
}

HostArray cut(const HostArray& whole, int64_t first, int64_t count, int64_t top, int64_t left,
              int64_t height, int64_t width) {
    const int64_t channels = whole.shape[1], rows = whole.shape[2], columns = whole.shape[3];
    HostArray piece;
    piece.shape = Shape{count, channels, height, width};
    piece.floats.resize(static_cast<size_t>(piece.shape.elements()));
    left %= columns;
    const int64_t before = std::min(width, columns - left);
    for (int64_t plane = 0; plane < count * channels; ++plane)
        for (int64_t y = 0; y < height; ++y) {
            const float* row = whole.floats.data() +
                               ((first * channels + plane) * rows + (top + y) % rows) * columns;
            float* to = piece.floats.data() + (plane * height + y) * width;
            std::copy_n(row + left, before, to);
            std::copy_n(row, width - before, to + before);
        }
    return piece;
}

TiledDiffusion::Weights TiledDiffusion::parse(const std::string& weights) {
    if (weights == "uniform") return Weights::Uniform;
    if (weights == "gaussian") return Weights::Gaussian;
    throw Error(ErrorKind::Parameter,
                "the weights of tiles are uniform or gaussian, not '" + weights + "'");
}

void TiledDiffusion::check(const std::vector<std::shared_ptr<const Branch>>& branches,
                           const Shape& latents) const {
    if (size < 1 || overlap < 0 || overlap >= size)
        throw Error(ErrorKind::Parameter,
                    "tiles have one latent or more and overlap by less than their size, not " +
                        std::to_string(size) + " and " + std::to_string(overlap));
    if (size >= latents[2] && size >= latents[3]) return;
    for (const auto& branch : branches)
        for (const auto& [name, array] : branch->inputs)
            if (name.rfind("reference", 0) == 0)
                throw Error(ErrorKind::Parameter,
                            "tiled diffusion does not go with reference pictures: every tile would "
                            "show all of them; leave one of the two out");
}

int64_t evaluate_tiled(const TiledDiffusion& tiles, Runner& denoiser,
                       const std::vector<BranchCall>& calls, std::span<const float> x,
                       const Shape& latents, float timestep, int64_t together,
                       const CancelCheck& cancel) {
    const auto option = calls.front().options.find("circular");
    const int64_t circular = option == calls.front().options.end() ? 0 : option->second;
    const Cuts down(latents[2], tiles.size, tiles.overlap, circular & kCircularY);
    const Cuts across(latents[3], tiles.size, tiles.overlap, circular & kCircularX);
    if (down.whole() && across.whole())
        return evaluate(denoiser, calls, x, latents, timestep, together, cancel);
    // A tile that spans an axis wraps around inside the network, the others by their neighbours.
    const int64_t inside =
        circular & ((down.whole() ? kCircularY : 0) | (across.whole() ? kCircularX : 0));
    const std::vector<int64_t> tops = down.starts(), lefts = across.starts();
    const auto rows = shares(down, tiles.weights), columns = shares(across, tiles.weights);
    const HostArray whole{latents, {x.begin(), x.end()}, {}};
    const Shape shape{latents[0], latents[1], down.size, across.size};
    for (const BranchCall& call : calls) call.prediction->assign(x.size(), 0.0f);
    int64_t evaluated = 0;
    for (size_t i = 0; i < tops.size(); ++i)
        for (size_t j = 0; j < lefts.size(); ++j) {
            const Tile tile{tops[i], lefts[j], down.size, across.size};
            const TileCalls own(calls, tile, latents, inside);
            const HostArray part = cut_all(whole, tile);
            evaluated +=
                evaluate(denoiser, own.calls, part.floats, shape, timestep, together, cancel);
            for (size_t k = 0; k < calls.size(); ++k)
                add(*calls[k].prediction, own.predictions[k], tile, latents, rows[i], columns[j]);
        }
    return evaluated;
}

}  // namespace sde
