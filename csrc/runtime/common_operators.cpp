#include "runtime/common_operators.h"

#include <algorithm>
#include <initializer_list>

namespace sde {
namespace {

bool is_any(int64_t value, std::initializer_list<int64_t> of) {
    return std::find(of.begin(), of.end(), value) != of.end();
}

bool are_floats(const ggml_tensor* node) {
    const auto is_float = [](const ggml_tensor* x) { return !x || x->type == GGML_TYPE_F32; };
    return is_float(node) && is_float(node->src[0]) && is_float(node->src[1]);
}

bool are_dense(const ggml_tensor* node) {
    const auto is_dense = [](const ggml_tensor* x) { return !x || ggml_is_contiguous(x); };
    return is_dense(node->src[0]) && is_dense(node->src[1]);
}

bool have_dense_rows(const ggml_tensor* node) {
    const auto is_dense = [](const ggml_tensor* x) { return !x || ggml_is_contiguous_rows(x); };
    return is_dense(node->src[0]) && is_dense(node->src[1]);
}

bool is_matrix_type(ggml_type type) {
    return is_any(type, {GGML_TYPE_F32,    GGML_TYPE_F16,    GGML_TYPE_BF16,    GGML_TYPE_Q4_0,
                         GGML_TYPE_Q4_1,   GGML_TYPE_Q5_0,   GGML_TYPE_Q5_1,    GGML_TYPE_Q8_0,
                         GGML_TYPE_Q2_K,   GGML_TYPE_Q3_K,   GGML_TYPE_Q4_K,    GGML_TYPE_Q5_K,
                         GGML_TYPE_Q6_K,   GGML_TYPE_IQ1_S,  GGML_TYPE_IQ1_M,   GGML_TYPE_IQ2_XXS,
                         GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_S,  GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ3_S,
                         GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS, GGML_TYPE_MXFP4});
}

bool is_common_product(const ggml_tensor* node) {
    const ggml_tensor *a = node->src[0], *b = node->src[1];
    return is_matrix_type(a->type) && b->type == GGML_TYPE_F32 &&
           a->nb[0] == ggml_type_size(a->type) && b->nb[0] == sizeof(float) && a->ne[3] == b->ne[3];
}

bool is_common_lookup(const ggml_tensor* node) {
    const ggml_tensor* table = node->src[0];
    constexpr int64_t kSuperBlock = 256;  // CUDA reads these types in such steps
    const bool in_steps = is_any(table->type, {GGML_TYPE_IQ4_NL, GGML_TYPE_MXFP4});
    return is_matrix_type(table->type) && (!in_steps || table->ne[0] % kSuperBlock == 0);
}

bool is_common_copy(const ggml_tensor* node) {
    const ggml_type from = node->src[0]->type, to = node->type;
    if (from == GGML_TYPE_F32) return is_any(to, {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_I32});
    return to == GGML_TYPE_F32 && is_any(from, {GGML_TYPE_F16, GGML_TYPE_I32});
}

bool is_common_attention(const ggml_tensor* node) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2];
    const ggml_tensor* mask = node->src[3];
    const bool mask_fits = !mask || (mask->type == GGML_TYPE_F16 && mask->ne[2] == 1);
    return mask_fits && q->type == GGML_TYPE_F32 && k->type == v->type &&
           is_any(k->type, {GGML_TYPE_F32, GGML_TYPE_F16}) && k->ne[0] == v->ne[0] &&
           is_any(k->ne[0], {40, 64, 72, 80, 96, 112, 128, 256});
}

}  // namespace

bool is_common_operator(const ggml_tensor* node) {
    switch (node->op) {
        case GGML_OP_NONE:
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return true;
        case GGML_OP_UNARY:
        case GGML_OP_GLU:
        case GGML_OP_SCALE:
        case GGML_OP_LEAKY_RELU:
        case GGML_OP_GROUP_NORM:
        case GGML_OP_ACC:
        case GGML_OP_IM2COL:
        case GGML_OP_CLAMP:
        case GGML_OP_SIN:
        case GGML_OP_COS:
        case GGML_OP_PAD:
        case GGML_OP_UPSCALE:
        case GGML_OP_TIMESTEP_EMBEDDING:
            return are_floats(node) && are_dense(node);
        case GGML_OP_ADD:
        case GGML_OP_SUB:
        case GGML_OP_MUL:
        case GGML_OP_DIV:
        case GGML_OP_NORM:
        case GGML_OP_RMS_NORM:
        case GGML_OP_SUM_ROWS:
        case GGML_OP_MEAN:
            return are_floats(node) && have_dense_rows(node);
        case GGML_OP_REPEAT:
        case GGML_OP_CONCAT:
            return are_floats(node);
        case GGML_OP_SET_ROWS:
            return node->type == GGML_TYPE_F32 && node->src[0]->type == GGML_TYPE_F32 &&
                   node->src[1]->type == GGML_TYPE_I32;
        case GGML_OP_SOFT_MAX:
            return node->src[0]->type == GGML_TYPE_F32 && are_dense(node);
        case GGML_OP_MUL_MAT:
            return is_common_product(node);
        case GGML_OP_GET_ROWS:
            return is_common_lookup(node);
        case GGML_OP_CPY:
        case GGML_OP_CONT:
        case GGML_OP_DUP:
            return is_common_copy(node);
        case GGML_OP_FLASH_ATTN_EXT:
            return is_common_attention(node);
        default:
            return false;
    }
}

}  // namespace sde
