// What every network is: parameters resolved on construction, and a forward pass over named
// tensors.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/config.h"
#include "nn/scope.h"
#include "nn/tensor.h"

namespace sde::networks {

// Shapes of the inputs that a caller gives, in torch order (a feature map is [N, C, H, W]).
using InputShapes = std::map<std::string, Shape>;
// Whole numbers that change the graph, such as clip_skip; absent ones take the network's default.
using Options = std::map<std::string, int64_t>;

// What a network's graph offers to guidance.
struct GuidanceSupport {
    // Layers that can be left out or whose self-attention can be perturbed, bit i of the options
    // `skip_layers` and `perturb_layers` for the i-th; 63 at most.
    std::vector<std::string> layers;
    bool skip = false, perturb = false;
    bool normalized_attention = false;  // the inputs `nag_context` and `nag`
};

// Which part of a network a graph is, the option `part`: what step caching runs
// (stages/step_cache.h).
enum class Part : int64_t {
    Whole,
    // Of a UNet: the whole, which puts the features out that the last resnet reads; and the layers
    // around that resnet, which read them.
    Keeping,
    Shallow,
    // Of a diffusion transformer: up to the first block's end; behind it; and the output layers
    // alone (networks/denoisers/first_block.h).
    First,
    Rest,
    Last,
};
// What a network offers to step caching.
enum class Reuse { None, Features, FirstBlock };

class Network {
  public:
    virtual ~Network() = default;
    // Declares inputs with nn::input, computes, and declares outputs with nn::output.
    virtual void forward(Graph& graph, const InputShapes& shapes, const Options& options) const = 0;
    virtual GuidanceSupport guidance_support() const { return {}; }
    virtual Reuse reuse() const { return Reuse::None; }
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
// Throws Parameter unless input `name` is given and has this shape, which is that of the ids.
void require_shape_of_ids(const InputShapes& shapes, const std::string& name, const Shape& ids);
int64_t option(const Options& options, const std::string& name, int64_t otherwise);
// Throws Parameter for a part that a network with this `reuse` does not have.
Part part(const Options& options, Reuse reuse);

}  // namespace sde::networks
