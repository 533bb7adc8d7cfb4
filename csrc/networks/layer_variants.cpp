#include "networks/layer_variants.h"

#include "base/error.h"

namespace sde::networks {
namespace {

constexpr int kBits = 63;  // of a mask

int64_t mask(const Options& options, const std::string& name, size_t layers) {
    const int64_t bits = option(options, name, 0);
    const int64_t all = layers < kBits ? (int64_t{1} << layers) - 1 : INT64_MAX;
    if (bits < 0 || (bits & ~all) != 0)
        throw Error(ErrorKind::Parameter, "'" + name + "' names a layer that the network's " +
                                              std::to_string(layers) + " are not");
    return bits;
}

}  // namespace

LayerVariants::LayerVariants(Graph& graph, const InputShapes& shapes, const Options& options,
                             size_t layers, const nn::Tensor& nag_context)
    : skip_(mask(options, "skip_layers", layers)),
      perturb_(mask(options, "perturb_layers", layers)),
      nag_context_(nag_context) {
    if (nag_context) nag_ = nn::input(graph, "nag", required(shapes, "nag", 2));
}

void LayerVariants::set_image_prompt(const nn::Tensor& keys, const nn::Tensor& values) {
    image_keys_ = keys;
    image_values_ = values;
}

nn::AttentionVariant LayerVariants::next() {
    const int64_t bit = at_ < kBits ? int64_t{1} << at_ : 0;
    ++at_;
    return {(skip_ & bit) != 0, (perturb_ & bit) != 0, nag_context_, nag_,
            image_keys_,        image_values_};
}

}  // namespace sde::networks
