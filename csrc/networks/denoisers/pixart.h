// The denoiser of PixArt-alpha and PixArt-sigma (Chen et al. 2023, arXiv 2310.00426; 2024, arXiv
// 2403.04692): one modulation for all blocks, to which each adds a table of its own, and
// cross-attention on the text.
#pragma once

#include <optional>
#include <vector>

#include "networks/denoisers/embedders.h"
#include "networks/denoisers/first_block.h"
#include "nn/dit.h"

namespace sde::networks {

class PixArt : public Network {
  public:
    PixArt(const nn::Scope& scope, const Config& config);

    // Inputs: `latents` [N, in_channels, H, W] (multiples of 2), `timesteps` [N], `context` [N,
    // tokens, context_width] without padding. A network with micro-conditions is told the
    // picture's size and shape, which follow from the latents'. Output: `prediction` [N,
    // in_channels, H, W], without the variances that it predicts too.
    // Blocks can be left out for guidance (networks/layer_variants.h), and the first one run alone
    // (networks/denoisers/first_block.h).
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;
    GuidanceSupport guidance_support() const override { return {layer_names_, true}; }
    Reuse reuse() const override { return FirstBlock::offered(blocks_.size()); }

  private:
    class Attention {
      public:
        Attention(const nn::Scope& scope, int64_t width, int64_t heads);
        nn::Tensor operator()(const nn::Tensor& x, const nn::Tensor& context,
                              const nn::Epilogue& epilogue) const;

      private:
        int64_t heads_;
        nn::Linear to_q_, to_k_, to_v_, to_out_;
    };
    class Block {
      public:
        Block(const nn::Scope& scope, int64_t width, int64_t heads);
        // `modulation` [N, 6 width] is that of all blocks.
        nn::Tensor operator()(const nn::Tensor& x, const nn::Tensor& context,
                              const nn::Tensor& modulation) const;

      private:
        int64_t width_;
        nn::LearnedTokens table_;
        Attention attn1_, attn2_;
        nn::Linear ff_in_, ff_out_;
    };
    // The embedded time, with the micro-conditions [N, width].
    nn::Tensor conditioning(Graph& graph, const InputShapes& shapes, const Shape& latents) const;

    int64_t in_channels_, out_channels_, context_width_, width_;
    double span_;
    nn::Conv2d proj_;
    Embedder time_;
    std::optional<Embedder> resolution_, aspect_ratio_;
    nn::Linear modulation_;
    Embedder caption_;
    std::vector<Block> blocks_;
    std::vector<std::string> layer_names_;
    nn::LearnedTokens table_;
    nn::Linear proj_out_;
};

}  // namespace sde::networks
