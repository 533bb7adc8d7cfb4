// Small networks that several denoisers have at their inputs.
#pragma once

#include "nn/layers.h"

namespace sde::networks {

// Width of the sinusoid that a number becomes before it is embedded.
constexpr int64_t kSinusoidWidth = 256;

// Two linear layers with an activation between them: [..., in] -> [..., out].
class Embedder {
  public:
    Embedder(const nn::Scope& scope, int64_t in, int64_t out,
             nn::Activation activation = nn::Activation::Silu)
        : Embedder(scope, in, out, out, activation) {}
    // With a width of its own between them.
    Embedder(const nn::Scope& scope, int64_t in, int64_t inner, int64_t out,
             nn::Activation activation)
        : activation_(activation),
          linear_1_(scope / "linear_1", in, inner),
          linear_2_(scope / "linear_2", inner, out) {}
    // `residual` is added to the result.
    nn::Tensor operator()(const nn::Tensor& x, const nn::Tensor& residual = {}) const {
        return linear_2_(linear_1_(x, {.activation = activation_}), {.residual = residual});
    }
    // Of numbers [N], as sinusoids.
    nn::Tensor of_numbers(const nn::Tensor& numbers, const nn::Tensor& residual = {}) const {
        return (*this)(nn::timestep_embedding(numbers, kSinusoidWidth), residual);
    }

  private:
    nn::Activation activation_;
    nn::Linear linear_1_, linear_2_;
};

}  // namespace sde::networks
