#include "networks/text/inputs.h"

#include "base/error.h"

namespace sde::networks {

const Shape& shape_of_ids(const InputShapes& shapes, int64_t most) {
    const Shape& shape = required(shapes, "ids", 2);
    if (shape[1] > most)
        throw Error(ErrorKind::Parameter, "the text has " + std::to_string(shape[1]) +
                                              " tokens, the encoder takes " + std::to_string(most));
    return shape;
}

nn::Tensor given_mask(Graph& graph, const InputShapes& shapes, const Shape& ids,
                      const nn::PaddingMaskOptions& options) {
    if (!shapes.count("mask")) return {};
    require_shape_of_ids(shapes, "mask", ids);
    return nn::padding_mask(nn::input_ids(graph, "mask", ids, 2), options);
}

}  // namespace sde::networks
