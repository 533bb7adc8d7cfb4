// Decoder language models that read prompts: ChatGLM3, Gemma 2, Qwen 2, 2.5 and 3, Llama. One
// network; the differences are configuration.
#pragma once

#include <optional>
#include <vector>

#include "networks/network.h"
#include "nn/layers.h"
#include "nn/text.h"

namespace sde::networks {

class DecoderText : public Network {
  public:
    DecoderText(const nn::Scope& scope, const Config& config);

    // Inputs: `ids` and `positions` [N, tokens], and, for padded texts, `mask` [N, tokens] with 1
    // for a word and 0 for padding. Ids from the vocabulary's size on are rows of the input
    // `learned` [M, width]: tokens of pictures, whose rows and columns are the inputs `positions_y`
    // and `positions_x` (Qwen2.5-VL). Output `hidden` [N, tokens, width]. Options: `skip` 0 = after
    // the last layer, 1 = after the one before, ...; `final_norm` 1 = apply the final norm to
    // `hidden` (default); `last` 1 = also give `last` [N, width], the last token after the last
    // layer, without the final norm.
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    struct Heads {
        int64_t count, kv_count, width;
        float scale, softcap;
        bool interleaved;
    };
    // What all layers read.
    struct Text {
        nn::Tensor rotary, mask;
    };

    class Attention {
      public:
        Attention(const nn::Scope& scope, const Config& config);
        // x: normed.
        nn::Tensor operator()(const nn::Tensor& x, const Text& text,
                              const nn::Tensor& residual) const;

      private:
        Heads heads_;
        nn::Linear q_proj_, k_proj_, v_proj_, o_proj_;
        std::optional<nn::RmsNorm> q_norm_, k_norm_;
    };

    // Gated feed-forward (Shazeer 2020, arXiv 2002.05202).
    class FeedForward {
      public:
        FeedForward(const nn::Scope& scope, const Config& config);
        nn::Tensor operator()(const nn::Tensor& x, const nn::Tensor& residual) const;

      private:
        nn::Activation activation_;
        nn::Linear gate_proj_, up_proj_, down_proj_;
    };

    // Two norms per layer, in front of attention and feed-forward, or four: also behind them
    // (Gemma 2).
    class Layer {
      public:
        Layer(const nn::Scope& scope, const Config& config);
        nn::Tensor operator()(const nn::Tensor& x, const Text& text) const;

      private:
        nn::RmsNorm attention_norm_;
        Attention attention_;
        std::optional<nn::RmsNorm> after_attention_;
        nn::RmsNorm feed_forward_norm_;
        FeedForward feed_forward_;
        std::optional<nn::RmsNorm> after_feed_forward_;
    };

    static nn::RmsNorm norm(const nn::Scope& scope, const Config& config, int64_t width);
    Text text(Graph& graph, const InputShapes& shapes, const Shape& shape) const;
    nn::Tensor embed(Graph& graph, const InputShapes& shapes, const Shape& shape) const;

    int64_t vocabulary_, max_positions_;
    float embedding_scale_;
    bool padding_sees_all_;
    nn::RotaryOptions rotary_;  // its sections only where there are pictures
    nn::Embedding embed_tokens_;
    std::vector<Layer> layers_;
    nn::RmsNorm norm_;
};

}  // namespace sde::networks
