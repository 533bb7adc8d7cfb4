// What turns a vision encoder's view of a picture into tokens: for a UNet's cross-attentions
// (IP-Adapter, Ye et al. 2023, arXiv 2308.06721) or behind the text of FLUX.1 (Redux, Black Forest
// Labs 2024).
#pragma once

#include <vector>

#include "networks/network.h"
#include "nn/layers.h"

namespace sde::networks {

// The base model: one linear layer from the picture's embedding to a few tokens.
class ImageProjection : public Network {
  public:
    ImageProjection(const nn::Scope& scope, const Config& config);

    // Input `features` [N, features_dim]. Output `tokens` [N, tokens, width].
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    int64_t tokens_, width_, features_;
    nn::Linear proj_;
    nn::LayerNorm norm_;
};

// The "plus" model: learned queries that attend to all patches and to each other (Alayrac et al.
// 2022, arXiv 2204.14198, the perceiver resampler).
class ImageResampler : public Network {
  public:
    ImageResampler(const nn::Scope& scope, const Config& config);

    // Input `features` [N, patches, features_dim]. Output `tokens` [N, tokens, width].
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    class Layer {
      public:
        Layer(const nn::Scope& scope, int64_t inner, int64_t heads, int64_t head_dim,
              int64_t feed_forward, float eps);
        nn::Tensor operator()(const nn::Tensor& latents, const nn::Tensor& patches) const;

      private:
        int64_t heads_;
        nn::LayerNorm norm_patches_, norm_latents_;
        nn::Linear to_q_, to_k_, to_v_, to_out_;
        nn::LayerNorm norm_ff_;
        nn::Linear ff_in_, ff_out_;
    };

    int64_t features_;
    nn::LearnedTokens latents_;
    nn::Linear proj_in_, proj_out_;
    nn::LayerNorm norm_out_;
    std::vector<Layer> layers_;
};

// Redux: two linear layers over every patch, SiLU between.
class ReduxProjection : public Network {
  public:
    ReduxProjection(const nn::Scope& scope, const Config& config);

    // Input `features` [N, patches, features_dim]. Output `tokens` [N, patches, width].
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    int64_t features_;
    nn::Linear up_, down_;
};

}  // namespace sde::networks
