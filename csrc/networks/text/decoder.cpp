#include "networks/text/decoder.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "networks/text/inputs.h"

namespace sde::networks {
namespace {

nn::Activation activation(const std::string& name) {
    if (name == "silu") return nn::Activation::Silu;
    if (name == "gelu_tanh") return nn::Activation::GeluTanh;
    throw Error(ErrorKind::Parameter,
                "a language model's activation is silu or gelu_tanh, not '" + name + "'");
}

// Llama 3.1's longer contexts (Grattafiori et al. 2024, arXiv 2407.21783): waves that are longer
// than the trained length are slowed by `rope_factor`, shorter ones less and less.
std::vector<float> divisors(const Config& config, int64_t dims) {
    const double factor = config["rope_factor"].number(), low = config["rope_low"].number(),
                 high = config["rope_high"].number(),
                 trained = static_cast<double>(config["rope_trained"].integer());
    std::vector<float> list;
    for (int64_t i = 0; factor != 1 && i < dims / 2; ++i) {
        constexpr double kTurn = 6.283185307179586;
        const double frequency =
            std::pow(static_cast<double>(config["rope_theta"].number()),
                     -2.0 * static_cast<double>(i) / static_cast<double>(dims));
        const double waves = trained * frequency / kTurn;  // in the trained length
        const double kept = std::clamp((waves - low) / (high - low), 0.0, 1.0);
        list.push_back(static_cast<float>(1.0 / (kept + (1.0 - kept) / factor)));
    }
    return list;
}

nn::RotaryOptions rotary(const Config& config) {
    const float share = config["rope_fraction"].number();
    const auto dims =
        static_cast<int64_t>(static_cast<float>(config["head_dim"].integer()) * share);
    return {dims, config["rope_theta"].number(), divisors(config, dims),
            config["rope_sections"].integers()};
}

}  // namespace

nn::RmsNorm DecoderText::norm(const nn::Scope& scope, const Config& config, int64_t width) {
    return {scope, width, config["eps"].number(), config["norm_plus_one"].boolean()};
}

DecoderText::Attention::Attention(const nn::Scope& scope, const Config& config)
    : heads_{config["heads"].integer(),    config["kv_heads"].integer(),
             config["head_dim"].integer(), config["query_scale"].number(),
             config["softcap"].number(),   config["rope_interleaved"].boolean()},
      q_proj_(scope / "q_proj", config["hidden_size"].integer(), heads_.count * heads_.width,
              config["qkv_bias"].boolean()),
      k_proj_(scope / "k_proj", config["hidden_size"].integer(), heads_.kv_count * heads_.width,
              config["qkv_bias"].boolean()),
      v_proj_(scope / "v_proj", config["hidden_size"].integer(), heads_.kv_count * heads_.width,
              config["qkv_bias"].boolean()),
      o_proj_(scope / "o_proj", heads_.count * heads_.width, config["hidden_size"].integer(),
              config["output_bias"].boolean()) {
    if (!config["qk_norm"].boolean()) return;
    q_norm_ = norm(scope / "q_norm", config, heads_.width);
    k_norm_ = norm(scope / "k_norm", config, heads_.width);
}

nn::Tensor DecoderText::Attention::operator()(const nn::Tensor& x, const Text& text,
                                              const nn::Tensor& residual) const {
    const auto turned = [&](nn::Tensor h, const std::optional<nn::RmsNorm>& head_norm) {
        if (head_norm) {
            const Shape shape = h.shape();
            const int64_t rows = shape.elements() / shape[0] / heads_.width;
            h = nn::reshape((*head_norm)(nn::reshape(h, Shape{shape[0], rows, heads_.width})),
                            shape);
        }
        return nn::rotate(h, text.rotary, heads_.width, heads_.interleaved);
    };
    const nn::Tensor attended =
        nn::attention(turned(q_proj_(x), q_norm_), turned(k_proj_(x), k_norm_), v_proj_(x),
                      {.heads = heads_.count,
                       .causal = !text.mask,
                       .mask = text.mask,
                       .kv_heads = heads_.kv_count,
                       .scale = heads_.scale,
                       .softcap = heads_.softcap});
    return o_proj_(attended, {.residual = residual});
}

DecoderText::FeedForward::FeedForward(const nn::Scope& scope, const Config& config)
    : activation_(activation(config["activation"].text())),
      gate_proj_(scope / "gate_proj", config["hidden_size"].integer(),
                 config["intermediate_size"].integer(), false),
      up_proj_(scope / "up_proj", config["hidden_size"].integer(),
               config["intermediate_size"].integer(), false),
      down_proj_(scope / "down_proj", config["intermediate_size"].integer(),
                 config["hidden_size"].integer(), false) {}

nn::Tensor DecoderText::FeedForward::operator()(const nn::Tensor& x,
                                                const nn::Tensor& residual) const {
    const nn::Tensor gate = gate_proj_(x, {.activation = activation_});
    return down_proj_(nn::multiply(gate, up_proj_(x)), {.residual = residual});
}

DecoderText::Layer::Layer(const nn::Scope& scope, const Config& config)
    : attention_norm_(norm(scope / "input_layernorm", config, config["hidden_size"].integer())),
      attention_(scope / "self_attn", config),
      feed_forward_norm_(norm(scope / (config["post_norms"].boolean() ? "pre_feedforward_layernorm"
                                                                      : "post_attention_layernorm"),
                              config, config["hidden_size"].integer())),
      feed_forward_(scope / "mlp", config) {
    if (!config["post_norms"].boolean()) return;
    const int64_t width = config["hidden_size"].integer();
    after_attention_ = norm(scope / "post_attention_layernorm", config, width);
    after_feed_forward_ = norm(scope / "post_feedforward_layernorm", config, width);
}

nn::Tensor DecoderText::Layer::operator()(const nn::Tensor& x, const Text& text) const {
    const nn::Tensor normed = attention_norm_(x);
    if (!after_attention_) {
        const nn::Tensor attended = attention_(normed, text, x);
        return feed_forward_(feed_forward_norm_(attended), attended);
    }
    const nn::Tensor attended = nn::add(x, (*after_attention_)(attention_(normed, text, {})));
    const nn::Tensor fed = feed_forward_(feed_forward_norm_(attended), {});
    return nn::add(attended, (*after_feed_forward_)(fed));
}

DecoderText::DecoderText(const nn::Scope& scope, const Config& config)
    : vocabulary_(config["vocab_size"].integer()),
      max_positions_(config["max_positions"].integer()),
      embedding_scale_(config["embedding_scale"].number()),
      padding_sees_all_(config["padding_sees_all"].boolean()),
      rotary_(rotary(config)),
      embed_tokens_(scope / "embed_tokens", vocabulary_, config["hidden_size"].integer()),
      layers_([&] {
          std::vector<Layer> layers;
          for (int i = 0; i < config["layers"].integer(); ++i)
              layers.emplace_back(scope / "layers" / i, config);
          return layers;
      }()),
      norm_(norm(scope / "norm", config, config["hidden_size"].integer())) {}

DecoderText::Text DecoderText::text(Graph& graph, const InputShapes& shapes,
                                    const Shape& shape) const {
    const auto positions = [&](const char* name) {
        require_shape_of_ids(shapes, name, shape);
        return nn::input_ids(graph, name, shape, max_positions_);
    };
    Text text;
    if (shapes.count("positions_y")) {
        text.rotary = nn::rotary_table(
            {positions("positions"), positions("positions_y"), positions("positions_x")}, rotary_);
    } else {
        text.rotary = nn::rotary_table(positions("positions"), rotary_);
    }
    text.mask =
        given_mask(graph, shapes, shape, {.causal = true, .padding_sees_all = padding_sees_all_});
    return text;
}

nn::Tensor DecoderText::embed(Graph& graph, const InputShapes& shapes, const Shape& shape) const {
    nn::Tensor x;
    if (shapes.count("learned")) {
        const Shape& rows = required(shapes, "learned", 2);
        const nn::Tensor learned = nn::input(graph, "learned", rows);
        x = embed_tokens_(nn::input_ids(graph, "ids", shape, vocabulary_ + rows[0]), learned);
    } else {
        x = embed_tokens_(nn::input_ids(graph, "ids", shape, vocabulary_));
    }
    return embedding_scale_ != 1.0f ? nn::scale(x, embedding_scale_) : x;
}

void DecoderText::forward(Graph& graph, const InputShapes& shapes, const Options& options) const {
    const Shape& shape = shape_of_ids(shapes, max_positions_);
    const auto layers = static_cast<int64_t>(layers_.size());
    const int64_t skip = option(options, "skip", 0);
    if (skip < 0 || skip >= layers)
        throw Error(ErrorKind::Parameter,
                    "skip must leave at least one of " + std::to_string(layers) + " layers");

    const Text read = text(graph, shapes, shape);
    nn::Tensor x = embed(graph, shapes, shape);
    const bool last = option(options, "last", 0) != 0;
    nn::Tensor hidden;
    for (int64_t i = 0; i < layers; ++i) {
        if (i == layers - skip) hidden = x;
        if (hidden && !last) break;  // nobody reads the skipped layers
        x = layers_[i](x, read);
    }
    if (!hidden) hidden = x;
    nn::output("hidden", option(options, "final_norm", 1) ? norm_(hidden) : hidden);
    if (!last) return;
    const Shape flat{shape[0], shape[1] * x.size(2)};
    nn::output("last", nn::slice_last(nn::reshape(x, flat), (shape[1] - 1) * x.size(2), x.size(2)));
}

}  // namespace sde::networks
