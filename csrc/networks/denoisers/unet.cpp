#include "networks/denoisers/unet.h"

#include <algorithm>

#include "base/error.h"
#include "networks/layer_variants.h"

namespace sde::networks {
namespace {

constexpr int64_t kTimeFactor = 4;  // the embedding is four times as wide as the first level

// The figures that every part of the UNet needs while it is built.
struct Builder {
    Builder(const Config& config, std::vector<std::string>& attentions)
        : channels(config["block_out_channels"].integers()),
          heads(config["attention_heads"].integers()),
          groups(config["norm_groups"].integer()),
          eps(config["norm_eps"].number()),
          context_width(config["cross_attention_dim"].integer()),
          linear_projection(config["linear_projection"].boolean()),
          config(config),
          attentions(attentions) {
        if (channels.empty() || heads.size() != channels.size() ||
            only_cross().size() != channels.size())
            throw Error(ErrorKind::Parameter,
                        "the UNet's config must give heads and only_cross_attention per level");
        for (size_t i = 0; i < channels.size(); ++i)
            if (heads[i] <= 0 || channels[i] <= 0 || channels[i] % heads[i] != 0)
                throw Error(ErrorKind::Parameter, std::to_string(channels[i]) +
                                                      " channels cannot be parted into " +
                                                      std::to_string(heads[i]) + " heads");
    }

    nn::Resnet resnet(const nn::Scope& scope, int64_t in, int64_t out) const {
        return {scope,
                {.in = in,
                 .out = out,
                 .time_width = kTimeFactor * channels[0],
                 .groups = groups,
                 .eps = eps}};
    }
    std::optional<nn::SpatialTransformer> transformer(const nn::Scope& scope, size_t level,
                                                      int64_t layers) const {
        if (layers == 0) return std::nullopt;
        attentions.push_back(scope.path());
        return nn::SpatialTransformer(scope,
                                      {.channels = channels[level],
                                       .heads = heads[level],
                                       .layers = layers,
                                       .context_width = context_width,
                                       .groups = groups,
                                       .linear_projection = linear_projection,
                                       .only_cross_attention = only_cross()[level].boolean()});
    }
    struct ConfigList {
        const Config& list;
        size_t size() const { return list.size(); }
        const Config& operator[](size_t i) const { return list[i]; }
    };
    ConfigList only_cross() const { return {config["only_cross_attention"]}; }

