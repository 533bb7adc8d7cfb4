// Blocks that several networks share.
#pragma once

#include <optional>
#include <vector>

#include "nn/layers.h"

namespace sde::nn {

// Norm, SiLU, conv3x3, (+ time embedding), norm, SiLU, conv3x3, + skip (He et al. 2016;
// Ho et al. 2020).
struct ResnetConfig {
    int64_t in, out;
    int64_t time_width = 0;  // 0: no time embedding (autoencoders)
    int64_t groups = 32;     // 0: norms over channels, see FeatureNorm
    float eps = 1e-5f;
    bool consumes_input = false;  // nothing else reads the input, whose memory may be taken
};

class Resnet {
  public:
    Resnet(const Scope& scope, const ResnetConfig& config);
    // `time` is SiLU(embedding) [N, time_width].
    Tensor operator()(const Tensor& x, const Tensor& time = {}) const;

  private:
    bool consumes_input_;
    FeatureNorm norm1_;
    Conv2d conv1_;
    std::optional<Linear> time_emb_proj_;
    FeatureNorm norm2_;
    Conv2d conv2_;
    std::optional<Conv2d> conv_shortcut_;
};

// What guidance asks of a block's attentions.
struct AttentionVariant {
    bool skip = false;     // the whole block is left out
    bool perturb = false;  // self-attention: every token attends to itself only (Ahn et al. 2024)
    // Cross-attention is steered away from this context; see normalized_guidance().
    Tensor nag_context = {}, nag = {};
    // Tokens of a picture that cross-attention reads beside the text, for its keys and its values.
    Tensor image_keys = {}, image_values = {};
};

// Attention over tokens; `context` absent means self-attention.
class CrossAttention {
  public:
    // With `image_prompt` it has projections for the tokens of a picture.
    CrossAttention(const Scope& scope, int64_t width, int64_t context_width, int64_t heads,
                   bool image_prompt = false);
    Tensor operator()(const Tensor& x, const Tensor& context, const Tensor& residual,
                      const AttentionVariant& variant = {}) const;

  private:
    int64_t heads_;
    Linear to_q_, to_k_, to_v_, to_out_;
    std::optional<Linear> to_k_ip_, to_v_ip_;
};

// Self-attention, cross-attention on the text, GEGLU feed-forward, each behind a layer norm.
class TransformerBlock {
  public:
    TransformerBlock(const Scope& scope, int64_t width, int64_t context_width, int64_t heads,
                     bool only_cross_attention, bool image_prompt = false);
    Tensor operator()(const Tensor& x, const Tensor& context,
                      const AttentionVariant& variant = {}) const;

  private:
    bool only_cross_attention_;
    LayerNorm norm1_;
    CrossAttention attn1_;
    LayerNorm norm2_;
    CrossAttention attn2_;
    LayerNorm norm3_;
    Linear ff_in_, ff_out_;
};

// A feature map as tokens through transformer blocks (Rombach et al. 2022, arXiv 2112.10752).
struct SpatialTransformerConfig {
    int64_t channels, heads, layers, context_width;
    int64_t groups = 32;
    bool linear_projection =
        false;  // proj_in / proj_out are Linear (SD2, SDXL) or 1x1 convolutions (SD1)
    bool only_cross_attention = false;
    bool image_prompt = false;
};

class SpatialTransformer {
  public:
    SpatialTransformer(const Scope& scope, const SpatialTransformerConfig& config);
    Tensor operator()(const Tensor& x, const Tensor& context,
                      const AttentionVariant& variant = {}) const;

  private:
    GroupNorm norm_;
    std::optional<Linear> linear_in_, linear_out_;
    std::optional<Conv2d> conv_in_, conv_out_;
    std::vector<TransformerBlock> blocks_;
};

}  // namespace sde::nn
