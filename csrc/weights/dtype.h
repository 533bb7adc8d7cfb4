// Element types as files name them, and their conversion to float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "ggml.h"

namespace sde {

// A type in a file: either a ggml type, or one that ggml lacks and that is converted on loading.
struct DType {
    enum class Foreign { None, F64, F8E4M3, F8E5M2 };
    ggml_type type = GGML_TYPE_F32;  // what the tensor becomes in memory
    Foreign foreign = Foreign::None;

    // From names such as "f16", "f8_e4m3", "q4_0"; throws Weights for one that cannot hold
    // parameters.
    static DType parse(const std::string& name);

    // The ggml type, if parameters can be written in it; throws Weights otherwise.
    ggml_type writable() const;

    int64_t block_elements() const;
    size_t block_bytes() const;
    // Bytes of `elements` values; elements must be a multiple of block_elements().
    size_t bytes(int64_t elements) const;
};

// Converts `count` elements (a multiple of the block) to float32.
void to_float(const DType& dtype, const void* source, float* out, int64_t count);

// Converts `rows` rows of `row_elements` float32 values into a ggml type.
void from_float(ggml_type type, const float* source, void* out, int64_t rows, int64_t row_elements);

// Whether a written tensor holds an infinity, which for f16 means that a value was beyond 65504.
bool holds_infinity(ggml_type type, const void* data, int64_t count);

}  // namespace sde
