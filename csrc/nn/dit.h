// Operators and layers of diffusion transformers (Peebles and Xie 2022, arXiv 2212.09748; Esser et
// al. 2024, arXiv 2403.03206).
#pragma once

#include <vector>

#include "nn/layers.h"

namespace sde::nn {

// Values that are known when the graph is built.
Tensor constant(Graph& graph, const Shape& shape, std::vector<float> values);
Tensor constant_ids(Graph& graph, std::vector<int32_t> values);  // [values]

// The order of the values of a patch.
enum class PatchOrder { ChannelYX, YXChannel };
// [N, C, H, W] -> [N, (H / patch) (W / patch), C patch patch], patches row by row; H and W are
// multiples of `patch`.
Tensor patchify(const Tensor& feature_map, int64_t patch, PatchOrder order = PatchOrder::ChannelYX);
// Tokens back to a feature map of `height` x `width`.
Tensor unpatchify(const Tensor& tokens, int64_t height, int64_t width, int64_t patch,
                  PatchOrder order);

Tensor concat_tokens(const std::vector<Tensor>& parts);  // [N, tokens, width] each
Tensor slice_tokens(const Tensor& x, int64_t start, int64_t count);
// x [N, tokens, width] with `more` [N, M, width] added to its tokens from `start` on.
Tensor add_to_tokens(const Tensor& x, int64_t start, const Tensor& more);
Tensor concat_last(const Tensor& a, const Tensor& b);  // [N, tokens, A] and [N, tokens, B]

// layer norm of x [N, tokens, width] without parameters, then * (1 + scale) + shift; scale and
// shift [N, width] may be slices.
Tensor modulated_norm(const Tensor& x, const Tensor& scale, const Tensor& shift, float eps);

// RMSNorm of tokens [N, tokens, width] in one pass with what stands around it in blocks with norms
// on both sides (Lumina): norm(x) * factor + residual.
class ScaledRmsNorm {
  public:
    ScaledRmsNorm(const Scope& scope, int64_t width, float eps)
        : width_(width), eps_(eps), gamma_(scope.vector("weight", width)) {}
    // `factor` [N, width] may be a slice; absent it is 1. `residual` has the shape of x, or is
    // absent.
    Tensor operator()(const Tensor& x, const Tensor& factor = {},
                      const Tensor& residual = {}) const;

  private:
    int64_t width_;
    float eps_;
    ggml_tensor* gamma_;
};

// Layer norm with parameters, to which each entry of the batch adds a vector of its own.
class ShiftedNorm {
  public:
    ShiftedNorm(const Scope& scope, int64_t width, float eps)
        : width_(width),
          eps_(eps),
          gamma_(scope.vector("weight", width)),
          beta_(scope.vector("bias", width)) {}
    // x [N, tokens, width], shift [N, width].
    Tensor operator()(const Tensor& x, const Tensor& shift) const;

  private:
    int64_t width_;
    float eps_;
    ggml_tensor *gamma_, *beta_;
};

// The tokens of x [N, tokens, width] where mask [N, tokens] is not 0, elsewhere those of `instead`
// [1, tokens, width].
Tensor choose_tokens(const Tensor& x, const Tensor& mask, const Tensor& instead);

struct HeadTokens;

// The norm of each head of [N, tokens, heads * head_dim]: RMS norm, or layer norm with a bias.
class HeadNorm {
  public:
    enum class Kind { Rms, Layer };
    HeadNorm(const Scope& scope, int64_t head_dim, float eps, Kind kind = Kind::Rms)
        : eps_(eps),
          gamma_(scope.vector("weight", head_dim)),
          beta_(kind == Kind::Layer ? scope.vector("bias", head_dim) : nullptr),
          kind_(kind) {}

  private:
    friend Tensor join_heads(const std::vector<HeadTokens>& parts, int64_t head_dim);
    float eps_;
    ggml_tensor *gamma_, *beta_;
    Kind kind_;
};

// Rotary positions of several axes (Su et al. 2021, arXiv 2104.09864): consecutive pairs of a head
// are parted among the axes, `axes` values to each, and pair i of an axis is turned by position *
// theta^(-2i / axis). `positions` holds one number per axis for each token. The result, [tokens,
// head_dim], has the cosines of a token's pairs, then the sines.
using Positions = std::vector<std::vector<float>>;
Tensor rotary_constant(Graph& graph, const Positions& positions, const std::vector<int64_t>& axes,
                       double theta);
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

// Sines and cosines of the places of height x width patches, [height * width, width] (Vaswani et
// al. 2017, arXiv 1706.03762, in two dimensions): half of the values for the column, half for the
// row, each the sines, then the cosines. However many patches there are, they part `span` units
// along each axis (Chen et al. 2023, arXiv 2310.00426).
Tensor sincos_constant(Graph& graph, int64_t height, int64_t width, int64_t values, double span);

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
