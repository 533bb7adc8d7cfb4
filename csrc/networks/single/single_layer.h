// A network of one layer or operator of nn, by name: what `sdengine devices --check` and the tests
// of a device compare with the CPU. `config["layer"]` is the name, the rest are its settings.
#pragma once

#include <functional>
#include <map>

#include "networks/network.h"
#include "nn/ops.h"

namespace sde::networks {

// The tensors that a check gives.
class Given {
  public:
    Given(Graph& graph, const InputShapes& shapes) : graph_(graph), shapes_(shapes) {}
    Graph& graph() const noexcept { return graph_; }
    nn::Tensor operator()(const std::string& name) const {
        return nn::input(graph_, name, shape(name));
    }
    nn::Tensor ids(const std::string& name, int64_t limit) const {
        return nn::input_ids(graph_, name, shape(name), limit);
    }
    // Empty where it is not given.
    nn::Tensor optional(const std::string& name) const {
        return has(name) ? (*this)(name) : nn::Tensor{};
    }
    bool has(const std::string& name) const { return shapes_.count(name) != 0; }

  private:
    const Shape& shape(const std::string& name) const {
        auto it = shapes_.find(name);
        if (it == shapes_.end())
            throw Error(ErrorKind::Parameter, "the input '" + name + "' is missing");
        return it->second;
    }

    Graph& graph_;
    const InputShapes& shapes_;
};

inline int64_t whole(const Config& config, const std::string& name, int64_t otherwise = 0) {
    return config.has(name) ? config[name].integer() : otherwise;
}

using Call = std::function<nn::Tensor(const Given&)>;
// Resolves the layer's parameters; the result adds it to a graph.
using LayerMaker = Call (*)(const nn::Scope&, const Config&);
using LayerMakers = std::map<std::string, LayerMaker>;

const LayerMakers& layers_with_parameters();
const LayerMakers& layers_without_parameters();
const LayerMakers& layers_of_tokens();

class SingleLayer : public Network {
  public:
    SingleLayer(const nn::Scope& scope, const Config& config);
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    Call call_;
};

}  // namespace sde::networks
