#include "networks/text/bert.h"

#include "networks/text/inputs.h"

namespace sde::networks {

BertText::Layer::Layer(const nn::Scope& scope, const Config& config)
    : heads_(config["heads"].integer()),
      query_(scope / "attention" / "self" / "query", config["hidden_size"].integer(),
             config["hidden_size"].integer()),
      key_(scope / "attention" / "self" / "key", config["hidden_size"].integer(),
           config["hidden_size"].integer()),
      value_(scope / "attention" / "self" / "value", config["hidden_size"].integer(),
             config["hidden_size"].integer()),
      attention_out_(scope / "attention" / "output" / "dense", config["hidden_size"].integer(),
                     config["hidden_size"].integer()),
      attention_norm_(scope / "attention" / "output" / "LayerNorm", config["hidden_size"].integer(),
                      config["eps"].number()),
      inner_(scope / "intermediate" / "dense", config["hidden_size"].integer(),
             config["intermediate_size"].integer()),
      outer_(scope / "output" / "dense", config["intermediate_size"].integer(),
             config["hidden_size"].integer()),
      norm_(scope / "output" / "LayerNorm", config["hidden_size"].integer(),
            config["eps"].number()) {}

nn::Tensor BertText::Layer::operator()(const nn::Tensor& x, const nn::Tensor& mask) const {
    const nn::Tensor attended =
        nn::attention(query_(x), key_(x), value_(x), {.heads = heads_, .mask = mask});
    const nn::Tensor h = attention_norm_(attention_out_(attended, {.residual = x}));
    const nn::Tensor inner = inner_(h, {.activation = nn::Activation::Gelu});
    return norm_(outer_(inner, {.residual = h}));
}

BertText::BertText(const nn::Scope& scope, const Config& config)
    : vocabulary_(config["vocab_size"].integer()),
      max_positions_(config["max_positions"].integer()),
      words_(scope / "embeddings" / "word_embeddings", vocabulary_,
             config["hidden_size"].integer()),
      positions_(scope / "embeddings" / "position_embeddings", max_positions_,
                 config["hidden_size"].integer()),
      sentences_(scope / "embeddings" / "token_type_embeddings", config["sentences"].integer(),
                 config["hidden_size"].integer()),
      norm_(scope / "embeddings" / "LayerNorm", config["hidden_size"].integer(),
            config["eps"].number()) {
    const int64_t heads = config["heads"].integer();
    if (heads <= 0 || config["hidden_size"].integer() % heads)
        throw Error(ErrorKind::Parameter,
                    std::to_string(heads) + " heads do not part the encoder's width");
    for (int i = 0; i < config["layers"].integer(); ++i)
        layers_.emplace_back(scope / "encoder" / "layer" / i, config);
}

void BertText::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    const Shape& shape = shape_of_ids(shapes, max_positions_);
    const nn::Tensor mask = given_mask(graph, shapes, shape);
    nn::Tensor x = words_(nn::input_ids(graph, "ids", shape, vocabulary_));
    x = nn::add_broadcast(x, positions_.rows(graph, shape[1]));
    const nn::Tensor sentence = nn::reshape(sentences_.rows(graph, 1), Shape{x.size(2)});
    x = norm_(nn::add(x, sentence));
    for (const Layer& layer : layers_) x = layer(x, mask);
    nn::output("hidden", x);
}

}  // namespace sde::networks
