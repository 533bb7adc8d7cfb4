// ControlNets for Stable Diffusion 3 and 3.5: those of InstantX, which read the text as the
// denoiser does, and Stability AI's for 3.5 Large, which read none.
#pragma once

#include <vector>

#include "networks/denoisers/mmdit.h"

namespace sde::networks {

class MMDiTControlNet : public Network {
  public:
    MMDiTControlNet(const nn::Scope& scope, const Config& config);

    // Inputs: `latents` [N, in_channels, H, W], `hint` [N, hint_channels, H, W] (latents of a
    // picture), `timesteps` [N], `pooled` [N, pooled_width], and where the network has text
    // `context` [N, tokens, context_width]. Outputs: one residual per block, `control_0_of_n`, ...
    // [N, patches, width].
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    MMDiTBody body_;
    int64_t hint_channels_;
    nn::Conv2d hint_proj_;
    std::vector<nn::Linear> outputs_;
};

}  // namespace sde::networks
