// Where a tensor lies in a file, from Python's values.
#pragma once

#include <filesystem>
#include <optional>

#include "runtime/library.h"
#include "weights/store.h"

namespace sde::bindings {

inline TensorSource make_source(const std::string& dtype, std::vector<int64_t> shape,
                                const std::filesystem::path& path, uint64_t offset, uint64_t nbytes,
                                std::optional<std::vector<int64_t>> strides, bool transpose,
                                int64_t padding = 0) {
    TensorSource source;
    source.path = to_utf8(path);
    source.offset = offset;
    source.nbytes = nbytes;
    source.dtype = DType::parse(dtype);
    source.shape = Shape(std::move(shape));
    source.strides = strides.value_or(std::vector<int64_t>{});
    source.transpose = transpose;
    source.padding = padding;
    return source;
}

}  // namespace sde::bindings
