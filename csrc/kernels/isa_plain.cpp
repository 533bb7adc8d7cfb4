// Compiler flags of this file: see dispatch.h.
#define SDE_ISA plain
#define SDE_ISA_TABLE plain_kernels
#define SDE_LANES 4
#include "kernels/simd/kernels.inl"
