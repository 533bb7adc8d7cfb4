// Compiler flags of this file: see dispatch.h.
#define SDE_ISA avx2
#define SDE_ISA_TABLE avx2_kernels
#define SDE_LANES 8
#include "kernels/simd/kernels.inl"
