#include "networks/denoisers/unet_encoder.h"

#include <algorithm>

#include "base/error.h"

namespace sde::networks {
namespace {

constexpr int64_t kTimeFactor = 4;  // the embedding is four times as wide as the first level

int64_t context_input_width(const Config& config) {
    const int64_t projected = config["encoder_hid_dim"].integer();
    return projected ? projected : config["cross_attention_dim"].integer();
}

}  // namespace

UNetBuilder::UNetBuilder(const Config& config, std::vector<std::string>& attentions)
    : channels(config["block_out_channels"].integers()),
      heads(config["attention_heads"].integers()),
      groups(config["norm_groups"].integer()),
      eps(config["norm_eps"].number()),
      context_width(config["cross_attention_dim"].integer()),
      linear_projection(config["linear_projection"].boolean()),
      image_prompt(config.has("image_prompt") && config["image_prompt"].boolean()),
      config(config),
      attentions_(attentions) {
    if (channels.empty() || heads.size() != channels.size() ||
        config["only_cross_attention"].size() != channels.size())
        throw Error(ErrorKind::Parameter,
                    "the UNet's config must give heads and only_cross_attention per level");
    for (size_t i = 0; i < channels.size(); ++i)
        if (heads[i] <= 0 || channels[i] <= 0 || channels[i] % heads[i] != 0)
            throw Error(ErrorKind::Parameter, std::to_string(channels[i]) +
                                                  " channels cannot be parted into " +
                                                  std::to_string(heads[i]) + " heads");
}

int64_t UNetBuilder::time_width() const {
    return kTimeFactor * channels[0];
}

nn::Resnet UNetBuilder::resnet(const nn::Scope& scope, int64_t in, int64_t out) const {
    return {scope,
            {.in = in, .out = out, .time_width = time_width(), .groups = groups, .eps = eps}};
}

std::optional<nn::SpatialTransformer> UNetBuilder::transformer(const nn::Scope& scope, size_t level,
                                                               int64_t layers) const {
    if (layers == 0) return std::nullopt;
    attentions_.push_back(scope.path());
    return nn::SpatialTransformer(
        scope, {.channels = channels[level],
                .heads = heads[level],
                .layers = layers,
                .context_width = context_width,
                .groups = groups,
                .linear_projection = linear_projection,
                .only_cross_attention = config["only_cross_attention"][level].boolean(),
                .image_prompt = image_prompt});
}

bool UNetLevel::has_attention() const {
    return std::any_of(attentions.begin(), attentions.end(),
                       [](const auto& attention) { return attention.has_value(); });
}

UNetEncoder::UNetEncoder(const nn::Scope& scope, const UNetBuilder& build)
    : in_channels_(build.config["in_channels"].integer()),
      base_channels_(build.channels[0]),
      time_width_(build.time_width()),
      context_width_(context_input_width(build.config)),
      class_width_(build.config["class_embed_dim"].integer()),
      guidance_width_(build.config["time_cond_proj_dim"].integer()),
      time_embedding_(scope / "time_embedding", base_channels_, build.time_width()),
      conv_in_(scope / "conv_in", in_channels_, base_channels_),
      skip_widths_{base_channels_} {
    const Config& config = build.config;
    if (class_width_)
        add_embedding_.emplace(scope / "add_embedding", class_width_, build.time_width());
    if (guidance_width_)
        cond_proj_.emplace(scope / "time_embedding" / "cond_proj", guidance_width_, base_channels_,
                           false);
    if (config["encoder_hid_dim"].integer())
        encoder_hid_proj_.emplace(scope / "encoder_hid_proj", context_width_, build.context_width);

    int64_t width = base_channels_;
    for (size_t i = 0; i < build.levels(); ++i) {
        const nn::Scope at = scope / "down_blocks" / static_cast<int>(i);
        const std::vector<int64_t> transformers = config["down_transformer_layers"][i].integers();
        const int64_t resnets = config["layers_per_block"][i].integer();
        UNetLevel& level = down_.emplace_back();
        for (int j = 0; j < resnets; ++j) {
            level.resnets.push_back(build.resnet(at / "resnets" / j, width, build.channels[i]));
            width = build.channels[i];
            level.attentions.push_back(
                build.transformer(at / "attentions" / j, i, transformers.at(j)));
            skip_widths_.push_back(width);
        }
        if (i + 1 < build.levels()) {
            level.resample.emplace(at / "downsamplers" / 0 / "conv", width, width,
                                   nn::Conv2dOptions{.stride = 2});
            skip_widths_.push_back(width);
        }
    }

    const std::string mid = config["mid_block"].text();
    if (mid == "none") return;
    const nn::Scope at = scope / "mid_block";
    MidBlock& block = mid_.emplace();
    block.resnets.push_back(build.resnet(at / "resnets" / 0, width, width));
    if (mid != "cross_attention") return;
    block.attention = build.transformer(at / "attentions" / 0, build.levels() - 1,
                                        config["mid_transformer_layers"].integer());
    block.resnets.push_back(build.resnet(at / "resnets" / 1, width, width));
}

nn::Tensor UNetEncoder::latents(Graph& graph, const InputShapes& shapes) const {
    const Shape& latents = required(shapes, "latents", 4);
    if (latents[1] != in_channels_)
        throw Error(ErrorKind::Parameter, "the UNet takes " + std::to_string(in_channels_) +
                                              " channels, the latents " + latents.text() +
                                              " have " + std::to_string(latents[1]));
    return conv_in_(nn::input(graph, "latents", latents));
}

nn::Tensor UNetEncoder::text(Graph& graph, const InputShapes& shapes,
                             const std::string& name) const {
    const Shape& shape = required(shapes, name, 3);
    const int64_t batch = required(shapes, "latents", 4)[0];
    if (shape[0] != batch || shape[2] != context_width_)
        throw Error(ErrorKind::Parameter,
                    "the UNet takes a " + name + " of [" + std::to_string(batch) + ", tokens, " +
                        std::to_string(context_width_) + "], not " + shape.text() +
                        ". Is the text encoder another model's?");
    const nn::Tensor context = nn::input(graph, name, shape);
    return encoder_hid_proj_ ? (*encoder_hid_proj_)(context) : context;
}

nn::Tensor UNetEncoder::embedding(Graph& graph, const InputShapes& shapes) const {
    const int64_t batch = required(shapes, "latents", 4)[0];
    const nn::Tensor timesteps = nn::input(graph, "timesteps", required(shapes, "timesteps", 1));
    if (timesteps.size(0) != batch)
        throw Error(ErrorKind::Parameter,
                    "one timestep per latent is needed: " + std::to_string(batch) + ", not " +
                        std::to_string(timesteps.size(0)));
    nn::Tensor features = nn::timestep_embedding(timesteps, base_channels_);
    if (cond_proj_) {
        const nn::Tensor guidance =
            nn::input(graph, "guidance_embedding", required(shapes, "guidance_embedding", 2));
        features = (*cond_proj_)(guidance, {.residual = features});
    }
    const nn::Tensor time = time_embedding_(features);
    if (!add_embedding_) return time;
    const nn::Tensor classes =
        nn::input(graph, "class_embedding", required(shapes, "class_embedding", 2));
    return (*add_embedding_)(classes, time);
}

// A T2I adapter's features belong to the last block of a level with attention; in a level without
// they are added behind the downsampling (diffusers' UNet2DConditionModel, and the adapters were
// trained so).
std::vector<nn::Tensor> UNetEncoder::down(nn::Tensor x, const nn::Tensor& context,
                                          const nn::Tensor& time, LayerVariants& variants,
                                          const std::vector<nn::Tensor>& features) const {
    std::vector<nn::Tensor> skips{x};
    for (size_t i = 0; i < down_.size(); ++i) {
        const UNetLevel& level = down_[i];
        const bool inside = !features.empty() && level.has_attention();
        for (size_t j = 0; j < level.resnets.size(); ++j) {
            x = level.resnets[j](x, time);
            if (level.attentions[j]) x = (*level.attentions[j])(x, context, variants.next());
            if (inside && j + 1 == level.resnets.size()) x = nn::add(x, features[i]);
            skips.push_back(x);
        }
        if (level.resample) skips.push_back(x = (*level.resample)(x));
        if (!features.empty() && !inside) skips.back() = x = nn::add(x, features[i]);
    }
    return skips;
}

nn::Tensor UNetEncoder::middle(const nn::Tensor& from, const nn::Tensor& context,
                               const nn::Tensor& time, LayerVariants& variants) const {
    if (!mid_) return from;
    nn::Tensor x = mid_->resnets[0](from, time);
    if (mid_->attention) x = (*mid_->attention)(x, context, variants.next());
    if (mid_->resnets.size() > 1) x = mid_->resnets[1](x, time);
    return x;
}

}  // namespace sde::networks
