#pragma once

#include "networks/network.h"
#include "nn/text.h"

namespace sde::networks {

// The shape of input `ids`, [batch, tokens]; throws Parameter for more than `most` tokens.
const Shape& shape_of_ids(const InputShapes& shapes, int64_t most);

// The attention mask of input `mask`, one of the ids' shape that is 0 where text is filled up;
// empty without it.
nn::Tensor given_mask(Graph& graph, const InputShapes& shapes, const Shape& ids,
                      const nn::PaddingMaskOptions& options = {});

}  // namespace sde::networks
