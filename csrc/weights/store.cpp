#include "weights/store.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "runtime/library.h"
#include "runtime/memory.h"
#include "weights/parallel.h"

namespace sde {
namespace {

constexpr size_t kAlignment = 64;  // a cache line

[[noreturn]] void fail(const std::string& message) {
    throw Error(ErrorKind::Weights, message);
}

}  // namespace

void TensorSource::validate(const std::string& name) const {
    if (shape.rank() > 4)
        fail("'" + name + "' has " + std::to_string(shape.rank()) +
             " axes; at most 4 are supported");
    uint64_t elements = 1;
    for (int64_t dim : shape.dims()) {
        if (dim <= 0 || elements > (uint64_t{1} << 48) / static_cast<uint64_t>(dim))
            fail("'" + name + "' has the impossible shape " + shape.text());
        elements *= static_cast<uint64_t>(dim);
    }
    if (padding != 0) {
        if (shape.rank() != 2 || padding < 0 || padding >= shape[1] || transpose ||
            !strides.empty())
            fail("'" + name + "' " + shape.text() + " cannot be widened by " +
                 std::to_string(padding) + " columns");
        elements -= static_cast<uint64_t>(shape[0] * padding);
    }
    const auto block = static_cast<uint64_t>(dtype.block_elements());
    if (elements % block != 0)
        fail("'" + name + "' " + shape.text() + " cannot be stored in blocks of " +
             std::to_string(block) + " values");
    if (transpose && shape.rank() != 2)
        fail("'" + name + "' is no matrix that could be transposed");
    if (strides.empty()) {
        if (dtype.bytes(static_cast<int64_t>(elements)) != nbytes)
            fail("'" + name + "' " + shape.text() + " needs " +
                 std::to_string(dtype.bytes(static_cast<int64_t>(elements))) +
                 " bytes, the file gives it " + std::to_string(nbytes));
        return;
    }
    if (block != 1 || static_cast<int>(strides.size()) != shape.rank())
        fail("'" + name + "' has strides that do not fit its shape " + shape.text());
    uint64_t last = 0;
    for (int i = 0; i < shape.rank(); ++i) {
        if (strides[i] < 0 || strides[i] > (int64_t{1} << 48))
            fail("'" + name + "' has an impossible stride");
        last += static_cast<uint64_t>(shape[i] - 1) * static_cast<uint64_t>(strides[i]);
    }
    if ((last + 1) * dtype.block_bytes() > nbytes)
        fail("'" + name + "' has strides that reach behind its bytes");
}

std::vector<float> TensorSource::read(const uint8_t* bytes) const {
    if (padding != 0) {
        TensorSource narrow = *this;
        narrow.padding = 0;
        narrow.shape = Shape{shape[0], shape[1] - padding};
        const std::vector<float> values = narrow.read(bytes);
        std::vector<float> widened(static_cast<size_t>(shape.elements()));
        const int64_t columns = narrow.shape[1];
        for (int64_t row = 0; row < shape[0]; ++row)
            std::copy_n(values.begin() + row * columns, columns, widened.begin() + row * shape[1]);
        return widened;
    }
    const int64_t elements = shape.elements();
    std::vector<float> values(static_cast<size_t>(elements));
    if (!strides.empty()) {
        std::vector<int64_t> index(shape.rank(), 0);
        for (int64_t i = 0; i < elements; ++i) {
            int64_t at = 0;
            for (int axis = 0; axis < shape.rank(); ++axis) at += index[axis] * strides[axis];
            to_float(dtype, bytes + static_cast<size_t>(at) * dtype.block_bytes(), &values[i], 1);
            for (int axis = shape.rank() - 1; axis >= 0 && ++index[axis] == shape[axis]; --axis)
                index[axis] = 0;
        }
    } else if (dtype.type == GGML_TYPE_F32 && dtype.foreign == DType::Foreign::None) {
        std::memcpy(values.data(), bytes, nbytes);
    } else {
        to_float(dtype, bytes, values.data(), elements);
    }
    if (scale != 1.0f)
        for (float& value : values) value *= scale;
    if (!transpose) return values;
    // `shape` is the wanted [rows, columns]; the bytes hold [columns, rows].
    const int64_t rows = shape[0], columns = shape[1];
    std::vector<float> turned(values.size());
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) turned[r * columns + c] = values[c * rows + r];
    return turned;
}

WeightStore::WeightStore() = default;

WeightStore::~WeightStore() {
    for (ggml_context* context : contexts_) ggml_free(context);
}

