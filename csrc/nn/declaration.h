// A source of parameters without values: turns a network's constructor into a list of what it asks
// for.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "weights/store.h"

namespace sde::nn {

class Declaration : public ParameterSource {
  public:
    ggml_tensor* parameter(const std::string& name, const Shape& shape, Use) override {
        // Far more than any published network has; a config that asks for more is a mistake or an
        // attack, and its graph would not fit.
        constexpr size_t kMostParameters = 16384;
        if (names_.size() >= kMostParameters)
            throw Error(ErrorKind::Weights, "the network's hyper-parameters ask for more than " +
                                                std::to_string(kMostParameters) + " parameters");
        names_.emplace_back(name, shape);
        return nullptr;
    }
    bool has(const std::string&) const override { return true; }
    const Beside* beside(const std::string&) override { return nullptr; }
    const std::vector<std::pair<std::string, Shape>>& names() const noexcept { return names_; }

  private:
    std::vector<std::pair<std::string, Shape>> names_;
};

}  // namespace sde::nn
