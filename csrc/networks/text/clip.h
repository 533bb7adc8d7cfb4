// CLIP's text transformer (Radford et al. 2021, arXiv 2103.00020): ViT-L of SD1.x; H and bigG are
// configurations.
#pragma once

#include <vector>

#include "networks/clip_layer.h"
#include "networks/network.h"
#include "nn/layers.h"

namespace sde::networks {

class ClipText : public Network {
  public:
    ClipText(const nn::Scope& scope, const Config& config);

    // Input `ids` [N, tokens]; with `learned` [M, width] ids from the vocabulary's size on are its
    // rows (textual inversion, Gal et al. 2022, arXiv 2208.01618). Outputs: `hidden` [N, tokens,
    // width], `pooled` [N, width or projection_dim] when the input `last_token` [N] (a row of the
    // flattened [N * tokens] sequence) is given. Options: `skip` 0 = the last layer, 1 = the one
    // before, ...; `final_norm` 1 = apply the final layer norm to `hidden` (default).
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    nn::Tensor embedded(Graph& graph, const InputShapes& shapes, const Shape& ids) const;

    int64_t width_, vocabulary_, max_positions_;
    nn::Embedding token_embedding_, position_embedding_;
    std::vector<ClipLayer> layers_;
    nn::LayerNorm final_layer_norm_;
    std::vector<nn::Linear> projection_;  // one or none
};

}  // namespace sde::networks
