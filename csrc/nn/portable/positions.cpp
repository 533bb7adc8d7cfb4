#include "nn/portable/planes.h"
#include "nn/portable/portable.h"

namespace sde::nn::portable {
namespace {

constexpr double kTurn = 6.283185307179586;

// What a head is multiplied by and what its partners are, [head_dim, 1, tokens, 1 or N] each.
struct Turning {
    ggml_tensor *own, *partners;
};

ggml_tensor* repeat_pairs(ggml_context* context, ggml_tensor* first, ggml_tensor* second,
                          bool interleaved) {
    const int64_t pairs = first->ne[0], tokens = first->ne[1], entries = first->ne[2];
    if (!interleaved) return ggml_concat(context, first, second, 0);
    const auto single = [&](ggml_tensor* x) {
        return ggml_reshape_2d(context, dense(context, x), 1, pairs * tokens * entries);
    };
    return ggml_reshape_3d(context, ggml_concat(context, single(first), single(second), 0),
                           2 * pairs, tokens, entries);
}

Turning turning(const Tensor& table, int64_t head_dim, bool interleaved) {
    const std::string kind =
        std::to_string(head_dim) + (interleaved ? " interleaved" : " in halves");
    Turning out{table.graph().derived("own " + kind, table.raw()),
                table.graph().derived("partners " + kind, table.raw())};
    if (out.own) return out;
    ggml_context* context = context_of(table);
    ggml_tensor* raw = table.raw();
    const int64_t dims = raw->ne[0], pairs = dims / 2;
    const auto half = [&](size_t start) {
        return ggml_view_3d(context, raw, pairs, raw->ne[1], raw->ne[2], raw->nb[1], raw->nb[2],
                            start * static_cast<size_t>(pairs) * sizeof(float));
    };
    ggml_tensor* cosines = dense(context, half(0));
    ggml_tensor* sines = dense(context, half(1));
    out.own = repeat_pairs(context, cosines, cosines, interleaved);
    out.partners = repeat_pairs(context, ggml_scale(context, sines, -1.0f), sines, interleaved);
    const auto before_heads = [&](ggml_tensor* x) {
        return ggml_reshape_4d(context, x, x->ne[0], 1, x->ne[1], x->ne[2]);
    };
    out.own = before_heads(out.own);
    out.partners = before_heads(out.partners);
    table.graph().derived("own " + kind, table.raw()) = out.own;
    table.graph().derived("partners " + kind, table.raw()) = out.partners;
    return out;
}

// Rows of a table for tokens [first, first + count).
ggml_tensor* rows_from(ggml_context* context, ggml_tensor* x, int64_t first, int64_t count) {
    if (first == 0 && count == x->ne[2]) return x;
    return ggml_view_4d(context, x, x->ne[0], 1, count, x->ne[3], x->nb[1], x->nb[2], x->nb[3],
                        static_cast<size_t>(first) * x->nb[2]);
}

// Each value's partner in its pair, [dims, heads, tokens, N].
ggml_tensor* swapped(ggml_context* context, ggml_tensor* x, bool interleaved) {
    const int64_t dims = x->ne[0], pairs = dims / 2;
    if (interleaved) {
        ggml_tensor* pair = ggml_reshape_2d(context, dense(context, x), 2, ggml_nelements(x) / 2);
        const auto side = [&](size_t i) {
            return ggml_view_2d(context, pair, 1, pair->ne[1], pair->nb[1], i * sizeof(float));
        };
        ggml_tensor* both = ggml_concat(context, side(1), side(0), 0);
        return ggml_reshape_4d(context, both, dims, x->ne[1], x->ne[2], x->ne[3]);
    }
    const auto half = [&](size_t i) {
        return ggml_view_4d(context, x, pairs, x->ne[1], x->ne[2], x->ne[3], x->nb[1], x->nb[2],
                            x->nb[3], i * static_cast<size_t>(pairs) * sizeof(float));
    };
    return ggml_concat(context, half(1), half(0), 0);
}

}  // namespace

Tensor rotate(const Tensor& x, const Tensor& table, int64_t first, int64_t head_dim,
              bool interleaved) {
    ggml_context* context = context_of(x);
    const int64_t heads = x.size(2) / head_dim, dims = table.size(-1);
    ggml_tensor* all =
        ggml_reshape_4d(context, dense(context, x.raw()), head_dim, heads, x.size(1), x.size(0));
    const auto part = [&](int64_t start, int64_t count) {
        return ggml_view_4d(context, all, count, heads, x.size(1), x.size(0), all->nb[1],
                            all->nb[2], all->nb[3], static_cast<size_t>(start) * sizeof(float));
    };
    ggml_tensor* turned = dims == head_dim ? all : part(0, dims);
    const Turning by = turning(table, dims, interleaved);
    ggml_tensor* out =
        ggml_add(context, ggml_mul(context, turned, rows_from(context, by.own, first, x.size(1))),
                 ggml_mul(context, swapped(context, turned, interleaved),
                          rows_from(context, by.partners, first, x.size(1))));
    if (dims != head_dim) out = ggml_concat(context, out, part(dims, head_dim - dims), 0);
    return {x.graph(), ggml_reshape_3d(context, out, x.size(2), x.size(1), x.size(0)), x.shape()};
}

Tensor rotary_table(const std::vector<Tensor>& positions, const std::vector<double>& frequencies,
                    const std::vector<int>& axes) {
    Graph& graph = positions.front().graph();
    ggml_context* context = graph.context();
    const Shape shape{positions.front().size(0), positions.front().size(1),
                      2 * static_cast<int64_t>(frequencies.size())};
    ggml_tensor* turns = nullptr;  // of each pair, [pairs, tokens, N]
    for (size_t begin = 0; begin < axes.size();) {
        size_t end = begin;
        std::vector<float> per_turn;
        for (; end < axes.size() && axes[end] == axes[begin]; ++end)
            per_turn.push_back(static_cast<float>(frequencies[end] / kTurn));
        const auto pairs = static_cast<int64_t>(per_turn.size());
        ggml_tensor* at = positions[static_cast<size_t>(axes[begin])].raw();
        at = ggml_reshape_3d(context, ggml_cast(context, at, GGML_TYPE_F32), 1, shape[1], shape[0]);
        ggml_tensor* factors = graph.add_constant(GGML_TYPE_F32, {pairs}, per_turn.data());
        ggml_tensor* wide = ggml_repeat_4d(context, factors, pairs, shape[1], shape[0], 1);
        ggml_tensor* part = ggml_mul(context, wide, at);
        turns = turns ? ggml_concat(context, turns, part, 0) : part;
        begin = end;
    }
    // Within half a turn around zero: sines of large angles are poor on some devices.
    ggml_tensor* angle = ggml_scale(context, ggml_sub(context, turns, ggml_round(context, turns)),
                                    static_cast<float>(kTurn));
    return {graph, ggml_concat(context, ggml_cos(context, angle), ggml_sin(context, angle), 0),
            shape};
}

Tensor padding_mask(const Tensor& mask, const PaddingMaskOptions& options) {
    Graph& graph = mask.graph();
    ggml_context* context = graph.context();
    const int64_t batch = mask.size(0), count = mask.size(1);
    ggml_tensor* words = ggml_cast(context, mask.raw(), GGML_TYPE_F32);
    ggml_tensor* hidden = ggml_scale_bias(context, words, -kHidden, kHidden);
    hidden = ggml_repeat_4d(context, ggml_reshape_3d(context, hidden, count, 1, batch), count,
                            count, batch, 1);
    if (options.causal) {
        std::vector<float> ahead;
        for (int64_t query = 0; query < count; ++query)
            for (int64_t key = 0; key < count; ++key) ahead.push_back(key > query ? kHidden : 0.0f);
        hidden = ggml_add(context, hidden,
                          graph.add_constant(GGML_TYPE_F32, {count, count}, ahead.data()));
    }
    if (options.padding_sees_all)
        hidden = ggml_mul(context, hidden, ggml_reshape_3d(context, words, 1, count, batch));
    return {graph, hidden, Shape{batch, count, count}};
}

Tensor distance_bias(const Tensor& table, const std::vector<int32_t>& buckets) {
    ggml_context* context = context_of(table);
    const auto distances = static_cast<int64_t>(buckets.size());
    const Tensor rows =
        take_rows(table.graph(), table.raw(), buckets, Shape{distances, table.size(1)});
    return {table.graph(), ggml_cont(context, ggml_transpose(context, rows.raw())),
            Shape{table.size(1), distances}};
}

}  // namespace sde::nn::portable
