#include "networks/control/controlnet_union.h"

#include "base/error.h"

namespace sde::networks {
namespace {

constexpr int64_t kSinusoid = 256;  // width of the embedding of each task's 0 or 1
constexpr float kLayerNormEps = 1e-5f;
constexpr int64_t kFeedForwardFactor = 4;

}  // namespace

ControlNetUnion::Layer::Layer(const nn::Scope& scope, int64_t width)
    : ln1_(scope / "ln_1", width, kLayerNormEps),
      value_(scope / "attn" / "v_proj", width, width),
      out_(scope / "attn" / "out_proj", width, width),
      ln2_(scope / "ln_2", width, kLayerNormEps),
      fc_(scope / "mlp" / "c_fc", width, kFeedForwardFactor * width),
      proj_(scope / "mlp" / "c_proj", kFeedForwardFactor * width, width) {}

nn::Tensor ControlNetUnion::Layer::operator()(const nn::Tensor& x) const {
    const nn::Tensor attended = out_(value_(ln1_(x)), {.residual = x});
    const nn::Tensor h = fc_(ln2_(attended), {.activation = nn::Activation::QuickGelu});
    return proj_(h, {.residual = attended});
}

ControlNetUnion::ControlNetUnion(const nn::Scope& scope, const Config& config)
    : tasks_(config["tasks"].integer()),
      encoder_(scope, config),
      hint_(scope / "controlnet_cond_embedding", config["hint_channels"].integer(),
            config["hint_block_channels"].integers(), encoder_.unet().base_channels()),
      task_embedding_(scope / "task_embedding", tasks_, encoder_.unet().base_channels()),
      add_embedding_(scope / "control_add_embedding", kSinusoid * tasks_,
                     encoder_.unet().time_width()),
      spatial_proj_(scope / "spatial_ch_projs", encoder_.unet().base_channels(),
                    encoder_.unet().base_channels()) {
    for (int i = 0; i < config["fusion_layers"].integer(); ++i)
        layers_.emplace_back(scope / "transformer_layes" / i, encoder_.unet().base_channels());
}

void ControlNetUnion::forward(Graph& graph, const InputShapes& shapes,
                              const Options& options) const {
    if (option(options, "hint_only", 0)) return hint_.only(graph, shapes);
    const nn::Tensor latents = encoder_.unet().latents(graph, shapes);
    const int64_t batch = latents.size(0);
    const nn::Tensor condition = hint_.features(graph, shapes);
    const Shape wanted{batch, 1};
    if (!(required(shapes, "task", 2) == wanted))
        throw Error(ErrorKind::Parameter, "the input 'task' must be " + wanted.text());
    const nn::Tensor task = nn::input_ids(graph, "task", wanted, tasks_);
    nn::Tensor token = nn::add(nn::mean_pixels(condition), task_embedding_(task));
    for (const Layer& layer : layers_) token = layer(token);
    const nn::Tensor x = nn::add_to_pixels(nn::add(latents, condition), spatial_proj_(token));

    const nn::Tensor embedding =
        nn::input(graph, "task_embedding", required(shapes, "task_embedding", 2));
    const nn::Tensor time = add_embedding_(embedding, encoder_.unet().embedding(graph, shapes));
    encoder_.residuals(graph, shapes, x, nn::activate(time, nn::Activation::Silu));
}

}  // namespace sde::networks
