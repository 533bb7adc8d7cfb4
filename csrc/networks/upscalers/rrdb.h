// RRDBNet: the network of ESRGAN (Wang et al. 2018, arXiv 1809.00219), Real-ESRGAN (Wang et al.
// 2021, arXiv 2107.10833) and ESRGAN+ (Rakotonirina and Rasoanaivo 2020, arXiv 2001.08073).
#pragma once

#include <optional>
#include <vector>

#include "networks/network.h"
#include "nn/layers.h"

namespace sde::networks {

// Five convolutions, each of which reads the input and what those before it made.
class DenseBlock {
  public:
    DenseBlock(const nn::Scope& scope, int64_t width, int64_t growth, bool shortcuts);
    nn::Tensor operator()(const nn::Tensor& x) const;

  private:
    nn::Conv2d conv1_, conv2_, conv3_, conv4_, conv5_;
    std::optional<nn::Conv2d> conv1x1_;  // ESRGAN+: shortcuts within the block
};

// Input `image` [N, C, H, W] in 0..1; output `image` [N, C, scale H, scale W], about 0..1. Config:
// `channels`, `width`, `growth`, `blocks`, `doublings` (enlargements by two), `unshuffle` (the
// picture is first folded by this factor, so that scale = 2^doublings / unshuffle), `shortcuts`.
class Rrdb : public Network {
  public:
    Rrdb(const nn::Scope& scope, const Config& config);
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    using Block = std::vector<DenseBlock>;  // three

    int64_t unshuffle_;
    nn::Conv2d conv_first_;
    std::vector<Block> body_;
    nn::Conv2d conv_body_;
    std::vector<nn::Conv2d> conv_up_;
    nn::Conv2d conv_hr_, conv_last_;
};

}  // namespace sde::networks
