// What diffusion transformers share: checks of their inputs, the conditioning vector, blocks in
// which picture and text attend to each other with weights of their own (MMDiT, Esser et al. 2024,
// arXiv 2403.03206), and the modulated output layer. Names are those of diffusers' classes.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "networks/denoisers/embedders.h"
#include "networks/network.h"
#include "nn/dit.h"

namespace sde::networks {

// Of every layer norm and RMS norm in these networks.
constexpr float kJointEps = 1e-6f;

// The configuration's `head_dim`; throws Parameter unless heads of it part its `width`.
int64_t head_dim_of(const Config& config);
// Throws Parameter unless the input `name` has this shape; `owner` is for the message.
const Shape& exactly(const InputShapes& shapes, const std::string& name, const Shape& expected,
                     const std::string& owner);
// The shape of the input `context`, [N, tokens, width].
const Shape& context_shape(const InputShapes& shapes, int64_t batch, int64_t width,
                           const std::string& owner);
// The shape of the input `name`, pictures of whole patches: [N, channels, H, W].
const Shape& picture_shape(const InputShapes& shapes, const std::string& name, int64_t channels,
                           int64_t patch, const std::string& owner);
// The first channels of a prediction. Behind them some networks predict variances, which no sampler
// here reads.
nn::Tensor first_channels(const nn::Tensor& prediction, int64_t channels);
// "blocks.0", "blocks.1", ...: the names by which guidance leaves layers out.
void name_layers(std::vector<std::string>& names, const std::string& prefix, size_t count);

using nn::Positions;
// Throws Parameter unless a head's values are parted among `count` axes, an even number to each.
void check_rope_axes(const std::vector<int64_t>& axes, size_t count, int64_t head_dim);

// The sum of an embedding of the timestep, one of the pooled text, and where the network was
// distilled from guidance, one of its strength (Meng et al. 2023, arXiv 2210.03142).
class Conditioning {
  public:
    Conditioning(const nn::Scope& scope, int64_t width, int64_t pooled_width, bool guidance);
    // Inputs `timesteps` [N] from 0 to 1000, `pooled` [N, pooled_width], `guidance` [N] as users
    // give it. Returns SiLU of the sum, which is what every modulation reads: [N, width].
    nn::Tensor operator()(Graph& graph, const InputShapes& shapes, int64_t batch,
                          const std::string& owner) const;

  private:
    int64_t pooled_width_;
    Embedder timestep_, text_;
    std::optional<Embedder> guidance_;
};

// Queries, keys and values of one stream of tokens.
class HeadProjections {
  public:
    struct Names {
        const char *q, *k, *v, *q_norm, *k_norm;
    };
    static constexpr Names kOwn{"to_q", "to_k", "to_v", "norm_q", "norm_k"};
    static constexpr Names kAdded{"add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q",
                                  "norm_added_k"};
    HeadProjections(const nn::Scope& scope, const Names& names, int64_t width, int64_t head_dim,
                    bool normed);
    nn::HeadTokens q(const nn::Tensor& x, const nn::Rotary& rotary) const;
    nn::HeadTokens k(const nn::Tensor& x, const nn::Rotary& rotary) const;
    nn::Tensor v(const nn::Tensor& x) const { return to_v_(x); }

  private:
    nn::Linear to_q_, to_k_, to_v_;
    std::optional<nn::HeadNorm> q_norm_, k_norm_;
};

struct JointBlockConfig {
    int64_t width, head_dim;
    bool head_norms = true;
    bool dual_attention = false;  // the picture attends to itself once more (SD3.5-Medium)
    bool context_ends = false;    // nothing reads the text behind this block (SD3's last)
    bool reads_context = true;    // or there is no text at all
};

class JointBlock {
  public:
    struct Tokens {
        nn::Tensor image, context;
    };
    JointBlock(const nn::Scope& scope, const JointBlockConfig& config);
    // `rotary` turns the image tokens; the context has no positions, and is absent where it is not
    // read. `conditioning` is Conditioning's.
    Tokens operator()(const Tokens& x, const nn::Tensor& conditioning,
                      const nn::Rotary& rotary) const;

  private:
    class FeedForward {
      public:
        FeedForward(const nn::Scope& scope, int64_t width);
        nn::Tensor operator()(const nn::Tensor& x, const nn::Epilogue& epilogue) const;

      private:
        nn::Linear in_, out_;
    };
    // What a stream has beside its heads.
    struct Stream {
        Stream(const nn::Scope& scope, const std::string& suffix, int64_t chunks, int64_t width,
               const std::string& out);
        nn::Linear modulation, out;
        FeedForward feed_forward;
    };

    nn::Tensor chunk(const nn::Tensor& modulation, int64_t index) const;
    nn::Tensor normed(const nn::Tensor& x, const nn::Tensor& modulation, int64_t part) const;
    // The picture's second attention: reads x and adds to h.
    nn::Tensor attend_alone(const nn::Tensor& x, const nn::Tensor& h,
                            const nn::Tensor& modulation) const;
    // The feed-forward half.
    nn::Tensor finish(const Stream& stream, const nn::Tensor& x,
                      const nn::Tensor& modulation) const;

    int64_t width_, head_dim_;
    HeadProjections image_heads_;
    std::optional<HeadProjections> context_heads_;
    Stream image_;
    std::optional<HeadProjections> dual_heads_;
    std::optional<nn::Linear> dual_out_;
    std::optional<Stream> context_;
    // The last block's context queries (context_heads_) are in every file and have no reader.
    // In the block where the context ends, a modulation has two chunks only. Files hold them in
    // either order, so they are two parameters here.
    std::optional<nn::Linear> context_scale_, context_shift_;
};

// Modulated norm and projection to the values of a patch.
class JointOutput {
  public:
    JointOutput(const nn::Scope& scope, int64_t width, int64_t out);
    nn::Tensor operator()(const nn::Tensor& x, const nn::Tensor& conditioning) const;

  private:
    nn::Linear scale_, shift_, proj_out_;
};

}  // namespace sde::networks
