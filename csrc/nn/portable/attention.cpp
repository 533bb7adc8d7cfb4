// Attention: ggml's flash attention where every device has it, otherwise softmax over blocks of
// queries, so that the scores in memory stay below a limit.
#include <cmath>

#include "nn/portable/planes.h"
#include "nn/portable/portable.h"

namespace sde::nn::portable {
namespace {

struct Heads {
    int64_t queries, keys, width;  // heads of each, and values of one head
    float scale;
};

// Head widths that CUDA, Metal and Vulkan all have flash attention for.
bool has_flash(int64_t width) {
    for (const int64_t known : {40, 64, 72, 80, 96, 112, 128, 256})
        if (width == known) return true;
    return false;
}

// Tokens [first, first + rows) of `entries` entries of the batch: [width, heads, rows, entries].
ggml_tensor* apart(const Tensor& x, int64_t heads, const Block& block) {
    ggml_tensor* raw = x.raw();
    const int64_t width = raw->ne[0] / heads;
    return ggml_view_4d(context_of(x), raw, width, heads, block.rows, block.entries,
                        static_cast<size_t>(width) * raw->nb[0], raw->nb[1], raw->nb[2],
                        static_cast<size_t>(block.entry) * raw->nb[2] +
                            static_cast<size_t>(block.first) * raw->nb[1]);
}

// The same as [width, rows, heads, entries], without a copy.
ggml_tensor* by_head(const Tensor& x, int64_t heads, const Block& block) {
    return ggml_permute(context_of(x), apart(x, heads, block), 0, 2, 1, 3);
}

// 0 where query i may see key j <= i, [keys, queries].
ggml_tensor* causal_scores(Graph& graph, int64_t queries, int64_t keys) {
    const std::string what = "causal " + std::to_string(queries) + " " + std::to_string(keys);
    ggml_tensor*& known = graph.derived(what, nullptr);
    if (known) return known;
    std::vector<float> scores;
    for (int64_t query = 0; query < queries; ++query)
        for (int64_t key = 0; key < keys; ++key) scores.push_back(key > query ? kHidden : 0.0f);
    return known = graph.add_constant(GGML_TYPE_F32, {keys, queries}, scores.data());
}

// All that is added to scores and is the same for every head: [keys, queries, 1, 1 or N], or null.
ggml_tensor* shared_scores(const Tensor& q, const Tensor& k, const AttentionOptions& options) {
    ggml_context* context = context_of(q);
    ggml_tensor* causal = options.causal ? causal_scores(q.graph(), q.size(1), k.size(1)) : nullptr;
    if (!options.mask || !options.mask_index.empty()) return causal;
    ggml_tensor* mask = options.mask.raw();
    ggml_tensor*& known = q.graph().derived(causal ? "causal scores" : "scores", mask);
    if (known) return known;
    ggml_tensor* sum = causal ? ggml_add(context, mask, causal) : mask;
    return known = ggml_reshape_4d(context, sum, sum->ne[0], sum->ne[1], 1, sum->ne[2]);
}

// 1 for queries that see a key, 0 for others, [1, queries, 1 or N]. What these attend to is zeros.
ggml_tensor* seeing(Graph& graph, ggml_tensor* scores) {
    ggml_tensor*& known = graph.derived("seeing", scores);
    if (known) return known;
    ggml_context* context = graph.context();
    ggml_tensor* seen = ggml_step(context, ggml_scale_bias(context, scores, 1.0f, -0.5f * kHidden));
    seen = ggml_step(context, ggml_sum_rows(context, seen));
    return known = ggml_reshape_3d(context, seen, 1, scores->ne[1], scores->ne[3]);
}

ggml_tensor* flash(const Tensor& q, const Tensor& k, const Tensor& v, const Heads& heads,
                   ggml_tensor* scores) {
    ggml_context* context = context_of(q);
    if (scores) {
        ggml_tensor*& half = q.graph().derived("half", scores);
        if (!half) half = ggml_cast(context, scores, GGML_TYPE_F16);
        scores = half;
    }
    const Block queries{0, q.size(0), 0, q.size(1)}, keys{0, k.size(0), 0, k.size(1)};
    ggml_tensor* out = ggml_flash_attn_ext(
        context, by_head(q, heads.queries, queries), by_head(k, heads.keys, keys),
        by_head(v, heads.keys, keys), scores, heads.scale, 0.0f, 0.0f);
    ggml_prec_set_acc(out, GGML_PREC_F32);
    return out;
}

// The rows of scores that belong to a block, [keys, rows, heads or 1, entries or 1].
ggml_tensor* block_of(ggml_context* context, ggml_tensor* scores, const Block& block) {
    const bool is_shared = scores->ne[3] == 1;
    ggml_tensor* view =
        ggml_view_4d(context, scores, scores->ne[0], block.rows, scores->ne[2],
                     is_shared ? 1 : block.entries, scores->nb[1], scores->nb[2], scores->nb[3],
                     static_cast<size_t>(block.first) * scores->nb[1] +
                         (is_shared ? 0 : static_cast<size_t>(block.entry) * scores->nb[3]));
    return dense(context, view);
}

// Of masks [keys, queries, M * heads] those that each entry of a block takes.
ggml_tensor* chosen_masks(const Tensor& q, const AttentionOptions& options, const Block& block) {
    ggml_context* context = context_of(q);
    ggml_tensor* masks = options.mask.raw();
    const int64_t count = masks->ne[2] / options.heads;
    const int64_t one = masks->ne[0] * masks->ne[1] * options.heads;
    ggml_tensor* chosen = masks;
    if (count > 1) {
        const std::vector<int32_t> index(options.mask_index.begin() + block.entry,
                                         options.mask_index.begin() + block.entry + block.entries);
        std::string what = "masks";
        for (int32_t i : index) what += " " + std::to_string(i);
        ggml_tensor*& known = q.graph().derived(what, masks);
        if (!known)
            known = take_rows(q.graph(), ggml_reshape_2d(context, masks, one, count), index,
                              Shape{block.entries, one})
                        .raw();
        chosen = known;
    }
    chosen = ggml_reshape_4d(context, chosen, masks->ne[0], masks->ne[1], options.heads,
                             count > 1 ? block.entries : 1);
    return block_of(context, chosen, {0, block.entries, block.first, block.rows});
}

// T5's scores by distance as [keys, queries, heads], from [queries + keys - 1, heads].
ggml_tensor* distance_scores(const Tensor& q, const Tensor& k, const Tensor& bias) {
    ggml_tensor*& known = q.graph().derived("by distance", bias.raw());
    if (known) return known;
    ggml_context* context = context_of(q);
    const int64_t queries = q.size(1), keys = k.size(1), heads = bias.size(0);
    std::vector<int32_t> entries;
    for (int64_t query = 0; query < queries; ++query)
        for (int64_t key = 0; key < keys; ++key)
            entries.push_back(static_cast<int32_t>(key - query + queries - 1));
    ggml_tensor* by_distance = ggml_cont(context, ggml_transpose(context, bias.raw()));
    const Tensor rows = take_rows(q.graph(), by_distance, entries, Shape{queries * keys, heads});
    ggml_tensor* scores = ggml_cont(context, ggml_transpose(context, rows.raw()));
    return known = ggml_reshape_3d(context, scores, keys, queries, heads);
}

// Attention of one block, [heads * width, rows * entries].
ggml_tensor* attend(const Tensor& q, const Tensor& k, const Tensor& v, const Heads& heads,
                    const AttentionOptions& options, ggml_tensor* scores, const Block& block) {
    ggml_context* context = context_of(q);
    const Block all{block.entry, block.entries, 0, k.size(1)};
    ggml_tensor* keys = ggml_cont(context, by_head(k, heads.keys, all));
    ggml_tensor* queries = ggml_cont(context, by_head(q, heads.queries, block));
    ggml_tensor* values =
        ggml_cont(context, ggml_permute(context, apart(v, heads.keys, all), 1, 2, 0, 3));
    ggml_tensor* found = product(context, keys, queries);
    float scale = heads.scale;
    if (options.softcap > 0) {
        found = ggml_tanh(context, ggml_scale(context, found, scale / options.softcap));
        found = ggml_scale(context, found, options.softcap);
        scale = 1.0f;
    }
    if (options.distance_bias) {
        if (scale != 1.0f) found = ggml_scale(context, found, std::exchange(scale, 1.0f));
        ggml_tensor* by_distance = distance_scores(q, k, options.distance_bias);
        found = ggml_add(context, found, block_of(context, by_distance, block));
    }
    ggml_tensor* mask = scores ? block_of(context, scores, block) : nullptr;
    if (!options.mask_index.empty()) mask = chosen_masks(q, options, block);
    ggml_tensor* weights = ggml_soft_max_ext(context, found, mask, scale, 0.0f);
    ggml_tensor* out = product(context, values, weights);
    out = ggml_cont(context, ggml_permute(context, out, 0, 2, 1, 3));
    return ggml_reshape_2d(context, out, heads.queries * heads.width, block.rows * block.entries);
}

}  // namespace

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v,
                 const AttentionOptions& options) {
    ggml_context* context = context_of(q);
    const int64_t width = q.size(2) / options.heads;
    const Heads heads{
        options.heads, options.kv_heads ? options.kv_heads : options.heads, width,
        options.scale != 0 ? options.scale : 1.0f / std::sqrt(static_cast<float>(width))};
    ggml_tensor* scores = shared_scores(q, k, options);
    const auto shaped = [&](ggml_tensor* out) {
        out = ggml_reshape_3d(context, out, q.size(2), q.size(1), q.size(0));
        const bool may_be_blind = options.mask && options.mask_index.empty();
        if (may_be_blind) out = ggml_mul(context, out, seeing(q.graph(), scores));
        return Tensor{q.graph(), out, q.shape()};
    };
    // Flash attention takes masks in half precision, which is exact for what is seen and what not,
    // and poor for learned scores.
    const bool is_plain =
        options.softcap == 0 && !options.distance_bias && options.mask_index.empty();
    if (is_plain && has_flash(width)) return shaped(flash(q, k, v, heads, scores));
    Pieces pieces(q.graph(), q.size(0) * q.size(1));
    const int64_t row_bytes = k.size(1) * options.heads * static_cast<int64_t>(sizeof(float));
    for (const Block& block : blocks(q.size(0), q.size(1), row_bytes))
        pieces.add(attend(q, k, v, heads, options, scores, block));
    return shaped(pieces.joined());
}

}  // namespace sde::nn::portable
