#include "networks/upscalers/swinir.h"

#include "base/error.h"

namespace sde::networks {
namespace {

constexpr float kNormEps = 1e-5f;
// Of the convolution before the upsampler: torch's default, where the others have 0.2.
constexpr float kSlopeBefore = 0.01f;
// Mean colour of the training set DIV2K; grey pictures are taken as they are.
const std::vector<float> kMean{0.4488f, 0.4371f, 0.4040f};

const nn::Epilogue kLeaky{.activation = nn::Activation::LeakyRelu};

nn::Tensor add_mean(const nn::Tensor& x, float sign) {
    if (x.size(1) != static_cast<int64_t>(kMean.size())) return x;
    std::vector<float> values;
    for (const float mean : kMean) values.push_back(sign * mean);
    return nn::add_per_channel(x, values);
}

// Of the same length as `depths`.
std::vector<int64_t> heads_of(const Config& config) {
    std::vector<int64_t> heads = config["heads"].integers();
    if (heads.size() != config["depths"].size())
        throw Error(ErrorKind::Parameter, "heads and depths must have one entry per layer");
    return heads;
}

}  // namespace

SwinConvolution::SwinConvolution(const nn::Scope& scope, int64_t width, bool bottleneck) {
    if (!bottleneck) {
        convolutions_.emplace_back(scope, width, width);
        return;
    }
    const int64_t narrow = width / 4;
    if (narrow < 1)
        throw Error(ErrorKind::Parameter,
                    "a bottleneck takes 4 channels or more, not " + std::to_string(width));
    convolutions_.emplace_back(scope / 0, width, narrow);
    convolutions_.emplace_back(scope / 2, narrow, narrow, nn::Conv2dOptions{.kernel = 1});
    convolutions_.emplace_back(scope / 4, narrow, width);
}

nn::Tensor SwinConvolution::operator()(const nn::Tensor& x, const nn::Tensor& residual) const {
    nn::Tensor h = x;
    for (size_t i = 0; i + 1 < convolutions_.size(); ++i) h = convolutions_[i](h, kLeaky);
    return convolutions_.back()(h, {.residual = residual});
}

SwinBlock::SwinBlock(const nn::Scope& scope, int64_t width, int64_t heads, int64_t window,
                     int64_t inner)
    : norm1_(scope / "norm1", width, kNormEps),
      attention_(scope / "attn", width, heads, window),
      norm2_(scope / "norm2", width, kNormEps),
      fc1_(scope / "mlp" / "fc1", width, inner),
      fc2_(scope / "mlp" / "fc2", inner, width) {}

nn::Tensor SwinBlock::operator()(const nn::Tensor& x, int64_t height, int64_t width,
                                 int64_t shift) const {
    const nn::Tensor h = nn::add(x, attention_(norm1_(x), height, width, shift));
    return fc2_(fc1_(norm2_(h), {.activation = nn::Activation::Gelu}), {.residual = h});
}

SwinUpsampler::SwinUpsampler(const nn::Scope& scope, const Config& config)
    : kind_(config["upsampler"].text()), factors_(config["factors"].integers()) {
    const int64_t width = config["width"].integer(), channels = config["channels"].integer();
    const int64_t inner = config["upsampler_width"].integer();
    for (const int64_t factor : factors_)
        if (factor < 1)
            throw Error(ErrorKind::Parameter,
                        "a stage enlarges by 1 or more, not " + std::to_string(factor));
    if (kind_ == "none") {
        conv_last_.emplace(scope / "conv_last", width, channels);
        return;
    }
    if (kind_ == "pixelshuffledirect") {
        if (factors_.size() != 1)
            throw Error(ErrorKind::Parameter, "pixelshuffledirect has one stage");
        stages_.emplace_back(scope / "upsample" / 0, width, channels * factors_[0] * factors_[0]);
        return;
    }
    before_.emplace(scope / "conv_before_upsample" / 0, width, inner);
    const bool nearest = kind_ == "nearest+conv";
    if (!nearest && kind_ != "pixelshuffle")
        throw Error(ErrorKind::Parameter, "SwinIR has no upsampler '" + kind_ + "'");
    int number = 0;
    for (const int64_t factor : factors_) {
        if (nearest)
            stages_.emplace_back(scope / ("conv_up" + std::to_string(++number)), inner, inner);
        else
            stages_.emplace_back(scope / "upsample" / (2 * number++), inner,
                                 inner * factor * factor);
    }
    if (nearest) conv_hr_.emplace(scope / "conv_hr", inner, inner);
    conv_last_.emplace(scope / "conv_last", inner, channels);
}

nn::Tensor SwinUpsampler::operator()(const nn::Tensor& features) const {
    nn::Tensor x = before_ ? nn::leaky_relu((*before_)(features), kSlopeBefore) : features;
    for (size_t i = 0; i < stages_.size(); ++i)
        x = conv_hr_
                ? stages_[i].enlarged(x, factors_[i] * x.size(2), factors_[i] * x.size(3), kLeaky)
                : nn::pixel_shuffle(stages_[i](x), factors_[i]);
    if (conv_hr_) x = (*conv_hr_)(x, kLeaky);
    return conv_last_ ? (*conv_last_)(x) : x;
}

SwinIr::SwinIr(const nn::Scope& scope, const Config& config)
    : window_(config["window"].integer()),
      range_(config["range"].number()),
      restores_(config["upsampler"].text() == "none"),
      conv_first_(scope / "conv_first", config["channels"].integer(), config["width"].integer()),
      first_norm_(scope / "patch_embed" / "norm", config["width"].integer(), kNormEps),
      norm_(scope / "norm", config["width"].integer(), kNormEps),
      conv_after_body_(scope / "conv_after_body", config["width"].integer(),
                       config["bottleneck"].boolean()),
      upsampler_(scope, config) {
    const std::vector<int64_t> depths = config["depths"].integers(), heads = heads_of(config);
    const int64_t width = config["width"].integer();
    for (size_t i = 0; i < depths.size(); ++i) {
        const nn::Scope layer = scope / "layers" / static_cast<int>(i);
        layers_.push_back({{}, {layer / "conv", width, config["bottleneck"].boolean()}});
        for (int64_t j = 0; j < depths[i]; ++j)
            layers_.back().blocks.emplace_back(
                layer / "residual_group" / "blocks" / static_cast<int>(j), width, heads[i], window_,
                config["inner"].integer());
    }
}

nn::Tensor SwinIr::deep_features(const nn::Tensor& first) const {
    const int64_t height = first.size(2), width = first.size(3);
    nn::Tensor x = first_norm_(nn::tokens(first));
    for (const Layer& layer : layers_) {
        nn::Tensor h = x;
        for (size_t i = 0; i < layer.blocks.size(); ++i)
            h = layer.blocks[i](h, height, width, i % 2 ? window_ / 2 : 0);
        const nn::Tensor residual = nn::feature_map(x, height, width);
        x = nn::tokens(layer.convolution(nn::feature_map(h, height, width), residual));
    }
    return conv_after_body_(nn::feature_map(norm_(x), height, width), first);
}

void SwinIr::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    const nn::Tensor image = nn::input(graph, "image", required(shapes, "image", 4));
    const auto whole = [&](int64_t size) { return (size + window_ - 1) / window_ * window_; };
    const int64_t height = whole(image.size(2)), width = whole(image.size(3));
    const nn::Tensor padded = nn::pad_mirrored(image, height, width);
    const nn::Tensor centred = nn::scale(add_mean(padded, -1.0f), range_);

    nn::Tensor x = upsampler_(deep_features(conv_first_(centred)));
    if (restores_) x = nn::add(x, centred);  // the network makes the change
    x = add_mean(nn::scale(x, 1.0f / range_), 1.0f);
    const int64_t scale = x.size(2) / height;
    nn::output("image", nn::crop(x, image.size(2) * scale, image.size(3) * scale));
}

}  // namespace sde::networks
