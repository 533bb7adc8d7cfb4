// CPU kernels that ggml lacks. Activations are float32; feature maps are channels last, [N, H, W,
// C]; weights are used in place, in any ggml type, and turned into float32 tile by tile.
//
// A kernel is one function run by every thread of a team at once; it returns when its share is
// done (every kernel ends with a barrier, so that its output is complete and the team's state ready
// for another operator). Results do not depend on the number of threads. An output must not overlap
// an input: sums are collected in it. Float arrays are aligned to 4 bytes, weights to any byte. A
// kernel throws nothing and checks nothing; whoever builds the operator answers for its shapes.
#pragma once

#include <cstdint>

#include "ggml.h"
#include "kernels/team.h"

namespace sde::kernels {

// LeakyRelu has the slope 0.2 below zero, that of every upscaler (ESRGAN, arXiv 1809.00219).
enum class Activation { None, Silu, Gelu, GeluTanh, QuickGelu, Relu, LeakyRelu };
constexpr float kLeakySlope = 0.2f;

// A weight matrix [rows, row_elements] in a ggml type, rows contiguous (for a convolution: rows =
// out channels, row_elements = in_channels * kernel_h * kernel_w in torch's order).
struct Weight {
    const void* data;
    ggml_type type;
    int64_t rows;
    int64_t row_elements;
};

// output = gate[n, c] * activation(sum + bias[c] + batch_bias[n, c]) + residual; a null pointer
// drops its term or factor. With `residual_inside` the residual is added before the activation.
struct Epilogue {
    const float* bias = nullptr;
    const float* batch_bias = nullptr;
    const float* residual = nullptr;
    Activation activation = Activation::None;
    bool residual_inside = false;
    const float* gate = nullptr;
    int64_t gate_stride = 0;  // elements between the gates of two batch entries
};

// Auto chooses by shape. Winograd (3x3, stride 1 only; otherwise Direct) multiplies a quarter as
// often; its relative L2 error is about three times that of direct summation (1e-6 instead of
// 3e-7).
enum class ConvMethod { Auto, Direct, Winograd };

struct Conv2d {
    static constexpr const char* kName = "conv2d";
    const float* input;  // [batch, height, width, in_channels]
    float* output;       // [batch, out_height, out_width, weight.rows]
    int64_t batch, height, width, in_channels;
    Weight weight;
    int kernel_h = 3, kernel_w = 3, stride = 1;
    int pad_top = 1, pad_left = 1, pad_bottom = 1, pad_right = 1;
    bool upsample2x = false;  // the input is read as if enlarged twice by nearest neighbour
    bool circular_x = false, circular_y = false;  // padding wraps around
    Epilogue epilogue;
    ConvMethod method = ConvMethod::Auto;
    bool fast = false;  // may round operands to 8 or 16 bits, see fast/fast.h
};
void conv2d(const Conv2d& op, Team& team);

struct Linear {
    static constexpr const char* kName = "linear";
    const float* input;  // [rows, in_features]
    float* output;       // [rows, weight.rows]
    int64_t rows, in_features;
    int64_t rows_per_batch =
        0;  // for epilogue.batch_bias: the batch index of a row is row / rows_per_batch
    Weight weight;
    Epilogue epilogue;
    bool fast = false;  // may round operands to 8 or 16 bits, see fast/fast.h
};
void linear(const Linear& op, Team& team);

// softmax(scale * q k^T + mask) v for each head, without ever holding a [q_len, kv_len] matrix. A
// head h lies at element offset h * head_dim in each token; strides are in elements. Causal: query
// i sees the keys 0 ... i, as in torch, also where kv_len differs from q_len. A query that sees no
// key gives zeros.
struct Attention {
    const float *q, *k, *v;
    float* output;
    int64_t batch, heads, kv_heads, head_dim, q_len, kv_len;  // kv_heads divides heads
    int64_t q_token_stride, k_token_stride, v_token_stride, output_token_stride;
    int64_t q_batch_stride, k_batch_stride, v_batch_stride, output_batch_stride;
    float scale;
    bool causal = false;
    // Added to the scores: [mask_batch, mask_heads, q_len, kv_len]. With one batch or one head it
    // is shared by all.
    const float* mask = nullptr;
    int64_t mask_batch = 1;               // 1 or batch; any number with mask_index
    int64_t mask_heads = 1;               // 1 or heads
    const int32_t* mask_index = nullptr;  // [batch]: which mask each batch entry takes
    // Above 0, a score becomes softcap * tanh(score / softcap) before anything is added to it
    // (Gemma 2, arXiv 2408.00118).
    float softcap = 0;
    // Added to the scores by distance: [heads, q_len + kv_len - 1], entry key - query + q_len - 1
    // (T5, arXiv 1910.10683).
    const float* distance_bias = nullptr;
    bool fast = false;  // may round operands to 8 or 16 bits, see fast/fast.h
};
void attention(const Attention& op, Team& team);

struct GroupNorm {
    static constexpr const char* kName = "group_norm";
    const float* input;  // [batch, pixels, channels]
    float* output;       // may be the input
    int64_t batch, pixels, channels, groups;
    float eps;
    const float *gamma, *beta;  // [channels]
    bool silu = false;
};
void group_norm(const GroupNorm& op, Team& team);

struct LayerNorm {
    static constexpr const char* kName = "layer_norm";
    const float* input;  // [rows, width]
    float* output;
    int64_t rows, width;
    float eps;
    const float *gamma, *beta;  // [width], may be null
    float gamma_offset = 0;     // added to gamma where there is one
};
void layer_norm(const LayerNorm& op, Team& team);

struct Geglu {
    static constexpr const char* kName = "geglu";
    const float* input;  // [rows, 2 * inner]: value, then gate
    float* output;       // [rows, inner] = value * gelu(gate), the erf form
    int64_t rows, inner;
};
void geglu(const Geglu& op, Team& team);

}  // namespace sde::kernels