void WeightStore::add(const std::string& name, TensorSource source,
                      std::optional<ggml_type> convert_to) {
    source.validate(name);
    if (entries_.count(name)) fail("'" + name + "' was given twice");
    auto& file = files_[source.path];
    if (!file) file = std::make_shared<MappedFile>(from_utf8(source.path));
    file->bytes(source.offset, source.nbytes);  // throws when the range is outside of the file
    entries_.emplace(name, Entry{std::move(source), file, convert_to});
}

ggml_tensor* WeightStore::make_tensor(ggml_type type, const Shape& shape, const std::string& name) {
    // Contexts hold tensor headers only; they are added in chunks as parameters are resolved.
    constexpr size_t kTensorsPerContext = 256;
    if (contexts_.empty() || ggml_used_mem(contexts_.back()) + ggml_tensor_overhead() >
                                 ggml_get_mem_size(contexts_.back())) {
        ggml_context* context =
            ggml_init({ggml_tensor_overhead() * kTensorsPerContext, nullptr, true});
        if (!context) throw Error(ErrorKind::OutOfMemory, "no memory for tensor headers");
        contexts_.push_back(context);
    }
    // A matrix keeps its two axes; a kernel [out, in, kh, kw] becomes the matrix [out, in * kh *
    // kw], so that every quantized type fits it in place.
    const int64_t rows = shape.rank() > 1 ? shape[0] : 1;
    ggml_tensor* tensor = ggml_new_tensor_2d(contexts_.back(), type, shape.elements() / rows, rows);
    ggml_set_name(tensor, name.c_str());  // for profiles, which need its beginning; ggml cuts it
    return tensor;
}

