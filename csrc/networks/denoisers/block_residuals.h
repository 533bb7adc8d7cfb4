// What control networks add behind the blocks of a diffusion transformer.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "networks/network.h"
#include "nn/dit.h"

namespace sde::networks {

// A control network has fewer blocks than the denoiser, so each of its residuals belongs to several
// of the denoiser's. Which ones is told by the inputs' names, so that networks of unlike depth go
// together: `<prefix>2_of_5` is the third of five that are spread evenly, `<prefix>0_every_2` the
// first of two that take turns.
class BlockResiduals {
  public:
    // How many blocks in a row share a residual: as many as keep the parts equal, with a fraction
    // (SD3), or rounded up (FLUX); both as in the published pipelines.
    enum class Spread { Even, RoundedUp };

    // Of the inputs whose names are `prefix` and a number; all are [N, tokens, width] as `shape`
    // says. Throws Parameter for another shape.
    BlockResiduals(Graph& graph, const InputShapes& shapes, const std::string& prefix,
                   size_t blocks, Spread spread, const Shape& shape);

    // x with what belongs to block `block` added to its tokens from `start` on.
    nn::Tensor added(const nn::Tensor& x, size_t block, int64_t start) const;

    // The names of `count` residuals that a control network leaves.
    static std::string name(const std::string& prefix, size_t index, size_t count, bool in_turns);

  private:
    std::vector<std::vector<nn::Tensor>> of_block_;
};

}  // namespace sde::networks
