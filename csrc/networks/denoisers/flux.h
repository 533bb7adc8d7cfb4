// The denoiser of FLUX.1 (Black Forest Labs 2024): blocks that join picture and text, then blocks
// that treat them as one sequence (attention and feed-forward side by side, Dehghani et al. 2023,
// arXiv 2302.05442), with rotary positions. dev, schnell, Fill, Canny, Depth, Kontext and pruned
// members are configurations of this file.
#pragma once

#include <vector>

#include "networks/denoisers/first_block.h"
#include "networks/denoisers/joint.h"

namespace sde::networks {

// All but the output: what a denoiser and its control networks have in common.
class FluxBody {
  public:
    // One block over text and picture together.
    class SingleBlock {
      public:
        SingleBlock(const nn::Scope& scope, int64_t width, int64_t head_dim);
        nn::Tensor operator()(const nn::Tensor& x, const nn::Tensor& conditioning,
                              const nn::Rotary& rotary) const;

      private:
        int64_t width_, head_dim_;
        nn::Linear modulation_;
        HeadProjections heads_;
        nn::Linear proj_mlp_, proj_out_;
    };
    static constexpr int64_t kPatch = 2;
    static constexpr int64_t kPatchArea = kPatch * kPatch;

    FluxBody(const nn::Scope& scope, const Config& config, const std::string& owner);

    // What the blocks read.
    struct Sequence {
        JointBlock::Tokens x;
        nn::Tensor conditioning;
        nn::Tensor positions;  // of the text's tokens and the pictures'
        int64_t text, patches;
    };
    // Of the inputs `latents`, `reference`, ..., `context`, `timesteps`, `pooled` and `guidance`;
    // `first` [N, tokens, width] stands before the text, if given.
    Sequence sequence(Graph& graph, const InputShapes& shapes, const nn::Tensor& first = {}) const;
    const std::vector<JointBlock>& blocks() const noexcept { return blocks_; }
    const std::vector<SingleBlock>& single_blocks() const noexcept { return single_blocks_; }
    int64_t in_channels() const noexcept { return in_channels_; }
    int64_t width() const noexcept { return width_; }
    const std::string& owner() const noexcept { return owner_; }

  private:
    // The reference pictures' tokens behind the picture's.
    nn::Tensor embed_pictures(Graph& graph, const InputShapes& shapes, const Shape& latents,
                              Positions& positions) const;

    int64_t in_channels_, width_, head_dim_, context_width_;
    std::vector<int64_t> axes_;
    std::string owner_;
    nn::Linear x_embedder_, context_embedder_;
    Conditioning conditioning_;
    std::vector<JointBlock> blocks_;
    std::vector<SingleBlock> single_blocks_;
};

class Flux : public Network {
  public:
    Flux(const nn::Scope& scope, const Config& config);

    // Inputs: `latents` [N, in_channels, H, W] (multiples of 2; what Fill and the control models
    // read beside the noise are further channels), `timesteps` [N] from 0 to 1000, `context` [N,
    // tokens, context_width], `pooled` [N, pooled_width], `guidance` [N] where the network has it,
    // for Kontext clean latents to look at: `reference`, `reference_1`, `reference_2`, ... [N,
    // in_channels, any height, any width], and what control networks leave, `control_0_of_n`, ...
    // and `control_single_0_of_n`, ... (networks/denoisers/block_residuals.h). Output:
    // `prediction` [N, out_channels, H, W]. Blocks can be left out for guidance
    // (networks/layer_variants.h), and the first one run alone (networks/denoisers/first_block.h).
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;
    GuidanceSupport guidance_support() const override { return {layers_, true}; }
    Reuse reuse() const override {
        return body_.blocks().empty() ? Reuse::None : FirstBlock::offered(layers_.size());
    }

  private:
    FluxBody body_;
    std::vector<std::string> layers_;  // the names of both kinds of blocks
    JointOutput output_;
};

}  // namespace sde::networks
