// The eyes of Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923): pictures of any size to tokens that
// its language model reads among words. Most layers attend within windows of a picture.
#pragma once

#include <vector>

#include "networks/network.h"
#include "nn/dit.h"

namespace sde::networks {

class QwenVision : public Network {
  public:
    QwenVision(const nn::Scope& scope, const Config& config);

    // Input `pixels` [1, 3, H, W], normalised, both sides multiples of twice the patch. Output
    // `tokens` [1, (H / 2 patch) (W / 2 patch), out_width], row by row.
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    // Windows of one shape, whose tokens follow each other.
    struct Windows {
        int64_t count, tokens;
    };
    // In which order the layers see the patches: window by window, those of one shape together, and
    // in a window cell by cell. A cell are the 2 x 2 patches that become one token.
    struct Order {
        std::vector<int32_t> patches;  // rows of the picture's patches
        std::vector<int32_t> cells;    // where each cell of the picture is
        std::vector<Windows> windows;
        nn::Positions positions;  // row and column of each patch
    };

    class Block {
      public:
        Block(const nn::Scope& scope, const Config& config);
        // `windows` empty: every token sees every other.
        nn::Tensor operator()(const nn::Tensor& x, const nn::Tensor& rotary,
                              const std::vector<Windows>& windows) const;

      private:
        nn::Tensor attend(const nn::Tensor& q, const nn::Tensor& k, const nn::Tensor& v,
                          const std::vector<Windows>& windows) const;
        int64_t heads_, head_dim_;
        nn::RmsNorm norm1_, norm2_;
        nn::Linear q_, k_, v_, proj_, gate_, up_, down_;
    };

    Order order(int64_t rows, int64_t columns) const;

    int64_t width_, head_dim_, patch_, window_;
    std::vector<int64_t> whole_;  // layers without windows
    // A picture is a film of two equal frames.
    nn::Conv2d first_frame_, second_frame_;
    std::vector<Block> blocks_;
    nn::RmsNorm merger_norm_;
    nn::Linear merger_in_, merger_out_;
};

}  // namespace sde::networks
