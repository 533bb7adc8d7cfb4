// Compiler flags of this file: see dispatch.h.
#define SDE_ISA avx512
#define SDE_ISA_TABLE avx512_kernels
#define SDE_LANES 16
#include "kernels/simd/kernels.inl"
