// A value in a graph, seen with torch's axis order and true rank.
#pragma once

#include "base/shape.h"
#include "ggml.h"
#include "runtime/graph.h"

namespace sde::nn {

// A feature map [N, C, H, W] lies channels last in memory (ggml axes C, W, H, N); every other
// tensor lies in C order of its shape. Only files in nn/ use raw().
class Tensor {
  public:
    Tensor() = default;
    Tensor(Graph& graph, ggml_tensor* raw, Shape shape)
        : graph_(&graph), raw_(raw), shape_(std::move(shape)) {}

    const Shape& shape() const noexcept { return shape_; }
    int64_t size(int axis) const { return shape_[axis]; }
    int rank() const noexcept { return shape_.rank(); }
    explicit operator bool() const noexcept { return raw_ != nullptr; }

    Graph& graph() const noexcept { return *graph_; }
    ggml_tensor* raw() const noexcept { return raw_; }

  private:
    Graph* graph_ = nullptr;
    ggml_tensor* raw_ = nullptr;
    Shape shape_;
};

}  // namespace sde::nn
