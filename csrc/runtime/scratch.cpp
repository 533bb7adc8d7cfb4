#include "runtime/scratch.h"

#include <algorithm>

namespace sde {
namespace {

// cuBLAS takes a workspace per handle: 32 MiB from Hopper on, 4 MiB before (its documentation,
// "cublasSetWorkspace").
constexpr size_t kCublasWorkspace = size_t{32} << 20;
// A result is computed in parts that are added up only where its tiles leave half of the device
// idle (ggml-vulkan, `ggml_vk_guess_split_k`): 128 x 128 values a tile, 8 parts, 128 cores.
constexpr size_t kSplitResults = size_t{64} << 20;
constexpr int64_t kLongSums = 2048;  // shorter ones are not divided
constexpr int64_t kTileRows = 256;   // of ggml-vulkan's largest tiles
// The pool grows in pieces of 2 MiB, or 5 % more than was asked for (ggml-cuda,
// `ggml_cuda_pool_*`).
size_t in_pool(size_t bytes) {
    constexpr size_t kPiece = size_t{2} << 20;
    return (bytes + bytes / 20 + kPiece - 1) / kPiece * kPiece;
}

size_t count(const ggml_tensor& tensor) {
    return static_cast<size_t>(ggml_nelements(&tensor));
}

Scratch::Operands on_cuda(const ggml_tensor& node) {
    Scratch::Operands own;
    if (node.op == GGML_OP_MUL_MAT) {
        const ggml_type type = node.src[0]->type;
        if (ggml_is_quantized(type)) {
            own.inputs = count(*node.src[1]) * 9 / 8;  // in 8 bits, with a scale for 32
        } else if (type != GGML_TYPE_F32) {
            // Half precision that is to be summed in float32 is widened; bfloat16 narrows the
            // inputs and the result.
            own.weights = 4 * count(*node.src[0]);
            own.inputs = 2 * count(*node.src[1]);
            own.results = 2 * count(node);
        }
    } else if (node.op == GGML_OP_FLASH_ATTN_EXT) {
        // Partial results where there are few rows; keys and values in half precision have room in
        // the result's buffer.
        own.results = std::min(8 * 4 * count(node), kSplitResults);
    }
    return own;
}

// Which of them a device takes depends on what it can multiply (`ggml_vk_mul_mat_q_f16`): at most
// all. Keys and values are never quantized here, so that attention takes partial results only.
Scratch::Operands on_vulkan(const ggml_tensor& node) {
    Scratch::Operands own;
    if (node.op == GGML_OP_MUL_MAT) {
        const ggml_tensor &matrix = *node.src[0], &input = *node.src[1];
        // A matrix is used as it is, but for float32 on some tensor cores and for views.
        if (matrix.type == GGML_TYPE_F32 || !ggml_is_contiguous(&matrix))
            own.weights = 2 * count(matrix);
        // In half precision with rows up to a whole tile, or in 8 bits; as they are where there are
        // few.
        own.inputs = input.ne[1] <= 8
                         ? 4 * count(input)
                         : 2 * (count(input) + static_cast<size_t>(kTileRows * input.ne[0] *
                                                                   input.ne[2] * input.ne[3]));
        if (input.ne[0] >= kLongSums) own.results = std::min(8 * 4 * count(node), kSplitResults);
    } else if (node.op == GGML_OP_FLASH_ATTN_EXT) {
        own.results = std::min(8 * 4 * count(node), kSplitResults);
    }
    return own;
}

bool starts_with(const std::string& text, const char* with) {
    return text.rfind(with, 0) == 0;
}

}  // namespace

Scratch::Scratch(const std::string& device)
    : kind_(starts_with(device, "cuda")     ? Kind::Cuda
            : starts_with(device, "vulkan") ? Kind::Vulkan
                                            : Kind::None) {}

void Scratch::add(const ggml_tensor& node) {
    Operands own;
    if (kind_ == Kind::Cuda) own = on_cuda(node);
    if (kind_ == Kind::Vulkan) own = on_vulkan(node);
    largest_.weights = std::max(largest_.weights, own.weights);
    largest_.inputs = std::max(largest_.inputs, own.inputs);
    largest_.results = std::max(largest_.results, own.results);
}

size_t Scratch::bytes() const noexcept {
    if (kind_ == Kind::None) return 0;
    const size_t all = largest_.weights + largest_.inputs + largest_.results;
    return kind_ == Kind::Cuda ? in_pool(all) + kCublasWorkspace : all;
}

}  // namespace sde
