#include "networks/denoisers/pixart.h"

#include "base/error.h"
#include "networks/denoisers/joint.h"
#include "networks/layer_variants.h"
#include "nn/feed_forward.h"

namespace sde::networks {
namespace {

const char* const kOwner = "this PixArt denoiser";
constexpr int64_t kPatch = 2;
constexpr int64_t kPatchArea = kPatch * kPatch;
constexpr int64_t kFeedForwardFactor = 4;
constexpr int64_t kPixels = 8;  // of the picture per latent, along each axis
// Chunks of a modulation, in order, for the attention and again for the feed-forward.
constexpr int64_t kShift = 0, kScale = 1, kGate = 2, kForward = 3, kChunks = 6;
constexpr int64_t kOutputChunks = 2;     // shift, scale
constexpr int64_t kMicroConditions = 3;  // height, width, aspect ratio: a third of the width each
constexpr int64_t kPositionWidths = 4;   // sine and cosine, of row and column

int64_t width_of(const Config& config) {
    const int64_t width = config["width"].integer();
    if (width > 0 && width % kPositionWidths == 0 && width % kMicroConditions == 0) return width;
    throw Error(ErrorKind::Parameter,
                "PixArt's width is a multiple of 12, not " + std::to_string(width));
}

}  // namespace

PixArt::Attention::Attention(const nn::Scope& scope, int64_t width, int64_t heads)
    : heads_(heads),
      to_q_(scope / "to_q", width, width),
      to_k_(scope / "to_k", width, width),
      to_v_(scope / "to_v", width, width),
      to_out_(scope / "to_out" / 0, width, width) {}

nn::Tensor PixArt::Attention::operator()(const nn::Tensor& x, const nn::Tensor& context,
                                         const nn::Epilogue& epilogue) const {
    return to_out_(nn::attention(to_q_(x), to_k_(context), to_v_(context), {.heads = heads_}),
                   epilogue);
}

PixArt::Block::Block(const nn::Scope& scope, int64_t width, int64_t heads)
    : width_(width),
      table_(scope, "scale_shift_table", kChunks, width),
      attn1_(scope / "attn1", width, heads),
      attn2_(scope / "attn2", width, heads),
      ff_in_(scope / "ff" / "net" / 0 / "proj", width, kFeedForwardFactor * width),
      ff_out_(scope / "ff" / "net" / 2, kFeedForwardFactor * width, width) {}

nn::Tensor PixArt::Block::operator()(const nn::Tensor& x, const nn::Tensor& context,
                                     const nn::Tensor& modulation) const {
    const nn::Tensor own = table_(x.graph(), x.size(0));
    const nn::Tensor all = nn::add(modulation, nn::reshape(own, modulation.shape()));
    const auto chunk = [&](int64_t i) { return nn::slice_last(all, i * width_, width_); };
    const auto normed = [&](const nn::Tensor& h, int64_t part) {
        return nn::modulated_norm(h, chunk(part + kScale), chunk(part + kShift), kJointEps);
    };
    const nn::Tensor first = normed(x, 0);
    nn::Tensor h = attn1_(first, first, {.residual = x, .gate = chunk(kGate)});
    h = attn2_(h, context, {.residual = h});
    return nn::feed_forward(ff_in_, ff_out_, normed(h, kForward), nn::Middle::GeluTanh,
                            {.residual = h, .gate = chunk(kForward + kGate)});
}

PixArt::PixArt(const nn::Scope& scope, const Config& config)
    : in_channels_(config["in_channels"].integer()),
      out_channels_(config["out_channels"].integer()),
      context_width_(config["context_width"].integer()),
      width_(width_of(config)),
      span_(static_cast<double>(config["position_span"].number())),
      proj_(scope / "pos_embed" / "proj", in_channels_, width_,
            {.kernel = static_cast<int>(kPatch), .stride = static_cast<int>(kPatch)}),
      time_(scope / "adaln_single" / "emb" / "timestep_embedder", kSinusoidWidth, width_),
      modulation_(scope / "adaln_single" / "linear", width_, kChunks * width_),
      caption_(scope / "caption_projection", context_width_, width_, nn::Activation::GeluTanh),
      table_(scope, "scale_shift_table", kOutputChunks, width_),
      proj_out_(scope / "proj_out", width_, out_channels_ * kPatchArea) {
    const nn::Scope embedders = scope / "adaln_single" / "emb";
    if (config["micro_conditions"].boolean()) {
        resolution_.emplace(embedders / "resolution_embedder", kSinusoidWidth,
                            width_ / kMicroConditions);
        aspect_ratio_.emplace(embedders / "aspect_ratio_embedder", kSinusoidWidth,
                              width_ / kMicroConditions);
    }
    const int64_t heads = width_ / head_dim_of(config);
    name_layers(layer_names_, "transformer_blocks",
                static_cast<size_t>(config["layers"].integer()));
    for (int64_t i = 0; i < config["layers"].integer(); ++i)
        blocks_.emplace_back(scope / "transformer_blocks" / static_cast<int>(i), width_, heads);
}

nn::Tensor PixArt::conditioning(Graph& graph, const InputShapes& shapes,
                                const Shape& latents) const {
    const int64_t batch = latents[0];
    const nn::Tensor time = time_.of_numbers(
        nn::input(graph, "timesteps", exactly(shapes, "timesteps", Shape{batch}, kOwner)));
    if (!resolution_) return time;
    const auto number = [&](const Embedder& embedder, float value) {
        const Shape shape{batch};
        const std::vector<float> same(static_cast<size_t>(batch), value);
        return nn::reshape(embedder.of_numbers(nn::constant(graph, shape, same)),
                           Shape{batch, 1, width_ / kMicroConditions});
    };
    const auto height = static_cast<float>(kPixels * latents[2]),
               width = static_cast<float>(kPixels * latents[3]);
    const nn::Tensor size =
        nn::concat_last(number(*resolution_, height), number(*resolution_, width));
    const nn::Tensor all = nn::concat_last(size, number(*aspect_ratio_, height / width));
    return nn::add(time, nn::reshape(all, time.shape()));
}

void PixArt::forward(Graph& graph, const InputShapes& shapes, const Options& options) const {
    const Shape& latents = picture_shape(shapes, "latents", in_channels_, kPatch, kOwner);
    const int64_t batch = latents[0], rows = latents[2] / kPatch, columns = latents[3] / kPatch;
    const Shape& text = context_shape(shapes, batch, context_width_, kOwner);
    const nn::Tensor time = conditioning(graph, shapes, latents);
    const nn::Tensor modulation = modulation_(nn::activate(time, nn::Activation::Silu));
    const nn::Tensor context = caption_(nn::input(graph, "context", text));

    nn::Tensor x = nn::add_broadcast(nn::tokens(proj_(nn::input(graph, "latents", latents))),
                                     nn::sincos_constant(graph, rows, columns, width_, span_));
    LayerVariants variants(graph, shapes, options, blocks_.size(), {});
    FirstBlock first(graph, shapes, options, 0, x.size(1));
    const nn::Tensor before = x;
    for (size_t i = 0; i < blocks_.size() && !first.skips(i); ++i) {
        if (!variants.next().skip) x = blocks_[i](x, context, modulation);
        if (i == 0) first.cut(before, {&x});
    }
    if (first.is_first()) return;
    x = first.finished(x);

    const nn::Tensor table =
        nn::reshape(table_(graph, batch), Shape{batch, kOutputChunks * width_});
    const auto chunk = [&](int64_t i) {
        return nn::add(time, nn::contiguous(nn::slice_last(table, i * width_, width_)));
    };
    const nn::Tensor values =
        proj_out_(nn::modulated_norm(x, chunk(kScale), chunk(kShift), kJointEps));
    const nn::Tensor prediction =
        nn::unpatchify(values, latents[2], latents[3], kPatch, nn::PatchOrder::YXChannel);
    nn::output("prediction", first_channels(prediction, in_channels_));
}

}  // namespace sde::networks
