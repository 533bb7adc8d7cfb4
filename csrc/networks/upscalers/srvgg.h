// SRVGGNetCompact: the small network of Real-ESRGAN for video and anime (Wang et al. 2021, arXiv
// 2107.10833), all of whose convolutions work at the size of the input.
#pragma once

#include <vector>

#include "networks/network.h"
#include "nn/layers.h"

namespace sde::networks {

// Input `image` [N, C, H, W] in 0..1; output `image` [N, C, scale H, scale W], about 0..1. Config:
// `channels`, `width`, `blocks` (convolutions between the first and the last), `scale`.
class Srvgg : public Network {
  public:
    Srvgg(const nn::Scope& scope, const Config& config);
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    int64_t scale_;
    std::vector<nn::Conv2d> convolutions_;  // one more than slopes
    std::vector<nn::PRelu> slopes_;
};

}  // namespace sde::networks
