#include "networks/control/controlnet.h"

#include "base/error.h"

namespace sde::networks {
namespace {

// How much smaller the features are than the picture.
int64_t shrinking(const std::vector<int64_t>& channels) {
    constexpr size_t kMostHalvings = 8;
    if (channels.empty() || channels.size() > 1 + kMostHalvings)
        throw Error(ErrorKind::Parameter,
                    "a ControlNet's hint_block_channels has " + std::to_string(channels.size()) +
                        " entries; expected 1 to " + std::to_string(1 + kMostHalvings));
    return int64_t{1} << (channels.size() - 1);
}

}  // namespace

HintEncoder::HintEncoder(const nn::Scope& scope, int64_t in, const std::vector<int64_t>& channels,
                         int64_t out)
    : in_(in),
      out_(out),
      factor_(shrinking(channels)),
      conv_in_(scope / "conv_in", in, channels.at(0)),
      conv_out_(scope / "conv_out", channels.back(), out) {
    for (size_t i = 0; i + 1 < channels.size(); ++i) {
        const int at = static_cast<int>(2 * i);
        blocks_.emplace_back(scope / "blocks" / at, channels[i], channels[i]);
        blocks_.emplace_back(scope / "blocks" / (at + 1), channels[i], channels[i + 1],
                             nn::Conv2dOptions{.stride = 2});
    }
}

nn::Tensor HintEncoder::encoded(Graph& graph, const Shape& picture) const {
    const nn::Epilogue silu{.activation = nn::Activation::Silu};
    nn::Tensor x = conv_in_(nn::input(graph, "hint", picture), silu);
    for (const nn::Conv2d& block : blocks_) x = block(x, silu);
    return conv_out_(x);
}

void HintEncoder::only(Graph& graph, const InputShapes& shapes) const {
    const Shape& picture = required(shapes, "hint", 4);
    if (picture[1] != in_ || picture[2] % factor_ || picture[3] % factor_)
        throw Error(ErrorKind::Parameter, "a control picture has " + std::to_string(in_) +
                                              " channels and sides that are multiples of " +
                                              std::to_string(factor_) + ", not the shape " +
                                              picture.text());
    nn::output("hint_features", encoded(graph, picture));
}

nn::Tensor HintEncoder::features(Graph& graph, const InputShapes& shapes) const {
    const Shape& latents = required(shapes, "latents", 4);
    const bool ready = shapes.count("hint_features") != 0;
    const std::string name = ready ? "hint_features" : "hint";
    const Shape& given = required(shapes, name, 4);
    const Shape wanted = ready ? Shape{latents[0], out_, latents[2], latents[3]}
                               : Shape{latents[0], in_, factor_ * latents[2], factor_ * latents[3]};
    if (!(given == wanted))
        throw Error(ErrorKind::Parameter, "the control picture '" + name + "' has shape " +
                                              given.text() + "; for latents of " + latents.text() +
                                              " it must be " + wanted.text());
    return ready ? nn::input(graph, name, given) : encoded(graph, given);
}

ControlEncoder::ControlEncoder(const nn::Scope& scope, const Config& config)
    : unet_(scope, UNetBuilder(config, attentions_)),
      mid_(scope / "controlnet_mid_block", unet_.skip_widths().back(), unet_.skip_widths().back(),
           {.kernel = 1}) {
    int at = 0;
    for (int64_t width : unet_.skip_widths())
        down_.emplace_back(scope / "controlnet_down_blocks" / at++, width, width,
                           nn::Conv2dOptions{.kernel = 1});
}

void ControlEncoder::residuals(Graph& graph, const InputShapes& shapes, const nn::Tensor& x,
                               const nn::Tensor& time) const {
    const nn::Tensor context = unet_.text(graph, shapes, "context");
    LayerVariants variants(graph, shapes, {}, attentions_.size(), {});
    const std::vector<nn::Tensor> skips = unet_.down(x, context, time, variants);
    const nn::Tensor middle = unet_.middle(skips.back(), context, time, variants);
    for (size_t i = 0; i < skips.size(); ++i)
        nn::output("control_" + std::to_string(i), down_[i](skips[i]));
    nn::output("control_mid", mid_(middle));
}

ControlNet::ControlNet(const nn::Scope& scope, const Config& config)
    : encoder_(scope, config),
      hint_(scope / "controlnet_cond_embedding", config["hint_channels"].integer(),
            config["hint_block_channels"].integers(), encoder_.unet().base_channels()) {}

void ControlNet::forward(Graph& graph, const InputShapes& shapes, const Options& options) const {
    if (option(options, "hint_only", 0)) return hint_.only(graph, shapes);
    const nn::Tensor latents = encoder_.unet().latents(graph, shapes);
    const nn::Tensor x = nn::add(latents, hint_.features(graph, shapes));
    encoder_.residuals(graph, shapes, x, encoder_.unet().time(graph, shapes));
}

}  // namespace sde::networks
