#include "networks/control/image_prompt.h"

#include "base/error.h"

namespace sde::networks {
namespace {

void check_features(const Shape& shape, int64_t width) {
    if (shape[shape.rank() - 1] != width)
        throw Error(ErrorKind::Parameter, "the image prompt reads picture features of width " +
                                              std::to_string(width) + ", not " + shape.text() +
                                              ". Is the image encoder another one's?");
}

}  // namespace

ImageProjection::ImageProjection(const nn::Scope& scope, const Config& config)
    : tokens_(config["tokens"].integer()),
      width_(config["width"].integer()),
      features_(config["features_dim"].integer()),
      proj_(scope / "image_embeds", features_, tokens_ * width_),
      norm_(scope / "norm", width_, config["eps"].number()) {}

void ImageProjection::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    const Shape& shape = required(shapes, "features", 2);
    check_features(shape, features_);
    const nn::Tensor all = proj_(nn::input(graph, "features", shape));
    nn::output("tokens", norm_(nn::reshape(all, Shape{shape[0], tokens_, width_})));
}

ImageResampler::Layer::Layer(const nn::Scope& scope, int64_t inner, int64_t heads, int64_t head_dim,
                             int64_t feed_forward, float eps)
    : heads_(heads),
      norm_patches_(scope / "ln0", inner, eps),
      norm_latents_(scope / "ln1", inner, eps),
      to_q_(scope / "attn" / "to_q", inner, heads * head_dim, false),
      to_k_(scope / "attn" / "to_k", inner, heads * head_dim, false),
      to_v_(scope / "attn" / "to_v", inner, heads * head_dim, false),
      to_out_(scope / "attn" / "to_out" / 0, heads * head_dim, inner, false),
      norm_ff_(scope / "ff" / 0, inner, eps),
      ff_in_(scope / "ff" / 1 / "net" / 0 / "proj", inner, feed_forward, false),
      ff_out_(scope / "ff" / 1 / "net" / 2, feed_forward, inner, false) {}

nn::Tensor ImageResampler::Layer::operator()(const nn::Tensor& latents,
                                             const nn::Tensor& patches) const {
    const nn::Tensor queries = norm_latents_(latents);
    const nn::Tensor all = nn::concat_tokens(norm_patches_(patches), queries);
    nn::Tensor h = nn::attention(to_q_(queries), to_k_(all), to_v_(all), {.heads = heads_});
    const nn::Tensor attended = to_out_(h, {.residual = latents});
    h = ff_in_(norm_ff_(attended), {.activation = nn::Activation::Gelu});
    return ff_out_(h, {.residual = attended});
}

ImageResampler::ImageResampler(const nn::Scope& scope, const Config& config)
    : features_(config["features_dim"].integer()),
      latents_(scope, "latents", config["tokens"].integer(), config["inner_dim"].integer()),
      proj_in_(scope / "proj_in", features_, config["inner_dim"].integer()),
      proj_out_(scope / "proj_out", config["inner_dim"].integer(), config["width"].integer()),
      norm_out_(scope / "norm_out", config["width"].integer(), config["eps"].number()) {
    for (int i = 0; i < config["layers"].integer(); ++i)
        layers_.emplace_back(scope / "layers" / i, config["inner_dim"].integer(),
                             config["heads"].integer(), config["head_dim"].integer(),
                             config["feed_forward_dim"].integer(), config["eps"].number());
}

void ImageResampler::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    const Shape& shape = required(shapes, "features", 3);
    check_features(shape, features_);
    const nn::Tensor patches = proj_in_(nn::input(graph, "features", shape));
    nn::Tensor x = latents_(graph, shape[0]);
    for (const Layer& layer : layers_) x = layer(x, patches);
    nn::output("tokens", norm_out_(proj_out_(x)));
}

ReduxProjection::ReduxProjection(const nn::Scope& scope, const Config& config)
    : features_(config["features_dim"].integer()),
      up_(scope / "redux_up", features_, config["inner_dim"].integer()),
      down_(scope / "redux_down", config["inner_dim"].integer(), config["width"].integer()) {}

void ReduxProjection::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    const Shape& shape = required(shapes, "features", 3);
    check_features(shape, features_);
    const nn::Tensor inner =
        up_(nn::input(graph, "features", shape), {.activation = nn::Activation::Silu});
    nn::output("tokens", down_(inner));
}

}  // namespace sde::networks
