// The part of a transformer block that sees each token by itself.
#pragma once

#include "nn/layers.h"

namespace sde::nn {

// What stands between the two products: gelu (tanh form), or value * gelu(gate) of two halves
// (GEGLU, arXiv 2002.05202).
enum class Middle { GeluTanh, Geglu };

// out([beside, middle(in(x))]) of x [N, tokens, width], with an epilogue of residual and gate;
// `beside` [N, tokens, any] may be absent. Tokens go through in groups, so that the middle, four or
// eight times as wide as x, is never held for all of them.
Tensor feed_forward(const Linear& in, const Linear& out, const Tensor& x, Middle middle,
                    const Epilogue& epilogue, const Tensor& beside = {});

}  // namespace sde::nn
