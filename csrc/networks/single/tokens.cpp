// Operators on tokens: attention, positions, masks, modulation.
#include "networks/single/single_layer.h"
#include "nn/dit.h"
#include "nn/text.h"

namespace sde::networks {
namespace {

constexpr int64_t kPositions = 4096;
constexpr int64_t kMaxDistance = 32;

Call attention(const nn::Scope&, const Config& config) {
    nn::AttentionOptions options{.heads = config["heads"].integer(),
                                 .causal = whole(config, "causal") != 0,
                                 .kv_heads = whole(config, "kv_heads"),
                                 .scale = config.has("scale") ? config["scale"].number() : 0.0f,
                                 .softcap = config.has("softcap") ? config["softcap"].number() : 0};
    if (config.has("mask_index"))
        for (int64_t i : config["mask_index"].integers())
            options.mask_index.push_back(static_cast<int32_t>(i));
    const bool hides_ahead = whole(config, "hides_ahead") != 0;
    const bool padding_sees_all = whole(config, "padding_sees_all") != 0;
    return [=](const Given& given) {
        nn::AttentionOptions with = options;
        with.mask = given.optional("mask");
        const nn::Tensor q = given("q"), k = given.optional("k"), v = given.optional("v");
        if (given.has("words"))
            with.mask =
                nn::padding_mask(given.ids("words", 2),
                                 {.causal = hides_ahead, .padding_sees_all = padding_sees_all});
        if (const nn::Tensor table = given.optional("distances"))
            with.distance_bias = nn::distance_bias(table, q.size(1), kMaxDistance);
        return nn::attention(q, k ? k : q, v ? v : q, with);
    };
}

Call rotate(const nn::Scope&, const Config& config) {
    const std::vector<int64_t> sections = config["sections"].integers();
    int64_t pairs = 0;
    for (int64_t section : sections) pairs += section;
    nn::RotaryOptions options{.dims = 2 * pairs, .theta = 1e4f, .divisors = {}};
    if (whole(config, "divided"))
        for (int64_t i = 0; i < pairs; ++i)
            options.divisors.push_back(1.0f + 0.5f * static_cast<float>(i));
    options.sections = sections;
    const int64_t head_dim = config["head_dim"].integer();
    return [options, head_dim,
            interleaved = whole(config, "interleaved") != 0](const Given& given) {
        std::vector<nn::Tensor> positions;
        for (size_t i = 0; i < options.sections.size(); ++i)
            positions.push_back(given.ids("positions_" + std::to_string(i), kPositions));
        return nn::rotate(given("x"), nn::rotary_table(positions, options), head_dim, interleaved);
    };
}

Call modulated_norm(const nn::Scope&, const Config&) {
    return [](const Given& given) {
        const nn::Tensor x = given("x"), both = given("modulation");
        const int64_t width = x.size(2);
        return nn::modulated_norm(x, nn::slice_last(both, width, width),
                                  nn::slice_last(both, 0, width), 1e-6f);
    };
}

Call choose_tokens(const nn::Scope&, const Config&) {
    return [](const Given& given) {
        return nn::choose_tokens(given("x"), given("mask"), given("instead"));
    };
}

Call normalized_guidance(const nn::Scope&, const Config&) {
    return [](const Given& given) {
        return nn::normalized_guidance(given("x"), given("away"), given("figures"));
    };
}

Call token_parts(const nn::Scope&, const Config&) {
    return [](const Given& given) {
        const nn::Tensor x = given("x"), more = given("more");
        const nn::Tensor both = nn::add_to_tokens(nn::concat_tokens({x, more, x}), 1, more);
        return nn::concat_last(nn::slice_tokens(both, 1, x.size(1)), x);
    };
}

Call take_rows(const nn::Scope&, const Config&) {
    return [](const Given& given) {
        const nn::Tensor x = given("x");
        return nn::take_rows(x, given.ids("rows", x.size(0) * x.size(1)));
    };
}

Call sincos(const nn::Scope&, const Config& config) {
    const int64_t height = whole(config, "height"), width = whole(config, "width");
    return [height, width](const Given& given) {
        const nn::Tensor x = given("x");
        return nn::add_broadcast(
            x, nn::sincos_constant(given.graph(), height, width, x.size(2), 16.0));
    };
}

}  // namespace

const LayerMakers& layers_of_tokens() {
    static const LayerMakers makers = {{"attention", attention},
                                       {"rotate", rotate},
                                       {"modulated_norm", modulated_norm},
                                       {"choose_tokens", choose_tokens},
                                       {"normalized_guidance", normalized_guidance},
                                       {"token_parts", token_parts},
                                       {"take_rows", take_rows},
                                       {"sincos", sincos}};
    return makers;
}

}  // namespace sde::networks
