#include "networks/autoencoders/kl.h"

#include "base/error.h"

namespace sde::networks {

KlMidBlock::KlMidBlock(const nn::Scope& scope, int64_t channels, int64_t groups, float eps,
                       bool attention)
    : resnet0_(
          scope / "resnets" / 0,
          {.in = channels, .out = channels, .groups = groups, .eps = eps, .consumes_input = true}),
      resnet1_(
          scope / "resnets" / 1,
          {.in = channels, .out = channels, .groups = groups, .eps = eps, .consumes_input = true}) {
    if (!attention) return;
    const nn::Scope at = scope / "attentions" / 0;
    group_norm_.emplace(at / "group_norm", channels, groups, eps);
    to_q_.emplace(at / "to_q", channels, channels);
    to_k_.emplace(at / "to_k", channels, channels);
    to_v_.emplace(at / "to_v", channels, channels);
    to_out_.emplace(at / "to_out" / 0, channels, channels);
}

nn::Tensor KlMidBlock::operator()(const nn::Tensor& x) const {
    nn::Tensor h = resnet0_(x);
    if (group_norm_) {
        const nn::Tensor normed = nn::tokens((*group_norm_)(h));
        const nn::Tensor attended =
            nn::attention((*to_q_)(normed), (*to_k_)(normed), (*to_v_)(normed), {});
        h = nn::feature_map((*to_out_)(attended, {.residual = nn::tokens(h)}), h.size(2),
                            h.size(3));
    }
    return resnet1_(h);
}

KlEncoder::KlEncoder(const nn::Scope& scope, const Config& config)
    : in_channels_(config["in_channels"].integer()),
      conv_in_(scope / "encoder" / "conv_in", in_channels_,
               config["block_out_channels"][0].integer()) {
    const nn::Scope at = scope / "encoder";
    const std::vector<int64_t> channels = config["block_out_channels"].integers();
    const int64_t groups = config["norm_groups"].integer(),
                  latents = 2 * config["latent_channels"].integer();
    const float eps = config["norm_eps"].number();
    int64_t width = channels[0];
    for (size_t i = 0; i < channels.size(); ++i) {
        const nn::Scope block = at / "down_blocks" / static_cast<int>(i);
        Level& level = down_.emplace_back();
        for (int j = 0; j < config["layers_per_block"].integer(); ++j) {
            const nn::ResnetConfig resnet{.in = width,
                                          .out = channels[i],
                                          .groups = groups,
                                          .eps = eps,
                                          .consumes_input = true};
            level.resnets.emplace_back(block / "resnets" / j, resnet);
            width = channels[i];
        }
        if (i + 1 < channels.size())
            level.downsample.emplace(block / "downsamplers" / 0 / "conv", width, width,
                                     nn::Conv2dOptions{.stride = 2, .pad_right_bottom_only = true});
    }
    mid_.emplace(at / "mid_block", width, groups, eps, config["mid_attention"].boolean());
    conv_norm_out_.emplace(at / "conv_norm_out", width, groups, eps);
    conv_out_.emplace(at / "conv_out", width, latents);
    if (config["use_quant_conv"].boolean())
        quant_conv_.emplace(scope / "quant_conv", latents, latents, nn::Conv2dOptions{.kernel = 1});
}

void KlEncoder::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    nn::Tensor x = conv_in_(nn::input(graph, "image", required(shapes, "image", 4)));
    for (const Level& level : down_) {
        for (const nn::Resnet& resnet : level.resnets) x = resnet(x);
        if (level.downsample) x = (*level.downsample)(x);
    }
    x = (*conv_out_)(conv_norm_out_->then_silu((*mid_)(x)));
    nn::output("moments", quant_conv_ ? (*quant_conv_)(x) : x);
}

KlDecoder::KlDecoder(const nn::Scope& scope, const Config& config)
    : latent_channels_(config["latent_channels"].integer()) {
    const nn::Scope at = scope / "decoder";
    const std::vector<int64_t> channels = config["block_out_channels"].integers();
    const int64_t groups = config["norm_groups"].integer();
    const float eps = config["norm_eps"].number();
    const bool halves = config["upsampling_halves"].boolean();
    int64_t width = channels.back();
    if (config["use_quant_conv"].boolean())
        post_quant_conv_.emplace(scope / "post_quant_conv", latent_channels_, latent_channels_,
                                 nn::Conv2dOptions{.kernel = 1});
    conv_in_.emplace(at / "conv_in", latent_channels_, width);
    mid_.emplace(at / "mid_block", width, groups, eps, config["mid_attention"].boolean());
    for (size_t i = 0; i < channels.size(); ++i) {
        const nn::Scope block = at / "up_blocks" / static_cast<int>(i);
        const int64_t out = channels[channels.size() - 1 - i];
        Level& level = up_.emplace_back();
        for (int j = 0; j < config["layers_per_block"].integer() + 1; ++j) {
            level.resnets.emplace_back(
                block / "resnets" / j,
                nn::ResnetConfig{
                    .in = width, .out = out, .groups = groups, .eps = eps, .consumes_input = true});
            width = out;
        }
        if (i + 1 == channels.size()) continue;
        if (halves) width /= 2;
        level.upsample.emplace(block / "upsamplers" / 0 / "conv", out, width);
    }
    conv_norm_out_.emplace(at / "conv_norm_out", width, groups, eps);
    conv_out_.emplace(at / "conv_out", width, config["in_channels"].integer());
}

void KlDecoder::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    nn::Tensor x = nn::input(graph, "latents", required(shapes, "latents", 4));
    if (post_quant_conv_) x = (*post_quant_conv_)(x);
    x = (*mid_)((*conv_in_)(x));
    for (const Level& level : up_) {
        for (const nn::Resnet& resnet : level.resnets) x = resnet(x);
        if (level.upsample) x = level.upsample->enlarged(x, 2 * x.size(2), 2 * x.size(3));
    }
    nn::output("image", (*conv_out_)(conv_norm_out_->then_silu(x)));
}

}  // namespace sde::networks
