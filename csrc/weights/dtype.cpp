#include "weights/dtype.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"

namespace sde {
namespace {

// OCP 8-bit floating point (Micikevicius et al. 2022, arXiv 2209.05433). e4m3: bias 7, no infinity,
// NaN is all ones. e5m2: bias 15, IEEE-like infinity and NaN.
float decode_f8(uint8_t bits, int exponent_bits, bool ieee_specials) {
    const int mantissa_bits = 7 - exponent_bits;
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
    const int mantissa = bits & ((1 << mantissa_bits) - 1);
    const float sign = bits & 0x80 ? -1.0f : 1.0f;
    const int top = (1 << exponent_bits) - 1;
    if (exponent == top && ieee_specials)
        return mantissa ? std::numeric_limits<float>::quiet_NaN()
                        : sign * std::numeric_limits<float>::infinity();
    if (exponent == top && mantissa == (1 << mantissa_bits) - 1)
        return std::numeric_limits<float>::quiet_NaN();
    const float fraction = static_cast<float>(mantissa) / static_cast<float>(1 << mantissa_bits);
    return exponent ? sign * std::ldexp(1.0f + fraction, exponent - bias)
                    : sign * std::ldexp(fraction, 1 - bias);
}

const std::array<float, 256>& f8_table(bool e5m2) {
    static const auto build = [](int exponent_bits, bool ieee) {
        std::array<float, 256> table;
        for (int i = 0; i < 256; ++i)
            table[i] = decode_f8(static_cast<uint8_t>(i), exponent_bits, ieee);
        return table;
    };
    static const std::array<float, 256> e4m3_values = build(4, false), e5m2_values = build(5, true);
    return e5m2 ? e5m2_values : e4m3_values;
}

}  // namespace

DType DType::parse(const std::string& name) {
    if (name == "f64") return {GGML_TYPE_F32, Foreign::F64};
    if (name == "f8_e4m3") return {GGML_TYPE_F16, Foreign::F8E4M3};
    if (name == "f8_e5m2") return {GGML_TYPE_F16, Foreign::F8E5M2};
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        const ggml_type_traits* traits = ggml_get_type_traits(type);
        if (!traits->type_name || traits->blck_size <= 0) continue;
        std::string lower = traits->type_name;
        for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
        const bool real = type == GGML_TYPE_F32 || traits->to_float;
        if (lower == name && real) return {type, Foreign::None};
    }
    throw Error(ErrorKind::Weights,
                "tensor type '" + name +
                    "' cannot hold parameters; expected f32, f16, bf16, f64, "
                    "f8_e4m3, f8_e5m2 or a quantized type such as q8_0 or q4_k");
}

ggml_type DType::writable() const {
    if (foreign != Foreign::None || ggml_quantize_requires_imatrix(type))
        throw Error(ErrorKind::Weights, "this type can be read but not written");
    return type;
}

int64_t DType::block_elements() const {
    return foreign == Foreign::None ? ggml_blck_size(type) : 1;
}

size_t DType::block_bytes() const {
    switch (foreign) {
        case Foreign::None:
            return ggml_type_size(type);
        case Foreign::F64:
            return 8;
        default:
            return 1;
    }
}

size_t DType::bytes(int64_t elements) const {
    return static_cast<size_t>(elements / block_elements()) * block_bytes();
}

void to_float(const DType& dtype, const void* source, float* out, int64_t count) {
    switch (dtype.foreign) {
        case DType::Foreign::F64:
            for (int64_t i = 0; i < count; ++i) {
                double value;  // the source may be unaligned
                std::memcpy(&value, static_cast<const char*>(source) + i * 8, 8);
                out[i] = static_cast<float>(value);
            }
            return;
        case DType::Foreign::F8E4M3:
        case DType::Foreign::F8E5M2: {
            const auto& table = f8_table(dtype.foreign == DType::Foreign::F8E5M2);
            for (int64_t i = 0; i < count; ++i)
                out[i] = table[static_cast<const uint8_t*>(source)[i]];
            return;
        }
        case DType::Foreign::None:
            break;
    }
    if (dtype.type == GGML_TYPE_F32)
        std::memcpy(out, source, static_cast<size_t>(count) * 4);
    else
        ggml_get_type_traits(dtype.type)->to_float(source, out, count);
}

void from_float(ggml_type type, const float* source, void* out, int64_t rows,
                int64_t row_elements) {
    // ggml_quantize_chunk also writes f32, f16 and bf16; it needs no importance matrix for the
    // types we write.
    ggml_quantize_chunk(type, source, out, 0, rows, row_elements, nullptr);
}

bool holds_infinity(ggml_type type, const void* data, int64_t count) {
    if (type != GGML_TYPE_F16) return false;
    const auto* halves = static_cast<const uint16_t*>(data);
    return std::any_of(halves, halves + count,
                       [](uint16_t bits) { return (bits & 0x7fffu) == 0x7c00u; });
}

}  // namespace sde
