#include "networks/denoisers/unet.h"

#include "base/error.h"

namespace sde::networks {
namespace {

// The input `name`, a feature map that is added to x; x itself when it is not given.
nn::Tensor with_residual(const nn::Tensor& x, const InputShapes& shapes, const std::string& name) {
    const auto found = shapes.find(name);
    if (found == shapes.end()) return x;
    if (!(found->second == x.shape()))
        throw Error(ErrorKind::Parameter,
                    "the input '" + name + "' has shape " + found->second.text() +
                        ", the UNet's feature map there is " + x.shape().text() +
                        ". Was the control network made for another family?");
    return nn::add(x, nn::input(x.graph(), name, x.shape()));
}

// The features of a T2I adapter for each level, or nothing.
std::vector<nn::Tensor> adapter_features(Graph& graph, const InputShapes& shapes, size_t levels) {
    std::vector<nn::Tensor> features;
    if (!shapes.count("adapter_0")) return features;
    for (size_t i = 0; i < levels; ++i) {
        const std::string name = "adapter_" + std::to_string(i);
        features.push_back(nn::input(graph, name, required(shapes, name, 4)));
    }
    return features;
}

}  // namespace

UNet::UNet(const nn::Scope& scope, const Config& config)
    : image_width_(config.has("image_prompt") && config["image_prompt"].boolean()
                       ? config["cross_attention_dim"].integer()
                       : 0),
      encoder_(scope, UNetBuilder(config, attentions_)),
      conv_norm_out_(scope / "conv_norm_out", encoder_.base_channels(),
                     config["norm_groups"].integer(), config["norm_eps"].number()),
      conv_out_(scope / "conv_out", encoder_.base_channels(), config["out_channels"].integer()) {
    // Every feature map that the way down leaves behind is read once on the way up.
    const UNetBuilder build(config, attentions_);
    std::vector<int64_t> skips = encoder_.skip_widths();
    int64_t width = skips.back();
    for (size_t i = 0; i < build.levels(); ++i) {
        const nn::Scope at = scope / "up_blocks" / static_cast<int>(i);
        const size_t depth = build.levels() - 1 - i;
        const std::vector<int64_t> transformers = config["up_transformer_layers"][i].integers();
        const int64_t resnets = config["layers_per_block"][depth].integer() + 1;
        UNetLevel& level = up_.emplace_back();
        for (int j = 0; j < resnets; ++j) {
            features_width_ = width;
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

nn::Tensor UNet::picture_tokens(Graph& graph, const InputShapes& shapes,
                                const std::string& name) const {
    const Shape& shape = required(shapes, name, 3);
    if (!image_width_ || shape[0] != required(shapes, "latents", 4)[0] || shape[2] != image_width_)
        throw Error(
            ErrorKind::Parameter,
            image_width_
                ? "the input '" + name + "' has shape " + shape.text() + "; expected [N, tokens, " +
                      std::to_string(image_width_) + "]"
                : "the UNet was loaded without an IP-Adapter, and cannot read '" + name + "'");
    return nn::input(graph, name, shape);
}

void UNet::forward(Graph& graph, const InputShapes& shapes, const Options& options) const {
    const nn::Tensor start = encoder_.latents(graph, shapes);
    const nn::Tensor context = encoder_.text(graph, shapes, "context");
    const nn::Tensor away =
        shapes.count("nag_context") ? encoder_.text(graph, shapes, "nag_context") : nn::Tensor{};
    LayerVariants variants(graph, shapes, options, attentions_.size(), away);
    if (shapes.count("image_keys"))
        variants.set_image_prompt(picture_tokens(graph, shapes, "image_keys"),
                                  picture_tokens(graph, shapes, "image_values"));
    const Given given{context, encoder_.time(graph, shapes)};

    const Part which = part(options, reuse());
    std::vector<nn::Tensor> skips{start};
    nn::Tensor x;
    if (which == Part::Shallow) {
        x = features(graph, shapes, start);
        skips[0] = with_residual(start, shapes, "control_0");
        // The last of all layers, if it is one that guidance knows.
        variants.advance(attentions_.size() - (up_.back().attentions.back() ? 1 : 0));
    } else {
        skips = encoder_.down(start, context, given.time, variants,
                              adapter_features(graph, shapes, encoder_.levels()));
        x = encoder_.middle(skips.back(), context, given.time, variants);
        x = with_residual(x, shapes, "adapter_mid");
        x = with_residual(x, shapes, "control_mid");
        for (size_t i = 0; i < skips.size(); ++i)
            skips[i] = with_residual(skips[i], shapes, "control_" + std::to_string(i));
        x = climb(given, x, skips, variants);
    }
    if (which == Part::Keeping) nn::output("features", nn::tokens(x));
    x = last(given, x, skips.front(), variants);
    nn::output("prediction", conv_out_(conv_norm_out_.then_silu(x)));
}

nn::Tensor UNet::features(Graph& graph, const InputShapes& shapes, const nn::Tensor& start) const {
    const int64_t height = start.size(2), width = start.size(3);
    const Shape expected{start.size(0), height * width, features_width_};
    const Shape& shape = required(shapes, "features", 3);
    if (!(shape == expected))
        throw Error(ErrorKind::Parameter, "the input 'features' has shape " + shape.text() +
                                              ", expected " + expected.text());
    return nn::feature_map(nn::input(graph, "features", shape), height, width);
}

nn::Tensor UNet::climb(const Given& given, nn::Tensor x, std::vector<nn::Tensor>& skips,
                       LayerVariants& variants) const {
    for (const UNetLevel& level : up_) {
        for (size_t j = 0; j < level.resnets.size() && skips.size() > 1; ++j) {
            x = level.resnets[j](nn::concat_channels(x, skips.back()), given.time);
            skips.pop_back();
            if (level.attentions[j]) x = (*level.attentions[j])(x, given.context, variants.next());
        }
        // Back to the size of the way down, which is not always twice: halving rounds up.
        if (level.resample)
            x = level.resample->enlarged(x, skips.back().size(2), skips.back().size(3));
    }
    return x;
}

nn::Tensor UNet::last(const Given& given, const nn::Tensor& x, const nn::Tensor& skip,
                      LayerVariants& variants) const {
    const nn::Tensor h = up_.back().resnets.back()(nn::concat_channels(x, skip), given.time);
    const auto& attention = up_.back().attentions.back();
    return attention ? (*attention)(h, given.context, variants.next()) : h;
}

}  // namespace sde::networks
