// Layers: typed members of a network, built from a Scope. Building one resolves its parameters;
// calling one adds operators to a graph. Only layers know how a parameter is stored.
#pragma once

#include <variant>

#include "nn/ops.h"
#include "nn/scope.h"

namespace sde::nn {

// What happens to a layer's result before it is written: activation first, then the gate, then the
// residual is added.
struct Epilogue {
    Tensor residual = {};    // same shape as the output
    Tensor batch_bias = {};  // [N, channels], added before the activation
    Activation activation = Activation::None;
    bool residual_inside = false;  // the residual is added before the activation instead
    Tensor gate = {};  // [N, channels], may be a slice; multiplies what the residual is added to
};

struct Conv2dOptions {
    int kernel = 3;
    int stride = 1;
    bool bias = true;
    bool pad = true;  // by half the kernel on all sides
    // Downsampling in the VAE pads only right and bottom (atlas: KL autoencoders).
    bool pad_right_bottom_only = false;
};

class Conv2d {
  public:
    Conv2d(const Scope& scope, int64_t in, int64_t out, Conv2dOptions options = {});
    Tensor operator()(const Tensor& x, const Epilogue& epilogue = {}) const {
        return apply(x, epilogue, false);
    }
    // The convolution of x enlarged to height x width by nearest neighbour; twice the size costs no
    // copy.
    Tensor enlarged(const Tensor& x, int64_t height, int64_t width,
                    const Epilogue& epilogue = {}) const;

  private:
    Tensor apply(const Tensor& x, const Epilogue& epilogue, bool upsample_2x) const;

    int64_t in_;
    Conv2dOptions options_;
    ggml_tensor *weight_, *bias_;
    const Beside* beside_;
};

class Linear {
  public:
    Linear(const Scope& scope, int64_t in, int64_t out, bool bias = true);
    // A linear layer whose file may hold it as a 1x1 convolution [out, in, 1, 1] is loaded as [out,
    // in].
    Tensor operator()(const Tensor& x, const Epilogue& epilogue = {}) const;

    // For operators that multiply by it among other things; `bias` is null where there is none.
    ggml_tensor* weight() const noexcept { return weight_; }
    ggml_tensor* bias() const noexcept { return bias_; }
    // Whether adapters add to its product now.
    bool has_side_path() const noexcept { return beside_->down; }

  private:
    int64_t in_;
    ggml_tensor *weight_, *bias_;
    const Beside* beside_;
};

class GroupNorm {
  public:
    GroupNorm(const Scope& scope, int64_t channels, int64_t groups, float eps);
    Tensor operator()(const Tensor& x) const { return apply(x, false, false); }
    Tensor then_silu(const Tensor& x) const { return apply(x, true, false); }
    // The same in the memory of x, which nothing else may read afterwards.
    Tensor then_silu_in_place(const Tensor& x) const { return apply(x, true, true); }

  private:
    Tensor apply(const Tensor& x, bool silu, bool in_place) const;
    int64_t channels_, groups_;
    float eps_;
    ggml_tensor *gamma_, *beta_;
};

// x / sqrt(mean(x^2)) * gamma over the channels of each point of a feature map.
class ChannelNorm {
  public:
    ChannelNorm(const Scope& scope, int64_t channels)
        : channels_(channels), gamma_(scope.vector("gamma", channels)) {}
    Tensor operator()(const Tensor& x) const;

  private:
    int64_t channels_;
    ggml_tensor* gamma_;
};

// The norm of a convolutional network: over groups of channels and all points, or with 0 groups
// over the channels of each point.
class FeatureNorm {
  public:
    FeatureNorm(const Scope& scope, int64_t channels, int64_t groups, float eps);
    Tensor operator()(const Tensor& x) const;
    Tensor then_silu(const Tensor& x) const;
    // The same in the memory of x, which nothing else may read afterwards.
    Tensor then_silu_in_place(const Tensor& x) const;

  private:
    std::variant<GroupNorm, ChannelNorm> norm_;
};

// x below zero is multiplied by a learned slope per channel (He et al. 2015, arXiv 1502.01852).
class PRelu {
  public:
    PRelu(const Scope& scope, int64_t channels);
    Tensor operator()(const Tensor& x) const;

  private:
    int64_t channels_;
    ggml_tensor* slopes_;
};

class LayerNorm {
  public:
    LayerNorm(const Scope& scope, int64_t width, float eps);
    Tensor operator()(const Tensor& x) const;

  private:
    int64_t width_;
    float eps_;
    ggml_tensor *gamma_, *beta_;
};

// x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arXiv 1910.07467). With `plus_one`
// the weight is stored less one (Gemma).
class RmsNorm {
  public:
    RmsNorm(const Scope& scope, int64_t width, float eps, bool plus_one = false);
    Tensor operator()(const Tensor& x) const;

  private:
    int64_t width_;
    float eps_;
    bool plus_one_;
    ggml_tensor* gamma_;
};

class Embedding {
  public:
    Embedding(const Scope& scope, int64_t entries, int64_t width);
    Tensor operator()(const Tensor& ids) const;  // [N, tokens] int32 -> [N, tokens, width]
    // Ids from `entries` on are rows of `learned` [M, width].
    Tensor operator()(const Tensor& ids, const Tensor& learned) const;
    Tensor rows(Graph& graph,
                int64_t count) const;  // the first `count` rows, [count, width] float32

  private:
    int64_t entries_, width_;
    ggml_tensor* weight_;
};

// Rows that a network learned, the same for every entry of a batch.
class LearnedTokens {
  public:
    LearnedTokens(const Scope& scope, const std::string& name, int64_t tokens, int64_t width);
    Tensor operator()(Graph& graph, int64_t batch) const;  // [batch, tokens, width]

  private:
    int64_t tokens_, width_;
    ggml_tensor* weight_;
};

}  // namespace sde::nn
