#include "networks/control/mmdit_controlnet.h"

#include "networks/denoisers/block_residuals.h"

namespace sde::networks {
namespace {

MMDiTBody::Parts parts_of(const Config& config) {
    return {.patches = config["patches"].boolean(),
            .positions = config["position_side"].integer() > 0,
            .context = config["context_width"].integer() > 0,
            .context_ends = false};
}

}  // namespace

MMDiTControlNet::MMDiTControlNet(const nn::Scope& scope, const Config& config)
    : body_(scope, config, parts_of(config), "this SD3 ControlNet"),
      hint_channels_(config["hint_channels"].integer()),
      hint_proj_(
          scope / "pos_embed_input" / "proj", hint_channels_, body_.width(),
          {.kernel = static_cast<int>(body_.patch()), .stride = static_cast<int>(body_.patch())}) {
    for (size_t i = 0; i < body_.blocks().size(); ++i)
        outputs_.emplace_back(scope / "controlnet_blocks" / static_cast<int>(i), body_.width(),
                              body_.width());
}

void MMDiTControlNet::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    const Shape& latents = body_.latents(shapes);
    const Shape hint{latents[0], hint_channels_, latents[2], latents[3]};
    JointBlock::Tokens x = body_.tokens(graph, shapes);
    const nn::Tensor picture =
        nn::input(graph, "hint", exactly(shapes, "hint", hint, body_.owner()));
    x.image = nn::add(x.image, nn::tokens(hint_proj_(picture)));
    const nn::Tensor conditioning = body_.conditioning(graph, shapes);
    for (size_t i = 0; i < outputs_.size(); ++i) {
        x = body_.blocks()[i](x, conditioning, {});
        nn::output(BlockResiduals::name("control_", i, outputs_.size(), false),
                   outputs_[i](x.image));
    }
}

}  // namespace sde::networks
