// The UNet of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), with the options that
// SD1.x, SD2.x, SDXL and their pruned and distilled relatives use: every one of them is a
// configuration of this file.
#pragma once

#include <optional>
#include <vector>

#include "networks/network.h"
#include "nn/blocks.h"

namespace sde::networks {

class UNet : public Network {
  public:
    UNet(const nn::Scope& scope, const Config& config);

    // Inputs: `latents` [N, in_channels, H, W], `timesteps` [N], `context` [N, tokens, context
    // width], and where the configuration has them `class_embedding` [N, class_embed_dim],
    // `guidance_embedding` [N, time_cond_proj_dim]. Output: `prediction` [N, out_channels, H, W].
    // For guidance (networks/layer_variants.h): options `skip_layers`, `perturb_layers`; inputs
    // `nag_context` [N, tokens, context width] and `nag` [N, 3].
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;
    GuidanceSupport guidance_support() const override { return {attentions_, true, true, true}; }

  private:
    // Resnets of one resolution, each with a spatial transformer or none.
    struct Level {
        std::vector<nn::Resnet> resnets;
        std::vector<std::optional<nn::SpatialTransformer>> attentions;
        std::optional<nn::Conv2d> resample;
    };
    struct MidBlock {
        std::vector<nn::Resnet> resnets;
        std::optional<nn::SpatialTransformer> attention;
    };
    class Embedder {  // Linear, SiLU, Linear
      public:
        Embedder(const nn::Scope& scope, int64_t in, int64_t out)
            : linear1_(scope / "linear_1", in, out), linear2_(scope / "linear_2", out, out) {}
        nn::Tensor operator()(const nn::Tensor& x, const nn::Tensor& residual = {}) const {
            return linear2_(linear1_(x, {.activation = nn::Activation::Silu}),
                            {.residual = residual});
        }

      private:
        nn::Linear linear1_, linear2_;
    };

    nn::Tensor text(Graph& graph, const InputShapes& shapes, const std::string& name) const;
    nn::Tensor embed(Graph& graph, const InputShapes& shapes, int64_t batch) const;

    int64_t in_channels_, base_channels_, context_width_, class_width_, guidance_width_;
    Embedder time_embedding_;
    std::optional<Embedder> add_embedding_;
    std::optional<nn::Linear> cond_proj_, encoder_hid_proj_;
    nn::Conv2d conv_in_;
    std::vector<Level> down_, up_;
    std::optional<MidBlock> mid_;
    nn::GroupNorm conv_norm_out_;
    nn::Conv2d conv_out_;
    std::vector<std::string> attentions_;  // names of the spatial transformers, as they are run
};

}  // namespace sde::networks
