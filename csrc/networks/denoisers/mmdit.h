// The denoiser of Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206): Medium, 3.5
// Medium with its second attention, 3.5 Large and Large Turbo.
#pragma once

#include <optional>
#include <vector>

#include "networks/denoisers/first_block.h"
#include "networks/denoisers/joint.h"

namespace sde::networks {

// All but the output: what a denoiser and its control networks have in common.
class MMDiTBody {
  public:
    struct Parts {
        bool patches = true;       // what reads the latents, with or without `positions`
        bool positions = true;     // a table of them
        bool context = true;       // and the half of each block that it goes through
        bool context_ends = true;  // in the last block
    };
    MMDiTBody(const nn::Scope& scope, const Config& config, const Parts& parts,
              const std::string& owner);

    // The shape of the input `latents`; throws Parameter unless it fits.
    const Shape& latents(const InputShapes& shapes) const;
    // What the first block reads, of the inputs `latents` and `context`. Throws Parameter where the
    // part that reads the latents is missing.
    JointBlock::Tokens tokens(Graph& graph, const InputShapes& shapes) const;
    nn::Tensor conditioning(Graph& graph, const InputShapes& shapes) const;
    const std::vector<JointBlock>& blocks() const noexcept { return blocks_; }
    int64_t patch() const noexcept { return patch_; }
    int64_t width() const noexcept { return width_; }
    const std::string& owner() const noexcept { return owner_; }

  private:
    int64_t in_channels_, patch_, width_;
    std::string owner_;
    std::optional<nn::Conv2d> proj_;
    std::optional<nn::PositionTable> positions_;
    int64_t context_width_ = 0;
    std::optional<nn::Linear> context_embedder_;
    Conditioning conditioning_;
    std::vector<JointBlock> blocks_;
};

class MMDiT : public Network {
  public:
    MMDiT(const nn::Scope& scope, const Config& config);

    // Inputs: `latents` [N, in_channels, H, W] (multiples of the patch), `timesteps` [N] from 0 to
    // 1000, `context` [N, tokens, context_width], `pooled` [N, pooled_width], and what control
    // networks leave, `control_0_of_n`, ... (networks/denoisers/block_residuals.h). Output:
    // `prediction` [N, out_channels, H, W]. Blocks can be left out for guidance
    // (networks/layer_variants.h), and the first one run alone (networks/denoisers/first_block.h).
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;
    GuidanceSupport guidance_support() const override { return {layers_, true}; }
    Reuse reuse() const override { return FirstBlock::offered(layers_.size()); }

  private:
    MMDiTBody body_;
    std::vector<std::string> layers_;  // the blocks' names
    JointOutput output_;
};

}  // namespace sde::networks
