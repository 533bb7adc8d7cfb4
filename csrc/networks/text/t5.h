// The encoder of T5 v1.1, mT5 and UMT5 (Raffel et al. 2020, arXiv 1910.10683; Shazeer 2020, arXiv
// 2002.05202; Xue et al. 2021, arXiv 2010.11934; Chung et al. 2023, arXiv 2304.09151).
#pragma once

#include <vector>

#include "networks/network.h"
#include "nn/layers.h"
#include "nn/text.h"

namespace sde::networks {

class T5Text : public Network {
  public:
    T5Text(const nn::Scope& scope, const Config& config);

    // Inputs: `ids` [N, tokens] and, for texts whose padding is not to be seen, `mask` [N, tokens]
    // with 1 for a word and 0 for padding. Output `hidden` [N, tokens, width], after the final
    // norm.
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    class Layer {
      public:
        Layer(const nn::Scope& scope, const Config& config);
        nn::Tensor operator()(const nn::Tensor& x, const nn::Tensor& distance_bias,
                              const nn::Tensor& mask) const;

      private:
        int64_t heads_, inner_;
        nn::RmsNorm attention_norm_;
        nn::Linear q_, k_, v_, o_;
        nn::RmsNorm feed_forward_norm_;
        nn::Linear wi_0_, wi_1_, wo_;
    };

    int64_t vocabulary_, max_positions_, buckets_, max_distance_;
    nn::Embedding shared_;
    std::vector<nn::Embedding> biases_;  // by distance: the first layer's, or one per layer (UMT5)
    std::vector<Layer> layers_;
    nn::RmsNorm final_layer_norm_;
};

}  // namespace sde::networks
