#include "networks/clip_layer.h"

#include "base/error.h"

namespace sde::networks {

nn::Activation clip_activation(const std::string& name) {
    if (name == "quick_gelu") return nn::Activation::QuickGelu;
    if (name == "gelu") return nn::Activation::Gelu;
    throw Error(ErrorKind::Parameter,
                "CLIP's activation is quick_gelu or gelu, not '" + name + "'");
}

ClipLayer::ClipLayer(const nn::Scope& scope, const ClipLayerConfig& config)
    : config_(config),
      layer_norm1_(scope / "layer_norm1", config.width, config.eps),
      q_proj_(scope / "self_attn" / "q_proj", config.width, config.width),
      k_proj_(scope / "self_attn" / "k_proj", config.width, config.width),
      v_proj_(scope / "self_attn" / "v_proj", config.width, config.width),
      out_proj_(scope / "self_attn" / "out_proj", config.width, config.width),
      layer_norm2_(scope / "layer_norm2", config.width, config.eps),
      fc1_(scope / "mlp" / "fc1", config.width, config.inner),
      fc2_(scope / "mlp" / "fc2", config.inner, config.width) {}

nn::Tensor ClipLayer::operator()(const nn::Tensor& x) const {
    nn::Tensor h = layer_norm1_(x);
    h = nn::attention(q_proj_(h), k_proj_(h), v_proj_(h),
                      {.heads = config_.heads, .causal = config_.causal});
    const nn::Tensor attended = out_proj_(h, {.residual = x});
    h = fc1_(layer_norm2_(attended), {.activation = config_.activation});
    return fc2_(h, {.residual = attended});
}

}  // namespace sde::networks
