// What the CUDA, Metal and Vulkan backends of the pinned ggml all compute.
#pragma once

#include "ggml.h"

namespace sde {

// Whether each of them takes this operator with these operands: so that tests without a GPU find an
// operator that one of them would refuse. Read off their `supports_op` functions; stricter than
// any.
bool is_common_operator(const ggml_tensor* node);

}  // namespace sde
