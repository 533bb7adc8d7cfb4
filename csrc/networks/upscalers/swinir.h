// SwinIR: picture restoration by attention in shifted windows (Liang et al. 2021, arXiv
// 2108.10257).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "networks/network.h"
#include "nn/windows.h"

namespace sde::networks {

// One 3x3 convolution, or three in a bottleneck of a quarter of the width ("3conv").
class SwinConvolution {
  public:
    SwinConvolution(const nn::Scope& scope, int64_t width, bool bottleneck);
    nn::Tensor operator()(const nn::Tensor& x, const nn::Tensor& residual) const;

  private:
    std::vector<nn::Conv2d> convolutions_;
};

// Window attention and a feed-forward part on tokens, each behind a layer norm.
class SwinBlock {
  public:
    SwinBlock(const nn::Scope& scope, int64_t width, int64_t heads, int64_t window, int64_t inner);
    nn::Tensor operator()(const nn::Tensor& x, int64_t height, int64_t width, int64_t shift) const;

  private:
    nn::LayerNorm norm1_;
    nn::WindowAttention attention_;
    nn::LayerNorm norm2_;
    nn::Linear fc1_, fc2_;
};

// How SwinIR makes its output larger.
class SwinUpsampler {
  public:
    SwinUpsampler(const nn::Scope& scope, const Config& config);
    nn::Tensor operator()(const nn::Tensor& features) const;

  private:
    std::string kind_;
    std::optional<nn::Conv2d> before_;
    std::vector<nn::Conv2d> stages_;
    std::vector<int64_t> factors_;  // per stage
    std::optional<nn::Conv2d> conv_hr_, conv_last_;
};

// Input `image` [N, C, H, W] in 0..1; output `image` [N, C, scale H, scale W], about 0..1. Config:
// `channels`, `width`, `inner` (of the feed-forward parts), `depths` and `heads` per layer,
// `window`, `bottleneck`, `range` (the picture is multiplied by it), and of the upsampler its kind
// `upsampler` ("pixelshuffle", "pixelshuffledirect", "nearest+conv", "none"), `factors` (one per
// stage; scale is their product) and `upsampler_width`.
class SwinIr : public Network {
  public:
    SwinIr(const nn::Scope& scope, const Config& config);
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    struct Layer {
        std::vector<SwinBlock> blocks;
        SwinConvolution convolution;
    };
    nn::Tensor deep_features(const nn::Tensor& first) const;

    int64_t window_;
    float range_;
    bool restores_;  // it makes pictures cleaner, not larger
    nn::Conv2d conv_first_;
    nn::LayerNorm first_norm_;
    std::vector<Layer> layers_;
    nn::LayerNorm norm_;
    SwinConvolution conv_after_body_;
    SwinUpsampler upsampler_;
};

}  // namespace sde::networks
