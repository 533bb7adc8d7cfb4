// Which compiled variant of the kernels runs.
//
// The kernels are one source, simd/*.inl, compiled once per instruction set:
//
// - isa_plain.cpp: the compiler's default flags, 128-bit vectors (SSE2 on x86-64, NEON on AArch64)
//
// - isa_avx2.cpp, x86-64 only: -mavx2 -mfma -mf16c -mprfchw (which processors without it take for
//   nothing), 256-bit vectors
//
// - isa_avx512.cpp, x86-64 only: those and -mavx512f -mavx512bw -mavx512vl -mavx512dq, 512-bit
//   vectors
//
// All with -O3 -ffp-contract=fast, in debug builds too. What these files include must hold no
// inline function of external linkage that the linker could share between them: see
// simd/kernels.inl.
#pragma once

#include <optional>
#include <string>

#include "kernels/kernels.h"

namespace sde::kernels {

// Reference is the plainest code, in double precision on one thread, for tests (reference.cpp).
enum class Isa { Reference, Plain, Avx2, Avx512 };
constexpr Isa kIsas[] = {Isa::Reference, Isa::Plain, Isa::Avx2, Isa::Avx512};

struct KernelTable {
    void (*conv2d)(const Conv2d&, Team&);
    void (*linear)(const Linear&, Team&);
    void (*attention)(const Attention&, Team&);
    void (*group_norm)(const GroupNorm&, Team&);
    void (*layer_norm)(const LayerNorm&, Team&);
    void (*geglu)(const Geglu&, Team&);
    // Runs `rounds` rounds of independent multiply-adds in registers; returns the number of
    // floating point operations. Timed, it is the peak that the other kernels are measured against.
    int64_t (*multiply_add)(int64_t rounds);
};

// Whether this build has the variant and this processor can run it.
bool available(Isa isa) noexcept;
const char* name_of(Isa isa) noexcept;
// The variant with this name, where there is one.
std::optional<Isa> isa_named(const std::string& name) noexcept;
// The one that operators run on: the widest available, or that which the environment variable
// SDENGINE_CPU names (for comparisons). Read once per process. Throws Error, kind Parameter, where
// the variable holds no name, kind Device where the variant is not available; a Device asks before
// any operator runs.
Isa chosen_isa();
// The kernels of an available variant.
const KernelTable& kernel_table(Isa isa) noexcept;

extern const KernelTable reference_kernels;
extern const KernelTable plain_kernels;
#if defined(__x86_64__)
extern const KernelTable avx2_kernels;
extern const KernelTable avx512_kernels;
#endif

}  // namespace sde::kernels
