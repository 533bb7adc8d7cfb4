#include "base/error.h"
#include "networks/autoencoders/kl.h"
#include "networks/autoencoders/tiny.h"
#include "networks/control/controlnet.h"
#include "networks/control/controlnet_union.h"
#include "networks/control/flux_controlnet.h"
#include "networks/control/image_prompt.h"
#include "networks/control/mmdit_controlnet.h"
#include "networks/control/t2i_adapter.h"
#include "networks/denoisers/flux.h"
#include "networks/denoisers/hunyuan_dit.h"
#include "networks/denoisers/lumina2.h"
#include "networks/denoisers/mmdit.h"
#include "networks/denoisers/pixart.h"
#include "networks/denoisers/qwen_image.h"
#include "networks/denoisers/unet.h"
#include "networks/network.h"
#include "networks/single/single_layer.h"
#include "networks/text/bert.h"
#include "networks/text/clip.h"
#include "networks/text/decoder.h"
#include "networks/text/t5.h"
#include "networks/upscalers/rrdb.h"
#include "networks/upscalers/srvgg.h"
#include "networks/upscalers/swinir.h"
#include "networks/vision/clip_vision.h"
#include "networks/vision/qwen_vision.h"
#include "networks/vision/siglip.h"
#include "nn/declaration.h"

namespace sde::networks {
namespace {

template <class T>
std::unique_ptr<Network> make(const nn::Scope& scope, const Config& config) {
    return std::make_unique<T>(scope, config);
}

const std::map<std::string, std::unique_ptr<Network> (*)(const nn::Scope&, const Config&)>
    kNetworks = {
        {"unet", make<UNet>},
        {"mmdit", make<MMDiT>},
        {"flux", make<Flux>},
        {"qwen_image", make<QwenImage>},
        {"hunyuan_dit", make<HunyuanDiT>},
        {"lumina2", make<Lumina2>},
        {"pixart", make<PixArt>},
        {"controlnet", make<ControlNet>},
        {"controlnet_union", make<ControlNetUnion>},
        {"mmdit_controlnet", make<MMDiTControlNet>},
        {"flux_controlnet", make<FluxControlNet>},
        {"t2i_adapter", make<T2IAdapter>},
        {"image_projection", make<ImageProjection>},
        {"image_resampler", make<ImageResampler>},
        {"redux_projection", make<ReduxProjection>},
        {"clip_vision", make<ClipVision>},
        {"qwen_vision", make<QwenVision>},
        {"siglip_vision", make<SiglipVision>},
        {"clip_text", make<ClipText>},
        {"decoder_text", make<DecoderText>},
        {"t5_text", make<T5Text>},
        {"bert_text", make<BertText>},
        {"autoencoder_kl_encoder", make<KlEncoder>},
        {"autoencoder_kl_decoder", make<KlDecoder>},
        {"autoencoder_tiny_encoder", make<TinyEncoder>},
        {"autoencoder_tiny_decoder", make<TinyDecoder>},
        {"upscaler_rrdb", make<Rrdb>},
        {"upscaler_srvgg", make<Srvgg>},
        {"upscaler_swinir", make<SwinIr>},
        {"layer", make<SingleLayer>},
};

}  // namespace

std::unique_ptr<Network> make_network(const std::string& kind, const nn::Scope& scope,
                                      const Config& config) {
    auto it = kNetworks.find(kind);
    if (it != kNetworks.end()) return it->second(scope, config);
    std::string known;
    for (const auto& [name, make] : kNetworks) known += (known.empty() ? "" : ", ") + name;
    throw Error(ErrorKind::Parameter, "there is no network '" + kind + "'; known are " + known);
}

std::vector<std::pair<std::string, Shape>> list_parameters(const std::string& kind,
                                                           const Config& config) {
    nn::Declaration declaration;
    make_network(kind, nn::Scope(declaration, ""), config);
    return declaration.names();
}

const Shape& required(const InputShapes& shapes, const std::string& name, int rank) {
    auto it = shapes.find(name);
    if (it == shapes.end())
        throw Error(ErrorKind::Parameter, "the input '" + name + "' is missing");
    if (it->second.rank() != rank || it->second.elements() <= 0)
        throw Error(ErrorKind::Parameter, "the input '" + name + "' has shape " +
                                              it->second.text() + "; it must have " +
                                              std::to_string(rank) + " axes, none of them empty");
    return it->second;
}

void require_shape_of_ids(const InputShapes& shapes, const std::string& name, const Shape& ids) {
    const Shape& given = required(shapes, name, ids.rank());
    if (!(given == ids))
        throw Error(ErrorKind::Parameter, "the input '" + name + "' has shape " + given.text() +
                                              ", the ids have " + ids.text() +
                                              "; they must be equal");
}

int64_t option(const Options& options, const std::string& name, int64_t otherwise) {
    auto it = options.find(name);
    return it == options.end() ? otherwise : it->second;
}

Part part(const Options& options, Reuse reuse) {
    const int64_t given = option(options, "part", 0);
    const auto from = static_cast<int64_t>(reuse == Reuse::Features ? Part::Keeping : Part::First);
    const auto to = static_cast<int64_t>(reuse == Reuse::Features ? Part::Shallow : Part::Last);
    if (given == 0 || (reuse != Reuse::None && from <= given && given <= to))
        return static_cast<Part>(given);
    throw Error(ErrorKind::Parameter,
                "this network has no part " + std::to_string(given) + " for step caching");
}

}  // namespace sde::networks
