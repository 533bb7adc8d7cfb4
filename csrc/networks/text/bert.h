// BERT's encoder (Devlin et al. 2018, arXiv 1810.04805), as Chinese RoBERTa (Cui et al. 2019, arXiv
// 1906.08101) and Hunyuan-DiT's text encoder have it. Names are those of transformers.
#pragma once

#include <vector>

#include "networks/network.h"
#include "nn/layers.h"

namespace sde::networks {

class BertText : public Network {
  public:
    BertText(const nn::Scope& scope, const Config& config);

    // Inputs: `ids` [N, tokens] and, for texts whose padding is not to be seen, `mask` [N, tokens]
    // with 1 for a word and 0 for padding. All tokens are of the first sentence. Output `hidden`
    // [N, tokens, width], after the last layer.
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    // Attention and feed-forward, each with its residual in front of a norm.
    class Layer {
      public:
        Layer(const nn::Scope& scope, const Config& config);
        nn::Tensor operator()(const nn::Tensor& x, const nn::Tensor& mask) const;

      private:
        int64_t heads_;
        nn::Linear query_, key_, value_, attention_out_;
        nn::LayerNorm attention_norm_;
        nn::Linear inner_, outer_;
        nn::LayerNorm norm_;
    };

    int64_t vocabulary_, max_positions_;
    nn::Embedding words_, positions_, sentences_;
    nn::LayerNorm norm_;
    std::vector<Layer> layers_;
};

}  // namespace sde::networks
