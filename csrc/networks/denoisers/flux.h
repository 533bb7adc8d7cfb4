// The denoiser of FLUX.1 (Black Forest Labs 2024): blocks that join picture and text, then blocks
// that treat them as one sequence (attention and feed-forward side by side, Dehghani et al. 2023,
// arXiv 2302.05442), with rotary positions. dev, schnell, Fill, Canny, Depth, Kontext and pruned
// members are configurations of this file.
#pragma once

#include <vector>

#include "networks/denoisers/joint.h"

namespace sde::networks {

class Flux : public Network {
  public:
    Flux(const nn::Scope& scope, const Config& config);

    // Inputs: `latents` [N, in_channels, H, W] (multiples of 2; what Fill and the control models
    // read beside the noise are further channels), `timesteps` [N] from 0 to 1000, `context` [N,
    // tokens, context_width], `pooled` [N, pooled_width], `guidance` [N] where the network has it,
    // and for Kontext clean latents to look at: `reference`, `reference_1`, `reference_2`, ... [N,
    // in_channels, any height, any width]. Output: `prediction` [N, out_channels, H, W].
    // Blocks can be left out for guidance (networks/layer_variants.h).
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;
    GuidanceSupport guidance_support() const override { return {layers_, true}; }

  private:
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
    // Positions of the tokens, one number per axis.
    using Positions = std::vector<std::vector<float>>;

    void check_picture(const Shape& latents, const std::string& name) const;
    // The reference pictures' tokens behind the picture's.
    nn::Tensor embed_pictures(Graph& graph, const InputShapes& shapes, const Shape& latents,
                              Positions& positions) const;

    int64_t in_channels_, head_dim_, context_width_;
    std::vector<int64_t> axes_;
    nn::Linear x_embedder_, context_embedder_;
    Conditioning conditioning_;
    std::vector<JointBlock> blocks_;
    std::vector<SingleBlock> single_blocks_;
    std::vector<std::string> layers_;  // the names of both kinds of blocks
    JointOutput output_;
};

}  // namespace sde::networks
