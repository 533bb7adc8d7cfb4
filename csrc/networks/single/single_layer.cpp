#include "networks/single/single_layer.h"

namespace sde::networks {

SingleLayer::SingleLayer(const nn::Scope& scope, const Config& config) {
    const std::string& name = config["layer"].text();
    for (const LayerMakers* makers :
         {&layers_with_parameters(), &layers_without_parameters(), &layers_of_tokens()})
        if (auto it = makers->find(name); it != makers->end()) call_ = it->second(scope, config);
    if (!call_) throw Error(ErrorKind::Parameter, "there is no layer '" + name + "'");
}

void SingleLayer::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    nn::output("y", call_(Given(graph, shapes)));
}

}  // namespace sde::networks
