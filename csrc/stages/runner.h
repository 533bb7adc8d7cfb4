// Runs one network over host arrays: graphs are built once per (input shapes, options) and kept.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "networks/network.h"
#include "runtime/device.h"
#include "runtime/graph.h"
#include "weights/store.h"

namespace sde {

// A host array in torch order and C layout; `data` holds float32, or int32 for ids.
struct HostArray {
    Shape shape;
    std::vector<float> floats;
    std::vector<int32_t> ids;  // used instead of floats when not empty
};
using HostArrays = std::map<std::string, HostArray>;

class Runner {
  public:
    // Resolves every parameter at once, so that a missing one is an error here and not in the
    // middle of a picture.
    Runner(const std::string& kind, const Config& config, std::shared_ptr<WeightStore> store,
           std::shared_ptr<Device> device);

    // One evaluation. Throws Numeric when an output is not finite, Parameter when the inputs do not
    // fit.
    HostArrays run(const HostArrays& inputs, const networks::Options& options,
                   const CancelCheck& cancel);

    // Frees the graphs; the next run builds them again.
    void release();
    size_t activation_bytes() const;
    int64_t graphs_built() const noexcept { return graphs_built_; }
    const std::string& kind() const noexcept { return kind_; }

  private:
    struct Compiled {
        std::string key;
        std::unique_ptr<Graph> graph;
        std::map<std::string, Shape> outputs;
    };
    Compiled& compiled(const HostArrays& inputs, const networks::Options& options);
    [[noreturn]] void report_not_finite(const std::string& output) const;

    std::string kind_;
    std::shared_ptr<WeightStore> store_;
    std::shared_ptr<Device> device_;
    std::unique_ptr<networks::Network> network_;
    std::list<Compiled> cache_;  // most recently used first
    int64_t graphs_built_ = 0;
    std::vector<float> staging_;
    mutable std::mutex mutex_;
};

}  // namespace sde
