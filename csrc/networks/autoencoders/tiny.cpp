#include "networks/autoencoders/tiny.h"

#include "base/error.h"

namespace sde::networks {
namespace {

// Latents are bounded softly to three standard deviations before decoding (taesd.py, `Clamp`).
constexpr float kLargestLatent = 3.0f;

// Gives the layers of a torch Sequential their numbers, in order.
class Layers {
  public:
    explicit Layers(const nn::Scope& scope) : scope_(scope / "layers") {}
    nn::Scope next() { return scope_ / number_++; }
    void skip() { ++number_; }  // a layer without parameters

  private:
    nn::Scope scope_;
    int number_ = 0;
};

// Blocks per stage; checks that there is a width for each.
std::vector<int64_t> block_counts(const Config& config, const std::string& name) {
    std::vector<int64_t> counts = config[name].integers();
    const size_t widths = config["block_out_channels"].size();
    if (!counts.empty() && counts.size() != widths)
        throw Error(ErrorKind::Parameter, name + " names " + std::to_string(counts.size()) +
                                              " stages, block_out_channels " +
                                              std::to_string(widths));
    return counts;
}

}  // namespace

TinyBlock::TinyBlock(const nn::Scope& scope, int64_t width)
    : conv0_(scope / "conv" / 0, width, width),
      conv2_(scope / "conv" / 2, width, width),
      conv4_(scope / "conv" / 4, width, width) {}

nn::Tensor TinyBlock::operator()(const nn::Tensor& x) const {
    const nn::Epilogue relu{.activation = nn::Activation::Relu};
    return conv4_(conv2_(conv0_(x, relu), relu),
                  {.residual = x, .activation = nn::Activation::Relu, .residual_inside = true});
}

TinyEncoder::TinyEncoder(const nn::Scope& scope, const Config& config) {
    Layers layers(scope / "encoder");
    const std::vector<int64_t> counts = block_counts(config, "encoder_blocks");
    if (counts.empty()) return;
    int64_t width = config["in_channels"].integer();
    for (size_t i = 0; i < counts.size(); ++i) {
        const int64_t out = config["block_out_channels"][i].integer();
        TinyStage& stage = stages_.emplace_back();
        const nn::Conv2dOptions halve{.stride = 2, .bias = false};
        stage.conv.emplace(layers.next(), width, out, i ? halve : nn::Conv2dOptions{});
        for (int64_t j = 0; j < counts[i]; ++j) stage.blocks.emplace_back(layers.next(), out);
        width = out;
    }
    conv_out_.emplace(layers.next(), width, config["latent_channels"].integer());
}

void TinyEncoder::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    if (!conv_out_)
        throw Error(ErrorKind::Parameter, "the tiny autoencoder has no encoder, only a decoder");
    // From -1..1 to the 0..1 that it was trained on.
    nn::Tensor x = nn::scale(nn::input(graph, "image", required(shapes, "image", 4)), 0.5f, 0.5f);
    for (const TinyStage& stage : stages_) {
        x = (*stage.conv)(x);
        for (const TinyBlock& block : stage.blocks) x = block(x);
    }
    nn::output("latents", (*conv_out_)(x));
}

TinyDecoder::TinyDecoder(const nn::Scope& scope, const Config& config) {
    Layers layers(scope / "decoder");
    const std::vector<int64_t> counts = block_counts(config, "decoder_blocks");
    if (counts.empty()) throw Error(ErrorKind::Parameter, "a decoder needs one stage at least");
    int64_t width = config["block_out_channels"][0].integer();
    conv_in_.emplace(layers.next(), config["latent_channels"].integer(), width);
    layers.skip();  // ReLU
    for (size_t i = 0; i < counts.size(); ++i) {
        TinyStage& stage = stages_.emplace_back();
        for (int64_t j = 0; j < counts[i]; ++j) stage.blocks.emplace_back(layers.next(), width);
        if (i + 1 == counts.size()) {
            stage.conv.emplace(layers.next(), width, config["in_channels"].integer());
            return;
        }
        layers.skip();  // enlarging
        const int64_t out = config["block_out_channels"][i + 1].integer();
        stage.conv.emplace(layers.next(), width, out, nn::Conv2dOptions{.bias = false});
        width = out;
    }
}

void TinyDecoder::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    nn::Tensor x = nn::input(graph, "latents", required(shapes, "latents", 4));
    x = nn::scale(nn::tanh(nn::scale(x, 1.0f / kLargestLatent)), kLargestLatent);
    x = (*conv_in_)(x, {.activation = nn::Activation::Relu});
    for (size_t i = 0; i < stages_.size(); ++i) {
        for (const TinyBlock& block : stages_[i].blocks) x = block(x);
        const nn::Conv2d& conv = *stages_[i].conv;
        x = i + 1 < stages_.size() ? conv.enlarged(x, 2 * x.size(2), 2 * x.size(3)) : conv(x);
    }
    nn::output("image", nn::scale(x, 2.0f, -1.0f));  // from 0..1 to -1..1
}

}  // namespace sde::networks
