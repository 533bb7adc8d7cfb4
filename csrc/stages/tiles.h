// Arrays in overlapping tiles, and a denoiser that sees a picture tile by tile.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "stages/branches.h"

namespace sde {

// Axes along which a picture may wrap around.
constexpr int64_t kCircularX = 1, kCircularY = 2;

// How one axis is cut, in latents.
struct Cuts {
    int64_t total, size, overlap;
    bool ring;  // cut, and the last tile's neighbour is the first

    // A tile of `size_` points, 0 or more than `total_` for one piece.
    Cuts(int64_t total_, int64_t size_, int64_t overlap_, bool circular);

    bool whole() const { return size == total; }
    // Start positions of tiles that cover the axis; without a ring the last one is flush with the
    // end.
    std::vector<int64_t> starts() const;
};

// Rows [top, top + height) and columns [left, left + width) of the `count` maps from `first` on of
// [N, C, H, W]; beyond an edge those of the other side.
HostArray cut(const HostArray& whole, int64_t first, int64_t count, int64_t top, int64_t left,
              int64_t height, int64_t width);

// Pictures larger than the denoiser can see at once (MultiDiffusion, Bar-Tal et al. 2023, arXiv
// 2302.08113): each prediction is the weighted mean of those for overlapping square tiles.
struct TiledDiffusion {
    enum class Weights {
        Uniform,   // of the paper
        Gaussian,  // Mixture of Diffusers (Jimenez 2023, arXiv 2302.02412)
    };
    static Weights parse(const std::string& weights);

    int64_t size = 0;  // latents
    int64_t overlap = 0;
    Weights weights = Weights::Gaussian;

    // Throws Parameter when a size is out of range, or when a condition of `branches` cannot be cut
    // and more than one tile would be needed for `latents`.
    void check(const std::vector<std::shared_ptr<const Branch>>& branches,
               const Shape& latents) const;
};

// As evaluate() in branches.h, tile by tile: one after the other, so that the memory taken is that
// of one. Extra channels and controls are cut alike. A ring is kept: along an axis that is cut,
// tiles reach over the edge.
int64_t evaluate_tiled(const TiledDiffusion& tiles, Runner& denoiser,
                       const std::vector<BranchCall>& calls, std::span<const float> x,
                       const Shape& latents, float timestep, int64_t together,
                       const CancelCheck& cancel);

}  // namespace sde
