#include "networks/text/clip.h"

#include "base/error.h"

namespace sde::networks {
namespace {

nn::Activation activation(const std::string& name) {
    if (name == "quick_gelu") return nn::Activation::QuickGelu;
    if (name == "gelu") return nn::Activation::Gelu;
    throw Error(ErrorKind::Parameter,
                "CLIP's activation is quick_gelu or gelu, not '" + name + "'");
}

}  // namespace

ClipText::Layer::Layer(const nn::Scope& scope, int64_t width, int64_t inner, int64_t heads,
                       nn::Activation activation, float eps)
    : heads_(heads),
      activation_(activation),
      layer_norm1_(scope / "layer_norm1", width, eps),
      q_proj_(scope / "self_attn" / "q_proj", width, width),
      k_proj_(scope / "self_attn" / "k_proj", width, width),
      v_proj_(scope / "self_attn" / "v_proj", width, width),
      out_proj_(scope / "self_attn" / "out_proj", width, width),
      layer_norm2_(scope / "layer_norm2", width, eps),
      fc1_(scope / "mlp" / "fc1", width, inner),
      fc2_(scope / "mlp" / "fc2", inner, width) {}

nn::Tensor ClipText::Layer::operator()(const nn::Tensor& x) const {
    nn::Tensor h = layer_norm1_(x);
    h = nn::attention(q_proj_(h), k_proj_(h), v_proj_(h), {.heads = heads_, .causal = true});
    const nn::Tensor attended = out_proj_(h, {.residual = x});
    h = fc1_(layer_norm2_(attended), {.activation = activation_});
    return fc2_(h, {.residual = attended});
}

ClipText::ClipText(const nn::Scope& scope, const Config& config)
    : width_(config["hidden_size"].integer()),
      vocabulary_(config["vocab_size"].integer()),
      max_positions_(config["max_positions"].integer()),
      token_embedding_(scope / "text_model" / "embeddings" / "token_embedding", vocabulary_,
                       width_),
      position_embedding_(scope / "text_model" / "embeddings" / "position_embedding",
                          max_positions_, width_),
      layers_([&] {
          std::vector<Layer> layers;
          for (int i = 0; i < config["layers"].integer(); ++i)
              layers.emplace_back(scope / "text_model" / "encoder" / "layers" / i, width_,
                                  config["intermediate_size"].integer(), config["heads"].integer(),
                                  activation(config["activation"].text()), config["eps"].number());
          return layers;
      }()),
      final_layer_norm_(scope / "text_model" / "final_layer_norm", width_, config["eps"].number()) {
    if (config["has_projection"].boolean())
        projection_.emplace_back(scope / "text_projection", width_,
                                 config["projection_dim"].integer(), false);
}

void ClipText::forward(Graph& graph, const InputShapes& shapes, const Options& options) const {
    const Shape& shape = required(shapes, "ids", 2);
    const auto layers = static_cast<int64_t>(layers_.size());
    const int64_t skip = option(options, "skip", 0);
    if (skip < 0 || skip >= layers)
        throw Error(ErrorKind::Parameter,
                    "clip_skip must leave at least one of " + std::to_string(layers) + " layers");
    if (shape[1] > max_positions_)
        throw Error(ErrorKind::Parameter, "the text has " + std::to_string(shape[1]) +
                                              " tokens, the encoder takes " +
                                              std::to_string(max_positions_));

    nn::Tensor x = token_embedding_(nn::input_ids(graph, "ids", shape, vocabulary_));
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
