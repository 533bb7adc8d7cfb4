// The layers and operators of nn in ggml's own operators, for devices that cannot run the kernels
// of csrc/kernels. nn checks shapes, then asks `graph.is_portable()`; networks notice nothing.
//
// Only operators and operands that the CPU, CUDA, Metal and Vulkan backends all take are used:
// float32 activations, contiguous operands where any of them wants it, the head widths of flash
// attention that all of them know, and float32 sums (half precision overflows in some models).
//
// Feature maps are channels last as everywhere: a product with a weight matrix gives that order,
// and tokens stay free. What needs whole planes (convolutions read them, group norms leave them)
// shares one copy, see planes.h.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "nn/dit.h"
#include "nn/layers.h"
#include "nn/text.h"

namespace sde::nn::portable {

// convolution.cpp, epilogue.cpp. `op` says everything but the addresses; `shape` is the result's.
Tensor conv2d(const kernels::Conv2d& op, const Tensor& x, ggml_tensor* weight, ggml_tensor* bias,
              const Epilogue& epilogue, const Shape& shape);
Tensor linear(const Tensor& x, ggml_tensor* weight, ggml_tensor* bias, const Epilogue& epilogue,
              const Shape& shape);
// What is left to do with the sum of a layer.
Tensor finish(const Tensor& sum, ggml_tensor* bias, const Epilogue& epilogue);

// norms.cpp
Tensor group_norm(const Tensor& x, int64_t groups, float eps, ggml_tensor* gamma, ggml_tensor* beta,
                  bool silu);
// norm(x) * factor + shift. Each of them is a vector [width], or [N, width] where every entry of
// the batch has its own; null ones are left out. With `plus_one` the factor is 1 + factor.
Tensor layer_norm(const Tensor& x, float eps, ggml_tensor* factor, ggml_tensor* shift,
                  bool plus_one = false);
Tensor scaled_rms_norm(const Tensor& x, float eps, ggml_tensor* gamma, const Tensor& factor,
                       const Tensor& residual);
// The norm of each head of x [N, tokens, heads * head_dim]: layer norm, or RMS norm.
Tensor head_norm(const Tensor& x, int64_t head_dim, float eps, ggml_tensor* gamma,
                 ggml_tensor* beta, bool is_layer);
Tensor normalized_guidance(const Tensor& features, const Tensor& away, const Tensor& figures);

// attention.cpp
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v,
                 const AttentionOptions& options);

// pixels.cpp
Tensor concat_channels(const Tensor& a, const Tensor& b);
Tensor average_pool_2x(const Tensor& x);
Tensor mean_pixels(const Tensor& x);
Tensor pixel_shuffle(const Tensor& x, int64_t r);
Tensor pixel_unshuffle(const Tensor& x, int64_t r);
Tensor patchify(const Tensor& x, int64_t patch, PatchOrder order);
Tensor unpatchify(const Tensor& x, int64_t height, int64_t width, int64_t patch, PatchOrder order);
Tensor prelu(const Tensor& x, ggml_tensor* slopes);
// The picture of height x width whose pixel (y, x) is the given pixel `from`(y, x), as (row,
// column).
using PixelSource = std::function<std::pair<int64_t, int64_t>(int64_t y, int64_t x)>;
Tensor rearranged(const Tensor& x, int64_t height, int64_t width, const PixelSource& from);

// tokens.cpp
// Rows of a matrix by number, as float32: row_ids has one for each row of the result.
Tensor take_rows(Graph& graph, ggml_tensor* matrix, const std::vector<int32_t>& row_ids,
                 const Shape& shape);
std::vector<int32_t> first_rows(int64_t count, int64_t times = 1);  // 0 ... count - 1, repeated
Tensor lookup(const Tensor& ids, ggml_tensor* table, const Tensor& learned);
Tensor choose_tokens(const Tensor& x, const Tensor& mask, const Tensor& instead);

// positions.cpp
// x * cosines + partners * sines, where the table [tokens, dims] or [N, tokens, dims] has the
// cosines of the pairs, then their sines, from row `first` on. What lies behind `dims` is kept.
Tensor rotate(const Tensor& x, const Tensor& table, int64_t first, int64_t head_dim,
              bool interleaved);
// The angles of pairs are position * frequency; `axes` says which of the positions.
Tensor rotary_table(const std::vector<Tensor>& positions, const std::vector<double>& frequencies,
                    const std::vector<int>& axes);
Tensor padding_mask(const Tensor& mask, const PaddingMaskOptions& options);
// `buckets` has the row of the table for each distance.
Tensor distance_bias(const Tensor& table, const std::vector<int32_t>& buckets);

// Scores of what is not to be seen. Not infinite: a row without any key must not become NaN.
constexpr float kHidden = -30000.0f;

}  // namespace sde::nn::portable
