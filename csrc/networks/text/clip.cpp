#include "networks/text/clip.h"

#include "base/error.h"
#include "networks/text/inputs.h"

namespace sde::networks {
ClipText::ClipText(const nn::Scope& scope, const Config& config)
    : width_(config["hidden_size"].integer()),
      vocabulary_(config["vocab_size"].integer()),
      max_positions_(config["max_positions"].integer()),
      token_embedding_(scope / "text_model" / "embeddings" / "token_embedding", vocabulary_,
                       width_),
      position_embedding_(scope / "text_model" / "embeddings" / "position_embedding",
                          max_positions_, width_),
      layers_([&] {
          std::vector<ClipLayer> layers;
          const ClipLayerConfig layer{.width = width_,
                                      .inner = config["intermediate_size"].integer(),
                                      .heads = config["heads"].integer(),
                                      .activation = clip_activation(config["activation"].text()),
                                      .eps = config["eps"].number(),
                                      .causal = true};
          for (int i = 0; i < config["layers"].integer(); ++i)
              layers.emplace_back(scope / "text_model" / "encoder" / "layers" / i, layer);
          return layers;
      }()),
      final_layer_norm_(scope / "text_model" / "final_layer_norm", width_, config["eps"].number()) {
    if (config["has_projection"].boolean())
        projection_.emplace_back(scope / "text_projection", width_,
                                 config["projection_dim"].integer(), false);
}

nn::Tensor ClipText::embedded(Graph& graph, const InputShapes& shapes, const Shape& ids) const {
    if (shapes.count("learned") == 0)
        return token_embedding_(nn::input_ids(graph, "ids", ids, vocabulary_));
    const Shape& learned = required(shapes, "learned", 2);
    return token_embedding_(nn::input_ids(graph, "ids", ids, vocabulary_ + learned[0]),
                            nn::input(graph, "learned", learned));
}

void ClipText::forward(Graph& graph, const InputShapes& shapes, const Options& options) const {
    const Shape& shape = shape_of_ids(shapes, max_positions_);
    const auto layers = static_cast<int64_t>(layers_.size());
    const int64_t skip = option(options, "skip", 0);
    if (skip < 0 || skip >= layers)
        throw Error(ErrorKind::Parameter,
                    "clip_skip must leave at least one of " + std::to_string(layers) + " layers");

    nn::Tensor x = embedded(graph, shapes, shape);
    // Positions are the same for every sequence of the batch.
    x = nn::add_broadcast(x, position_embedding_.rows(graph, shape[1]));

    const bool pooled = shapes.count("last_token") != 0;
    nn::Tensor hidden;
    for (int64_t i = 0; i < layers; ++i) {
        if (i == layers - skip) hidden = x;
        if (hidden && !pooled) break;  // nobody reads the skipped layers
        x = layers_[i](x);
    }
    if (!hidden) hidden = x;
    nn::output("hidden", option(options, "final_norm", 1) ? final_layer_norm_(hidden) : hidden);
    if (!pooled) return;
    const Shape& rows = required(shapes, "last_token", 1);
    const nn::Tensor at = nn::input_ids(graph, "last_token", rows, shape[0] * shape[1]);
    nn::Tensor last = nn::take_rows(final_layer_norm_(x), at);
    nn::output("pooled", projection_.empty() ? last : projection_[0](last));
}

}  // namespace sde::networks
