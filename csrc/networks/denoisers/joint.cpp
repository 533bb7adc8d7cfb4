#include "networks/denoisers/joint.h"

#include "base/error.h"
#include "nn/feed_forward.h"

namespace sde::networks {
namespace {

constexpr float kGuidanceScale = 1000.0f;  // guidance is embedded as a timestep is
constexpr int64_t kFeedForwardFactor = 4;
// A modulation has three chunks for each part of a block that it is read by.
constexpr int64_t kShift = 0, kScale = 1, kGate = 2;
constexpr int64_t kAttention = 0, kFeedForward = 3, kDual = 6;

}  // namespace

int64_t head_dim_of(const Config& config) {
    const int64_t width = config["width"].integer(), head_dim = config["head_dim"].integer();
    if (head_dim > 0 && width > 0 && width % head_dim == 0) return head_dim;
    throw Error(ErrorKind::Parameter, "a width of " + std::to_string(width) +
                                          " cannot be parted into heads of " +
                                          std::to_string(head_dim));
}

const Shape& exactly(const InputShapes& shapes, const std::string& name, const Shape& expected,
                     const std::string& owner) {
    const Shape& shape = required(shapes, name, expected.rank());
    if (!(shape == expected))
        throw Error(ErrorKind::Parameter,
                    owner + " takes '" + name + "' " + expected.text() + ", not " + shape.text());
    return shape;
}

const Shape& context_shape(const InputShapes& shapes, int64_t batch, int64_t width,
                           const std::string& owner) {
    const Shape& shape = required(shapes, "context", 3);
    if (shape[0] != batch || shape[2] != width)
        throw Error(ErrorKind::Parameter, owner + " takes a context of [" + std::to_string(batch) +
                                              ", tokens, " + std::to_string(width) + "], not " +
                                              shape.text() +
                                              ". Are the text encoders another model's?");
    return shape;
}

const Shape& picture_shape(const InputShapes& shapes, const std::string& name, int64_t channels,
                           int64_t patch, const std::string& owner) {
    const Shape& shape = required(shapes, name, 4);
    if (shape[1] == channels && shape[2] % patch == 0 && shape[3] % patch == 0) return shape;
    throw Error(ErrorKind::Parameter, owner + " takes '" + name + "' of [N, " +
                                          std::to_string(channels) +
                                          ", height, width], both sides multiples of " +
                                          std::to_string(patch) + ", not " + shape.text());
}

nn::Tensor first_channels(const nn::Tensor& prediction, int64_t channels) {
    if (prediction.size(1) == channels) return prediction;
    const nn::Tensor kept = nn::slice_last(nn::tokens(prediction), 0, channels);
    return nn::feature_map(nn::contiguous(kept), prediction.size(2), prediction.size(3));
}

void name_layers(std::vector<std::string>& names, const std::string& prefix, size_t count) {
    for (size_t i = 0; i < count; ++i) names.push_back(prefix + "." + std::to_string(i));
}

void check_rope_axes(const std::vector<int64_t>& axes, size_t count, int64_t head_dim) {
    int64_t turned = 0;
    for (int64_t axis : axes) turned += axis > 0 && axis % 2 == 0 ? axis : head_dim + 1;
    if (axes.size() == count && turned == head_dim) return;
    throw Error(ErrorKind::Parameter,
                "the " + std::to_string(head_dim) + " values of a head are parted among " +
                    std::to_string(count) + " axes of positions, an even number to each");
}

Conditioning::Conditioning(const nn::Scope& scope, int64_t width, int64_t pooled_width,
                           bool guidance)
    : pooled_width_(pooled_width),
      timestep_(scope / "timestep_embedder", kSinusoidWidth, width),
      text_(scope / "text_embedder", pooled_width, width) {
    if (guidance) guidance_.emplace(scope / "guidance_embedder", kSinusoidWidth, width);
}

nn::Tensor Conditioning::operator()(Graph& graph, const InputShapes& shapes, int64_t batch,
                                    const std::string& owner) const {
    const auto given = [&](const char* name, const Shape& shape) {
        return nn::input(graph, name, exactly(shapes, name, shape, owner));
    };
    nn::Tensor sum = timestep_.of_numbers(given("timesteps", Shape{batch}));
    sum = text_(given("pooled", Shape{batch, pooled_width_}), sum);
    if (guidance_) {
        const nn::Tensor strength = nn::scale(given("guidance", Shape{batch}), kGuidanceScale);
        sum = guidance_->of_numbers(strength, sum);
    }
    return nn::activate(sum, nn::Activation::Silu);
}

HeadProjections::HeadProjections(const nn::Scope& scope, const Names& names, int64_t width,
                                 int64_t head_dim, bool normed)
    : to_q_(scope / names.q, width, width),
      to_k_(scope / names.k, width, width),
      to_v_(scope / names.v, width, width) {
    if (!normed) return;
    q_norm_.emplace(scope / names.q_norm, head_dim, kJointEps);
    k_norm_.emplace(scope / names.k_norm, head_dim, kJointEps);
}

nn::HeadTokens HeadProjections::q(const nn::Tensor& x, const nn::Rotary& rotary) const {
    return {to_q_(x), q_norm_ ? &*q_norm_ : nullptr, rotary};
}

nn::HeadTokens HeadProjections::k(const nn::Tensor& x, const nn::Rotary& rotary) const {
    return {to_k_(x), k_norm_ ? &*k_norm_ : nullptr, rotary};
}

JointBlock::FeedForward::FeedForward(const nn::Scope& scope, int64_t width)
    : in_(scope / "net" / 0 / "proj", width, kFeedForwardFactor * width),
      out_(scope / "net" / 2, kFeedForwardFactor * width, width) {}

nn::Tensor JointBlock::FeedForward::operator()(const nn::Tensor& x,
                                               const nn::Epilogue& epilogue) const {
    return nn::feed_forward(in_, out_, x, nn::Middle::GeluTanh, epilogue);
}

JointBlock::Stream::Stream(const nn::Scope& scope, const std::string& suffix, int64_t chunks,
                           int64_t width, const std::string& out_name)
    : modulation(scope / ("norm1" + suffix) / "linear", width, chunks * width),
      out(scope / "attn" / out_name, width, width),
      feed_forward(scope / ("ff" + suffix), width) {}

JointBlock::JointBlock(const nn::Scope& scope, const JointBlockConfig& config)
    : width_(config.width),
      head_dim_(config.head_dim),
      image_heads_(scope / "attn", HeadProjections::kOwn, width_, head_dim_, config.head_norms),
      image_(scope, "", config.dual_attention ? kDual + 3 : kDual, width_, "to_out.0") {
    if (config.dual_attention) {
        dual_heads_.emplace(scope / "attn2", HeadProjections::kOwn, width_, head_dim_,
                            config.head_norms);
        dual_out_.emplace(scope / "attn2" / "to_out" / 0, width_, width_);
    }
    if (!config.reads_context) return;
    context_heads_.emplace(scope / "attn", HeadProjections::kAdded, width_, head_dim_,
                           config.head_norms);
    if (config.context_ends) {
        context_scale_.emplace(scope / "norm1_context" / "linear_scale", width_, width_);
        context_shift_.emplace(scope / "norm1_context" / "linear_shift", width_, width_);
    } else {
        context_.emplace(scope, "_context", kDual, width_, "to_add_out");
    }
}

nn::Tensor JointBlock::chunk(const nn::Tensor& modulation, int64_t index) const {
    return nn::slice_last(modulation, index * width_, width_);
}

nn::Tensor JointBlock::normed(const nn::Tensor& x, const nn::Tensor& modulation,
                              int64_t part) const {
    return nn::modulated_norm(x, chunk(modulation, part + kScale), chunk(modulation, part + kShift),
                              kJointEps);
}

nn::Tensor JointBlock::finish(const Stream& stream, const nn::Tensor& x,
                              const nn::Tensor& modulation) const {
    return stream.feed_forward(normed(x, modulation, kFeedForward),
                               {.residual = x, .gate = chunk(modulation, kFeedForward + kGate)});
}

nn::Tensor JointBlock::attend_alone(const nn::Tensor& x, const nn::Tensor& h,
                                    const nn::Tensor& modulation) const {
    const nn::Tensor own = normed(x, modulation, kDual);
    const nn::Tensor attended = nn::attention(nn::join_heads({dual_heads_->q(own, {})}, head_dim_),
                                              nn::join_heads({dual_heads_->k(own, {})}, head_dim_),
                                              dual_heads_->v(own), {.heads = width_ / head_dim_});
    return (*dual_out_)(attended, {.residual = h, .gate = chunk(modulation, kDual + kGate)});
}

JointBlock::Tokens JointBlock::operator()(const Tokens& x, const nn::Tensor& conditioning,
                                          const nn::Rotary& rotary) const {
    const nn::AttentionOptions heads{.heads = width_ / head_dim_};
    const nn::Tensor of_image = image_.modulation(conditioning);
    const nn::Tensor image = normed(x.image, of_image, kAttention);
    std::vector<nn::HeadTokens> keys{image_heads_.k(image, rotary)};
    nn::Tensor v = image_heads_.v(image);
    nn::Tensor of_context, context;
    if (context_heads_) {
        if (context_) of_context = context_->modulation(conditioning);
        context = context_ ? normed(x.context, of_context, kAttention)
                           : nn::modulated_norm(x.context, (*context_scale_)(conditioning),
                                                (*context_shift_)(conditioning), kJointEps);
        keys.insert(keys.begin(), context_heads_->k(context, {}));
        v = nn::concat_tokens({context_heads_->v(context), v});
    }

    // Both streams read all keys and values; their queries need not be joined.
    const nn::Tensor k = nn::join_heads(keys, head_dim_);
    nn::Tensor h =
        nn::attention(nn::join_heads({image_heads_.q(image, rotary)}, head_dim_), k, v, heads);
    h = image_.out(h, {.residual = x.image, .gate = chunk(of_image, kAttention + kGate)});
    if (dual_heads_) h = attend_alone(x.image, h, of_image);
    const nn::Tensor image_out = finish(image_, h, of_image);
    if (!context_) return {image_out, {}};
    h = nn::attention(nn::join_heads({context_heads_->q(context, {})}, head_dim_), k, v, heads);
    h = context_->out(h, {.residual = x.context, .gate = chunk(of_context, kAttention + kGate)});
    return {image_out, finish(*context_, h, of_context)};
}

JointOutput::JointOutput(const nn::Scope& scope, int64_t width, int64_t out)
    : scale_(scope / "norm_out" / "linear_scale", width, width),
      shift_(scope / "norm_out" / "linear_shift", width, width),
      proj_out_(scope / "proj_out", width, out) {}

nn::Tensor JointOutput::operator()(const nn::Tensor& x, const nn::Tensor& conditioning) const {
    return proj_out_(nn::modulated_norm(x, scale_(conditioning), shift_(conditioning), kJointEps));
}

}  // namespace sde::networks