void* WeightStore::own(size_t bytes) {
    before_allocation("a converted parameter", bytes);
    owned_.push_back(std::make_unique<uint8_t[]>(bytes + kAlignment));
    owned_bytes_ += bytes;
    const auto address = reinterpret_cast<uintptr_t>(owned_.back().get());
    return reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

ggml_tensor* WeightStore::parameter(const std::string& name, const Shape& shape, Use use) {
    auto it = entries_.find(name);
    if (it == entries_.end()) fail("the parameter '" + name + "' " + shape.text() + " is missing");
    Entry& entry = it->second;
    const TensorSource& source = entry.source;
    if (!(source.shape == shape))
        fail("the parameter '" + name + "' has shape " + source.shape.text() + ", expected " +
             shape.text());
    if (entry.tensor) return entry.tensor;

    const uint8_t* bytes = entry.file->bytes(source.offset, source.nbytes);
    const bool rearranged = source.transpose || source.padding != 0;
    const bool plain = source.plain() && source.dtype.foreign == DType::Foreign::None;
    ggml_type type =
        use == Use::Vector ? GGML_TYPE_F32 : entry.convert_to.value_or(source.dtype.type);
    // Files may quantize a tensor as one long run (reshaped to rows of 256), so that a block spans
    // two of our rows; such a parameter is held as f16 instead.
    const int64_t row_elements = shape.rank() > 1 ? shape.elements() / shape[0] : shape.elements();
    if (row_elements % ggml_blck_size(type) != 0) type = GGML_TYPE_F16;
    // Blocks cannot be rearranged, and to quantize their values again would lose a second time.
    if (rearranged && !entry.convert_to && ggml_is_quantized(type)) type = GGML_TYPE_F32;
    // Blocks of quantized types hold 16-bit fields at most; an odd address (possible in a
    // safetensors file) is copied.
    const size_t natural = type == GGML_TYPE_F32 ? 4 : 2;
    type = supported(type);
    ggml_tensor* tensor = make_tensor(type, shape, name);
    if (plain && type == source.dtype.type && reinterpret_cast<uintptr_t>(bytes) % natural == 0) {
        tensor->data =
            const_cast<uint8_t*>(bytes);  // the mapping is read-only; graphs never write parameters
        mapped_bytes_ += source.nbytes;
    } else if (plain && type == source.dtype.type) {
        tensor->data = own(source.nbytes);
        std::memcpy(tensor->data, bytes, source.nbytes);
    } else {
        const std::vector<float> values = source.read(bytes);
        tensor->data = own(ggml_nbytes(tensor));
        const int64_t row = tensor->ne[0];
        const size_t row_bytes = ggml_row_size(type, row);
        ggml_quantize_init(type);  // its tables are made once, not by the threads at the same time
        in_parallel(tensor->ne[1], 1, physical_cores(), [&](int64_t begin, int64_t end) {
            from_float(type, values.data() + begin * row,
                       static_cast<uint8_t*>(tensor->data) + begin * row_bytes, end - begin, row);
        });
        if (holds_infinity(type, tensor->data, shape.elements()))
            fail("the parameter '" + name + "' holds a value beyond the range of f16 (65504)");
    }
    own_values_[tensor->data] = plain && tensor->data == bytes;
    entry.tensor = tensor;
    asked_for_.push_back(tensor);
    return tensor;
}

const ggml_tensor& WeightStore::original(const std::string& name) const {
    auto it = entries_.find(name);
    if (it == entries_.end() || !it->second.tensor)
        fail("no network uses a parameter '" + name + "' that an adapter could change");
    return it->second.original ? *it->second.original : *it->second.tensor;
}

void WeightStore::replace(const std::string& name, ggml_type type, void* data) {
    original(name);  // throws where there is none
    Entry& entry = entries_.at(name);
    ggml_tensor* tensor = entry.tensor;
    if (!entry.original) entry.original = std::make_unique<ggml_tensor>(*tensor);
    tensor->type = type;
    tensor->data = data;
    tensor->nb[0] = ggml_type_size(type);
    tensor->nb[1] = ggml_row_size(type, tensor->ne[0]);
    for (int axis = 2; axis < GGML_MAX_DIMS; ++axis)
        tensor->nb[axis] = tensor->nb[axis - 1] * tensor->ne[axis - 1];
}

void WeightStore::restore(const std::string& name) {
    Entry& entry = entries_.at(name);
    if (!entry.original) return;
    *entry.tensor = *entry.original;
    entry.original.reset();
}

void WeightStore::use_on(const std::vector<std::shared_ptr<Device>>& devices) {
    if (devices_.empty()) devices_ = devices;
    // All of the host's devices use parameters alike: where they are.
    const bool in_place = devices_[0]->runs_custom() && devices[0]->runs_custom();
    if (in_place || devices_ == devices) return;
    throw Error(ErrorKind::Parameter, "the parameters were prepared for the device '" +
                                          devices_[0]->name() +
                                          "'; make another WeightStore for another device");
}

ggml_type WeightStore::supported(ggml_type type) const {
    if (devices_.empty() || devices_[0]->runs_custom()) return type;
    const auto knows = [&](ggml_type wanted) {
        const std::unique_ptr<ggml_context, decltype(&ggml_free)> context(
            ggml_init({8 * ggml_tensor_overhead(), nullptr, true}), ggml_free);
        if (!context) throw Error(ErrorKind::OutOfMemory, "no memory for tensor headers");
        constexpr int64_t kColumns = 256, kRows = 32;  // whole blocks of every type
        ggml_tensor* matrix = ggml_new_tensor_2d(context.get(), wanted, kColumns, kRows);
        ggml_tensor* x = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, kColumns, kRows);
        ggml_tensor* ids = ggml_new_tensor_1d(context.get(), GGML_TYPE_I32, kRows);
        const ggml_tensor* product = ggml_mul_mat(context.get(), matrix, x);
        const ggml_tensor* rows = ggml_get_rows(context.get(), matrix, ids);
        return std::all_of(devices_.begin(), devices_.end(), [&](const auto& device) {
            return device->supports(product) && device->supports(rows);
        });
    };
    auto [known, is_new] = supported_.try_emplace(type, type);
    if (is_new && !knows(type))
        known->second =
            type != GGML_TYPE_BF16 && knows(GGML_TYPE_F16) ? GGML_TYPE_F16 : GGML_TYPE_F32;
    return known->second;
}

bool WeightStore::is_mapped(const void* values) const {
    auto it = own_values_.find(values);
    return it != own_values_.end() && it->second;
}

std::optional<uint64_t> WeightStore::version(const void* values) const {
    if (auto it = versions_.find(values); it != versions_.end()) return it->second;
    if (own_values_.count(values)) return 0;
    return std::nullopt;
}

void WeightStore::values_gone(const void* values) {
    versions_.erase(values);
    ++changes_;
}

void WeightStore::check_files() const {
    for (const auto& [path, file] : files_) file->check_length();
}

void WeightStore::release_pages() const {
    for (const auto& [path, file] : files_) file->release_pages();
}

std::optional<std::string> WeightStore::first_not_finite() const {
    for (const auto& [name, entry] : entries_) {
        const uint8_t* bytes = entry.file->bytes(entry.source.offset, entry.source.nbytes);
        const std::vector<float> values = entry.source.read(bytes);
        if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }))
            return name;
    }
    return std::nullopt;
}

}  // namespace sde
