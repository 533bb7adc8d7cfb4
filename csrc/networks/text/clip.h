// CLIP's text transformer (Radford et al. 2021, arXiv 2103.00020): ViT-L of SD1.x; H and bigG are
// configurations.
#pragma once

#include <vector>

#include "networks/network.h"
#include "nn/layers.h"

namespace sde::networks {

class ClipText : public Network {
  public:
    ClipText(const nn::Scope& scope, const Config& config);

    // Input `ids` [N, tokens]. Outputs: `hidden` [N, tokens, width], `pooled` [N, width or
    // projection_dim] when the input `last_token` [N] (a row of the flattened [N * tokens]
    // sequence) is given. Options: `skip` 0 = the last layer, 1 = the one before, ...; `final_norm`
    // 1 = apply the final layer norm to `hidden` (default).
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    class Layer {
      public:
        Layer(const nn::Scope& scope, int64_t width, int64_t inner, int64_t heads,
              nn::Activation activation, float eps);
        nn::Tensor operator()(const nn::Tensor& x) const;

      private:
        int64_t heads_;
        nn::Activation activation_;
        nn::LayerNorm layer_norm1_;
        nn::Linear q_proj_, k_proj_, v_proj_, out_proj_;
        nn::LayerNorm layer_norm2_;
        nn::Linear fc1_, fc2_;
    };

    int64_t width_, vocabulary_, max_positions_;
    nn::Embedding token_embedding_, position_embedding_;
    std::vector<Layer> layers_;
    nn::LayerNorm final_layer_norm_;
    std::vector<nn::Linear> projection_;  // one or none
};

}  // namespace sde::networks
