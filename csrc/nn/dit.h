// Operators and layers of diffusion transformers (Peebles and Xie 2022, arXiv 2212.09748; Esser et
// al. 2024, arXiv 2403.03206).
#pragma once

#include <vector>

#include "nn/layers.h"

namespace sde::nn {

// Values that are known when the graph is built.
Tensor constant(Graph& graph, const Shape& shape, std::vector<float> values);

// [N, C, H, W] -> [N, (H / patch) (W / patch), C patch patch], patches row by row and in a patch
// the order (channel, y, x); H and W are multiples of `patch`.
Tensor patchify(const Tensor& feature_map, int64_t patch);
// The order of the values of a patch.
enum class PatchOrder { ChannelYX, YXChannel };
// Tokens back to a feature map of `height` x `width`.
Tensor unpatchify(const Tensor& tokens, int64_t height, int64_t width, int64_t patch,
                  PatchOrder order);

Tensor concat_tokens(const std::vector<Tensor>& parts);  // [N, tokens, width] each
Tensor slice_tokens(const Tensor& x, int64_t start, int64_t count);
Tensor concat_last(const Tensor& a, const Tensor& b);  // [N, tokens, A] and [N, tokens, B]

// layer norm of x [N, tokens, width] without parameters, then * (1 + scale) + shift; scale and
// shift [N, width] may be slices.
Tensor modulated_norm(const Tensor& x, const Tensor& scale, const Tensor& shift, float eps);

struct HeadTokens;

// RMSNorm over each head of [N, tokens, heads * head_dim].
class HeadNorm {
  public:
    HeadNorm(const Scope& scope, int64_t head_dim, float eps)
        : eps_(eps), gamma_(scope.vector("weight", head_dim)) {}

  private:
    friend Tensor join_heads(const std::vector<HeadTokens>& parts, int64_t head_dim);
    float eps_;
    ggml_tensor* gamma_;
};

// Rotary positions of several axes (Su et al. 2021, arXiv 2104.09864): consecutive pairs of a head
// are parted among the axes, `axes` values to each, and pair i of an axis is turned by position *
// theta^(-2i / axis). `positions` holds one number per axis for each token. The result, [tokens,
// head_dim], has the cosines of a token's pairs, then the sines.
Tensor rotary_constant(Graph& graph, const std::vector<std::vector<float>>& positions,
                       const std::vector<int64_t>& axes, double theta);
struct Rotary {
    Tensor table = {};
    int64_t first = 0;  // the table's row for the first token
};

// Queries or keys of one stream of tokens: each head is normed, then turned, where asked for.
struct HeadTokens {
    Tensor x;  // [N, tokens, heads * head_dim]
    const HeadNorm* norm = nullptr;
    Rotary rotary = {};
};
// The streams one behind the other. All share the rows of the batch and the width.
Tensor join_heads(const std::vector<HeadTokens>& parts, int64_t head_dim);

// A learned or computed vector for each place of a square of side x side patches; what a picture
// reads is the middle of the square (arXiv 2403.03206, section 5.3.2).
class PositionTable {
  public:
    PositionTable(const Scope& scope, const std::string& name, int64_t side, int64_t width)
        : side_(side), width_(width), weight_(scope.matrix(name, Shape{side * side, width})) {}
    Tensor middle(Graph& graph, int64_t height, int64_t width) const;  // [height * width, width_]
    int64_t side() const noexcept { return side_; }

  private:
    int64_t side_, width_;
    ggml_tensor* weight_;
};

}  // namespace sde::nn
