// A layer of CLIP's transformers (Radford et al. 2021, arXiv 2103.00020), for texts and for
// pictures.
#pragma once

#include <string>

#include "nn/layers.h"

namespace sde::networks {

struct ClipLayerConfig {
    int64_t width, inner, heads;
    nn::Activation activation;
    float eps;
    bool causal;  // texts are read from left to right
};

class ClipLayer {
  public:
    ClipLayer(const nn::Scope& scope, const ClipLayerConfig& config);
    nn::Tensor operator()(const nn::Tensor& x) const;

  private:
    ClipLayerConfig config_;
    nn::LayerNorm layer_norm1_;
    nn::Linear q_proj_, k_proj_, v_proj_, out_proj_;
    nn::LayerNorm layer_norm2_;
    nn::Linear fc1_, fc2_;
};

// CLIP's activation by its name; throws Parameter for another one.
nn::Activation clip_activation(const std::string& name);

}  // namespace sde::networks
