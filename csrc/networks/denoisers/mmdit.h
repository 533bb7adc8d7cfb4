// The denoiser of Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206): Medium, 3.5
// Medium with its second attention, 3.5 Large and Large Turbo.
#pragma once

#include <vector>

#include "networks/denoisers/joint.h"

namespace sde::networks {

class MMDiT : public Network {
  public:
    MMDiT(const nn::Scope& scope, const Config& config);

    // Inputs: `latents` [N, in_channels, H, W] (multiples of the patch), `timesteps` [N] from 0 to
    // 1000, `context` [N, tokens, context_width], `pooled` [N, pooled_width]. Output: `prediction`
    // [N, out_channels, H, W]. Blocks can be left out for guidance (networks/layer_variants.h).
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;
    GuidanceSupport guidance_support() const override { return {layers_, true}; }

  private:
    int64_t in_channels_, patch_, context_width_;
    nn::Conv2d proj_;
    nn::PositionTable positions_;
    nn::Linear context_embedder_;
    Conditioning conditioning_;
    std::vector<JointBlock> blocks_;
    std::vector<std::string> layers_;  // their names
    JointOutput output_;
};

}  // namespace sde::networks
