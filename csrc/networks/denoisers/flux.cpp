#include "networks/denoisers/flux.h"

#include "base/error.h"
#include "networks/denoisers/block_residuals.h"
#include "networks/layer_variants.h"
#include "nn/feed_forward.h"

namespace sde::networks {
namespace {

constexpr int64_t kFeedForwardFactor = 4;
constexpr double kTheta = 10000;  // of the rotary positions
constexpr size_t kAxes = 3;       // picture, row, column

}  // namespace

FluxBody::SingleBlock::SingleBlock(const nn::Scope& scope, int64_t width, int64_t head_dim)
    : width_(width),
      head_dim_(head_dim),
      modulation_(scope / "norm" / "linear", width, 3 * width),
      heads_(scope / "attn", HeadProjections::kOwn, width, head_dim, true),
      proj_mlp_(scope / "proj_mlp", width, kFeedForwardFactor * width),
      proj_out_(scope / "proj_out", (1 + kFeedForwardFactor) * width, width) {}

nn::Tensor FluxBody::SingleBlock::operator()(const nn::Tensor& x, const nn::Tensor& conditioning,
                                             const nn::Rotary& rotary) const {
    const nn::Tensor modulation = modulation_(conditioning);  // shift, scale, gate
    const auto chunk = [&](int64_t i) { return nn::slice_last(modulation, i * width_, width_); };
    const nn::Tensor h = nn::modulated_norm(x, chunk(1), chunk(0), kJointEps);
    const nn::Tensor attended = nn::attention(nn::join_heads({heads_.q(h, rotary)}, head_dim_),
                                              nn::join_heads({heads_.k(h, rotary)}, head_dim_),
                                              heads_.v(h), {.heads = width_ / head_dim_});
    return nn::feed_forward(proj_mlp_, proj_out_, h, nn::Middle::GeluTanh,
                            {.residual = x, .gate = chunk(2)}, attended);
}

FluxBody::FluxBody(const nn::Scope& scope, const Config& config, const std::string& owner)
    : in_channels_(config["in_channels"].integer()),
      width_(config["width"].integer()),
      head_dim_(head_dim_of(config)),
      context_width_(config["context_width"].integer()),
      axes_(config["rope_axes"].integers()),
      owner_(owner),
      x_embedder_(scope / "x_embedder", in_channels_ * kPatchArea, width_),
      context_embedder_(scope / "context_embedder", context_width_, width_),
      conditioning_(scope / "time_text_embed", width_, config["pooled_width"].integer(),
                    config["guidance"].boolean()) {
    check_rope_axes(axes_, kAxes, head_dim_);
    for (int i = 0; i < config["layers"].integer(); ++i)
        blocks_.emplace_back(scope / "transformer_blocks" / i,
                             JointBlockConfig{.width = width_, .head_dim = head_dim_});
    for (int i = 0; i < config["single_layers"].integer(); ++i)
        single_blocks_.emplace_back(scope / "single_transformer_blocks" / i, width_, head_dim_);
}

nn::Tensor FluxBody::embed_pictures(Graph& graph, const InputShapes& shapes, const Shape& latents,
                                    Positions& positions) const {
    std::vector<nn::Tensor> pictures;
    const auto add = [&](const std::string& name) {
        const Shape& shape = picture_shape(shapes, name, in_channels_, kPatch, owner_);
        for (int64_t y = 0; y < shape[2] / kPatch; ++y)
            for (int64_t x = 0; x < shape[3] / kPatch; ++x)
                positions.push_back({static_cast<float>(pictures.size()), static_cast<float>(y),
                                     static_cast<float>(x)});
        pictures.push_back(nn::patchify(nn::input(graph, name, shape), kPatch));
    };
    add("latents");
    for (std::string name = "reference"; shapes.count(name);
         name = "reference_" + std::to_string(pictures.size() - 1)) {
        const Shape& shape = required(shapes, name, 4);
        if (shape[0] != latents[0])
            throw Error(ErrorKind::Parameter, "'" + name + "' " + shape.text() +
                                                  " must have as many entries as the latents " +
                                                  latents.text());
        add(name);
    }
    return x_embedder_(nn::concat_tokens(pictures));
}

FluxBody::Sequence FluxBody::sequence(Graph& graph, const InputShapes& shapes,
                                      const nn::Tensor& first) const {
    const Shape& latents = required(shapes, "latents", 4);
    const Shape& context = context_shape(shapes, latents[0], context_width_, owner_);
    Sequence made;
    made.text = context[1] + (first ? first.size(1) : 0);
    made.patches = latents[2] * latents[3] / kPatchArea;
    Positions positions(static_cast<size_t>(made.text), std::vector<float>(kAxes, 0.0f));
    made.x.image = embed_pictures(graph, shapes, latents, positions);
    made.conditioning = conditioning_(graph, shapes, latents[0], owner_);
    made.positions = nn::rotary_constant(graph, positions, axes_, kTheta);
    made.x.context = context_embedder_(nn::input(graph, "context", context));
    if (first) made.x.context = nn::concat_tokens({first, made.x.context});
    return made;
}

Flux::Flux(const nn::Scope& scope, const Config& config)
    : body_(scope, config, "this FLUX denoiser"),
      output_(scope, body_.width(), config["out_channels"].integer() * FluxBody::kPatchArea) {
    name_layers(layers_, "transformer_blocks", body_.blocks().size());
    name_layers(layers_, "single_transformer_blocks", body_.single_blocks().size());
}

void Flux::forward(Graph& graph, const InputShapes& shapes, const Options& options) const {
    FluxBody::Sequence sequence = body_.sequence(graph, shapes);
    JointBlock::Tokens& x = sequence.x;
    const nn::Tensor &conditioning = sequence.conditioning, &table = sequence.positions;
    const auto residuals = [&](const char* prefix, size_t blocks) {
        const Shape own{x.image.size(0), sequence.patches, body_.width()};
        return BlockResiduals(graph, shapes, prefix, blocks, BlockResiduals::Spread::RoundedUp,
                              own);
    };
    LayerVariants variants(graph, shapes, options, layers_.size(), {});
    const BlockResiduals control = residuals("control_", body_.blocks().size());
    FirstBlock first(graph, shapes, options, 0, sequence.patches);
    const nn::Tensor before = x.image;
    for (size_t i = 0; i < body_.blocks().size() && !first.skips(i); ++i) {
        if (!variants.next().skip) x = body_.blocks()[i](x, conditioning, {table, sequence.text});
        if (i == 0) first.cut(before, {&x.image, &x.context});
        x.image = control.added(x.image, i, 0);
    }
    if (first.is_first()) return;
    nn::Tensor all = nn::concat_tokens({x.context, x.image});
    const BlockResiduals single = residuals("control_single_", body_.single_blocks().size());
    const size_t doubles = body_.blocks().size();
    for (size_t i = 0; i < body_.single_blocks().size() && !first.skips(doubles + i); ++i) {
        if (!variants.next().skip) all = body_.single_blocks()[i](all, conditioning, {table, 0});
        all = single.added(all, i, sequence.text);
    }
    const Shape& latents = required(shapes, "latents", 4);
    const nn::Tensor image = first.finished(nn::slice_tokens(all, sequence.text, sequence.patches));
    nn::output("prediction", nn::unpatchify(output_(image, conditioning), latents[2], latents[3],
                                            FluxBody::kPatch, nn::PatchOrder::ChannelYX));
}

}  // namespace sde::networks
