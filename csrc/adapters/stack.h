// Adapters applied to the parameters of one network, over its weight store.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "adapters/change.h"
#include "weights/store.h"

namespace sde {

// What one file changes in one network.
class Adapter {
  public:
    void add(std::string parameter, Shape shape, ChangeKind kind, Change::Sources sources,
             float factor) {
        changes_.emplace_back(std::move(parameter), std::move(shape), kind, std::move(sources),
                              factor, files_);
    }
    const std::vector<Change>& changes() const noexcept { return changes_; }

    // Applies what it changes in `parameter` to its values.
    void apply(const std::string& parameter, std::vector<float>& values, float scale) const;

  private:
    std::vector<Change> changes_;
    std::map<std::string, std::shared_ptr<MappedFile>> files_;
};

struct AdapterUse {
    std::shared_ptr<const Adapter> adapter;
    float scale = 1;
    bool operator==(const AdapterUse&) const = default;
};

// Low-rank pairs stay beside the weight, all adapters of a layer in one pair; the file's weight is
// not touched, whatever its type. What is no such pair, and pairs that would cost nearly as much as
// the layer itself, are merged into a copy of the weight.
class AdapterStack {
  public:
    explicit AdapterStack(std::shared_ptr<WeightStore> store) : store_(std::move(store)) {}
    ~AdapterStack() { clear(); }
    AdapterStack(const AdapterStack&) = delete;
    AdapterStack& operator=(const AdapterStack&) = delete;

    // Makes exactly these apply. Returns whether graphs that were built before have become invalid:
    // not if the same layers keep the same ranks and types. When it throws, none applies.
    bool apply(const std::vector<AdapterUse>& uses);
    void clear();
    // What applies now.
    const std::vector<AdapterUse>& uses() const noexcept { return uses_; }
    // Whether any parameter is changed, and the memory that it takes.
    bool empty() const noexcept { return slots_.empty(); }
    size_t bytes() const;

  private:
    struct Scaled {
        const Change* change;
        float scale;
    };
    using Changes = std::map<std::string, std::vector<Scaled>>;
    // The memory behind one changed parameter.
    struct Slot {
        bool pair = false;
        int64_t rank = 0;
        ggml_type type = GGML_TYPE_F32;
        std::unique_ptr<uint8_t[]> memory;
        size_t bytes = 0;
        ggml_context* headers = nullptr;
        Beside beside;
        // Where its values lie; of a pair the gains come first.
        std::vector<const void*> values() const;
        ~Slot();
    };
    static Changes by_parameter(const std::vector<AdapterUse>& uses);
    bool lay_out(const Changes& changes);
    std::unique_ptr<Slot> planned(const std::string& name, const std::vector<Scaled>& of) const;
    static std::vector<float> merged(const ggml_tensor& original, const std::vector<Scaled>& of);
    void allocate(const std::string& name, Slot& slot);
    void fill(const std::string& name, Slot& slot, const std::vector<Scaled>& of,
              bool gains_only) const;
    void remove(const std::string& name, const Slot& slot);

    std::shared_ptr<WeightStore> store_;
    std::vector<AdapterUse> uses_;
    std::map<std::string, std::unique_ptr<Slot>> slots_;
};

}  // namespace sde