    std::vector<int64_t> channels, heads;
    int64_t groups;
    float eps;
    int64_t context_width;
    bool linear_projection;
    const Config& config;
    std::vector<std::string>& attentions;  // names of the transformers built so far
};

}  // namespace

UNet::UNet(const nn::Scope& scope, const Config& config)
    : in_channels_(config["in_channels"].integer()),
      base_channels_(config["block_out_channels"][0].integer()),
      context_width_(config["encoder_hid_dim"].integer() ? config["encoder_hid_dim"].integer()
                                                         : config["cross_attention_dim"].integer()),
      class_width_(config["class_embed_dim"].integer()),
      guidance_width_(config["time_cond_proj_dim"].integer()),
      time_embedding_(scope / "time_embedding", base_channels_, kTimeFactor * base_channels_),
      conv_in_(scope / "conv_in", in_channels_, base_channels_),
      conv_norm_out_(scope / "conv_norm_out", base_channels_, config["norm_groups"].integer(),
                     config["norm_eps"].number()),
      conv_out_(scope / "conv_out", base_channels_, config["out_channels"].integer()) {
    const Builder build(config, attentions_);
    const size_t levels = build.channels.size();
    if (class_width_)
        add_embedding_.emplace(scope / "add_embedding", class_width_, kTimeFactor * base_channels_);
    if (guidance_width_)
        cond_proj_.emplace(scope / "time_embedding" / "cond_proj", guidance_width_, base_channels_,
                           false);
    if (config["encoder_hid_dim"].integer())
        encoder_hid_proj_.emplace(scope / "encoder_hid_proj", context_width_, build.context_width);

    // Every feature map that the way down leaves behind is read once on the way up.
    std::vector<int64_t> skips{base_channels_};
    int64_t width = base_channels_;
    for (size_t i = 0; i < levels; ++i) {
        const nn::Scope at = scope / "down_blocks" / static_cast<int>(i);
        const std::vector<int64_t> transformers = config["down_transformer_layers"][i].integers();
        const int64_t resnets = config["layers_per_block"][i].integer();
        Level& level = down_.emplace_back();
        for (int j = 0; j < resnets; ++j) {
            level.resnets.push_back(build.resnet(at / "resnets" / j, width, build.channels[i]));
            width = build.channels[i];
            level.attentions.push_back(
                build.transformer(at / "attentions" / j, i, transformers.at(j)));
            skips.push_back(width);
        }
        if (i + 1 < levels) {
            level.resample.emplace(at / "downsamplers" / 0 / "conv", width, width,
                                   nn::Conv2dOptions{.stride = 2});
            skips.push_back(width);
        }
    }

    const std::string mid = config["mid_block"].text();
    if (mid != "none") {
        const nn::Scope at = scope / "mid_block";
        MidBlock& block = mid_.emplace();
        block.resnets.push_back(build.resnet(at / "resnets" / 0, width, width));
        if (mid == "cross_attention") {
            block.attention = build.transformer(at / "attentions" / 0, levels - 1,
                                                config["mid_transformer_layers"].integer());
            block.resnets.push_back(build.resnet(at / "resnets" / 1, width, width));
        }
    }

    for (size_t i = 0; i < levels; ++i) {
        const nn::Scope at = scope / "up_blocks" / static_cast<int>(i);
        const size_t depth = levels - 1 - i;
        const std::vector<int64_t> transformers = config["up_transformer_layers"][i].integers();
        const int64_t resnets = config["layers_per_block"][depth].integer() + 1;
        Level& level = up_.emplace_back();
        for (int j = 0; j < resnets; ++j) {
            level.resnets.push_back(
                build.resnet(at / "resnets" / j, width + skips.back(), build.channels[depth]));
            skips.pop_back();
            width = build.channels[depth];
            level.attentions.push_back(
                build.transformer(at / "attentions" / j, depth, transformers.at(j)));
        }
        if (depth > 0) level.resample.emplace(at / "upsamplers" / 0 / "conv", width, width);
    }
}

nn::Tensor UNet::text(Graph& graph, const InputShapes& shapes, const std::string& name) const {
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

nn::Tensor UNet::embed(Graph& graph, const InputShapes& shapes, int64_t batch) const {
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
    nn::Tensor time = time_embedding_(features);
    if (add_embedding_) {
        const nn::Tensor classes =
            nn::input(graph, "class_embedding", required(shapes, "class_embedding", 2));
        time = (*add_embedding_)(classes, time);
    }
    return nn::activate(time, nn::Activation::Silu);
}

void UNet::forward(Graph& graph, const InputShapes& shapes, const Options& options) const {
    const Shape& latents = required(shapes, "latents", 4);
    if (latents[1] != in_channels_)
        throw Error(ErrorKind::Parameter, "the UNet takes " + std::to_string(in_channels_) +
                                              " channels, the latents " + latents.text() +
                                              " have " + std::to_string(latents[1]));
    nn::Tensor x = conv_in_(nn::input(graph, "latents", latents));
    const nn::Tensor context = text(graph, shapes, "context");
    const nn::Tensor away =
        shapes.count("nag_context") ? text(graph, shapes, "nag_context") : nn::Tensor{};
    LayerVariants variants(graph, shapes, options, attentions_.size(), away);
    const nn::Tensor time = embed(graph, shapes, latents[0]);

    std::vector<nn::Tensor> skips{x};
    for (const Level& level : down_) {
        for (size_t j = 0; j < level.resnets.size(); ++j) {
            x = level.resnets[j](x, time);
            if (level.attentions[j]) x = (*level.attentions[j])(x, context, variants.next());
            skips.push_back(x);
        }
        if (level.resample) skips.push_back(x = (*level.resample)(x));
    }
    if (mid_) {
        x = mid_->resnets[0](x, time);
        if (mid_->attention) x = (*mid_->attention)(x, context, variants.next());
        if (mid_->resnets.size() > 1) x = mid_->resnets[1](x, time);
    }
    for (const Level& level : up_) {
        for (size_t j = 0; j < level.resnets.size(); ++j) {
            x = level.resnets[j](nn::concat_channels(x, skips.back()), time);
            skips.pop_back();
            if (level.attentions[j]) x = (*level.attentions[j])(x, context, variants.next());
        }
        // Back to the size of the way down, which is not always twice: halving rounds up.
        if (level.resample)
            x = level.resample->enlarged(x, skips.back().size(2), skips.back().size(3));
    }
    nn::output("prediction", conv_out_(conv_norm_out_.then_silu(x)));
}

}  // namespace sde::networks
