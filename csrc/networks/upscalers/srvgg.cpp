#include "networks/upscalers/srvgg.h"

#include "base/error.h"

namespace sde::networks {

Srvgg::Srvgg(const nn::Scope& scope, const Config& config) : scale_(config["scale"].integer()) {
    if (scale_ < 1)
        throw Error(ErrorKind::Parameter, "scale is 1 or more, not " + std::to_string(scale_));
    const int64_t channels = config["channels"].integer(), width = config["width"].integer();
    int number = 0;  // in a list of convolutions and slopes by turns
    int64_t in = channels;
    for (int64_t i = 0; i <= config["blocks"].integer(); ++i) {
        convolutions_.emplace_back(scope / "body" / number++, in, width);
        slopes_.emplace_back(scope / "body" / number++, width);
        in = width;
    }
    convolutions_.emplace_back(scope / "body" / number, in, channels * scale_ * scale_);
}

void Srvgg::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    const nn::Tensor image = nn::input(graph, "image", required(shapes, "image", 4));
    nn::Tensor x = image;
    for (size_t i = 0; i < slopes_.size(); ++i) x = slopes_[i](convolutions_[i](x));
    // The network makes what is missing in the picture enlarged by nearest neighbour.
    x = nn::pixel_shuffle(convolutions_.back()(x), scale_);
    nn::output("image", nn::add(x, nn::resize_nearest(image, x.size(2), x.size(3))));
}

}  // namespace sde::networks
