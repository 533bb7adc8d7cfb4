// The denoiser of Qwen-Image and Qwen-Image-Edit (Wu et al. 2025, arXiv 2508.02324): blocks that
// join picture and text, all of them with weights of their own for both, over rotary positions that
// are counted from the middle of a picture. Names are those of diffusers' class.
#pragma once

#include <string>
#include <vector>

#include "networks/denoisers/first_block.h"
#include "networks/denoisers/joint.h"

namespace sde::networks {

class QwenImage : public Network {
  public:
    QwenImage(const nn::Scope& scope, const Config& config);

    // Inputs: `latents` [N, in_channels, H, W] (multiples of 2), `timesteps` [N] from 0 to 1000,
    // `context` [N, tokens, context_width], and for editing clean latents to look at: `reference`,
    // `reference_1`, `reference_2`, ... [N, in_channels, any height, any width]. Output:
    // `prediction` [N, out_channels, H, W]. Blocks can be left out for guidance
    // (networks/layer_variants.h), and the first one run alone (networks/denoisers/first_block.h).
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;
    GuidanceSupport guidance_support() const override { return {layers_, true}; }
    Reuse reuse() const override { return FirstBlock::offered(layers_.size()); }

  private:
    // Tokens that are modulated alike, and the vector that they are modulated by.
    struct Part {
        nn::Tensor tokens, conditioning;
        nn::Rotary rotary;
    };
    // The text, the picture, and where there are any the references.
    using Parts = std::vector<Part>;

    // One block's weights for text or picture.
    class Stream {
      public:
        Stream(const nn::Scope& scope, const std::string& name, const HeadProjections::Names& heads,
               const std::string& out, int64_t width, int64_t head_dim);
        HeadProjections heads;

        nn::Tensor modulation(const Part& part) const { return modulation_(part.conditioning); }
        // `part` 0 is in front of attention, 1 in front of the feed-forward layers.
        nn::Tensor normed(const nn::Tensor& x, const nn::Tensor& modulation, int64_t part) const;
        // What comes behind the attention.
        nn::Tensor finish(const nn::Tensor& x, const nn::Tensor& attended,
                          const nn::Tensor& modulation) const;

      private:
        nn::Tensor chunk(const nn::Tensor& modulation, int64_t index) const;
        int64_t width_;
        nn::Linear modulation_, out_, inner_, outer_;
    };

    class Block {
      public:
        Block(const nn::Scope& scope, int64_t width, int64_t head_dim);
        Parts operator()(const Parts& parts) const;

      private:
        const Stream& stream(size_t part) const { return part == 0 ? text_ : image_; }
        int64_t heads_, head_dim_;
        Stream image_, text_;
    };

    nn::Tensor embed_time(const nn::Tensor& timesteps) const;
    nn::Tensor embed_text(Graph& graph, const InputShapes& shapes, int64_t batch) const;
    // The tokens of the picture `name`, whose positions go behind `positions`.
    nn::Tensor embed_picture(Graph& graph, const InputShapes& shapes, const std::string& name,
                             int64_t batch, int64_t frame, Positions& positions) const;
    Parts embed(Graph& graph, const InputShapes& shapes, int64_t batch) const;

    int64_t in_channels_, head_dim_, context_width_;
    bool still_references_;
    std::vector<int64_t> axes_;
    nn::Linear img_in_;
    nn::RmsNorm txt_norm_;
    nn::Linear txt_in_;
    Embedder timestep_;
    std::vector<Block> blocks_;
    std::vector<std::string> layers_;  // the blocks' names
    JointOutput output_;
};

}  // namespace sde::networks
