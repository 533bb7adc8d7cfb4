// Shapes in torch's axis order.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

namespace sde {

class Shape {
  public:
    Shape() = default;
    Shape(std::initializer_list<int64_t> dims) : dims_(dims) {}
    explicit Shape(std::vector<int64_t> dims) : dims_(std::move(dims)) {}

    int rank() const noexcept { return static_cast<int>(dims_.size()); }
    int64_t operator[](int axis) const { return dims_[axis < 0 ? axis + rank() : axis]; }
    int64_t elements() const noexcept {
        int64_t product = 1;
        for (int64_t dim : dims_) product *= dim;
        return product;
    }
    const std::vector<int64_t>& dims() const noexcept { return dims_; }
    bool operator==(const Shape& other) const = default;

    // "[2, 4, 8, 8]", as torch prints it.
    std::string text() const {
        std::string out = "[";
        for (int i = 0; i < rank(); ++i) out += (i ? ", " : "") + std::to_string(dims_[i]);
        return out + "]";
    }

  private:
    std::vector<int64_t> dims_;
};

}  // namespace sde
