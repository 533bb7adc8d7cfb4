#include "nn/portable/planes.h"
#include "nn/portable/portable.h"

namespace sde::nn::portable {

Tensor take_rows(Graph& graph, ggml_tensor* matrix, const std::vector<int32_t>& row_ids,
                 const Shape& shape) {
    ggml_tensor* ids =
        graph.add_constant(GGML_TYPE_I32, {static_cast<int64_t>(row_ids.size())}, row_ids.data());
    ggml_tensor* rows = ggml_get_rows(graph.context(), matrix, ids);
    if (shape.rank() == 3)
        rows = ggml_reshape_3d(graph.context(), rows, shape[2], shape[1], shape[0]);
    return {graph, rows, shape};
}

std::vector<int32_t> first_rows(int64_t count, int64_t times) {
    std::vector<int32_t> rows;
    for (int64_t i = 0; i < count * times; ++i) rows.push_back(static_cast<int32_t>(i % count));
    return rows;
}

Tensor lookup(const Tensor& ids, ggml_tensor* table, const Tensor& learned) {
    ggml_context* context = context_of(ids);
    const auto entries = static_cast<float>(table->ne[1]);
    const auto most = static_cast<float>(learned.size(0) - 1);
    // Ids are exact in float32 up to 2^24. Each is looked up in both tables, in one of them at a
    // row that does not matter.
    ggml_tensor* flat = ggml_reshape_1d(context, ids.raw(), ids.shape().elements());
    ggml_tensor* number = ggml_cast(context, flat, GGML_TYPE_F32);
    ggml_tensor* behind = ggml_scale_bias(context, number, 1.0f, -entries);
    const auto rows = [&](ggml_tensor* from, ggml_tensor* at, float last) {
        ggml_tensor* copy = ggml_cont(context, at);  // clamp() overwrites what it is given
        ggml_tensor* in_range = ggml_clamp(context, copy, 0.0f, last);
        return ggml_get_rows(context, from, ggml_cast(context, in_range, GGML_TYPE_I32));
    };
    ggml_tensor* is_learned = ggml_step(context, ggml_scale_bias(context, behind, 1.0f, 0.5f));
    is_learned = ggml_reshape_2d(context, is_learned, 1, ids.shape().elements());
    ggml_tensor* word = rows(table, number, entries - 1);
    ggml_tensor* other = rows(learned.raw(), behind, most);
    ggml_tensor* mixed =
        ggml_add(context, word, ggml_mul(context, ggml_sub(context, other, word), is_learned));
    const Shape shape{ids.size(0), ids.size(1), learned.size(1)};
    return {ids.graph(), ggml_reshape_3d(context, mixed, shape[2], shape[1], shape[0]), shape};
}

Tensor choose_tokens(const Tensor& x, const Tensor& mask, const Tensor& instead) {
    ggml_context* context = context_of(x);
    ggml_tensor* own = ggml_step(context, ggml_abs(context, dense(context, mask.raw())));
    own = ggml_reshape_3d(context, own, 1, x.size(1), x.size(0));
    ggml_tensor* difference = ggml_sub(context, x.raw(), instead.raw());
    return {x.graph(), ggml_add(context, ggml_mul(context, difference, own), instead.raw()),
            x.shape()};
}

}  // namespace sde::nn::portable
