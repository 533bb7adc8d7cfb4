// CLIP's vision transformer (Radford et al. 2021, arXiv 2103.00020): ViT-L, H and bigG are
// configurations.
#pragma once

#include <optional>
#include <vector>

#include "networks/clip_layer.h"
#include "networks/network.h"

namespace sde::networks {

class ClipVision : public Network {
  public:
    ClipVision(const nn::Scope& scope, const Config& config);

    // Input `pixels` [N, 3, side, side], normalised. Outputs: `penultimate` [N, 1 + patches,
    // width], what the last layer but one leaves, and `embedding` [N, projection_dim]. The option
    // `pooled` 0 leaves the latter and the last layer out.
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    int64_t width_, side_;
    nn::LearnedTokens class_embedding_;
    nn::Conv2d patch_embedding_;
    nn::Embedding position_embedding_;
    nn::LayerNorm pre_norm_, post_norm_;
    std::vector<ClipLayer> layers_;
    nn::Linear projection_;
    int64_t positions_;
};

}  // namespace sde::networks
