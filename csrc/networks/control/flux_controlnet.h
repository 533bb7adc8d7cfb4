// ControlNets for FLUX.1: those of InstantX and Shakker Labs, which read a picture's latents and,
// as unions, which kind of picture it is; and those of XLabs, which read pixels.
#pragma once

#include <optional>
#include <vector>

#include "networks/control/controlnet.h"
#include "networks/denoisers/flux.h"

namespace sde::networks {

class FluxControlNet : public Network {
  public:
    FluxControlNet(const nn::Scope& scope, const Config& config);

    // Inputs: those of the denoiser without references, `task` [N, 1] for a union, and `hint` [N,
    // hint_channels, H, W] (latents of a picture, and for inpainting a mask behind them), or for a
    // network that reads pixels `hint` [N, 3, 8 H, 8 W] in -1..1 or `hint_features`. Outputs: one
    // residual per block, [N, patches, width]: `control_0_of_n`, ... or, where they take turns,
    // `control_0_every_n`, ..., and `control_single_0_of_m`, ... With the option `hint_only` 1 the
    // input is `hint` (pixels) and the output `hint_features`.
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    nn::Tensor hint(Graph& graph, const InputShapes& shapes) const;
    nn::Tensor task(Graph& graph, const InputShapes& shapes) const;

    FluxBody body_;
    int64_t tasks_, hint_channels_;
    std::optional<nn::Embedding> task_embedding_;
    std::optional<HintEncoder> hint_encoder_;
    nn::Linear hint_embedder_;
    std::vector<nn::Linear> outputs_, single_outputs_;
};

}  // namespace sde::networks
