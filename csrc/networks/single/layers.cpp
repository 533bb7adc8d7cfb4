// Layers with parameters of their own.
#include "nn/layers.h"
#include "networks/single/single_layer.h"
#include "nn/dit.h"
#include "nn/windows.h"

namespace sde::networks {
namespace {

nn::Activation activation(const Config& config) {
    return static_cast<nn::Activation>(whole(config, "activation"));
}

nn::Epilogue epilogue(const Given& given, nn::Activation activation, bool inside) {
    return {.residual = given.optional("residual"),
            .batch_bias = given.optional("batch_bias"),
            .activation = activation,
            .residual_inside = inside,
            .gate = given.optional("gate")};
}

Call conv2d(const nn::Scope& scope, const Config& config) {
    const nn::Conv2d conv(scope, config["in"].integer(), config["out"].integer(),
                          {.kernel = static_cast<int>(whole(config, "kernel", 3)),
                           .stride = static_cast<int>(whole(config, "stride", 1)),
                           .bias = whole(config, "bias", 1) != 0,
                           .pad = whole(config, "pad", 1) != 0,
                           .pad_right_bottom_only = whole(config, "right_bottom") != 0});
    const int64_t height = whole(config, "height"), width = whole(config, "width");
    const bool inside = whole(config, "inside") != 0;
    return [conv, height, width, inside, act = activation(config)](const Given& given) {
        const nn::Epilogue end = epilogue(given, act, inside);
        return height ? conv.enlarged(given("x"), height, width, end) : conv(given("x"), end);
    };
}

Call linear(const nn::Scope& scope, const Config& config) {
    const nn::Linear layer(scope, config["in"].integer(), config["out"].integer(),
                           whole(config, "bias", 1) != 0);
    const bool inside = whole(config, "inside") != 0;
    return [layer, inside, act = activation(config)](const Given& given) {
        return layer(given("x"), epilogue(given, act, inside));
    };
}

Call feature_norm(const nn::Scope& scope, const Config& config) {
    const nn::FeatureNorm norm(scope, config["in"].integer(), whole(config, "groups"), 1e-5f);
    const bool silu = whole(config, "silu") != 0;
    return [norm, silu](const Given& given) {
        return silu ? norm.then_silu(given("x")) : norm(given("x"));
    };
}

// A group norm between two convolutions that share its planes, as in a block of a UNet.
Call norm_and_conv(const nn::Scope& scope, const Config& config) {
    const int64_t in = config["in"].integer();
    const nn::GroupNorm norm(scope / "norm", in, whole(config, "groups"), 1e-5f);
    const nn::Conv2d conv(scope / "conv", in, config["out"].integer());
    return [norm, conv](const Given& given) { return conv(norm.then_silu(given("x"))); };
}

Call prelu(const nn::Scope& scope, const Config& config) {
    return [layer = nn::PRelu(scope, config["in"].integer())](const Given& given) {
        return layer(given("x"));
    };
}

Call layer_norm(const nn::Scope& scope, const Config& config) {
    return [norm = nn::LayerNorm(scope, config["in"].integer(), 1e-6f)](const Given& given) {
        return norm(given("x"));
    };
}

Call rms_norm(const nn::Scope& scope, const Config& config) {
    const nn::RmsNorm norm(scope, config["in"].integer(), 1e-6f, whole(config, "plus_one") != 0);
    return [norm](const Given& given) { return norm(given("x")); };
}

Call scaled_rms_norm(const nn::Scope& scope, const Config& config) {
    return [norm = nn::ScaledRmsNorm(scope, config["in"].integer(), 1e-6f)](const Given& given) {
        return norm(given("x"), given.optional("factor"), given.optional("residual"));
    };
}

Call shifted_norm(const nn::Scope& scope, const Config& config) {
    return [norm = nn::ShiftedNorm(scope, config["in"].integer(), 1e-6f)](const Given& given) {
        return norm(given("x"), given("shift"));
    };
}

Call embedding(const nn::Scope& scope, const Config& config) {
    const int64_t entries = config["in"].integer();
    const nn::Embedding layer(scope, entries, config["out"].integer());
    return [layer, entries](const Given& given) {
        const nn::Tensor learned = given.optional("learned");
        if (!learned) return layer(given.ids("ids", entries));
        return layer(given.ids("ids", entries + learned.size(0)), learned);
    };
}

Call first_rows(const nn::Scope& scope, const Config& config) {
    const nn::Embedding layer(scope, config["in"].integer(), config["out"].integer());
    return [layer, rows = whole(config, "rows")](const Given& given) {
        return nn::add_broadcast(given("x"), layer.rows(given.graph(), rows));
    };
}

Call learned_tokens(const nn::Scope& scope, const Config& config) {
    const nn::LearnedTokens layer(scope, "tokens", config["in"].integer(), config["out"].integer());
    return [layer](const Given& given) {
        const nn::Tensor x = given("x");
        return nn::concat_tokens(layer(given.graph(), x.size(0)), x);
    };
}

Call position_table(const nn::Scope& scope, const Config& config) {
    const nn::PositionTable table(scope, "table", config["side"].integer(),
                                  config["out"].integer());
    const int64_t height = whole(config, "height"), width = whole(config, "width");
    return [table, height, width](const Given& given) {
        return nn::add_broadcast(given("x"), table.middle(given.graph(), height, width));
    };
}

Call window_attention(const nn::Scope& scope, const Config& config) {
    const nn::WindowAttention layer(scope, config["in"].integer(), config["heads"].integer(),
                                    config["window"].integer());
    const int64_t height = whole(config, "height"), width = whole(config, "width");
    return [layer, height, width, shift = whole(config, "shift")](const Given& given) {
        return layer(given("x"), height, width, shift);
    };
}

Call join_heads(const nn::Scope& scope, const Config& config) {
    const int64_t width = config["head_dim"].integer();
    const auto kind =
        whole(config, "layer_norm") ? nn::HeadNorm::Kind::Layer : nn::HeadNorm::Kind::Rms;
    const nn::HeadNorm norm(scope, width, 1e-6f, kind);
    const bool turned = whole(config, "turned") != 0;
    return [norm, width, turned](const Given& given) {
        const nn::Tensor a = given("a"), b = given("b");
        nn::Positions positions;
        for (int64_t i = 0; i < a.size(1) + b.size(1); ++i)
            positions.push_back({static_cast<float>(i), static_cast<float>(7 - i % 5)});
        const int64_t axis = width / 4 * 2;
        nn::Tensor table;
        if (turned)
            table = nn::rotary_constant(given.graph(), positions, {axis, width - axis}, 1e4);
        return nn::join_heads({{a, nullptr, {table, 0}}, {b, &norm, {table, a.size(1)}}}, width);
    };
}

}  // namespace

const LayerMakers& layers_with_parameters() {
    static const LayerMakers makers = {{"conv2d", conv2d},
                                       {"linear", linear},
                                       {"feature_norm", feature_norm},
                                       {"norm_and_conv", norm_and_conv},
                                       {"prelu", prelu},
                                       {"layer_norm", layer_norm},
                                       {"rms_norm", rms_norm},
                                       {"scaled_rms_norm", scaled_rms_norm},
                                       {"shifted_norm", shifted_norm},
                                       {"embedding", embedding},
                                       {"first_rows", first_rows},
                                       {"learned_tokens", learned_tokens},
                                       {"position_table", position_table},
                                       {"window_attention", window_attention},
                                       {"join_heads", join_heads}};
    return makers;
}

}  // namespace sde::networks
