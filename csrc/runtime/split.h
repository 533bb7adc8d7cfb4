// One graph over several devices: the first operators on the first, the next on the second.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "ggml.h"

namespace sde {

class Graph;

class Split {
  public:
    // Splits a complete graph that has no memory yet. Device i gets operators whose parameters are
    // `shares[i]` of all bytes. Operators are rewired: what one device leaves for a later one is
    // copied, by operators that no backend runs.
    Split(const Graph& graph, const std::vector<double>& shares);

    ggml_cgraph* graph() const noexcept { return graph_; }
    // By node of `graph`. Leafs are on device 0.
    const std::vector<int>& devices() const noexcept { return nodes_; }
    bool is_copy(const ggml_tensor* node) const { return copies_.count(node) != 0; }
    // Headers that were made for it.
    ggml_context* context() const noexcept { return context_.get(); }

  private:
    int home_of(const ggml_tensor* root) const;
    ggml_tensor* copied(ggml_tensor* root, int device);
    ggml_tensor* on_device(const Graph& graph, ggml_tensor* source, int device);
    void append(ggml_tensor* node, int device);

    std::unique_ptr<ggml_context, decltype(&ggml_free)> context_{nullptr, ggml_free};
    ggml_cgraph* graph_ = nullptr;
    std::unordered_map<const ggml_tensor*, int> homes_;  // what is not here is on device 0
    std::unordered_map<const ggml_tensor*, ggml_tensor*> copies_;  // by the copy, what it copies
    std::vector<std::unordered_map<const ggml_tensor*, ggml_tensor*>> stand_ins_;  // per device
    std::vector<int> nodes_;
};

}  // namespace sde
