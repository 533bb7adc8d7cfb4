// How a denoiser reads what guidance asks of its layers; see stages/denoise and docs/guidance.md.
#pragma once

#include "networks/network.h"
#include "nn/blocks.h"

namespace sde::networks {

// The variants of a network's guidance_support().layers, in that order. Options: `skip_layers` and
// `perturb_layers`, bit i for layer i. Inputs: `nag_context`, and `nag` [N, 3].
class LayerVariants {
  public:
    // `nag_context` is the projected input, or absent. Throws Parameter for layers that the network
    // does not have.
    LayerVariants(Graph& graph, const InputShapes& shapes, const Options& options, size_t layers,
                  const nn::Tensor& nag_context);

    // Tokens of a picture for the cross-attentions; see nn::AttentionVariant.
    void set_image_prompt(const nn::Tensor& keys, const nn::Tensor& values);

    nn::AttentionVariant next();
    // Passes over the first `layers`.
    void advance(size_t layers) { at_ += static_cast<int>(layers); }

  private:
    int64_t skip_, perturb_;
    nn::Tensor nag_context_, nag_, image_keys_, image_values_;
    int at_ = 0;
};

}  // namespace sde::networks
