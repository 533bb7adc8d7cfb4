#include "networks/text/t5.h"

#include "networks/text/inputs.h"

namespace sde::networks {

T5Text::Layer::Layer(const nn::Scope& scope, const Config& config)
    : heads_(config["heads"].integer()),
      inner_(heads_ * config["head_dim"].integer()),
      attention_norm_(scope / "layer" / 0 / "layer_norm", config["hidden_size"].integer(),
                      config["eps"].number()),
      q_(scope / "layer" / 0 / "SelfAttention" / "q", config["hidden_size"].integer(), inner_,
         false),
      k_(scope / "layer" / 0 / "SelfAttention" / "k", config["hidden_size"].integer(), inner_,
         false),
      v_(scope / "layer" / 0 / "SelfAttention" / "v", config["hidden_size"].integer(), inner_,
         false),
      o_(scope / "layer" / 0 / "SelfAttention" / "o", inner_, config["hidden_size"].integer(),
         false),
      feed_forward_norm_(scope / "layer" / 1 / "layer_norm", config["hidden_size"].integer(),
                         config["eps"].number()),
      wi_0_(scope / "layer" / 1 / "DenseReluDense" / "wi_0", config["hidden_size"].integer(),
            config["intermediate_size"].integer(), false),
      wi_1_(scope / "layer" / 1 / "DenseReluDense" / "wi_1", config["hidden_size"].integer(),
            config["intermediate_size"].integer(), false),
      wo_(scope / "layer" / 1 / "DenseReluDense" / "wo", config["intermediate_size"].integer(),
          config["hidden_size"].integer(), false) {}

nn::Tensor T5Text::Layer::operator()(const nn::Tensor& x, const nn::Tensor& distance_bias,
                                     const nn::Tensor& mask) const {
    const nn::Tensor normed = attention_norm_(x);
    // The scores are not divided by sqrt(head_dim): the initial weights take care of it.
    nn::Tensor h = nn::attention(
        q_(normed), k_(normed), v_(normed),
        {.heads = heads_, .mask = mask, .scale = 1.0f, .distance_bias = distance_bias});
    const nn::Tensor attended = o_(h, {.residual = x});
    h = feed_forward_norm_(attended);
    h = nn::multiply(wi_0_(h, {.activation = nn::Activation::GeluTanh}), wi_1_(h));
    return wo_(h, {.residual = attended});
}

T5Text::T5Text(const nn::Scope& scope, const Config& config)
    : vocabulary_(config["vocab_size"].integer()),
      max_positions_(config["max_positions"].integer()),
      buckets_(config["buckets"].integer()),
      max_distance_(config["max_distance"].integer()),
      shared_(scope / "shared", vocabulary_, config["hidden_size"].integer()),
      biases_([&] {
          std::vector<nn::Embedding> biases;
          const int64_t count = config["bias_per_layer"].boolean() ? config["layers"].integer() : 1;
          for (int i = 0; i < count; ++i)
              biases.emplace_back(scope / "encoder" / "block" / i / "layer" / 0 / "SelfAttention" /
                                      "relative_attention_bias",
                                  buckets_, config["heads"].integer());
          return biases;
      }()),
      layers_([&] {
          std::vector<Layer> layers;
          for (int i = 0; i < config["layers"].integer(); ++i)
              layers.emplace_back(scope / "encoder" / "block" / i, config);
          return layers;
      }()),
      final_layer_norm_(scope / "encoder" / "final_layer_norm", config["hidden_size"].integer(),
                        config["eps"].number()) {}

void T5Text::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    const Shape& shape = shape_of_ids(shapes, max_positions_);
    const nn::Tensor mask = given_mask(graph, shapes, shape);
    nn::Tensor x = shared_(nn::input_ids(graph, "ids", shape, vocabulary_));
    nn::Tensor bias;
    for (size_t i = 0; i < layers_.size(); ++i) {
        if (i < biases_.size())
            bias = nn::distance_bias(biases_[i].rows(graph, buckets_), shape[1], max_distance_);
        x = layers_[i](x, bias, mask);
    }
    nn::output("hidden", final_layer_norm_(x));
}

}  // namespace sde::networks
