// Runs one network over host arrays: graphs are built once per (input shapes, options) and kept.
#pragma once

#include <atomic>
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
#include "weights/residency.h"
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
    // An input that likely has the same values at the next run: what depends on such inputs alone
    // is computed once for the values that it has (runtime/steady.h). Never changes a result.
    bool steady = false;
};
using HostArrays = std::map<std::string, HostArray>;

// What a rehearsed network was asked for, which inputs were steady, and how many graphs it was to
// keep then.
struct Evaluation {
    networks::InputShapes shapes;
    networks::Options options;
    std::vector<std::string> steady;
    size_t graphs_kept = 0;
};

// What evaluations would take: each of every device, and the weights that stay on all devices when
// all of them have been made.
struct PlannedRuns {
    std::vector<std::vector<Footprint>> each;
    size_t kept = 0;
};

networks::InputShapes shapes_of(const HostArrays& inputs);
// Names of the steady ones.
std::vector<std::string> steady_of(const HostArrays& inputs);
// The same for all evaluations that one graph can do.
std::string graph_key(const networks::InputShapes& shapes, const networks::Options& options,
                      const std::vector<std::string>& steady);

class Runner {
  public:
    // Resolves every parameter at once, so that a missing one is an error here and not in the
    // middle of a picture.
    // With several devices, all with memory of their own, the first operators run on the first of
    // them and so on; `shares` are of the parameters' bytes, equal ones if there are none.
    Runner(const std::string& kind, const Config& config, std::shared_ptr<WeightStore> store,
           std::vector<std::shared_ptr<Device>> devices, std::vector<double> shares = {});

    // One evaluation, with outputs in `layout`. Throws Numeric when an output is not finite,
    // Parameter when the inputs do not fit.
    HostArrays run(const HostArrays& inputs, const networks::Options& options,
                   const CancelCheck& cancel, Layout layout = Layout::Torch);

    // Bytes of activations that a run at these shapes takes, without taking them. `steady`: inputs
    // that will be.
    size_t planned_bytes(const networks::InputShapes& shapes, const networks::Options& options,
                         const std::vector<std::string>& steady = {}) const;

    // Another one over the same weights that computes nothing: it learns the outputs' shapes from
    // the graph, answers with noise and keeps what it was asked. So memory is predicted by the code
    // that takes it (rehearsal.cpp).
    std::shared_ptr<Runner> rehearsal() const;
    std::vector<Evaluation> rehearsed() const;

    // Where the weights are from the next run on; see Residency.
    void set_residency(const Residence& residence);
    Policy residency() const;
    // What runs would take, without taking it.
    PlannedRuns planned(const std::vector<Evaluation>& runs, const Residence& residence) const;

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
    // The weights leave memory where they are mapped from a file, and devices, unless they are to
    // stay there; the next run reads them again.
    void release_weights();
    // Activations leave memory, the graphs stay; see Graph.
    void release_activations();
    // It will not run for a while: both.
    void rest();
    size_t activation_bytes() const;
    // Converted weights, which are the store's own.
    size_t owned_bytes() const { return store_->owned_bytes(); }
    int64_t graphs_built() const noexcept { return graphs_built_; }
    const std::string& kind() const noexcept { return kind_; }
    networks::GuidanceSupport guidance_support() const { return network_->guidance_support(); }
    networks::Reuse reuse() const { return network_->reuse(); }

  private:
    struct Compiled {
        std::string key;
        std::unique_ptr<Graph> graph;
        std::map<std::string, Shape> outputs;
    };
    std::unique_ptr<Graph> build(const networks::InputShapes& shapes,
                                 const networks::Options& options,
                                 const std::vector<std::string>& steady) const;
    Compiled& compiled(const HostArrays& inputs, const networks::Options& options);
    HostArrays rehearse(const HostArrays& inputs, const networks::Options& options, Layout layout);
    [[noreturn]] void report_not_finite(const std::string& output) const;

    std::string kind_;
    Config config_;
    std::shared_ptr<WeightStore> store_;
    std::vector<std::shared_ptr<Device>> devices_;
    std::vector<double> shares_;
    Residency residency_;
    AdapterStack adapters_;
    std::shared_ptr<Profile> profile_;
    std::unique_ptr<networks::Network> network_;
    std::list<Compiled> cache_;  // most recently used first
    size_t graphs_kept_;
    std::atomic<int64_t> graphs_built_ = 0;  // read while others run
    std::vector<float> staging_;
    struct Rehearsal {
        std::vector<Evaluation> asked;
        std::map<std::string, std::map<std::string, Shape>> outputs;  // by graph
    };
    std::unique_ptr<Rehearsal> rehearsal_;  // null for one that computes
    mutable std::mutex mutex_;
};

}  // namespace sde
