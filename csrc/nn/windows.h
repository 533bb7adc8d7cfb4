// Attention within square windows of a picture (Liu et al. 2021, Swin Transformer, arXiv
// 2103.14030).
#pragma once

#include "nn/layers.h"

namespace sde::nn {

// Self-attention of the tokens of each window, with a learned bias for their relative positions.
class WindowAttention {
  public:
    WindowAttention(const Scope& scope, int64_t width, int64_t heads, int64_t window);
    // x [N, height * width, C], both sides multiples of the window. With `shift` the windows begin
    // so many points further down and right; what wraps around at the far edges does not see the
    // points from the other side of the picture.
    Tensor operator()(const Tensor& x, int64_t height, int64_t width, int64_t shift) const;

  private:
    Tensor bias(Graph& graph, int64_t shift) const;

    int64_t width_, heads_, window_;
    Linear qkv_, proj_;
    ggml_tensor* table_;  // [(2 window - 1)^2, heads]
};

}  // namespace sde::nn
