// AutoencoderKL: pictures to latents and back (Esser et al. 2021, arXiv 2012.09841; Rombach et al.
// 2022).
//
// Wan's autoencoder of videos (Wan team 2025, arXiv 2503.20314), which is Qwen-Image's, is this
// network for a single picture: a causal convolution over time sees two empty frames in front of
// it, so that the last slice of its kernel is left, and the layers between frames have nothing to
// do. It differs in the norms (`norm_groups` 0) and in that enlarging halves the channels.
#pragma once

#include <optional>
#include <vector>

#include "networks/network.h"
#include "nn/blocks.h"

namespace sde::networks {

// Resnet, single-head attention over pixels, resnet.
class KlMidBlock {
  public:
    KlMidBlock(const nn::Scope& scope, int64_t channels, int64_t groups, float eps, bool attention);
    nn::Tensor operator()(const nn::Tensor& x) const;

  private:
    nn::Resnet resnet0_;
    std::optional<nn::FeatureNorm> group_norm_;
    std::optional<nn::Linear> to_q_, to_k_, to_v_, to_out_;
    nn::Resnet resnet1_;
};

// Input `image` [N, 3, H, W] in -1..1; output `moments` [N, 2 * latent channels, H / 8, W / 8]:
// mean and log variance.
class KlEncoder : public Network {
  public:
    KlEncoder(const nn::Scope& scope, const Config& config);
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    struct Level {
        std::vector<nn::Resnet> resnets;
        std::optional<nn::Conv2d> downsample;
    };
    int64_t in_channels_;
    nn::Conv2d conv_in_;
    std::vector<Level> down_;
    std::optional<KlMidBlock> mid_;
    std::optional<nn::FeatureNorm> conv_norm_out_;
    std::optional<nn::Conv2d> conv_out_, quant_conv_;
};

// Input `latents` [N, latent channels, h, w], unscaled; output `image` [N, 3, 8 h, 8 w], about
// -1..1.
class KlDecoder : public Network {
  public:
    KlDecoder(const nn::Scope& scope, const Config& config);
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    struct Level {
        std::vector<nn::Resnet> resnets;
        std::optional<nn::Conv2d> upsample;
    };
    int64_t latent_channels_;
    std::optional<nn::Conv2d> post_quant_conv_, conv_in_;
    std::optional<KlMidBlock> mid_;
    std::vector<Level> up_;
    std::optional<nn::FeatureNorm> conv_norm_out_;
    std::optional<nn::Conv2d> conv_out_;
};

}  // namespace sde::networks
