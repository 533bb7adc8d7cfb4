// SigLIP's vision transformer (Zhai et al. 2023, arXiv 2303.15343): CLIP's layers over the patches
// of a picture alone, without a class token.
#pragma once

#include <vector>

#include "networks/clip_layer.h"
#include "networks/network.h"

namespace sde::networks {

class SiglipVision : public Network {
  public:
    SiglipVision(const nn::Scope& scope, const Config& config);

    // Input `pixels` [N, 3, side, side], normalised; a border that fills no patch is not read.
    // Output `features` [N, patches, width], normed.
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    int64_t side_, positions_;
    nn::Conv2d patch_embedding_;
    nn::Embedding position_embedding_;
    std::vector<ClipLayer> layers_;
    nn::LayerNorm post_norm_;
};

}  // namespace sde::networks
