// Operators of language models: rotary positions, masks of padded texts, T5's relative positions.
#pragma once

#include "nn/ops.h"

namespace sde::nn {

// Rotary positions (Su et al. 2021, arXiv 2104.09864): pair i of a head's first `dims` values is
// turned by position * theta^(-2i / dims) / divisors[i].
struct RotaryOptions {
    int64_t dims;
    float theta;
    std::vector<float> divisors;  // per pair; empty: all 1
    // With several positions per token, the pairs that each of them turns (Qwen2-VL, arXiv
    // 2409.12191).
    std::vector<int64_t> sections = {};
};
// Cosines, then sines, per token: positions [N, tokens] int32 -> [N, tokens, dims].
Tensor rotary_table(const Tensor& positions, const RotaryOptions& options);
// The same for several positions, as many as there are sections.
Tensor rotary_table(const std::vector<Tensor>& positions, const RotaryOptions& options);
// Turns every head of x [N, tokens, heads * head_dim]. A pair is two neighbours where
// `interleaved`, else a value of the first half of `dims` with its counterpart in the second.
Tensor rotate(const Tensor& x, const Tensor& table, int64_t head_dim, bool interleaved);

// Scores to add so that padding is not seen: mask [N, tokens] int32, 1 for a word and 0 for
// padding -> [N, tokens, tokens] of 0 and minus infinity.
struct PaddingMaskOptions {
    bool causal = false;            // a query sees no key behind itself
    bool padding_sees_all = false;  // queries at padding see everything, padding included (ChatGLM)
};
Tensor padding_mask(const Tensor& mask, const PaddingMaskOptions& options);

// T5's bidirectional relative positions (Raffel et al. 2020, arXiv 1910.10683): table [buckets,
// heads] -> [heads, 2 * tokens - 1] by key - query + tokens - 1. A quarter of the buckets are
// single distances each way; the others widen logarithmically up to `max_distance`.
Tensor distance_bias(const Tensor& table, int64_t tokens, int64_t max_distance);

}  // namespace sde::nn
