// A source of parameters without values: turns a network's constructor into a list of what it asks
// for.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "weights/store.h"

namespace sde::nn {

class Declaration : public ParameterSource {
  public:
    ggml_tensor* parameter(const std::string& name, const Shape& shape, Use) override {
        names_.emplace_back(name, shape);
        return nullptr;
    }
    bool has(const std::string&) const override { return true; }
    const std::vector<std::pair<std::string, Shape>>& names() const noexcept { return names_; }

  private:
    std::vector<std::pair<std::string, Shape>> names_;
};

}  // namespace sde::nn
