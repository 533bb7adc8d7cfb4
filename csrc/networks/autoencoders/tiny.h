// AutoencoderTiny: the small distilled autoencoders TAESD, TAESDXL, TAESD3 and TAEF1 (Bohan,
// github.com/madebyollin/taesd). They work on the denoiser's scaled latents.
#pragma once

#include <optional>
#include <vector>

#include "networks/network.h"
#include "nn/layers.h"

namespace sde::networks {

// Three 3x3 convolutions with ReLU between them, + input, ReLU.
class TinyBlock {
  public:
    TinyBlock(const nn::Scope& scope, int64_t width);
    nn::Tensor operator()(const nn::Tensor& x) const;

  private:
    nn::Conv2d conv0_, conv2_, conv4_;
};

// Blocks of one resolution, and the convolution before (encoder) or behind (decoder) them.
struct TinyStage {
    std::vector<TinyBlock> blocks;
    std::optional<nn::Conv2d> conv;
};

// Input `image` [N, 3, H, W] in -1..1; output `latents` [N, latent channels, H / f, W / f], with
// f = 2^(stages - 1). With no stages in the config there is no encoder, and running it is an error.
class TinyEncoder : public Network {
  public:
    TinyEncoder(const nn::Scope& scope, const Config& config);
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    std::vector<TinyStage> stages_;
    std::optional<nn::Conv2d> conv_out_;
};

// Input `latents` [N, latent channels, h, w]; output `image` [N, 3, f h, f w], about -1..1.
class TinyDecoder : public Network {
  public:
    TinyDecoder(const nn::Scope& scope, const Config& config);
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    std::optional<nn::Conv2d> conv_in_;
    std::vector<TinyStage> stages_;
};

}  // namespace sde::networks
