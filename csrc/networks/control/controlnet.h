// ControlNet (Zhang et al. 2023, arXiv 2302.05543): the way down of a UNet that also reads a
// picture, and leaves a residual for each of the UNet's feature maps.
#pragma once

#include <vector>

#include "networks/denoisers/unet_encoder.h"

namespace sde::networks {

// A picture to features of the latents' size: 3x3 convolutions with SiLU between them, every second
// one of which halves the size.
class HintEncoder {
  public:
    HintEncoder(const nn::Scope& scope, int64_t in, const std::vector<int64_t>& channels,
                int64_t out);
    // The features [N, out, H, W] of the input `hint` [N, in, f H, f W], or the input
    // `hint_features` where they were computed before.
    nn::Tensor features(Graph& graph, const InputShapes& shapes) const;
    // Declares the output `hint_features`, of a graph that computes nothing else. They are the same
    // at each step of a run.
    void only(Graph& graph, const InputShapes& shapes) const;

  private:
    nn::Tensor encoded(Graph& graph, const Shape& picture) const;

    int64_t in_, out_, factor_;
    nn::Conv2d conv_in_;
    std::vector<nn::Conv2d> blocks_;
    nn::Conv2d conv_out_;
};

// The way down, and a 1x1 convolution behind each of its feature maps and behind the middle.
class ControlEncoder {
  public:
    ControlEncoder(const nn::Scope& scope, const Config& config);
    // Declares the outputs `control_0`, ..., `control_mid` of a network that starts with x.
    void residuals(Graph& graph, const InputShapes& shapes, const nn::Tensor& x,
                   const nn::Tensor& time) const;
    const UNetEncoder& unet() const noexcept { return unet_; }

  private:
    std::vector<std::string> attentions_;
    UNetEncoder unet_;
    std::vector<nn::Conv2d> down_;
    nn::Conv2d mid_;
};

class ControlNet : public Network {
  public:
    ControlNet(const nn::Scope& scope, const Config& config);

    // Inputs: those of the UNet without guidance's, and `hint` [N, hint_channels, f H, f W] in
    // 0..1, f = 8 for latents of 1/8, or `hint_features`. Outputs: `control_0`, ... and
    // `control_mid`, unscaled. With the option `hint_only` 1 the input is `hint` and the output
    // `hint_features`.
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    ControlEncoder encoder_;
    HintEncoder hint_;
};

}  // namespace sde::networks
