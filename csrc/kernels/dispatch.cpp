#include "kernels/dispatch.h"

namespace sde::kernels {

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

Isa best_isa() noexcept {
    static const Isa best = available(Isa::Avx512) ? Isa::Avx512
                            : available(Isa::Avx2) ? Isa::Avx2
                                                   : Isa::Plain;
    return best;
}

const KernelTable& kernel_table(Isa isa) noexcept {
#if defined(__x86_64__)
    if (isa == Isa::Avx512) return avx512_kernels;
    if (isa == Isa::Avx2) return avx2_kernels;
#endif
    return isa == Isa::Reference ? reference_kernels : plain_kernels;
}

void conv2d(const Conv2d& op, Team& team) {
    kernel_table(best_isa()).conv2d(op, team);
}
void linear(const Linear& op, Team& team) {
    kernel_table(best_isa()).linear(op, team);
}
void attention(const Attention& op, Team& team) {
    kernel_table(best_isa()).attention(op, team);
}
void group_norm(const GroupNorm& op, Team& team) {
    kernel_table(best_isa()).group_norm(op, team);
}
void layer_norm(const LayerNorm& op, Team& team) {
    kernel_table(best_isa()).layer_norm(op, team);
}
void geglu(const Geglu& op, Team& team) {
    kernel_table(best_isa()).geglu(op, team);
}

}  // namespace sde::kernels
