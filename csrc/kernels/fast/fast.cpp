#include "kernels/fast/fast.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "kernels/dispatch.h"
#include "kernels/fast/tables.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

namespace sde::kernels {
namespace {

constexpr const char* kNames[] = {"int8_plain", "int8_avxvnni", "int8_avx512vnni", "int8_dotprod",
                                  "int8_i8mm",  "bf16_plain",   "bf16_avx512",     "bf16_neon"};

// Fewer rows than this are bound by reading the weights.
constexpr int64_t kFewRows = 8;

#if defined(__x86_64__)
// AVX-VNNI, which compilers' own tests know by different names: CPUID leaf 7.1, EAX, bit 4.
bool has_avx_vnni() noexcept {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || a < 1) return false;
    __cpuid_count(7, 1, a, b, c, d);
    return a >> 4 & 1;
}
#elif defined(__aarch64__) && defined(__linux__)
// HWCAP2_I8MM and HWCAP2_BF16, which the headers of a Linux before 5.10 lack.
constexpr unsigned long kI8mm = 1ul << 13, kBf16 = 1ul << 14;
#elif defined(__aarch64__) && defined(__APPLE__)
// By a name under hw.optional.arm; a system that does not know the name has none such.
bool has_feature(const char* name) noexcept {
    int value = 0;
    size_t size = sizeof value;
    return !sysctlbyname(name, &value, &size, nullptr, 0) && value;
}
#endif

bool processor_has(Unit unit) noexcept {
    switch (unit) {
        case Unit::Int8Plain:
        case Unit::Bf16Plain:
            return true;
#if defined(__x86_64__)
        case Unit::Int8AvxVnni:
            return available(Isa::Avx2) && has_avx_vnni();
        case Unit::Int8Avx512Vnni:
            return available(Isa::Avx512) && __builtin_cpu_supports("avx512vnni");
        case Unit::Bf16Avx512:
            return available(Isa::Avx512) && __builtin_cpu_supports("avx512bf16");
#elif defined(__aarch64__) && defined(__linux__)
        case Unit::Int8Dotprod:
            return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
        case Unit::Int8I8mm:
            return getauxval(AT_HWCAP2) & kI8mm;
        case Unit::Bf16Neon:
            return getauxval(AT_HWCAP2) & kBf16;
#elif defined(__aarch64__) && defined(__APPLE__)
        case Unit::Int8Dotprod:
            return true;  // every Apple processor that runs macOS
        case Unit::Int8I8mm:
            return has_feature("hw.optional.arm.FEAT_I8MM");
        case Unit::Bf16Neon:
            return has_feature("hw.optional.arm.FEAT_BF16");
#endif
        default:
            return false;
    }
}

// The narrowest variant of the other kernels beside which a unit is used.
Isa isa_of(Unit unit) noexcept {
    switch (unit) {
        case Unit::Int8AvxVnni:
            return Isa::Avx2;
        case Unit::Int8Avx512Vnni:
        case Unit::Bf16Avx512:
            return Isa::Avx512;
        default:
            return Isa::Plain;
    }
}

std::optional<Unit> best_of(std::initializer_list<Unit> units) {
    // Where the plain variant is all there is, asking for it means what all processors have.
    const char* limit = std::getenv("SDENGINE_CPU");
    if (limit && std::strcmp(limit, "plain") == 0) return std::nullopt;
    for (const Unit unit : units)
        if (available(unit) && isa_of(unit) <= chosen_isa()) return unit;
    return std::nullopt;
}

std::optional<Unit> best_int8() {
    static const std::optional<Unit> unit =
        best_of({Unit::Int8Avx512Vnni, Unit::Int8AvxVnni, Unit::Int8I8mm, Unit::Int8Dotprod});
    return unit;
}

std::optional<Unit> best_bf16() {
    static const std::optional<Unit> unit = best_of({Unit::Bf16Avx512, Unit::Bf16Neon});
    return unit;
}

std::optional<Unit> unit_for(const Weight& weight) {
    return ggml_is_quantized(weight.type) ? best_int8() : best_bf16();
}

}  // namespace

bool available(Unit unit) noexcept {
    return processor_has(unit);
}

const char* name_of(Unit unit) noexcept {
    return kNames[static_cast<int>(unit)];
}

std::optional<Unit> unit_named(const std::string& name) noexcept {
    for (const Unit unit : kUnits)
        if (name == name_of(unit)) return unit;
    return std::nullopt;
}

const UnitTable& unit_table(Unit unit) noexcept {
    switch (unit) {
#if defined(__x86_64__)
        case Unit::Int8AvxVnni:
            return int8_avxvnni_unit;
        case Unit::Int8Avx512Vnni:
            return int8_avx512vnni_unit;
        case Unit::Bf16Avx512:
            return bf16_avx512_unit;
#elif defined(__aarch64__)
        case Unit::Int8Dotprod:
            return int8_dotprod_unit;
        case Unit::Int8I8mm:
            return int8_i8mm_unit;
        case Unit::Bf16Neon:
            return bf16_neon_unit;
#endif
        case Unit::Bf16Plain:
            return bf16_plain_unit;
        default:
            return int8_plain_unit;
    }
}

bool is_product(const Conv2d& op) noexcept {
    return op.kernel_h == 1 && op.kernel_w == 1 && op.stride == 1 && !op.upsample2x &&
           !op.pad_top && !op.pad_left && !op.pad_bottom && !op.pad_right;
}

std::optional<Unit> fast_unit(const Linear& op) {
    if (op.rows < kFewRows) return std::nullopt;
    return unit_for(op.weight);
}

std::optional<Unit> fast_unit(const Conv2d& op) {
    return is_product(op) ? unit_for(op.weight) : std::nullopt;
}

std::optional<Unit> fast_unit(const Attention& op) {
    const bool plain = !op.causal && !op.mask && !op.distance_bias && op.softcap == 0;
    return plain && op.q_len >= kFewRows ? best_bf16() : std::nullopt;
}

}  // namespace sde::kernels
