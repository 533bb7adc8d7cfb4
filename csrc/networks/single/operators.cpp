// Operators on feature maps and on values of any kind.
#include "networks/single/single_layer.h"
#include "nn/dit.h"

namespace sde::networks {
namespace {

Call activate(const nn::Scope&, const Config& config) {
    const auto kind = static_cast<nn::Activation>(whole(config, "activation"));
    const bool sliced = whole(config, "sliced") != 0;
    return [kind, sliced](const Given& given) {
        const nn::Tensor x = given("x");
        return nn::activate(sliced ? nn::slice_last(x, 1, x.size(-1) - 2) : x, kind);
    };
}

Call arithmetic(const nn::Scope&, const Config&) {
    return [](const Given& given) {
        const nn::Tensor x = given("x"), sum = nn::add(x, nn::scale(given("other"), 0.5f, 2.0f));
        return nn::multiply(nn::tanh(sum), x);
    };
}

Call geglu(const nn::Scope&, const Config&) {
    return [](const Given& given) { return nn::geglu(given("x")); };
}

Call concat_channels(const nn::Scope&, const Config&) {
    return [](const Given& given) { return nn::concat_channels(given("x"), given("other")); };
}

Call resize_nearest(const nn::Scope&, const Config& config) {
    const int64_t height = whole(config, "height"), width = whole(config, "width");
    return [height, width](const Given& given) {
        return nn::resize_nearest(given("x"), height, width);
    };
}

Call pixel_shuffle(const nn::Scope&, const Config& config) {
    return
        [r = whole(config, "r")](const Given& given) { return nn::pixel_shuffle(given("x"), r); };
}

Call pixel_unshuffle(const nn::Scope&, const Config& config) {
    return
        [r = whole(config, "r")](const Given& given) { return nn::pixel_unshuffle(given("x"), r); };
}

Call frame(const nn::Scope&, const Config& config) {
    const int64_t height = whole(config, "height"), width = whole(config, "width");
    const bool crop = whole(config, "crop") != 0;
    return [height, width, crop](const Given& given) {
        return crop ? nn::crop(given("x"), height, width)
                    : nn::pad_mirrored(given("x"), height, width);
    };
}

Call average_pool(const nn::Scope&, const Config&) {
    return [](const Given& given) { return nn::average_pool_2x(given("x")); };
}

Call mean_pixels(const nn::Scope&, const Config&) {
    return [](const Given& given) {
        const nn::Tensor x = given("x");
        return nn::add_to_pixels(x, nn::mean_pixels(x));
    };
}

Call add_per_channel(const nn::Scope&, const Config&) {
    return [](const Given& given) {
        const nn::Tensor x = given("x");
        std::vector<float> values;
        for (int64_t i = 0; i < x.size(1); ++i) values.push_back(static_cast<float>(i) - 0.5f);
        return nn::add_per_channel(x, values);
    };
}

nn::PatchOrder order_of(const Config& config) {
    return whole(config, "planar") ? nn::PatchOrder::ChannelYX : nn::PatchOrder::YXChannel;
}

Call patchify(const nn::Scope&, const Config& config) {
    return [patch = whole(config, "patch"), order = order_of(config)](const Given& given) {
        return nn::patchify(given("x"), patch, order);
    };
}

Call unpatchify(const nn::Scope&, const Config& config) {
    const int64_t height = whole(config, "height"), width = whole(config, "width");
    return [=, patch = whole(config, "patch"), order = order_of(config)](const Given& given) {
        return nn::unpatchify(given("x"), height, width, patch, order);
    };
}

Call timestep_embedding(const nn::Scope&, const Config& config) {
    return [width = whole(config, "out")](const Given& given) {
        return nn::timestep_embedding(given("timesteps"), width);
    };
}

}  // namespace

const LayerMakers& layers_without_parameters() {
    static const LayerMakers makers = {{"activate", activate},
                                       {"arithmetic", arithmetic},
                                       {"geglu", geglu},
                                       {"concat_channels", concat_channels},
                                       {"resize_nearest", resize_nearest},
                                       {"pixel_shuffle", pixel_shuffle},
                                       {"pixel_unshuffle", pixel_unshuffle},
                                       {"frame", frame},
                                       {"average_pool", average_pool},
                                       {"mean_pixels", mean_pixels},
                                       {"add_per_channel", add_per_channel},
                                       {"patchify", patchify},
                                       {"unpatchify", unpatchify},
                                       {"timestep_embedding", timestep_embedding}};
    return makers;
}

}  // namespace sde::networks
