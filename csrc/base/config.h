// Hyper-parameters of a network: a JSON-like tree that Python fills from a dict and networks read
// by name.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"

namespace sde {

class Config {
  public:
    using List = std::vector<Config>;
    using Map = std::map<std::string, Config>;

    Config() = default;
    Config(bool value) : value_(value) {}
    Config(int64_t value) : value_(value) {}
    Config(double value) : value_(value) {}
    Config(std::string value) : value_(std::move(value)) {}
    Config(List value) : value_(std::move(value)) {}
    Config(Map value) : value_(std::move(value)) {}

    // The named member; an error when it is absent, so that no default hides a hole in a family's
    // config.
    const Config& operator[](const std::string& name) const {
        const Map& map = get<Map>("a table");
        auto it = map.find(name);
        if (it == map.end())
            throw Error(ErrorKind::Parameter, "the network's config has no '" + name + "'");
        return it->second;
    }
    const Config& operator[](size_t index) const {
        const List& list = get<List>("a list");
        if (index >= list.size())
            throw Error(ErrorKind::Parameter, "the network's config has a list of " +
                                                  std::to_string(list.size()) + ", entry " +
                                                  std::to_string(index) + " was asked for");
        return list[index];
    }
    // For what only some of a kind's networks have.
    bool has(const std::string& name) const { return get<Map>("a table").count(name) != 0; }
    size_t size() const { return get<List>("a list").size(); }

    bool boolean() const { return get<bool>("true or false"); }
    int64_t integer() const { return get<int64_t>("a whole number"); }
    float number() const {
        if (auto* whole = std::get_if<int64_t>(&value_)) return static_cast<float>(*whole);
        return static_cast<float>(get<double>("a number"));
    }
    const std::string& text() const { return get<std::string>("a text"); }
    std::vector<int64_t> integers() const {
        std::vector<int64_t> out;
        for (const Config& entry : get<List>("a list")) out.push_back(entry.integer());
        return out;
    }

  private:
    template <class T>
    const T& get(const char* expected) const {
        if (auto* value = std::get_if<T>(&value_)) return *value;
        throw Error(ErrorKind::Parameter,
                    std::string("a value of the network's config is not ") + expected);
    }
    std::variant<std::monostate, bool, int64_t, double, std::string, List, Map> value_;
};

}  // namespace sde
