#include "networks/control/t2i_adapter.h"

#include "base/error.h"

namespace sde::networks {
namespace {

constexpr int64_t kLightNarrowing = 4;  // a light adapter's resnets have a quarter of the channels

}  // namespace

nn::Tensor T2IAdapter::Resnet::operator()(const nn::Tensor& x) const {
    return block2(block1(x, {.activation = nn::Activation::Relu}), {.residual = x});
}

nn::Tensor T2IAdapter::Level::operator()(const nn::Tensor& input) const {
    nn::Tensor x = shrinks ? nn::average_pool_2x(input) : input;
    if (in_conv) x = (*in_conv)(x);
    for (const Resnet& resnet : resnets) x = resnet(x);
    return out_conv ? (*out_conv)(x) : x;
}

T2IAdapter::T2IAdapter(const nn::Scope& scope, const Config& config)
    : hint_channels_(config["hint_channels"].integer()) {
    const std::vector<int64_t> channels = config["channels"].integers();
    const bool light = config["light"].boolean();
    const nn::Scope at = scope / "adapter";
    const nn::Conv2dOptions pointwise{.kernel = 1};
    if (channels.empty() || config["shrinks"].size() != channels.size())
        throw Error(ErrorKind::Parameter, "the adapter's config must give shrinks for each level");
    if (!light) conv_in_.emplace(at / "conv_in", hint_channels_, channels[0]);
    int64_t width = light ? hint_channels_ : channels[0];
    for (size_t i = 0; i < channels.size(); ++i) {
        const nn::Scope body = at / "body" / static_cast<int>(i);
        const int64_t inner = light ? channels[i] / kLightNarrowing : channels[i];
        Level& level = levels_.emplace_back();
        level.shrinks = config["shrinks"][i].boolean();
        if (light || width != inner)
            level.in_conv.emplace(body / "in_conv", width, inner, pointwise);
        for (int j = 0; j < config["resnets"].integer(); ++j) {
            const nn::Scope resnet = body / "resnets" / j;
            level.resnets.push_back({nn::Conv2d(resnet / "block1", inner, inner),
                                     nn::Conv2d(resnet / "block2", inner, inner,
                                                light ? nn::Conv2dOptions{} : pointwise)});
        }
        if (light) level.out_conv.emplace(body / "out_conv", inner, channels[i], pointwise);
        width = channels[i];
    }
}

void T2IAdapter::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    const Shape& hint = required(shapes, "hint", 4);
    if (hint[1] != hint_channels_)
        throw Error(ErrorKind::Parameter, "the adapter reads " + std::to_string(hint_channels_) +
                                              " channels, the picture " + hint.text() + " has " +
                                              std::to_string(hint[1]));
    nn::Tensor x = nn::input(graph, "hint", hint);
    if (conv_in_) x = (*conv_in_)(x);
    for (size_t i = 0; i < levels_.size(); ++i) {
        x = levels_[i](x);
        nn::output("feature_" + std::to_string(i), x);
    }
}

}  // namespace sde::networks
