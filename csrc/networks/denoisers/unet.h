// The UNet of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), with the options that
// SD1.x, SD2.x, SDXL and their pruned and distilled relatives use: every one of them is a
// configuration of this file.
#pragma once

#include <vector>

#include "networks/denoisers/unet_encoder.h"

namespace sde::networks {

class UNet : public Network {
  public:
    UNet(const nn::Scope& scope, const Config& config);

    // Inputs: `latents` [N, in_channels, H, W], `timesteps` [N], `context` [N, tokens, context
    // width], and where the configuration has them `class_embedding` [N, class_embed_dim],
    // `guidance_embedding` [N, time_cond_proj_dim]. Output: `prediction` [N, out_channels, H, W].
    // For guidance (networks/layer_variants.h): options `skip_layers`, `perturb_layers`; inputs
    // `nag_context` [N, tokens, context width] and `nag` [N, 3].
    // From a ControlNet: `control_0`, ... for every feature map of the way down, and `control_mid`.
    // With an IP-Adapter (the configuration's `image_prompt`): `image_keys` [N, tokens, width] and
    // `image_values`, the same times its scale.
    // From a T2I adapter: `adapter_0`, ... for every level, and perhaps `adapter_mid`.
    // For step caching (option `part`): `features` [N, H W, channels], what the last resnet reads
    // beside the first convolution's map, an output or an input.
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;
    GuidanceSupport guidance_support() const override { return {attentions_, true, true, true}; }
    Reuse reuse() const override { return Reuse::Features; }

  private:
    struct Given {
        nn::Tensor context, time;
    };
    // The input of that name as a feature map as large as `start`.
    nn::Tensor features(Graph& graph, const InputShapes& shapes, const nn::Tensor& start) const;
    // The way up, but for its last resnet.
    nn::Tensor climb(const Given& given, nn::Tensor x, std::vector<nn::Tensor>& skips,
                     LayerVariants& variants) const;
    // The last resnet, with its transformer.
    nn::Tensor last(const Given& given, const nn::Tensor& x, const nn::Tensor& skip,
                    LayerVariants& variants) const;

    nn::Tensor picture_tokens(Graph& graph, const InputShapes& shapes,
                              const std::string& name) const;

    int64_t image_width_;                  // of an IP-Adapter's tokens; 0 without one
    std::vector<std::string> attentions_;  // names of the spatial transformers, as they are run
    UNetEncoder encoder_;
    std::vector<UNetLevel> up_;
    int64_t features_width_ = 0;  // channels that the last resnet reads beside the first map's
    nn::GroupNorm conv_norm_out_;
    nn::Conv2d conv_out_;
};

}  // namespace sde::networks
