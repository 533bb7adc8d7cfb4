#include "networks/vision/clip_vision.h"

#include "base/error.h"

namespace sde::networks {
namespace {

nn::Conv2dOptions patches(const Config& config) {
    const int size = static_cast<int>(config["patch_size"].integer());
    return {.kernel = size, .stride = size, .bias = false, .pad = false};
}

int64_t positions(const Config& config) {
    const int64_t side = config["image_size"].integer(), patch = config["patch_size"].integer();
    if (patch <= 0 || side <= 0 || side % patch != 0)
        throw Error(ErrorKind::Parameter, "a picture of side " + std::to_string(side) +
                                              " cannot be parted into patches of side " +
                                              std::to_string(patch));
    return 1 + (side / patch) * (side / patch);
}

}  // namespace

ClipVision::ClipVision(const nn::Scope& scope, const Config& config)
    : width_(config["hidden_size"].integer()),
      side_(config["image_size"].integer()),
      class_embedding_(scope / "vision_model" / "embeddings", "class_embedding", 1, width_),
      patch_embedding_(scope / "vision_model" / "embeddings" / "patch_embedding", 3, width_,
                       patches(config)),
      position_embedding_(scope / "vision_model" / "embeddings" / "position_embedding",
                          positions(config), width_),
      pre_norm_(scope / "vision_model" / "pre_layrnorm", width_, config["eps"].number()),
      post_norm_(scope / "vision_model" / "post_layernorm", width_, config["eps"].number()),
      projection_(scope / "visual_projection", width_, config["projection_dim"].integer(), false),
      positions_(positions(config)) {
    const ClipLayerConfig layer{.width = width_,
                                .inner = config["intermediate_size"].integer(),
                                .heads = config["heads"].integer(),
                                .activation = clip_activation(config["activation"].text()),
                                .eps = config["eps"].number(),
                                .causal = false};
    for (int i = 0; i < config["layers"].integer(); ++i)
        layers_.emplace_back(scope / "vision_model" / "encoder" / "layers" / i, layer);
}

void ClipVision::forward(Graph& graph, const InputShapes& shapes, const Options& options) const {
    const Shape& shape = required(shapes, "pixels", 4);
    if (!(shape == Shape{shape[0], 3, side_, side_}))
        throw Error(ErrorKind::Parameter, "the vision encoder reads pictures [N, 3, " +
                                              std::to_string(side_) + ", " + std::to_string(side_) +
                                              "], not " + shape.text());
    const nn::Tensor pixels = nn::input(graph, "pixels", shape);
    nn::Tensor x =
        nn::concat_tokens(class_embedding_(graph, shape[0]), nn::tokens(patch_embedding_(pixels)));
    x = pre_norm_(nn::add_broadcast(x, position_embedding_.rows(graph, positions_)));
    for (size_t i = 0; i + 1 < layers_.size(); ++i) x = layers_[i](x);
    nn::output("penultimate", x);
    if (!option(options, "pooled", 1)) return;
    x = layers_.back()(x);
    // The class token says what the whole picture is.
    const nn::Tensor first = nn::reshape(x, Shape{shape[0], positions_ * width_});
    nn::output("embedding",
               projection_(post_norm_(nn::contiguous(nn::slice_last(first, 0, width_)))));
}

}  // namespace sde::networks
