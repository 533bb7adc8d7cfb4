// The one place where networks get their parameters from.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/shape.h"
#include "ggml.h"
#include "runtime/device.h"
#include "weights/dtype.h"
#include "weights/mapped_file.h"

namespace sde {

// Where one tensor lies in a file.
struct TensorSource {
    std::string path;  // UTF-8
    uint64_t offset = 0;
    uint64_t nbytes = 0;
    DType dtype;
    Shape shape;
    std::vector<int64_t> strides;  // in elements; empty = contiguous
    bool transpose = false;  // the file holds the transpose of a matrix [rows, columns] = shape
    int64_t padding = 0;     // columns of zeros at the end of each row, which the file has not
    float scale = 1.0f;      // what the file's values are to be multiplied with

    // Checks that shape, type, strides and byte count agree; throws Weights otherwise. `name` is
    // for the message.
    void validate(const std::string& name) const;
    // Whether the bytes are the parameter's as they are, but for their type.
    bool plain() const { return strides.empty() && !transpose && padding == 0 && scale == 1.0f; }
    // The values as float32 in C order of `shape`, from the mapped bytes.
    std::vector<float> read(const uint8_t* bytes) const;
};

// How a layer wants a parameter: a vector is always float32; a matrix or kernel is used in the
// file's type.
enum class Use { Vector, Matrix };

// What adapters add to a layer's product x W^T: up(gains * down(x)). Absent while `down` is null.
// It changes between evaluations only; a change of its sizes or types makes graphs invalid.
struct Beside {
    ggml_tensor* down = nullptr;   // [rank, row elements of the weight]
    ggml_tensor* gains = nullptr;  // [rank], float32
    ggml_tensor* up = nullptr;     // [rows of the weight, rank]
};

class ParameterSource {
  public:
    virtual ~ParameterSource() = default;
    // The parameter as a ggml tensor with data (reversed axes). Throws Weights when it is missing
    // or mis-shaped.
    virtual ggml_tensor* parameter(const std::string& name, const Shape& shape, Use use) = 0;
    virtual bool has(const std::string& name) const = 0;
    // What adapters add beside the matrix `name`; the address stays. Null for a source without
    // values.
    virtual const Beside* beside(const std::string& name) = 0;
};

// Parameters of one component, used in place from mapped files wherever the type allows it.
class WeightStore : public ParameterSource {
  public:
    WeightStore();
    ~WeightStore() override;

    // Registers a tensor under its canonical name. Nothing is read yet but the file's mapping is
    // checked. With `convert_to`, a matrix is held in that type instead of the file's, converted
    // when a network asks for it.
    void add(const std::string& name, TensorSource source,
             std::optional<ggml_type> convert_to = {});

    ggml_tensor* parameter(const std::string& name, const Shape& shape, Use use) override;
    bool has(const std::string& name) const override { return entries_.count(name) != 0; }
    const Beside* beside(const std::string& name) override { return &beside_[name]; }

    // The device that all networks over this store run on; it decides which types parameters are
    // held in. Throws Parameter when it was another one.
    void use_on(const std::vector<std::shared_ptr<Device>>& devices);
    // For the one evaluation that may move parameters to and from devices with their own memory.
    std::mutex& in_use() noexcept { return in_use_; }

    // Outside of evaluations the headers of parameters and of what adapters add point at the values
    // in host memory. Of such values: the bytes of a file that are used in place; ...
    bool is_mapped(const void* values) const;
    // ... and a number that grows with every change; 0 for values that never change, nothing for
    // values that have gone.
    std::optional<uint64_t> version(const void* values) const;
    uint64_t changes() const noexcept { return changes_; }
    // For adapters: values of theirs are new or have changed, or are gone.
    void values_changed(const void* values) { versions_[values] = ++changes_; }
    void values_gone(const void* values);

    // For adapters. Values that stand in the place of a parameter's own until `restore`; they
    // belong to the caller. Only while no evaluation is running, and a change of type makes graphs
    // invalid.
    void replace(const std::string& name, ggml_type type, void* data);
    void restore(const std::string& name);
    // Whether a layer asked what stands beside it; others can only be replaced.
    bool takes_beside(const std::string& name) const { return beside_.count(name) != 0; }
    void set_beside(const std::string& name, const Beside& beside) { beside_[name] = beside; }
    // The parameter as networks have it without adapters. Throws Weights when none asked for it.
    const ggml_tensor& original(const std::string& name) const;

    // Throws Format when a file has become shorter since it was mapped.
    void check_files() const;

    // Mapped parameters leave memory until they are read again.
    void release_pages() const;

    // The parameters that networks have asked for, in that order: by and large that of their use.
    const std::vector<ggml_tensor*>& parameters() const noexcept { return asked_for_; }

    // Bytes that the store owns (converted parameters) and bytes mapped from files and used in
    // place.
    size_t owned_bytes() const noexcept { return owned_bytes_; }
    size_t mapped_bytes() const noexcept { return mapped_bytes_; }

    // The first registered parameter that holds NaN or infinity, if any: to explain a NaN that a
    // network produced.
    std::optional<std::string> first_not_finite() const;

  private:
    struct Entry {
        TensorSource source;
        std::shared_ptr<MappedFile> file;
        std::optional<ggml_type> convert_to;
        ggml_tensor* tensor = nullptr;
        std::unique_ptr<ggml_tensor> original = {};  // its header, while it is replaced
    };
    ggml_tensor* make_tensor(ggml_type type, const Shape& shape, const std::string& name);
    void* own(size_t bytes);
    // The type, or a wider one where the devices lack it.
    ggml_type supported(ggml_type type) const;

    std::map<std::string, Entry> entries_;
    std::vector<ggml_tensor*> asked_for_;
    std::map<std::string, Beside> beside_;
    std::map<std::string, std::shared_ptr<MappedFile>> files_;
    std::vector<std::unique_ptr<uint8_t[]>> owned_;
    std::vector<ggml_context*> contexts_;
    size_t owned_bytes_ = 0, mapped_bytes_ = 0;
    std::vector<std::shared_ptr<Device>> devices_;
    mutable std::map<ggml_type, ggml_type> supported_;
    std::unordered_map<const void*, bool> own_values_;         // whether they are mapped
    std::unordered_map<const void*, uint64_t> versions_ = {};  // of what adapters bring
    uint64_t changes_ = 0;
    std::mutex in_use_;
};

}  // namespace sde
