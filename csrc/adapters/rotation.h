// Orthogonal changes of a weight: its rows or columns are rotated in blocks.
#pragma once

#include <cstdint>
#include <vector>

namespace sde {

// Adds Q, the skew-symmetric blocks of OFT (Qiu et al. 2023, arXiv 2306.07280), as rotations to the
// matrix `weight` [out, rest]. `blocks` [stages, count, size, size] are not yet skew: Q = B - B^T.
// Their common length is brought to at most `limit`, if it is above 0. With one stage row block k
// becomes R_k^T W_k, R = (I + Q) (I - Q)^-1. With several (BOFT: Liu et al. 2023, arXiv 2311.06243;
// LyCORIS' modules/boft.py) row block k becomes R_k W_k once per stage, on rows that a butterfly
// has put side by side. size * count = out.
void rotate_rows(std::vector<float>& weight, int64_t out, std::vector<float> blocks, int64_t stages,
                 int64_t count, int64_t size, float limit);

// PEFT's OFT: column block k becomes W_k R_k^T. `skew` [count or 1, size (size - 1) / 2] are the
// upper triangles of Q; one serves all blocks. R is the sum of the first `terms` of the Neumann
// series of (I + Q) (I - Q)^-1, the last one halved; for `terms` 0 it is (I - Q) (I + Q)^-1.
void rotate_columns(std::vector<float>& weight, int64_t out, const std::vector<float>& skew,
                    int64_t count, int64_t size, int terms);

}  // namespace sde
