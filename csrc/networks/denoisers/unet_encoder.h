// The way down of a UNet, with its conditions and its middle: the half that a UNet and a ControlNet
// have in common.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "networks/layer_variants.h"
#include "networks/network.h"
#include "nn/blocks.h"

namespace sde::networks {

// The figures that every part of a UNet needs while it is built.
class UNetBuilder {
  public:
    // The names of the spatial transformers are put into `attentions` as they are built.
    UNetBuilder(const Config& config, std::vector<std::string>& attentions);

    nn::Resnet resnet(const nn::Scope& scope, int64_t in, int64_t out) const;
    // Nothing for 0 layers.
    std::optional<nn::SpatialTransformer> transformer(const nn::Scope& scope, size_t level,
                                                      int64_t layers) const;

    size_t levels() const { return channels.size(); }
    int64_t time_width() const;

    std::vector<int64_t> channels, heads;
    int64_t groups;
    float eps;
    int64_t context_width;
    bool linear_projection;
    bool image_prompt;  // the cross-attentions read tokens of a picture too
    const Config& config;

  private:
    std::vector<std::string>& attentions_;
};

// Resnets of one resolution, each with a spatial transformer or none.
struct UNetLevel {
    bool has_attention() const;

    std::vector<nn::Resnet> resnets;
    std::vector<std::optional<nn::SpatialTransformer>> attentions;
    std::optional<nn::Conv2d> resample;
};

// Linear, SiLU, Linear.
class TimeEmbedder {
  public:
    TimeEmbedder(const nn::Scope& scope, int64_t in, int64_t out)
        : linear1_(scope / "linear_1", in, out), linear2_(scope / "linear_2", out, out) {}
    nn::Tensor operator()(const nn::Tensor& x, const nn::Tensor& residual = {}) const {
        return linear2_(linear1_(x, {.activation = nn::Activation::Silu}), {.residual = residual});
    }

  private:
    nn::Linear linear1_, linear2_;
};

class UNetEncoder {
  public:
    UNetEncoder(const nn::Scope& scope, const UNetBuilder& build);

    // The inputs of every such network, declared in the graph: `latents` [N, in_channels, H, W] as
    // the first convolution leaves them; a context [N, tokens, width]; `timesteps` [N] and, where
    // the configuration has them, `class_embedding` and `guidance_embedding`, as SiLU(embedding).
    nn::Tensor latents(Graph& graph, const InputShapes& shapes) const;
    nn::Tensor text(Graph& graph, const InputShapes& shapes, const std::string& name) const;
    // The sum of the embeddings before its SiLU; `time` is what the blocks read.
    nn::Tensor embedding(Graph& graph, const InputShapes& shapes) const;
    nn::Tensor time(Graph& graph, const InputShapes& shapes) const {
        return nn::activate(embedding(graph, shapes), nn::Activation::Silu);
    }

    // Every feature map that the way down from x leaves behind; the last one is its end. A T2I
    // adapter's features, one per level or none, are added on the way.
    std::vector<nn::Tensor> down(nn::Tensor x, const nn::Tensor& context, const nn::Tensor& time,
                                 LayerVariants& variants,
                                 const std::vector<nn::Tensor>& features = {}) const;
    nn::Tensor middle(const nn::Tensor& x, const nn::Tensor& context, const nn::Tensor& time,
                      LayerVariants& variants) const;

    // Channels of what down() returns.
    const std::vector<int64_t>& skip_widths() const noexcept { return skip_widths_; }
    size_t levels() const noexcept { return down_.size(); }
    int64_t base_channels() const noexcept { return base_channels_; }
    int64_t time_width() const noexcept { return time_width_; }

  private:
    struct MidBlock {
        std::vector<nn::Resnet> resnets;
        std::optional<nn::SpatialTransformer> attention;
    };

    int64_t in_channels_, base_channels_, time_width_, context_width_, class_width_,
        guidance_width_;
    TimeEmbedder time_embedding_;
    std::optional<TimeEmbedder> add_embedding_;
    std::optional<nn::Linear> cond_proj_, encoder_hid_proj_;
    nn::Conv2d conv_in_;
    std::vector<UNetLevel> down_;
    std::optional<MidBlock> mid_;
    std::vector<int64_t> skip_widths_;
};

}  // namespace sde::networks
