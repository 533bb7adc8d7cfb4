// What every network is: parameters resolved on construction, and a forward pass over named
// tensors.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/config.h"
#include "nn/scope.h"
#include "nn/tensor.h"

namespace sde::networks {

// Shapes of the inputs that a caller gives, in torch order (a feature map is [N, C, H, W]).
using InputShapes = std::map<std::string, Shape>;
// Whole numbers that change the graph, such as clip_skip; absent ones take the network's default.
using Options = std::map<std::string, int64_t>;

class Network {
  public:
    virtual ~Network() = default;
    // Declares inputs with nn::input, computes, and declares outputs with nn::output.
    virtual void forward(Graph& graph, const InputShapes& shapes, const Options& options) const = 0;
};

// Builds the network `kind`; its parameters come from `scope`. Throws Parameter for an unknown
// kind.
std::unique_ptr<Network> make_network(const std::string& kind, const nn::Scope& scope,
                                      const Config& config);

// The names and shapes of every parameter of a network, in the order in which it asks for them.
std::vector<std::pair<std::string, Shape>> list_parameters(const std::string& kind,
                                                           const Config& config);

// The shape of input `name`; throws Parameter when it is missing or not of this rank.
const Shape& required(const InputShapes& shapes, const std::string& name, int rank);
int64_t option(const Options& options, const std::string& name, int64_t otherwise);

}  // namespace sde::networks
