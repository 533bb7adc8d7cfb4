#include "nn/blocks.h"

#include "nn/feed_forward.h"

namespace sde::nn {
namespace {

constexpr float kLayerNormEps = 1e-5f;
// The norm in front of a spatial transformer differs from the resnets' 1e-5 (atlas: common building
// blocks).
constexpr float kSpatialNormEps = 1e-6f;
constexpr int64_t kFeedForwardFactor = 4;

}  // namespace

Resnet::Resnet(const Scope& scope, const ResnetConfig& config)
    : consumes_input_(config.consumes_input),
      norm1_(scope / "norm1", config.in, config.groups, config.eps),
      conv1_(scope / "conv1", config.in, config.out),
      norm2_(scope / "norm2", config.out, config.groups, config.eps),
      conv2_(scope / "conv2", config.out, config.out) {
    if (config.time_width)
        time_emb_proj_.emplace(scope / "time_emb_proj", config.time_width, config.out);
    if (config.in != config.out)
        conv_shortcut_.emplace(scope / "conv_shortcut", config.in, config.out,
                               Conv2dOptions{.kernel = 1});
}

Tensor Resnet::operator()(const Tensor& x, const Tensor& time) const {
    Epilogue with_time;
    if (time_emb_proj_) with_time.batch_bias = (*time_emb_proj_)(time);
    const Tensor shortcut = conv_shortcut_ ? (*conv_shortcut_)(x) : x;
    const bool overwrite = conv_shortcut_ && consumes_input_;
    if (overwrite) x.graph().compute_first(shortcut.raw());
    const Tensor normed = overwrite ? norm1_.then_silu_in_place(x) : norm1_.then_silu(x);
    return conv2_(norm2_.then_silu_in_place(conv1_(normed, with_time)), {.residual = shortcut});
}

CrossAttention::CrossAttention(const Scope& scope, int64_t width, int64_t context_width,
                               int64_t heads, bool image_prompt)
    : heads_(heads),
      to_q_(scope / "to_q", width, width, false),
      to_k_(scope / "to_k", context_width, width, false),
      to_v_(scope / "to_v", context_width, width, false),
      to_out_(scope / "to_out" / 0, width, width) {
    if (!image_prompt) return;
    to_k_ip_.emplace(scope / "to_k_ip", context_width, width, false);
    to_v_ip_.emplace(scope / "to_v_ip", context_width, width, false);
}

Tensor CrossAttention::operator()(const Tensor& x, const Tensor& context, const Tensor& residual,
                                  const AttentionVariant& variant) const {
    if (!context && variant.perturb) return to_out_(to_v_(x), {.residual = residual});
    const Tensor q = to_q_(x);
    const auto attend = [&](const Tensor& to) {
        return attention(q, to_k_(to), to_v_(to), {.heads = heads_});
    };
    Tensor h = attend(context ? context : x);
    if (context && variant.nag_context)
        h = normalized_guidance(h, attend(variant.nag_context), variant.nag);
    // Decoupled cross-attention (Ye et al. 2023, arXiv 2308.06721, section 3.2.2).
    if (context && variant.image_keys && to_k_ip_)
        h = add(h, attention(q, (*to_k_ip_)(variant.image_keys), (*to_v_ip_)(variant.image_values),
                             {.heads = heads_}));
    return to_out_(h, {.residual = residual});
}

TransformerBlock::TransformerBlock(const Scope& scope, int64_t width, int64_t context_width,
                                   int64_t heads, bool only_cross_attention, bool image_prompt)
    : only_cross_attention_(only_cross_attention),
      norm1_(scope / "norm1", width, kLayerNormEps),
      attn1_(scope / "attn1", width, only_cross_attention ? context_width : width, heads),
      norm2_(scope / "norm2", width, kLayerNormEps),
      attn2_(scope / "attn2", width, context_width, heads, image_prompt),
      norm3_(scope / "norm3", width, kLayerNormEps),
      ff_in_(scope / "ff" / "net" / 0 / "proj", width, 2 * kFeedForwardFactor * width),
      ff_out_(scope / "ff" / "net" / 2, kFeedForwardFactor * width, width) {}

Tensor TransformerBlock::operator()(const Tensor& x, const Tensor& context,
                                    const AttentionVariant& variant) const {
    Tensor h = attn1_(norm1_(x), only_cross_attention_ ? context : Tensor{}, x,
                      {.perturb = variant.perturb});
    h = attn2_(norm2_(h), context, h, variant);
    return feed_forward(ff_in_, ff_out_, norm3_(h), Middle::Geglu, {.residual = h});
}

SpatialTransformer::SpatialTransformer(const Scope& scope, const SpatialTransformerConfig& config)
    : norm_(scope / "norm", config.channels, config.groups, kSpatialNormEps) {
    const int64_t channels = config.channels;
    if (config.linear_projection) {
        linear_in_.emplace(scope / "proj_in", channels, channels);
        linear_out_.emplace(scope / "proj_out", channels, channels);
    } else {
        conv_in_.emplace(scope / "proj_in", channels, channels, Conv2dOptions{.kernel = 1});
        conv_out_.emplace(scope / "proj_out", channels, channels, Conv2dOptions{.kernel = 1});
    }
    for (int64_t i = 0; i < config.layers; ++i)
        blocks_.emplace_back(scope / "transformer_blocks" / static_cast<int>(i), channels,
                             config.context_width, config.heads, config.only_cross_attention,
                             config.image_prompt);
}

Tensor SpatialTransformer::operator()(const Tensor& x, const Tensor& context,
                                      const AttentionVariant& variant) const {
    if (variant.skip) return x;
    const Tensor normed = norm_(x);
    Tensor h = linear_in_ ? (*linear_in_)(tokens(normed)) : tokens((*conv_in_)(normed));
    for (const TransformerBlock& block : blocks_) h = block(h, context, variant);
    if (linear_out_)
        return feature_map((*linear_out_)(h, {.residual = tokens(x)}), x.size(2), x.size(3));
    return (*conv_out_)(feature_map(h, x.size(2), x.size(3)), {.residual = x});
}

}  // namespace sde::nn
