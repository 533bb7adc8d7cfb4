#include "networks/upscalers/rrdb.h"

#include "base/error.h"

namespace sde::networks {
namespace {

constexpr float kResidualScale = 0.2f;  // of every dense block and of every three of them
constexpr int kDenseBlocks = 3;

const nn::Epilogue kLeaky{.activation = nn::Activation::LeakyRelu};

nn::Tensor scaled_residual(const nn::Tensor& change, const nn::Tensor& x) {
    return nn::add(nn::scale(change, kResidualScale), x);
}

// The side of the square of points that is folded into channels.
int64_t folded(const Config& config) {
    const int64_t side = config["unshuffle"].integer();
    if (side < 1)
        throw Error(ErrorKind::Parameter, "unshuffle is 1 or more, not " + std::to_string(side));
    return side;
}

}  // namespace

DenseBlock::DenseBlock(const nn::Scope& scope, int64_t width, int64_t growth, bool shortcuts)
    : conv1_(scope / "conv1", width, growth),
      conv2_(scope / "conv2", width + growth, growth),
      conv3_(scope / "conv3", width + 2 * growth, growth),
      conv4_(scope / "conv4", width + 3 * growth, growth),
      conv5_(scope / "conv5", width + 4 * growth, width) {
    if (shortcuts)
        conv1x1_.emplace(scope / "conv1x1", width, growth,
                         nn::Conv2dOptions{.kernel = 1, .bias = false});
}

nn::Tensor DenseBlock::operator()(const nn::Tensor& x) const {
    nn::Tensor seen = nn::concat_channels(x, conv1_(x, kLeaky));
    nn::Tensor second = conv2_(seen, kLeaky);
    if (conv1x1_) second = nn::add(second, (*conv1x1_)(x));
    seen = nn::concat_channels(seen, second);
    seen = nn::concat_channels(seen, conv3_(seen, kLeaky));
    nn::Tensor fourth = conv4_(seen, kLeaky);
    if (conv1x1_) fourth = nn::add(fourth, second);
    seen = nn::concat_channels(seen, fourth);
    return scaled_residual(conv5_(seen), x);
}

Rrdb::Rrdb(const nn::Scope& scope, const Config& config)
    : unshuffle_(folded(config)),
      conv_first_(scope / "conv_first", config["channels"].integer() * unshuffle_ * unshuffle_,
                  config["width"].integer()),
      conv_body_(scope / "conv_body", config["width"].integer(), config["width"].integer()),
      conv_hr_(scope / "conv_hr", config["width"].integer(), config["width"].integer()),
      conv_last_(scope / "conv_last", config["width"].integer(), config["channels"].integer()) {
    const int64_t width = config["width"].integer(), growth = config["growth"].integer();
    const bool shortcuts = config["shortcuts"].boolean();
    for (int i = 0; i < config["blocks"].integer(); ++i) {
        Block& block = body_.emplace_back();
        for (int j = 1; j <= kDenseBlocks; ++j)
            block.emplace_back(scope / "body" / i / ("rdb" + std::to_string(j)), width, growth,
                               shortcuts);
    }
    for (int i = 1; i <= config["doublings"].integer(); ++i)
        conv_up_.emplace_back(scope / ("conv_up" + std::to_string(i)), width, width);
}

void Rrdb::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    const nn::Tensor image = nn::input(graph, "image", required(shapes, "image", 4));
    const auto whole = [&](int64_t size) { return (size + unshuffle_ - 1) / unshuffle_; };
    const int64_t rows = whole(image.size(2)), columns = whole(image.size(3));
    const nn::Tensor padded = nn::pad_mirrored(image, rows * unshuffle_, columns * unshuffle_);

    const nn::Tensor first = conv_first_(nn::pixel_unshuffle(padded, unshuffle_));
    nn::Tensor x = first;
    for (const Block& block : body_) {
        nn::Tensor h = x;
        for (const DenseBlock& dense : block) h = dense(h);
        x = scaled_residual(h, x);
    }
    x = conv_body_(x, {.residual = first});
    for (const nn::Conv2d& up : conv_up_) x = up.enlarged(x, 2 * x.size(2), 2 * x.size(3), kLeaky);
    x = conv_last_(conv_hr_(x, kLeaky));
    const int64_t grown = x.size(2) / rows;
    nn::output("image",
               nn::crop(x, image.size(2) * grown / unshuffle_, image.size(3) * grown / unshuffle_));
}

}  // namespace sde::networks
