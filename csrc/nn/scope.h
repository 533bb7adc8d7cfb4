// Where a layer finds its parameters: a source of weights and a dotted path.
#pragma once

#include <string>

#include "base/shape.h"
#include "weights/store.h"

namespace sde::nn {

class Scope {
  public:
    Scope(ParameterSource& source, std::string path) : source_(&source), path_(std::move(path)) {}

    Scope operator/(const std::string& name) const {
        return {*source_, path_.empty() ? name : path_ + "." + name};
    }
    Scope operator/(int index) const { return *this / std::to_string(index); }

    // Parameters of the layer at this path.
    ggml_tensor* vector(const std::string& name, int64_t size) const {
        return source_->parameter((*this / name).path_, Shape{size}, Use::Vector);
    }
    ggml_tensor* matrix(const std::string& name, const Shape& shape) const {
        return source_->parameter((*this / name).path_, shape, Use::Matrix);
    }
    // What adapters add beside a matrix of the layer at this path.
    const Beside* beside(const std::string& name) const {
        return source_->beside((*this / name).path_);
    }
    const std::string& path() const noexcept { return path_; }
    bool has(const std::string& name) const { return source_->has((*this / name).path_); }

  private:
    ParameterSource* source_;
    std::string path_;
};

}  // namespace sde::nn
