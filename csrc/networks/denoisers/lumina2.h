// The denoiser of Lumina-Image 2.0 (Qin et al. 2025, arXiv 2503.21758): text and picture are
// refined apart and then one sequence, with norms before and behind every attention and
// feed-forward, and rotary positions on three axes, the first for the text's.
#pragma once

#include <optional>
#include <vector>

#include "networks/denoisers/embedders.h"
#include "networks/denoisers/first_block.h"
#include "nn/dit.h"

namespace sde::networks {

class Lumina2 : public Network {
  public:
    Lumina2(const nn::Scope& scope, const Config& config);

    // Inputs: `latents` [N, in_channels, H, W] (multiples of 2), `timesteps` [N] from 0 to 1000,
    // that is 1000 sigma, and `context` [N, tokens, context_width] without padding. Output:
    // `prediction` [N, out_channels, H, W], the flow from clean latents to noise.
    // Layers can be left out for guidance (networks/layer_variants.h), and the first one run alone
    // (networks/denoisers/first_block.h).
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;
    GuidanceSupport guidance_support() const override { return {layer_names_, true}; }
    Reuse reuse() const override { return FirstBlock::offered(layers_.size()); }

  private:
    class Block {
      public:
        // One that is not modulated does not know the time: it refines the text.
        Block(const nn::Scope& scope, const Config& config, bool modulated);
        // `conditioning` is SiLU of the embedded time [N, conditioning width], or absent.
        nn::Tensor operator()(const nn::Tensor& x, const nn::Tensor& conditioning,
                              const nn::Rotary& rotary) const;

      private:
        nn::Tensor attend(const nn::Tensor& x, const nn::Rotary& rotary) const;
        nn::Tensor feed_forward(const nn::Tensor& x) const;

        int64_t width_, head_dim_, heads_, kv_heads_;
        std::optional<nn::Linear> modulation_;
        nn::ScaledRmsNorm norm1_, norm2_, ffn_norm1_, ffn_norm2_;
        nn::Linear to_q_, to_k_, to_v_, to_out_;
        nn::HeadNorm norm_q_, norm_k_;
        nn::Linear gate_, down_, up_;
    };
    static std::vector<Block> blocks(const nn::Scope& scope, const Config& config, int64_t count,
                                     bool modulated);

    int64_t in_channels_, context_width_, width_;
    std::vector<int64_t> axes_;
    nn::Linear x_embedder_;
    Embedder time_;
    nn::ScaledRmsNorm caption_norm_;
    nn::Linear caption_;
    std::vector<Block> noise_refiner_, context_refiner_, layers_;
    std::vector<std::string> layer_names_;
    nn::Linear scale_, proj_out_;
};

}  // namespace sde::networks
