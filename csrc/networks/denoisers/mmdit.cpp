#include "networks/denoisers/mmdit.h"

#include <algorithm>

#include "base/error.h"
#include "networks/layer_variants.h"

namespace sde::networks {
namespace {

const char* const kOwner = "this SD3 denoiser";

int64_t patch_of(const Config& config) {
    const int64_t patch = config["patch_size"].integer();
    if (patch == 1 || patch == 2) return patch;
    throw Error(ErrorKind::Parameter,
                "SD3's patches have 1 or 2 pixels a side, not " + std::to_string(patch));
}

}  // namespace

MMDiT::MMDiT(const nn::Scope& scope, const Config& config)
    : in_channels_(config["in_channels"].integer()),
      patch_(patch_of(config)),
      context_width_(config["context_width"].integer()),
      proj_(scope / "pos_embed" / "proj", in_channels_, config["width"].integer(),
            {.kernel = static_cast<int>(patch_), .stride = static_cast<int>(patch_)}),
      positions_(scope / "pos_embed", "pos_embed", config["position_side"].integer(),
                 config["width"].integer()),
      context_embedder_(scope / "context_embedder", context_width_, config["width"].integer()),
      conditioning_(scope / "time_text_embed", config["width"].integer(),
                    config["pooled_width"].integer(), false),
      output_(scope, config["width"].integer(),
              config["out_channels"].integer() * patch_ * patch_) {
    const std::vector<int64_t> dual = config["dual_attention_layers"].integers();
    const int64_t layers = config["layers"].integer();
    for (int64_t i = 0; i < layers; ++i) {
        layers_.push_back("transformer_blocks." + std::to_string(i));
        blocks_.emplace_back(
            scope / "transformer_blocks" / static_cast<int>(i),
            JointBlockConfig{.width = config["width"].integer(),
                             .head_dim = head_dim_of(config),
                             .head_norms = config["qk_norm"].boolean(),
                             .dual_attention = std::count(dual.begin(), dual.end(), i) > 0,
                             .context_ends = i + 1 == layers});
    }
}

void MMDiT::forward(Graph& graph, const InputShapes& shapes, const Options& options) const {
    const Shape& latents = required(shapes, "latents", 4);
    if (latents[1] != in_channels_ || latents[2] % patch_ || latents[3] % patch_)
        throw Error(ErrorKind::Parameter, std::string(kOwner) + " takes latents of [N, " +
                                              std::to_string(in_channels_) +
                                              ", height, width], both sides multiples of " +
                                              std::to_string(patch_) + ", not " + latents.text());
    const int64_t batch = latents[0];
    const nn::Tensor context =
        nn::input(graph, "context", context_shape(shapes, batch, context_width_, kOwner));
    const nn::Tensor conditioning = conditioning_(graph, shapes, batch, kOwner);

    const nn::Tensor patches = nn::tokens(proj_(nn::input(graph, "latents", latents)));
    const nn::Tensor positions = positions_.middle(graph, latents[2] / patch_, latents[3] / patch_);
    JointBlock::Tokens x{nn::add_broadcast(patches, positions), context_embedder_(context)};
    LayerVariants variants(graph, shapes, options, blocks_.size(), {});
    for (const JointBlock& block : blocks_)
        if (!variants.next().skip) x = block(x, conditioning, {});
    nn::output("prediction", nn::unpatchify(output_(x.image, conditioning), latents[2], latents[3],
                                            patch_, nn::PatchOrder::YXChannel));
}

}  // namespace sde::networks
