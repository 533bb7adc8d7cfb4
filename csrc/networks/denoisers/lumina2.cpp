#include "networks/denoisers/lumina2.h"

#include "networks/denoisers/joint.h"
#include "networks/layer_variants.h"

namespace sde::networks {
namespace {

const char* const kOwner = "this Lumina-Image denoiser";
constexpr int64_t kPatch = 2;
constexpr int64_t kPatchArea = kPatch * kPatch;
constexpr float kNormEps = 1e-5f;    // of the RMS norms
constexpr float kOutputEps = 1e-6f;  // of the last norm
constexpr double kTheta = 10000;     // of the rotary positions
constexpr size_t kAxes = 3;          // text, row, column
constexpr float kTimesteps = 1000.0f;
// Chunks of a modulation, in order: scales and gates, and no shifts.
constexpr int64_t kAttentionScale = 0, kAttentionGate = 1, kForwardScale = 2, kForwardGate = 3;
constexpr int64_t kChunks = 4;

}  // namespace

Lumina2::Block::Block(const nn::Scope& scope, const Config& config, bool modulated)
    : width_(config["width"].integer()),
      head_dim_(head_dim_of(config)),
      heads_(width_ / head_dim_),
      kv_heads_(config["kv_heads"].integer()),
      norm1_(modulated ? scope / "norm1" / "norm" : scope / "norm1", width_, kNormEps),
      norm2_(scope / "norm2", width_, kNormEps),
      ffn_norm1_(scope / "ffn_norm1", width_, kNormEps),
      ffn_norm2_(scope / "ffn_norm2", width_, kNormEps),
      to_q_(scope / "attn" / "to_q", width_, width_, false),
      to_k_(scope / "attn" / "to_k", width_, kv_heads_ * head_dim_, false),
      to_v_(scope / "attn" / "to_v", width_, kv_heads_ * head_dim_, false),
      to_out_(scope / "attn" / "to_out" / 0, width_, width_, false),
      norm_q_(scope / "attn" / "norm_q", head_dim_, kNormEps),
      norm_k_(scope / "attn" / "norm_k", head_dim_, kNormEps),
      gate_(scope / "feed_forward" / "linear_1", width_, config["inner_width"].integer(), false),
      down_(scope / "feed_forward" / "linear_2", config["inner_width"].integer(), width_, false),
      up_(scope / "feed_forward" / "linear_3", width_, config["inner_width"].integer(), false) {
    if (modulated)
        modulation_.emplace(scope / "norm1" / "linear", config["conditioning_width"].integer(),
                            kChunks * width_);
}

nn::Tensor Lumina2::Block::attend(const nn::Tensor& x, const nn::Rotary& rotary) const {
    return to_out_(nn::attention(nn::join_heads({{to_q_(x), &norm_q_, rotary}}, head_dim_),
                                 nn::join_heads({{to_k_(x), &norm_k_, rotary}}, head_dim_),
                                 to_v_(x), {.heads = heads_, .kv_heads = kv_heads_}));
}

nn::Tensor Lumina2::Block::feed_forward(const nn::Tensor& x) const {
    return down_(nn::multiply(gate_(x, {.activation = nn::Activation::Silu}), up_(x)));
}

nn::Tensor Lumina2::Block::operator()(const nn::Tensor& x, const nn::Tensor& conditioning,
                                      const nn::Rotary& rotary) const {
    nn::Tensor factors, gates;
    if (modulation_) {
        const nn::Tensor modulation = (*modulation_)(conditioning);
        factors = nn::scale(modulation, 1.0f, 1.0f);
        gates = nn::tanh(modulation);
    }
    const auto chunk = [&](const nn::Tensor& all, int64_t i) {
        return all ? nn::slice_last(all, i * width_, width_) : nn::Tensor{};
    };
    const nn::Tensor attended = attend(norm1_(x, chunk(factors, kAttentionScale)), rotary);
    const nn::Tensor h = norm2_(attended, chunk(gates, kAttentionGate), x);
    const nn::Tensor fed = feed_forward(ffn_norm1_(h, chunk(factors, kForwardScale)));
    return ffn_norm2_(fed, chunk(gates, kForwardGate), h);
}

std::vector<Lumina2::Block> Lumina2::blocks(const nn::Scope& scope, const Config& config,
                                            int64_t count, bool modulated) {
    std::vector<Block> list;
    for (int64_t i = 0; i < count; ++i)
        list.emplace_back(scope / static_cast<int>(i), config, modulated);
    return list;
}

Lumina2::Lumina2(const nn::Scope& scope, const Config& config)
    : in_channels_(config["in_channels"].integer()),
      context_width_(config["context_width"].integer()),
      width_(config["width"].integer()),
      axes_(config["rope_axes"].integers()),
      x_embedder_(scope / "x_embedder", in_channels_ * kPatchArea, width_),
      time_(scope / "time_caption_embed" / "timestep_embedder", kSinusoidWidth,
            config["conditioning_width"].integer()),
      caption_norm_(scope / "time_caption_embed" / "caption_embedder" / 0, context_width_,
                    kNormEps),
      caption_(scope / "time_caption_embed" / "caption_embedder" / 1, context_width_, width_),
      noise_refiner_(
          blocks(scope / "noise_refiner", config, config["refiner_layers"].integer(), true)),
      context_refiner_(
          blocks(scope / "context_refiner", config, config["refiner_layers"].integer(), false)),
      layers_(blocks(scope / "layers", config, config["layers"].integer(), true)),
      scale_(scope / "norm_out" / "linear_1", config["conditioning_width"].integer(), width_),
      proj_out_(scope / "norm_out" / "linear_2", width_,
                config["out_channels"].integer() * kPatchArea) {
    check_rope_axes(axes_, kAxes, head_dim_of(config));
    name_layers(layer_names_, "layers", layers_.size());
}

void Lumina2::forward(Graph& graph, const InputShapes& shapes, const Options& options) const {
    const Shape& latents = picture_shape(shapes, "latents", in_channels_, kPatch, kOwner);
    const int64_t batch = latents[0], rows = latents[2] / kPatch, columns = latents[3] / kPatch;
    const Shape& text = context_shape(shapes, batch, context_width_, kOwner);
    // The network counts from noise to picture, 0 to 1.
    const nn::Tensor timesteps =
        nn::input(graph, "timesteps", exactly(shapes, "timesteps", Shape{batch}, kOwner));
    const nn::Tensor conditioning = nn::activate(
        time_.of_numbers(nn::scale(timesteps, -1.0f / kTimesteps, 1.0f)), nn::Activation::Silu);

    Positions positions;
    for (int64_t i = 0; i < text[1]; ++i) positions.push_back({static_cast<float>(i), 0, 0});
    for (int64_t y = 0; y < rows; ++y)
        for (int64_t x = 0; x < columns; ++x)
            positions.push_back(
                {static_cast<float>(text[1]), static_cast<float>(y), static_cast<float>(x)});
    const nn::Tensor table = nn::rotary_constant(graph, positions, axes_, kTheta);

    nn::Tensor context = caption_(caption_norm_(nn::input(graph, "context", text)));
    for (const Block& block : context_refiner_) context = block(context, {}, {table, 0});
    nn::Tensor picture = x_embedder_(
        nn::patchify(nn::input(graph, "latents", latents), kPatch, nn::PatchOrder::YXChannel));
    for (const Block& block : noise_refiner_)
        picture = block(picture, conditioning, {table, text[1]});
    nn::Tensor all = nn::concat_tokens({context, picture});
    LayerVariants variants(graph, shapes, options, layers_.size(), {});
    FirstBlock first(graph, shapes, options, text[1], rows * columns);
    const nn::Tensor before = all;
    for (size_t i = 0; i < layers_.size() && !first.skips(i); ++i) {
        if (!variants.next().skip) all = layers_[i](all, conditioning, {table, 0});
        if (i == 0) first.cut(before, {&all});
    }
    if (first.is_first()) return;

    picture = first.finished(nn::slice_tokens(all, text[1], rows * columns));
    const nn::Tensor scale = scale_(conditioning);
    picture = nn::modulated_norm(picture, scale, nn::scale(scale, 0.0f), kOutputEps);
    // It predicts the way to the picture; the flow is the way to the noise.
    const nn::Tensor flow = nn::scale(proj_out_(picture), -1.0f);
    nn::output("prediction",
               nn::unpatchify(flow, latents[2], latents[3], kPatch, nn::PatchOrder::YXChannel));
}

}  // namespace sde::networks
