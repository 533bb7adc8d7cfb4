#include "networks/denoisers/qwen_image.h"

#include <algorithm>

#include "base/error.h"
#include "networks/layer_variants.h"
#include "nn/feed_forward.h"

namespace sde::networks {
namespace {

const char* const kOwner = "this Qwen-Image denoiser";
constexpr int64_t kPatch = 2;
constexpr int64_t kPatchArea = kPatch * kPatch;
constexpr int64_t kFeedForwardFactor = 4;
constexpr double kTheta = 10000;  // of the rotary positions
constexpr size_t kAxes = 3;       // picture, row, column
// A modulation has three chunks for the attention and three for the feed-forward layers.
constexpr int64_t kShift = 0, kScale = 1, kGate = 2, kChunks = 3;

}  // namespace

QwenImage::Stream::Stream(const nn::Scope& scope, const std::string& name,
                          const HeadProjections::Names& head_names, const std::string& out,
                          int64_t width, int64_t head_dim)
    : heads(scope / "attn", head_names, width, head_dim, true),
      width_(width),
      modulation_(scope / (name + "_mod") / 1, width, 2 * kChunks * width),
      out_(scope / "attn" / out, width, width),
      inner_(scope / (name + "_mlp") / "net" / 0 / "proj", width, kFeedForwardFactor * width),
      outer_(scope / (name + "_mlp") / "net" / 2, kFeedForwardFactor * width, width) {}

nn::Tensor QwenImage::Stream::chunk(const nn::Tensor& modulation, int64_t index) const {
    return nn::slice_last(modulation, index * width_, width_);
}

nn::Tensor QwenImage::Stream::normed(const nn::Tensor& x, const nn::Tensor& modulation,
                                     int64_t part) const {
    return nn::modulated_norm(x, chunk(modulation, part * kChunks + kScale),
                              chunk(modulation, part * kChunks + kShift), kJointEps);
}

nn::Tensor QwenImage::Stream::finish(const nn::Tensor& x, const nn::Tensor& attended,
                                     const nn::Tensor& modulation) const {
    const nn::Tensor h = out_(attended, {.residual = x, .gate = chunk(modulation, kGate)});
    return nn::feed_forward(inner_, outer_, normed(h, modulation, 1), nn::Middle::GeluTanh,
                            {.residual = h, .gate = chunk(modulation, kChunks + kGate)});
}

QwenImage::Block::Block(const nn::Scope& scope, int64_t width, int64_t head_dim)
    : heads_(width / head_dim),
      head_dim_(head_dim),
      image_(scope, "img", HeadProjections::kOwn, "to_out.0", width, head_dim),
      text_(scope, "txt", HeadProjections::kAdded, "to_add_out", width, head_dim) {}

QwenImage::Parts QwenImage::Block::operator()(const Parts& parts) const {
    std::vector<nn::Tensor> modulations, normed, values;
    std::vector<nn::HeadTokens> keys;
    for (size_t i = 0; i < parts.size(); ++i) {
        const Stream& own = stream(i);
        modulations.push_back(own.modulation(parts[i]));
        normed.push_back(own.normed(parts[i].tokens, modulations[i], 0));
        keys.push_back(own.heads.k(normed[i], parts[i].rotary));
        values.push_back(own.heads.v(normed[i]));
    }
    // All parts read all keys and values; their queries need not be joined.
    const nn::Tensor k = nn::join_heads(keys, head_dim_), v = nn::concat_tokens(values);
    Parts out = parts;
    for (size_t i = 0; i < parts.size(); ++i) {
        const Stream& own = stream(i);
        const nn::Tensor q = nn::join_heads({own.heads.q(normed[i], parts[i].rotary)}, head_dim_);
        const nn::Tensor attended = nn::attention(q, k, v, {.heads = heads_});
        out[i].tokens = own.finish(parts[i].tokens, attended, modulations[i]);
    }
    return out;
}

QwenImage::QwenImage(const nn::Scope& scope, const Config& config)
    : in_channels_(config["in_channels"].integer()),
      head_dim_(head_dim_of(config)),
      context_width_(config["context_width"].integer()),
      still_references_(config["still_references"].boolean()),
      axes_(config["rope_axes"].integers()),
      img_in_(scope / "img_in", in_channels_ * kPatchArea, config["width"].integer()),
      txt_norm_(scope / "txt_norm", context_width_, kJointEps),
      txt_in_(scope / "txt_in", context_width_, config["width"].integer()),
      timestep_(scope / "time_text_embed" / "timestep_embedder", kSinusoidWidth,
                config["width"].integer()),
      output_(scope, config["width"].integer(), config["out_channels"].integer() * kPatchArea) {
    check_rope_axes(axes_, kAxes, head_dim_);
    name_layers(layers_, "transformer_blocks", static_cast<size_t>(config["layers"].integer()));
    for (int i = 0; i < config["layers"].integer(); ++i)
        blocks_.emplace_back(scope / "transformer_blocks" / i, config["width"].integer(),
                             head_dim_);
}

nn::Tensor QwenImage::embed_time(const nn::Tensor& timesteps) const {
    return nn::activate(timestep_.of_numbers(timesteps), nn::Activation::Silu);
}

nn::Tensor QwenImage::embed_text(Graph& graph, const InputShapes& shapes, int64_t batch) const {
    const Shape& shape = context_shape(shapes, batch, context_width_, kOwner);
    return txt_in_(txt_norm_(nn::input(graph, "context", shape)));
}

nn::Tensor QwenImage::embed_picture(Graph& graph, const InputShapes& shapes,
                                    const std::string& name, int64_t batch, int64_t frame,
                                    Positions& positions) const {
    const Shape& shape = picture_shape(shapes, name, in_channels_, kPatch, kOwner);
    if (shape[0] != batch)
        throw Error(ErrorKind::Parameter,
                    "'" + name + "' " + shape.text() +
                        " must have as many entries as the latents: " + std::to_string(batch));
    const int64_t rows = shape[2] / kPatch, columns = shape[3] / kPatch;
    const int64_t top = rows - rows / 2, left = columns - columns / 2;  // in front of the middle
    for (int64_t y = 0; y < rows; ++y)
        for (int64_t x = 0; x < columns; ++x)
            positions.push_back({static_cast<float>(frame), static_cast<float>(y - top),
                                 static_cast<float>(x - left)});
    return img_in_(nn::patchify(nn::input(graph, name, shape), kPatch));
}

QwenImage::Parts QwenImage::embed(Graph& graph, const InputShapes& shapes, int64_t batch) const {
    Positions positions;
    const nn::Tensor picture = embed_picture(graph, shapes, "latents", batch, 0, positions);
    std::vector<nn::Tensor> references;
    std::vector<std::string> names{"latents"};
    for (std::string name = "reference"; shapes.count(name);
         name = "reference_" + std::to_string(references.size())) {
        const auto frame = static_cast<int64_t>(names.size());
        references.push_back(embed_picture(graph, shapes, name, batch, frame, positions));
        names.push_back(name);
    }
    // The text stands on the diagonal, behind the largest picture's lower right corner.
    int64_t corner = 0;
    for (const std::string& name : names) {
        const Shape& shape = required(shapes, name, 4);
        corner = std::max({corner, shape[2] / kPatch / 2, shape[3] / kPatch / 2});
    }
    const nn::Tensor text = embed_text(graph, shapes, batch);
    const auto pixels = static_cast<int64_t>(positions.size());
    for (int64_t i = 0; i < text.size(1); ++i)
        positions.emplace_back(kAxes, static_cast<float>(corner + i));

    const nn::Tensor table = nn::rotary_constant(graph, positions, axes_, kTheta);
    const nn::Tensor timesteps =
        nn::input(graph, "timesteps", exactly(shapes, "timesteps", Shape{batch}, kOwner));
    const nn::Tensor now = embed_time(timesteps);
    Parts parts{{text, now, {table, pixels}}, {picture, now, {table, 0}}};
    if (references.empty()) return parts;
    const nn::Tensor clean = still_references_ ? embed_time(nn::scale(timesteps, 0.0f)) : now;
    parts.push_back({nn::concat_tokens(references), clean, {table, picture.size(1)}});
    return parts;
}

void QwenImage::forward(Graph& graph, const InputShapes& shapes, const Options& options) const {
    const Shape& latents = required(shapes, "latents", 4);
    Parts parts = embed(graph, shapes, latents[0]);
    LayerVariants variants(graph, shapes, options, blocks_.size(), {});
    FirstBlock first(graph, shapes, options, 0, parts[1].tokens.size(1));
    const nn::Tensor before = parts[1].tokens;
    for (size_t i = 0; i < blocks_.size() && !first.skips(i); ++i) {
        if (!variants.next().skip) parts = blocks_[i](parts);
        if (i > 0) continue;
        std::vector<nn::Tensor*> streams{&parts[1].tokens, &parts[0].tokens};
        if (parts.size() > 2) streams.push_back(&parts[2].tokens);
        first.cut(before, streams);
    }
    if (first.is_first()) return;
    const nn::Tensor picture = first.finished(parts[1].tokens);
    nn::output("prediction", nn::unpatchify(output_(picture, parts[1].conditioning), latents[2],
                                            latents[3], kPatch, nn::PatchOrder::ChannelYX));
}

}  // namespace sde::networks
