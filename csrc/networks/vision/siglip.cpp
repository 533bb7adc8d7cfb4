#include "networks/vision/siglip.h"

#include "base/error.h"

namespace sde::networks {
namespace {

nn::Conv2dOptions patches(const Config& config) {
    const int size = static_cast<int>(config["patch_size"].integer());
    return {.kernel = size, .stride = size, .pad = false};
}

int64_t positions(const Config& config) {
    const int64_t side = config["image_size"].integer(), patch = config["patch_size"].integer();
    if (patch <= 0 || side < patch)
        throw Error(ErrorKind::Parameter, "a picture of side " + std::to_string(side) +
                                              " has no patches of side " + std::to_string(patch));
    return (side / patch) * (side / patch);
}

}  // namespace

SiglipVision::SiglipVision(const nn::Scope& scope, const Config& config)
    : side_(config["image_size"].integer()),
      positions_(positions(config)),
      patch_embedding_(scope / "vision_model" / "embeddings" / "patch_embedding", 3,
                       config["hidden_size"].integer(), patches(config)),
      position_embedding_(scope / "vision_model" / "embeddings" / "position_embedding", positions_,
                          config["hidden_size"].integer()),
      post_norm_(scope / "vision_model" / "post_layernorm", config["hidden_size"].integer(),
                 config["eps"].number()) {
    const ClipLayerConfig layer{.width = config["hidden_size"].integer(),
                                .inner = config["intermediate_size"].integer(),
                                .heads = config["heads"].integer(),
                                .activation = nn::Activation::GeluTanh,
                                .eps = config["eps"].number(),
                                .causal = false};
    for (int i = 0; i < config["layers"].integer(); ++i)
        layers_.emplace_back(scope / "vision_model" / "encoder" / "layers" / i, layer);
}

void SiglipVision::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    const Shape& shape = required(shapes, "pixels", 4);
    if (!(shape == Shape{shape[0], 3, side_, side_}))
        throw Error(ErrorKind::Parameter, "the vision encoder reads pictures [N, 3, " +
                                              std::to_string(side_) + ", " + std::to_string(side_) +
                                              "], not " + shape.text());
    nn::Tensor x = nn::tokens(patch_embedding_(nn::input(graph, "pixels", shape)));
    x = nn::add_broadcast(x, position_embedding_.rows(graph, positions_));
    for (const ClipLayer& layer : layers_) x = layer(x);
    nn::output("features", post_norm_(x));
}

}  // namespace sde::networks
