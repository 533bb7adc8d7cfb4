// T2I-Adapter (Mou et al. 2023, arXiv 2302.08453): a small network that reads a picture once and
// leaves features for each level of a UNet's way down.
#pragma once

#include <optional>
#include <vector>

#include "networks/network.h"
#include "nn/layers.h"

namespace sde::networks {

class T2IAdapter : public Network {
  public:
    T2IAdapter(const nn::Scope& scope, const Config& config);

    // Input `hint` [N, hint_channels, H, W]: the picture with the pixels of each square of 8 x 8
    // (or 16 x 16) as channels. Outputs `feature_0`, ..., one per level.
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    struct Resnet {
        nn::Tensor operator()(const nn::Tensor& x) const;
        nn::Conv2d block1, block2;
    };
    struct Level {
        nn::Tensor operator()(const nn::Tensor& x) const;
        bool shrinks;
        std::optional<nn::Conv2d> in_conv, out_conv;  // out_conv: light adapters only
        std::vector<Resnet> resnets;
    };

    int64_t hint_channels_;
    std::optional<nn::Conv2d> conv_in_;  // light adapters have none
    std::vector<Level> levels_;
};

}  // namespace sde::networks
