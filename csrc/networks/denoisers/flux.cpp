#include "networks/denoisers/flux.h"

#include "base/error.h"
#include "networks/layer_variants.h"

namespace sde::networks {
namespace {

const char* const kOwner = "this FLUX denoiser";
constexpr int64_t kPatch = 2;
constexpr int64_t kPatchArea = kPatch * kPatch;
constexpr int64_t kFeedForwardFactor = 4;
constexpr double kTheta = 10000;  // of the rotary positions
constexpr size_t kAxes = 3;       // picture, row, column

}  // namespace

Flux::SingleBlock::SingleBlock(const nn::Scope& scope, int64_t width, int64_t head_dim)
    : width_(width),
      head_dim_(head_dim),
      modulation_(scope / "norm" / "linear", width, 3 * width),
      heads_(scope / "attn", HeadProjections::kOwn, width, head_dim, true),
      proj_mlp_(scope / "proj_mlp", width, kFeedForwardFactor * width),
      proj_out_(scope / "proj_out", (1 + kFeedForwardFactor) * width, width) {}

nn::Tensor Flux::SingleBlock::operator()(const nn::Tensor& x, const nn::Tensor& conditioning,
                                         const nn::Rotary& rotary) const {
    const nn::Tensor modulation = modulation_(conditioning);  // shift, scale, gate
    const auto chunk = [&](int64_t i) { return nn::slice_last(modulation, i * width_, width_); };
    const nn::Tensor h = nn::modulated_norm(x, chunk(1), chunk(0), kJointEps);
    const nn::Tensor attended = nn::attention(nn::join_heads({heads_.q(h, rotary)}, head_dim_),
                                              nn::join_heads({heads_.k(h, rotary)}, head_dim_),
                                              heads_.v(h), {.heads = width_ / head_dim_});
    const nn::Tensor inner = proj_mlp_(h, {.activation = nn::Activation::GeluTanh});
    return proj_out_(nn::concat_last(attended, inner), {.residual = x, .gate = chunk(2)});
}

Flux::Flux(const nn::Scope& scope, const Config& config)
    : in_channels_(config["in_channels"].integer()),
      head_dim_(head_dim_of(config)),
      context_width_(config["context_width"].integer()),
      axes_(config["rope_axes"].integers()),
      x_embedder_(scope / "x_embedder", in_channels_ * kPatchArea, config["width"].integer()),
      context_embedder_(scope / "context_embedder", context_width_, config["width"].integer()),
      conditioning_(scope / "time_text_embed", config["width"].integer(),
                    config["pooled_width"].integer(), config["guidance"].boolean()),
      output_(scope, config["width"].integer(), config["out_channels"].integer() * kPatchArea) {
    int64_t turned = 0;
    for (int64_t axis : axes_) turned += axis > 0 && axis % 2 == 0 ? axis : head_dim_ + 1;
    if (axes_.size() != kAxes || turned != head_dim_)
        throw Error(ErrorKind::Parameter,
                    "FLUX parts the " + std::to_string(head_dim_) +
                        " values of a head among three axes, an even number to each");
    const int64_t width = config["width"].integer();
    for (int i = 0; i < config["layers"].integer(); ++i) {
        layers_.push_back("transformer_blocks." + std::to_string(i));
        blocks_.emplace_back(scope / "transformer_blocks" / i,
                             JointBlockConfig{.width = width, .head_dim = head_dim_});
    }
    for (int i = 0; i < config["single_layers"].integer(); ++i) {
        layers_.push_back("single_transformer_blocks." + std::to_string(i));
        single_blocks_.emplace_back(scope / "single_transformer_blocks" / i, width, head_dim_);
    }
}

void Flux::check_picture(const Shape& latents, const std::string& name) const {
    if (latents[1] == in_channels_ && latents[2] % kPatch == 0 && latents[3] % kPatch == 0) return;
    throw Error(ErrorKind::Parameter, std::string(kOwner) + " takes '" + name + "' of [N, " +
                                          std::to_string(in_channels_) +
                                          ", height, width], both sides multiples of " +
                                          std::to_string(kPatch) + ", not " + latents.text());
}

nn::Tensor Flux::embed_pictures(Graph& graph, const InputShapes& shapes, const Shape& latents,
                                Positions& positions) const {
    std::vector<nn::Tensor> pictures;
    const auto add = [&](const std::string& name, const Shape& shape) {
        check_picture(shape, name);
        for (int64_t y = 0; y < shape[2] / kPatch; ++y)
            for (int64_t x = 0; x < shape[3] / kPatch; ++x)
                positions.push_back({static_cast<float>(pictures.size()), static_cast<float>(y),
                                     static_cast<float>(x)});
        pictures.push_back(nn::patchify(nn::input(graph, name, shape), kPatch));
    };
    add("latents", latents);
    for (std::string name = "reference"; shapes.count(name);
         name = "reference_" + std::to_string(pictures.size() - 1)) {
        const Shape& shape = required(shapes, name, 4);
        if (shape[0] != latents[0])
            throw Error(ErrorKind::Parameter, "'" + name + "' " + shape.text() +
                                                  " must have as many entries as the latents " +
                                                  latents.text());
        add(name, shape);
    }
    return x_embedder_(nn::concat_tokens(pictures));
}

void Flux::forward(Graph& graph, const InputShapes& shapes, const Options& options) const {
    const Shape& latents = required(shapes, "latents", 4);
    const int64_t batch = latents[0];
    const Shape& text = context_shape(shapes, batch, context_width_, kOwner);
    Positions positions(static_cast<size_t>(text[1]), std::vector<float>(kAxes, 0.0f));
    const nn::Tensor pictures = embed_pictures(graph, shapes, latents, positions);
    const nn::Tensor conditioning = conditioning_(graph, shapes, batch, kOwner);
    const nn::Tensor table = nn::rotary_constant(graph, positions, axes_, kTheta);

    JointBlock::Tokens x{pictures, context_embedder_(nn::input(graph, "context", text))};
    LayerVariants variants(graph, shapes, options, layers_.size(), {});
    for (const JointBlock& block : blocks_)
        if (!variants.next().skip) x = block(x, conditioning, {table, text[1]});
    nn::Tensor all = nn::concat_tokens({x.context, x.image});
    for (const SingleBlock& block : single_blocks_)
        if (!variants.next().skip) all = block(all, conditioning, {table, 0});
    const int64_t patches = latents[2] * latents[3] / kPatchArea;
    const nn::Tensor image = nn::slice_tokens(all, text[1], patches);
    nn::output("prediction", nn::unpatchify(output_(image, conditioning), latents[2], latents[3],
                                            kPatch, nn::PatchOrder::ChannelYX));
}

}  // namespace sde::networks
