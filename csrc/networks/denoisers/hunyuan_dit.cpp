#include "networks/denoisers/hunyuan_dit.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "networks/layer_variants.h"
#include "nn/feed_forward.h"

namespace sde::networks {
namespace {

const char* const kOwner = "this Hunyuan-DiT denoiser";
constexpr int64_t kPatch = 2;
constexpr int64_t kPatchArea = kPatch * kPatch;
constexpr int64_t kSizes = 6;
constexpr int64_t kPoolHeads = 8;
constexpr int64_t kTextFactor = 4, kExtraFactor = 4;  // inner widths of the embedders
constexpr double kTheta = 10000;                      // of the rotary positions
constexpr int64_t kGrid = 32;  // positions of a square picture along each axis, of 512 pixels

// Where a picture lies in the square of positions: its longer side takes the whole of it, and it is
// centred. Halves are rounded to even numbers, as in Python.
struct Crop {
    double start, stop;
    Crop(int64_t side, int64_t longest) {
        const auto grid = static_cast<double>(kGrid);
        const double length =
            std::nearbyint(grid / static_cast<double>(longest) * static_cast<double>(side));
        start = std::nearbyint((grid - length) / 2);
        stop = start + length;
    }
    // The positions of `count` patches. The last one is that of diffusers'
    // get_2d_rotary_pos_embed(): it shortens the stop, and not the length.
    std::vector<float> positions(int64_t count) const {
        const double last = stop * static_cast<double>(count - 1) / static_cast<double>(count);
        std::vector<float> found;
        for (int64_t i = 0; i < count; ++i)
            found.push_back(
                static_cast<float>(count == 1 ? start
                                              : start + (last - start) * static_cast<double>(i) /
                                                            static_cast<double>(count - 1)));
        return found;
    }
};

nn::Rotary positions_of(Graph& graph, int64_t rows, int64_t columns, int64_t head_dim) {
    const int64_t longest = std::max(rows, columns);
    const std::vector<float> ys = Crop(rows, longest).positions(rows),
                             xs = Crop(columns, longest).positions(columns);
    Positions positions;
    for (float y : ys)
        for (float x : xs) positions.push_back({x, y});
    return {nn::rotary_constant(graph, positions, {head_dim / 2, head_dim / 2}, kTheta)};
}

int64_t pool_width(const Config& config) {
    const int64_t width = config["context_2_width"].integer();
    if (width > 0 && width % kPoolHeads == 0) return width;
    throw Error(ErrorKind::Parameter, "the second text's width is a multiple of " +
                                          std::to_string(kPoolHeads) + ", not " +
                                          std::to_string(width));
}

int64_t extra_width(const Config& config) {
    const int64_t pooled = config["pooled_text_width"].integer();
    if (config["styles"].integer() == 0) return pooled;
    return pooled + kSizes * kSinusoidWidth + config["width"].integer();
}

}  // namespace

HunyuanDiT::Attention::Attention(const nn::Scope& scope, int64_t width, int64_t context_width,
                                 int64_t head_dim)
    : head_dim_(head_dim),
      heads_(width / head_dim),
      to_q_(scope / "to_q", width, width),
      to_k_(scope / "to_k", context_width, width),
      to_v_(scope / "to_v", context_width, width),
      norm_q_(scope / "norm_q", head_dim, kJointEps, nn::HeadNorm::Kind::Layer),
      norm_k_(scope / "norm_k", head_dim, kJointEps, nn::HeadNorm::Kind::Layer),
      to_out_(scope / "to_out" / 0, width, width) {}

nn::Tensor HunyuanDiT::Attention::operator()(const nn::Tensor& x, const nn::Tensor& context,
                                             const nn::Rotary& rotary,
                                             const nn::Tensor& residual) const {
    const nn::Tensor read = context ? context : x;
    const nn::Tensor q = nn::join_heads({{to_q_(x), &norm_q_, rotary}}, head_dim_);
    const nn::Tensor k =
        nn::join_heads({{to_k_(read), &norm_k_, context ? nn::Rotary{} : rotary}}, head_dim_);
    return to_out_(nn::attention(q, k, to_v_(read), {.heads = heads_}), {.residual = residual});
}

HunyuanDiT::Block::Block(const nn::Scope& scope, const Config& config, bool skip)
    : skip_([&]() -> std::optional<Skip> {
          if (!skip) return std::nullopt;
          const int64_t width = config["width"].integer();
          return Skip{{scope / "skip_norm", 2 * width, kJointEps},
                      {scope / "skip_linear", 2 * width, width}};
      }()),
      norm1_(scope / "norm1" / "norm", config["width"].integer(), kJointEps),
      shift_(scope / "norm1" / "linear", config["width"].integer(), config["width"].integer()),
      attn1_(scope / "attn1", config["width"].integer(), config["width"].integer(),
             head_dim_of(config)),
      norm2_(scope / "norm2", config["width"].integer(), kJointEps),
      attn2_(scope / "attn2", config["width"].integer(), config["context_width"].integer(),
             head_dim_of(config)),
      norm3_(scope / "norm3", config["width"].integer(), kJointEps),
      ff_in_(scope / "ff" / "net" / 0 / "proj", config["width"].integer(),
             config["ff_width"].integer()),
      ff_out_(scope / "ff" / "net" / 2, config["ff_width"].integer(), config["width"].integer()) {}

nn::Tensor HunyuanDiT::Block::operator()(const nn::Tensor& x, const nn::Tensor& skip,
                                         const Given& given) const {
    nn::Tensor h = skip_ ? skip_->linear(skip_->norm(nn::concat_last(x, skip))) : x;
    h = attn1_(norm1_(h, shift_(given.conditioning)), {}, given.rotary, h);
    h = attn2_(norm2_(h), given.context, given.rotary, h);
    return nn::feed_forward(ff_in_, ff_out_, norm3_(h), nn::Middle::GeluTanh, {.residual = h});
}

HunyuanDiT::AttentionPool::AttentionPool(const nn::Scope& scope, const Config& config)
    : positions_(scope, "positional_embedding", config["context_2_tokens"].integer() + 1,
                 pool_width(config)),
      q_proj_(scope / "q_proj", pool_width(config), pool_width(config)),
      k_proj_(scope / "k_proj", pool_width(config), pool_width(config)),
      v_proj_(scope / "v_proj", pool_width(config), pool_width(config)),
      c_proj_(scope / "c_proj", pool_width(config), config["pooled_text_width"].integer()) {}

nn::Tensor HunyuanDiT::AttentionPool::operator()(const nn::Tensor& text) const {
    const nn::Tensor mean = nn::mean_pixels(nn::feature_map(text, text.size(1), 1));
    const nn::Tensor all = nn::concat_tokens(mean, text);
    const nn::Tensor x = nn::add(all, positions_(text.graph(), text.size(0)));
    return c_proj_(nn::attention(q_proj_(nn::slice_tokens(x, 0, 1)), k_proj_(x), v_proj_(x),
                                 {.heads = kPoolHeads}));
}

HunyuanDiT::HunyuanDiT(const nn::Scope& scope, const Config& config)
    : in_channels_(config["in_channels"].integer()),
      out_channels_(config["out_channels"].integer()),
      width_(config["width"].integer()),
      head_dim_(head_dim_of(config)),
      context_tokens_(config["context_tokens"].integer()),
      context_width_(config["context_width"].integer()),
      context_2_tokens_(config["context_2_tokens"].integer()),
      context_2_width_(config["context_2_width"].integer()),
      styles_(config["styles"].integer()),
      text_embedder_(scope / "text_embedder", context_2_width_, kTextFactor * context_2_width_,
                     context_width_, nn::Activation::Silu),
      padding_(scope, "text_embedding_padding", context_tokens_ + context_2_tokens_,
               context_width_),
      proj_(scope / "pos_embed" / "proj", in_channels_, width_,
            {.kernel = kPatch, .stride = kPatch, .pad = false}),
      timestep_(scope / "time_extra_emb" / "timestep_embedder", kSinusoidWidth, width_),
      pooler_(scope / "time_extra_emb" / "pooler", config),
      extra_(scope / "time_extra_emb" / "extra_embedder", extra_width(config),
             kExtraFactor * width_, width_, nn::Activation::Silu),
      output_(scope, width_, out_channels_ * kPatchArea) {
    check_rope_axes({head_dim_ / 2, head_dim_ / 2}, 2, head_dim_);
    if (styles_ > 0)
        style_.emplace(scope / "time_extra_emb" / "style_embedder", "weight", styles_, width_);
    const int64_t layers = config["layers"].integer();
    if (layers < 2 || layers % 2)  // as many blocks leave skips as read them
        throw Error(ErrorKind::Parameter,
                    "Hunyuan-DiT has an even number of blocks, not " + std::to_string(layers));
    name_layers(layer_names_, "blocks", static_cast<size_t>(layers));
    for (int64_t i = 0; i < layers; ++i)
        blocks_.emplace_back(scope / "blocks" / static_cast<int>(i), config, i > layers / 2);
}

HunyuanDiT::Texts HunyuanDiT::embed_texts(Graph& graph, const InputShapes& shapes,
                                          int64_t batch) const {
    const auto given = [&](const std::string& name, const Shape& shape) {
        return nn::input(graph, name, exactly(shapes, name, shape, kOwner));
    };
    const nn::Tensor first = given("context", Shape{batch, context_tokens_, context_width_});
    const nn::Tensor second = given("context_2", Shape{batch, context_2_tokens_, context_2_width_});
    // Learned vectors stand in the place of padding, and every token is seen.
    const nn::Tensor padding = padding_(graph, 1);
    const nn::Tensor first_padding = nn::slice_tokens(padding, 0, context_tokens_);
    const nn::Tensor second_padding = nn::slice_tokens(padding, context_tokens_, context_2_tokens_);
    const nn::Tensor context = nn::concat_tokens(
        nn::choose_tokens(first, given("context_mask", Shape{batch, context_tokens_}),
                          first_padding),
        nn::choose_tokens(text_embedder_(second),
                          given("context_2_mask", Shape{batch, context_2_tokens_}),
                          second_padding));
    return {context, pooler_(second)};
}

nn::Tensor HunyuanDiT::conditioning(Graph& graph, const InputShapes& shapes, int64_t batch,
                                    const nn::Tensor& pooled) const {
    nn::Tensor extra = pooled;
    if (style_) {
        const nn::Tensor sizes =
            nn::input(graph, "sizes", exactly(shapes, "sizes", Shape{batch, kSizes}, kOwner));
        const nn::Tensor numbers =
            nn::timestep_embedding(nn::reshape(sizes, Shape{batch * kSizes}), kSinusoidWidth);
        extra =
            nn::concat_last(extra, nn::reshape(numbers, Shape{batch, 1, kSizes * kSinusoidWidth}));
        // Of several styles the first is the usual one.
        extra = nn::concat_last(extra, nn::slice_tokens((*style_)(graph, batch), 0, 1));
    }
    const nn::Tensor timesteps =
        nn::input(graph, "timesteps", exactly(shapes, "timesteps", Shape{batch}, kOwner));
    const nn::Tensor time = timestep_.of_numbers(timesteps);
    const nn::Tensor all = nn::add(time, extra_(nn::reshape(extra, Shape{batch, extra.size(2)})));
    return nn::activate(all, nn::Activation::Silu);
}

void HunyuanDiT::forward(Graph& graph, const InputShapes& shapes, const Options& options) const {
    const Shape& latents = picture_shape(shapes, "latents", in_channels_, kPatch, kOwner);
    const int64_t batch = latents[0];
    const Texts texts = embed_texts(graph, shapes, batch);
    const Given given{texts.context, conditioning(graph, shapes, batch, texts.pooled),
                      positions_of(graph, latents[2] / kPatch, latents[3] / kPatch, head_dim_)};

    nn::Tensor x = nn::tokens(proj_(nn::input(graph, "latents", latents)));
    std::vector<nn::Tensor> skips;
    LayerVariants variants(graph, shapes, options, blocks_.size(), {});
    const size_t half = blocks_.size() / 2;
    FirstBlock first(graph, shapes, options, 0, x.size(1));
    const nn::Tensor before = x;
    for (size_t i = 0; i < blocks_.size() && !first.skips(i); ++i) {
        nn::Tensor skip;
        if (i > half) {
            skip = skips.back();
            skips.pop_back();
        }
        if (!variants.next().skip) x = blocks_[i](x, skip, given);
        if (i == 0) first.cut(before, {&x});
        if (i + 1 < half) skips.push_back(x);
    }

    if (first.is_first()) return;
    x = first.finished(x);
    const nn::Tensor prediction = nn::unpatchify(output_(x, given.conditioning), latents[2],
                                                 latents[3], kPatch, nn::PatchOrder::YXChannel);
    nn::output("prediction", first_channels(prediction, in_channels_));
}

}  // namespace sde::networks
