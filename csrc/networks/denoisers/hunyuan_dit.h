// The denoiser of Hunyuan-DiT (Li et al. 2024, arXiv 2405.08748): cross-attention on two texts,
// rotary positions in the picture alone, and long skips from the first half of the blocks to the
// second (Bao et al. 2022, arXiv 2209.12152). Names are those of diffusers' class.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "networks/denoisers/first_block.h"
#include "networks/denoisers/joint.h"

namespace sde::networks {

class HunyuanDiT : public Network {
  public:
    HunyuanDiT(const nn::Scope& scope, const Config& config);

    // Inputs: `latents` [N, in_channels, H, W] (multiples of 2), `timesteps` [N], two texts,
    // `context` [N, context_tokens, context_width] (BERT) and `context_2` [N, context_2_tokens,
    // context_2_width] (mT5), each with its mask, `context_mask` and `context_2_mask` [N, tokens],
    // 1 for a token of the text and 0 for padding. With styles also `sizes` [N, 6], in pixels:
    // height and width of the training picture, of this one, and where it was cropped, top and
    // left. Output: `prediction` [N, in_channels, H, W], without the variances that are predicted
    // too. Blocks can be left out for guidance (networks/layer_variants.h), and the first one run
    // alone (networks/denoisers/first_block.h).
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;
    GuidanceSupport guidance_support() const override { return {layer_names_, true}; }
    Reuse reuse() const override { return FirstBlock::offered(blocks_.size()); }

  private:
    // What every block reads.
    struct Given {
        nn::Tensor context, conditioning;
        nn::Rotary rotary;
    };
    // Attention whose heads are normed; positions turn the picture's tokens only.
    class Attention {
      public:
        Attention(const nn::Scope& scope, int64_t width, int64_t context_width, int64_t head_dim);
        // `context` absent means self-attention.
        nn::Tensor operator()(const nn::Tensor& x, const nn::Tensor& context,
                              const nn::Rotary& rotary, const nn::Tensor& residual) const;

      private:
        int64_t head_dim_, heads_;
        nn::Linear to_q_, to_k_, to_v_;
        nn::HeadNorm norm_q_, norm_k_;
        nn::Linear to_out_;
    };
    class Block {
      public:
        Block(const nn::Scope& scope, const Config& config, bool skip);
        // `skip` is what an earlier block left, absent in the first half.
        nn::Tensor operator()(const nn::Tensor& x, const nn::Tensor& skip,
                              const Given& given) const;

      private:
        struct Skip {
            nn::LayerNorm norm;
            nn::Linear linear;
        };
        std::optional<Skip> skip_;
        nn::ShiftedNorm norm1_;
        nn::Linear shift_;
        Attention attn1_;
        nn::LayerNorm norm2_;
        Attention attn2_;
        nn::LayerNorm norm3_;
        nn::Linear ff_in_, ff_out_;
    };
    // One vector for a text: its mean asks, and all its tokens answer (Radford et al. 2021, arXiv
    // 2103.00020, section 2.4).
    class AttentionPool {
      public:
        AttentionPool(const nn::Scope& scope, const Config& config);
        nn::Tensor operator()(const nn::Tensor& text) const;  // [N, 1, pooled_text_width]

      private:
        nn::LearnedTokens positions_;
        nn::Linear q_proj_, k_proj_, v_proj_, c_proj_;
    };

    struct Texts {
        nn::Tensor context;  // both, padding replaced: [N, tokens, context_width]
        nn::Tensor pooled;
    };
    Texts embed_texts(Graph& graph, const InputShapes& shapes, int64_t batch) const;
    // SiLU of what all modulations read, [N, width].
    nn::Tensor conditioning(Graph& graph, const InputShapes& shapes, int64_t batch,
                            const nn::Tensor& pooled) const;

    int64_t in_channels_, out_channels_, width_, head_dim_;
    int64_t context_tokens_, context_width_, context_2_tokens_, context_2_width_, styles_;
    Embedder text_embedder_;
    nn::LearnedTokens padding_;
    nn::Conv2d proj_;
    Embedder timestep_;
    AttentionPool pooler_;
    std::optional<nn::LearnedTokens> style_;
    Embedder extra_;
    std::vector<Block> blocks_;
    std::vector<std::string> layer_names_;
    JointOutput output_;
};

}  // namespace sde::networks
