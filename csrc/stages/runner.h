// Runs one network over host arrays: graphs are built once per (input shapes, options) and kept.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "adapters/stack.h"
#include "networks/network.h"
#include "runtime/device.h"
#include "runtime/graph.h"
#include "weights/store.h"

namespace sde {

// How a feature map's values lie: in torch order, or channels last as graphs hold them, which saves
// two rearrangements where one network's output is another one's input.
enum class Layout { Torch, AsStored };

// A host array in C layout; `floats` holds float32, `ids` int32.
struct HostArray {
    Shape shape;
    std::vector<float> floats;
    std::vector<int32_t> ids;  // used instead of floats when not empty
    Layout layout = Layout::Torch;
    // Of every entry along the second axis, where shorter entries were filled up to the longest;
    // empty where all of them fill it. Networks are given entries of one length: see `evaluate`.
    std::vector<int64_t> lengths = {};
};
using HostArrays = std::map<std::string, HostArray>;

class Runner {
  public:
    // Resolves every parameter at once, so that a missing one is an error here and not in the
    // middle of a picture.
    Runner(const std::string& kind, const Config& config, std::shared_ptr<WeightStore> store,
           std::shared_ptr<Device> device);

    // One evaluation, with outputs in `layout`. Throws Numeric when an output is not finite,
    // Parameter when the inputs do not fit.
    HostArrays run(const HostArrays& inputs, const networks::Options& options,
                   const CancelCheck& cancel, Layout layout = Layout::Torch);

    // Bytes of activations that a run at these shapes takes, without taking them.
    size_t planned_bytes(const networks::InputShapes& shapes,
                         const networks::Options& options) const;

    // Makes exactly these adapters apply from the next run on. Throws Weights when one does not
    // fit; then none applies.
    void set_adapters(const std::vector<AdapterUse>& uses);
    size_t adapter_bytes() const;

    // From the next run on, the operators run one by one and their times go to `profile`; null ends
    // it.
    void set_profile(std::shared_ptr<Profile> profile);

    // How many graphs the caller runs in turn; so many stay ready (two at least) from the next one
    // on.
    void keep_graphs(size_t count);
    // Frees the graphs; the next run builds them again.
    void release();
    // The weights leave memory where they are mapped from a file; the next run reads them again.
    void release_weights() const { store_->release_pages(); }
    // Large activations leave memory, the graphs stay; see Graph.
    void release_activations();
    size_t activation_bytes() const;
    int64_t graphs_built() const noexcept { return graphs_built_; }
    const std::string& kind() const noexcept { return kind_; }
    networks::GuidanceSupport guidance_support() const { return network_->guidance_support(); }

  private:
    struct Compiled {
        std::string key;
        std::unique_ptr<Graph> graph;
        std::map<std::string, Shape> outputs;
    };
    std::unique_ptr<Graph> build(const networks::InputShapes& shapes,
                                 const networks::Options& options) const;
    Compiled& compiled(const HostArrays& inputs, const networks::Options& options);
    [[noreturn]] void report_not_finite(const std::string& output) const;

    std::string kind_;
    std::shared_ptr<WeightStore> store_;
    std::shared_ptr<Device> device_;
    AdapterStack adapters_;
    std::shared_ptr<Profile> profile_;
    std::unique_ptr<networks::Network> network_;
    std::list<Compiled> cache_;  // most recently used first
    size_t graphs_kept_;
    int64_t graphs_built_ = 0;
    std::vector<float> staging_;
    mutable std::mutex mutex_;
};

}  // namespace sde
