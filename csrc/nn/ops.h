// Operators on tensors that carry no parameters. Shapes are checked here, before ggml sees them.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "nn/tensor.h"

namespace sde::nn {

using kernels::Activation;

// Inputs and outputs of a graph. A rank 4 input is a feature map [N, C, H, W]; the caller sets and
// gets its values channels last.
Tensor input(Graph& graph, const std::string& name, const Shape& shape);
Tensor input_ids(Graph& graph, const std::string& name, const Shape& shape,
                 int64_t limit);  // int32, [0, limit)
void output(const std::string& name, const Tensor& x);

// [N, C, H, W] <-> [N, H * W, C]; free, as feature maps are channels last.
Tensor tokens(const Tensor& feature_map);
Tensor feature_map(const Tensor& tokens, int64_t height, int64_t width);

Tensor reshape(const Tensor& x, const Shape& shape);  // not for feature maps
Tensor add(const Tensor& a, const Tensor& b);  // equal shapes, or b a vector of a's last axis
// b [tokens, width] is added to every batch entry of a [N, tokens, width].
Tensor add_broadcast(const Tensor& a, const Tensor& b);
// Rows of x seen as [N * tokens, width], by index [M] -> [M, width].
Tensor take_rows(const Tensor& x, const Tensor& rows);
Tensor scale(const Tensor& x, float factor, float offset = 0.0f);  // x * factor + offset
Tensor tanh(const Tensor& x);
Tensor multiply(const Tensor& a, const Tensor& b);  // equal shapes
Tensor activate(const Tensor& x, Activation activation);
Tensor leaky_relu(const Tensor& x, float slope);
Tensor add_per_channel(const Tensor& feature_map, const std::vector<float>& values);
Tensor concat_channels(const Tensor& a, const Tensor& b);  // two feature maps
Tensor concat_tokens(const Tensor& a, const Tensor& b);    // [N, tokens, width], b behind a
// Pixel i of the result is pixel floor(i * size / new size).
Tensor resize_nearest(const Tensor& feature_map, int64_t height, int64_t width);
// Channel c r^2 + i r + j at a point <-> channel c at row i, column j of a square of r x r points
// (Shi et al. 2016, arXiv 1609.05158).
Tensor pixel_shuffle(const Tensor& feature_map, int64_t r);
Tensor pixel_unshuffle(const Tensor& feature_map, int64_t r);
// More rows and columns below and to the right, mirrored at the last ones as often as it takes.
Tensor pad_mirrored(const Tensor& feature_map, int64_t height, int64_t width);
// The first rows and columns.
Tensor crop(const Tensor& feature_map, int64_t height, int64_t width);
// The mean of each 2 x 2 pixels; at an odd edge, of those that are there.
Tensor average_pool_2x(const Tensor& feature_map);
// The mean of all pixels, [N, C, H, W] -> [N, 1, C].
Tensor mean_pixels(const Tensor& feature_map);
// One value per channel [N, 1, C] is added to every pixel of a feature map [N, C, H, W].
Tensor add_to_pixels(const Tensor& feature_map, const Tensor& values);
// Rows [start, start + count) of the last axis of a rank 2 or 3 tensor, without a copy.
Tensor slice_last(const Tensor& x, int64_t start, int64_t count);
Tensor contiguous(const Tensor& x);  // a copy of what slice_last() leaves

// value * gelu(gate) for x = [value, gate] along the last axis (Shazeer 2020, arXiv 2002.05202).
Tensor geglu(const Tensor& x);

// Multi-head attention on [N, tokens, heads * head_dim]; keys and values may have another token
// count.
struct AttentionOptions {
    int64_t heads = 1;
    bool causal = false;
    Tensor mask = {};  // added to the scores: [1 or N, query tokens, key tokens]
    // Which of M masks [M * heads, query tokens, key tokens], one per head, each batch entry takes.
    // Empty for the plain kind.
    std::vector<int32_t> mask_index = {};
    int64_t kv_heads = 0;       // keys and values have this many heads; 0: as many as the queries
    float scale = 0;            // of the scores; 0: 1 / sqrt(head_dim)
    float softcap = 0;          // above 0, scores are softcap * tanh(score / softcap)
    Tensor distance_bias = {};  // added to the scores: [heads, query tokens + key tokens - 1]
};
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v,
                 const AttentionOptions& options);

// Normalised attention guidance (Chen et al. 2025, arXiv 2505.21179, section 3.2): away from the
// features of another context, [N, tokens, width] each. `figures` [N, 3] are scale, tau (the
// largest growth of a token's L1 norm) and alpha (the weight of the guided features).
Tensor normalized_guidance(const Tensor& features, const Tensor& away, const Tensor& figures);

// Sinusoidal embedding [N] -> [N, width], cosines first, frequencies 10000^(-i / (width / 2)) (Ho
// et al. 2020).
Tensor timestep_embedding(const Tensor& timesteps, int64_t width);

}  // namespace sde::nn
