#include "networks/denoisers/mmdit.h"

#include <algorithm>

#include "base/error.h"
#include "networks/denoisers/block_residuals.h"
#include "networks/layer_variants.h"

namespace sde::networks {
namespace {

int64_t patch_of(const Config& config) {
    const int64_t patch = config["patch_size"].integer();
    if (patch == 1 || patch == 2) return patch;
    throw Error(ErrorKind::Parameter,
                "SD3's patches have 1 or 2 pixels a side, not " + std::to_string(patch));
}

}  // namespace

MMDiTBody::MMDiTBody(const nn::Scope& scope, const Config& config, const Parts& parts,
                     const std::string& owner)
    : in_channels_(config["in_channels"].integer()),
      patch_(patch_of(config)),
      width_(config["width"].integer()),
      owner_(owner),
      conditioning_(scope / "time_text_embed", width_, config["pooled_width"].integer(), false) {
    if (parts.patches)
        proj_.emplace(scope / "pos_embed" / "proj", in_channels_, width_,
                      nn::Conv2dOptions{.kernel = static_cast<int>(patch_),
                                        .stride = static_cast<int>(patch_)});
    if (parts.patches && parts.positions)
        positions_.emplace(scope / "pos_embed", "pos_embed", config["position_side"].integer(),
                           width_);
    if (parts.context) {
        context_width_ = config["context_width"].integer();
        context_embedder_.emplace(scope / "context_embedder", context_width_, width_);
    }
    const std::vector<int64_t> dual = config["dual_attention_layers"].integers();
    const int64_t layers = config["layers"].integer();
    for (int64_t i = 0; i < layers; ++i)
        blocks_.emplace_back(
            scope / "transformer_blocks" / static_cast<int>(i),
            JointBlockConfig{.width = width_,
                             .head_dim = head_dim_of(config),
                             .head_norms = config["qk_norm"].boolean(),
                             .dual_attention = std::count(dual.begin(), dual.end(), i) > 0,
                             .context_ends = parts.context_ends && i + 1 == layers,
                             .reads_context = parts.context});
}

const Shape& MMDiTBody::latents(const InputShapes& shapes) const {
    return picture_shape(shapes, "latents", in_channels_, patch_, owner_);
}

JointBlock::Tokens MMDiTBody::tokens(Graph& graph, const InputShapes& shapes) const {
    const Shape& given = latents(shapes);
    if (!proj_)
        throw Error(ErrorKind::Parameter,
                    owner_ +
                        " reads latents through its base model's first layer, and was loaded "
                        "without one");
    JointBlock::Tokens x{nn::tokens((*proj_)(nn::input(graph, "latents", given))), {}};
    if (positions_)
        x.image = nn::add_broadcast(
            x.image, positions_->middle(graph, given[2] / patch_, given[3] / patch_));
    if (context_embedder_)
        x.context = (*context_embedder_)(
            nn::input(graph, "context", context_shape(shapes, given[0], context_width_, owner_)));
    return x;
}

nn::Tensor MMDiTBody::conditioning(Graph& graph, const InputShapes& shapes) const {
    return conditioning_(graph, shapes, latents(shapes)[0], owner_);
}

MMDiT::MMDiT(const nn::Scope& scope, const Config& config)
    : body_(scope, config, {}, "this SD3 denoiser"),
      output_(scope, body_.width(),
              config["out_channels"].integer() * body_.patch() * body_.patch()) {
    name_layers(layers_, "transformer_blocks", body_.blocks().size());
}

void MMDiT::forward(Graph& graph, const InputShapes& shapes, const Options& options) const {
    const Shape& latents = body_.latents(shapes);
    JointBlock::Tokens x = body_.tokens(graph, shapes);
    const nn::Tensor conditioning = body_.conditioning(graph, shapes);
    const size_t count = body_.blocks().size();
    LayerVariants variants(graph, shapes, options, count, {});
    const BlockResiduals control(graph, shapes, "control_", count, BlockResiduals::Spread::Even,
                                 x.image.shape());
    FirstBlock first(graph, shapes, options, 0, x.image.size(1));
    const nn::Tensor before = x.image;
    for (size_t i = 0; i < count && !first.skips(i); ++i) {
        if (!variants.next().skip) x = body_.blocks()[i](x, conditioning, {});
        if (i == 0) first.cut(before, {&x.image, &x.context});
        // Nothing is added where the context ends: so the control networks were trained.
        if (i + 1 < count) x.image = control.added(x.image, i, 0);
    }
    if (first.is_first()) return;
    nn::output("prediction",
               nn::unpatchify(output_(first.finished(x.image), conditioning), latents[2],
                              latents[3], body_.patch(), nn::PatchOrder::YXChannel));
}

}  // namespace sde::networks
