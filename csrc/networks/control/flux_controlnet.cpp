#include "networks/control/flux_controlnet.h"

#include "base/error.h"
#include "networks/denoisers/block_residuals.h"

namespace sde::networks {

FluxControlNet::FluxControlNet(const nn::Scope& scope, const Config& config)
    : body_(scope, config, "this FLUX ControlNet"),
      tasks_(config["tasks"].integer()),
      hint_channels_(config["hint_block_channels"].size() ? body_.in_channels()
                                                          : config["hint_channels"].integer()),
      hint_embedder_(scope / "controlnet_x_embedder", hint_channels_ * FluxBody::kPatchArea,
                     body_.width()) {
    const std::vector<int64_t> channels = config["hint_block_channels"].integers();
    if (!channels.empty())
        hint_encoder_.emplace(scope / "input_hint_block", config["hint_channels"].integer(),
                              channels, body_.in_channels());
    if (tasks_ > 0)
        task_embedding_.emplace(scope / "controlnet_mode_embedder", tasks_, body_.width());
    const auto add = [&](const char* name, size_t count, std::vector<nn::Linear>& to) {
        for (size_t i = 0; i < count; ++i)
            to.emplace_back(scope / name / static_cast<int>(i), body_.width(), body_.width());
    };
    add("controlnet_blocks", body_.blocks().size(), outputs_);
    add("controlnet_single_blocks", body_.single_blocks().size(), single_outputs_);
}

nn::Tensor FluxControlNet::hint(Graph& graph, const InputShapes& shapes) const {
    if (hint_encoder_) return hint_encoder_->features(graph, shapes);
    const Shape& latents = required(shapes, "latents", 4);
    const Shape hint{latents[0], hint_channels_, latents[2], latents[3]};
    return nn::input(graph, "hint", exactly(shapes, "hint", hint, body_.owner()));
}

nn::Tensor FluxControlNet::task(Graph& graph, const InputShapes& shapes) const {
    if (!task_embedding_) return {};
    const Shape wanted{required(shapes, "latents", 4)[0], 1};
    exactly(shapes, "task", wanted, body_.owner());
    return (*task_embedding_)(nn::input_ids(graph, "task", wanted, tasks_));
}

void FluxControlNet::forward(Graph& graph, const InputShapes& shapes,
                             const Options& options) const {
    if (option(options, "hint_only", 0)) {
        if (!hint_encoder_)
            throw Error(ErrorKind::Parameter, body_.owner() + " reads latents and no pixels");
        return hint_encoder_->only(graph, shapes);
    }
    FluxBody::Sequence sequence = body_.sequence(graph, shapes, task(graph, shapes));
    JointBlock::Tokens& x = sequence.x;
    const nn::Tensor picture = nn::patchify(hint(graph, shapes), FluxBody::kPatch);
    x.image = hint_embedder_(picture, {.residual = x.image});
    for (size_t i = 0; i < outputs_.size(); ++i) {
        x = body_.blocks()[i](x, sequence.conditioning, {sequence.positions, sequence.text});
        // Those that read pixels were trained with residuals that take turns (XLabs-AI/x-flux).
        nn::output(BlockResiduals::name("control_", i, outputs_.size(), hint_encoder_.has_value()),
                   outputs_[i](x.image));
    }
    if (single_outputs_.empty()) return;
    nn::Tensor all = nn::concat_tokens({x.context, x.image});
    for (size_t i = 0; i < single_outputs_.size(); ++i) {
        all = body_.single_blocks()[i](all, sequence.conditioning, {sequence.positions, 0});
        const nn::Tensor image = nn::slice_tokens(all, sequence.text, sequence.patches);
        nn::output(BlockResiduals::name("control_single_", i, single_outputs_.size(), false),
                   single_outputs_[i](image));
    }
}

}  // namespace sde::networks
