#include "kernels/dispatch.h"

#include <cstdlib>

#include "base/error.h"
#include "kernels/fast/fast.h"

namespace sde::kernels {
namespace {

constexpr const char* kNames[] = {"reference", "plain", "avx2", "avx512"};

}  // namespace

bool available(Isa isa) noexcept {
    if (isa == Isa::Reference || isa == Isa::Plain) return true;
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    if (isa == Isa::Avx2) return avx2;
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
    return false;
#endif
}

const char* name_of(Isa isa) noexcept {
    return kNames[static_cast<int>(isa)];
}

std::optional<Isa> isa_named(const std::string& name) noexcept {
    for (const Isa isa : kIsas)
        if (name == name_of(isa)) return isa;
    return std::nullopt;
}

namespace {

Isa choose() {
    const char* text = std::getenv("SDENGINE_CPU");
    if (!text || !*text)
        return available(Isa::Avx512) ? Isa::Avx512 : available(Isa::Avx2) ? Isa::Avx2 : Isa::Plain;
    const std::optional<Isa> isa = isa_named(text);
    if (!isa || *isa == Isa::Reference)
        throw Error(ErrorKind::Parameter, "SDENGINE_CPU is '" + std::string(text) +
                                              "'; it takes plain, avx2 or avx512, or nothing for "
                                              "the best that this processor has");
    if (!available(*isa))
        throw Error(ErrorKind::Device, "SDENGINE_CPU asks for " + std::string(text) +
                                           ", which this processor does not have; unset it, or "
                                           "set it to plain");
    return *isa;
}

}  // namespace

Isa chosen_isa() {
    static const Isa isa = choose();
    return isa;
}

const KernelTable& kernel_table(Isa isa) noexcept {
#if defined(__x86_64__)
    if (isa == Isa::Avx512) return avx512_kernels;
    if (isa == Isa::Avx2) return avx2_kernels;
#endif
    return isa == Isa::Reference ? reference_kernels : plain_kernels;
}

// Runs an operator where Arithmetic::Fast says, and else on the chosen variant.
template <class Op>
static void run(const Op& op, void (*UnitTable::*fast)(const Op&, Team&),
                void (*KernelTable::*standard)(const Op&, Team&), Team& team) {
    if (const std::optional<Unit> unit = op.fast ? fast_unit(op) : std::nullopt)
        (unit_table(*unit).*fast)(op, team);
    else
        (kernel_table(chosen_isa()).*standard)(op, team);
}

void conv2d(const Conv2d& op, Team& team) {
    run(op, &UnitTable::conv2d, &KernelTable::conv2d, team);
}
void linear(const Linear& op, Team& team) {
    run(op, &UnitTable::linear, &KernelTable::linear, team);
}
void attention(const Attention& op, Team& team) {
    run(op, &UnitTable::attention, &KernelTable::attention, team);
}
void group_norm(const GroupNorm& op, Team& team) {
    kernel_table(chosen_isa()).group_norm(op, team);
}
void layer_norm(const LayerNorm& op, Team& team) {
    kernel_table(chosen_isa()).layer_norm(op, team);
}
void geglu(const Geglu& op, Team& team) {
    kernel_table(chosen_isa()).geglu(op, team);
}

}  // namespace sde::kernels
