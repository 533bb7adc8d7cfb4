// Attention by blocks of queries and keys with a running maximum and sum (Milakov and Gimelshein,
// arXiv 1805.02867; Dao et al., arXiv 2205.14135). Scores are kept in units of log2(e), so that the
// weights are powers of two.

constexpr float kMinusInfinity = -__builtin_inff();

// Bytes of packed keys and values that stay in the L2 cache.
constexpr int64_t kKeyValueBytes = 384 * 1024;
constexpr int64_t kMaxKeyBlock = 512;
// Of queries with their outputs, which only pass by: so many that packing keys and values costs
// little.
constexpr int64_t kQueryBytes = 640 * 1024;
constexpr int64_t kMaxQueryBlock = 1536;

struct AttentionPlan {
    int64_t key_block;    // tokens; depends on the operator only, for it fixes the order of sums
    int64_t query_block;  // tokens
    int64_t query_blocks;
    int64_t width;  // head_dim rounded up to whole vectors
    int64_t score_stride;
    int64_t items;

    AttentionPlan(const Attention& op, int threads) {
        width = round_up(op.head_dim, kLanes);
        const int64_t keys = kKeyValueBytes / (2 * 4 * width) / kPanelWidth * kPanelWidth;
        key_block = min_of(max_of<int64_t>(kPanelWidth, min_of(keys, kMaxKeyBlock)),
                           round_up(op.kv_len, kPanelWidth));
        score_stride = key_block + 16;
        const int64_t queries = kQueryBytes / (2 * 4 * width) / kTileRows * kTileRows;
        const int64_t heads = op.batch * op.heads;
        const int64_t wanted = ceil_div(threads * kItemsPerThread, max_of<int64_t>(1, heads));
        const int64_t share = round_up(ceil_div(op.q_len, wanted), kTileRows);
        const int64_t least = 8 * kTileRows;
        query_block = min_of(max_of(least, min_of(queries, kMaxQueryBlock)), max_of(least, share));
        query_blocks = ceil_div(op.q_len, query_block);
        items = heads * query_blocks;
    }
};

struct AttentionScratch {
    const AttentionPlan& plan;
    float* queries = nullptr;     // [query_block][width], scaled
    float* sums = nullptr;        // [query_block][width]: weighted values so far
    float* row_max = nullptr;     // [query_block]
    float* row_weight = nullptr;  // [query_block]: sum of weights so far
    float* keys = nullptr;        // panels [head_dim][kPanelWidth]
    float* values = nullptr;      // panels [key_block][kPanelWidth]
    float* scores = nullptr;      // [kTileRows][score_stride]

    void lay_out(Layout& layout) {
        queries = layout.take<float>(plan.query_block * plan.width);
        sums = layout.take<float>(plan.query_block * plan.width);
        row_max = layout.take<float>(plan.query_block);
        row_weight = layout.take<float>(plan.query_block);
        keys = layout.take<float>(plan.width * plan.key_block);
        values = layout.take<float>(round_up(plan.width, kPanelWidth) * plan.key_block);
        scores = layout.take<float>(kTileRows * plan.score_stride);
    }
};

// The mask [q_len, kv_len] of one head of one batch element; null if there is none.
const float* mask_of(const Attention& op, int64_t batch, int64_t head) {
    if (!op.mask) return nullptr;
    const int64_t shared = op.mask_batch == 1 ? 0 : batch;
    const int64_t entry = op.mask_index ? op.mask_index[batch] : shared;
    const int64_t at = entry * op.mask_heads + (op.mask_heads == 1 ? 0 : head);
    return op.mask + at * op.q_len * op.kv_len;
}

// Vectors of scores that are taken side by side, so that a chain of maxima or sums is a quarter as
// long.
constexpr int64_t kAbreast = 4;

// Calls use(j, chain) for the vectors at j of scores [0, count), chain < kAbreast.
template <class Use>
SDE_INLINE void for_chains(int64_t count, const Use& use) {
    int64_t j = 0;
    for (; j + kAbreast * kLanes <= count; j += kAbreast * kLanes)
#pragma GCC unroll 4
        for (int64_t chain = 0; chain < kAbreast; ++chain) use(j + chain * kLanes, chain);
    for (; j < count; j += kLanes) use(j, 0);
}

// The highest of scores [0, count), count a multiple of kLanes, and of `least`.
SDE_INLINE float highest_of(const float* scores, int64_t count, float least) {
    Vec highest[kAbreast] = {splat(least), splat(least), splat(least), splat(least)};
    for_chains(count, [&](int64_t j, int64_t chain) {
        highest[chain] = max_of(highest[chain], load(scores + j));
    });
    return max_lane(max_of(max_of(highest[0], highest[1]), max_of(highest[2], highest[3])));
}

// Scores, none above `highest`, become weights 2^(score - highest). Returns their sum.
SDE_INLINE float weigh_below(float highest, float* scores, int64_t count) {
    Vec total[kAbreast] = {};
    for_chains(count, [&](int64_t j, int64_t chain) {
        const Vec weight = exp2_of_negative(load(scores + j) - highest);
        total[chain] += weight;
        store(scores + j, weight);
    });
    return add_lanes((total[0] + total[1]) + (total[2] + total[3]));
}

// One head of one batch element with a block of its queries.
struct AttentionHead {
    const Attention& op;
    const AttentionPlan& plan;
    const AttentionScratch& s;
    const float *k, *v, *mask, *distance_bias;
    int64_t query, queries;  // first and number

    void load_queries(const float* q) const {
        for (int64_t i = 0; i < queries; ++i) {
            const float* from = q + (query + i) * op.q_token_stride;
            for (int64_t d = 0; d < op.head_dim; ++d)
                s.queries[i * plan.width + d] = from[d] * (op.scale * kLog2E);
            s.row_max[i] = kMinusInfinity;
            s.row_weight[i] = 0;
        }
        std::memset(s.sums, 0, static_cast<size_t>(queries * plan.width) * 4);
    }

    void pack_keys(int64_t key, int64_t keys) const {
        for (int64_t c = 0; c < keys; c += kPanelWidth) {
            const int64_t width = min_of<int64_t>(kPanelWidth, round_up(keys - c, kLanes));
            for (int64_t column = 0; column < width; column += kLanes) {
                const char* from =
                    reinterpret_cast<const char*>(k + (key + c + column) * op.k_token_stride);
                pack_columns(FloatRows{from, op.k_token_stride * 4},
                             min_of<int64_t>(kLanes, keys - c - column), {1, op.head_dim}, width,
                             s.keys + c * op.head_dim + column);
            }
        }
    }

    void pack_values(int64_t key, int64_t keys) const {
        for (int64_t i = 0; i < keys; ++i) {
            const float* from = v + (key + i) * op.v_token_stride;
            for (int64_t d = 0; d < op.head_dim; d += kPanelWidth) {
                const int64_t width = min_of<int64_t>(kPanelWidth, plan.width - d);
                float* to = s.values + d * plan.key_block + i * width;
                for_vectors(min_of(width, op.head_dim - d), [&](int64_t c, int64_t n) {
                    store(to + c, read_lanes(from + d + c, n));
                });
            }
        }
    }

    // How many of the keys [key, key + keys) query `row` sees.
    int64_t visible(int64_t row, int64_t key, int64_t keys) const {
        return op.causal ? max_of<int64_t>(0, min_of(keys, row + 1 - key)) : keys;
    }

    // Turns a row of scores into weights relative to its new maximum, and what was summed before.
    void weigh(float* scores, int64_t i, int64_t key, int64_t keys) const {
        const int64_t row = query + i;
        const int64_t seen = visible(row, key, keys);
        const int64_t padded = round_up(keys, kLanes);
        if (op.softcap > 0) {
            const float cap = op.softcap * kLog2E;
            for (int64_t j = 0; j < seen; ++j) scores[j] = cap * __builtin_tanhf(scores[j] / cap);
        }
        if (distance_bias) {
            const float* bias = distance_bias + key - row + op.q_len - 1;
            for (int64_t j = 0; j < seen; ++j) scores[j] += bias[j] * kLog2E;
        }
        if (mask) {
            const float* bias = mask + row * op.kv_len + key;
            for (int64_t j = 0; j < seen; ++j) scores[j] += bias[j] * kLog2E;
        }
        for (int64_t j = seen; j < padded; ++j) scores[j] = kMinusInfinity;
        const float before = s.row_max[i], now = highest_of(scores, padded, before);
        if (now == kMinusInfinity) {
            std::memset(scores, 0, static_cast<size_t>(padded) * 4);
            return;
        }
        const float total = weigh_below(now, scores, padded);
        if (now != before) {
            const Vec factor = exp2_of_negative(splat(before - now));
            float* sums = s.sums + i * plan.width;
            for (int64_t d = 0; d < plan.width; d += kLanes)
                store(sums + d, load(sums + d) * factor);
            s.row_max[i] = now;
            s.row_weight[i] *= factor[0];
        }
        s.row_weight[i] += total;
    }

    // Rows [i, i + rows) of the query block against the packed keys and values.
    void visit(int64_t i, int64_t rows, int64_t key, int64_t keys) const {
        const float* pointers[kTileRows];
        for (int64_t r = 0; r < rows; ++r) pointers[r] = s.queries + (i + r) * plan.width;
        for (int64_t c = 0; c < keys; c += kPanelWidth) {
            const int64_t width = min_of<int64_t>(kPanelWidth, round_up(keys - c, kLanes));
            tile_product_for(rows, width)(pointers, 1, op.head_dim, s.keys + c * op.head_dim,
                                          {s.scores + c, plan.score_stride});
        }
        for (int64_t r = 0; r < rows; ++r) {
            float* scores = s.scores + r * plan.score_stride;
            weigh(scores, i + r, key, keys);
            pointers[r] = scores;
        }
        const int64_t seen = visible(query + i + rows - 1, key, keys);
        for (int64_t d = 0; d < op.head_dim; d += kPanelWidth) {
            const int64_t width = min_of<int64_t>(kPanelWidth, plan.width - d);
            float* sums = s.sums + i * plan.width + d;
            tile_product_for(rows, width)(pointers, 1, seen, s.values + d * plan.key_block,
                                          {sums, plan.width, sums});
        }
    }

    void write(float* output) const {
        for (int64_t i = 0; i < queries; ++i) {
            const float weight = s.row_weight[i];
            const float inverse = weight == 0 ? 0 : 1 / weight;
            float* to = output + (query + i) * op.output_token_stride;
            for (int64_t d = 0; d < op.head_dim; ++d) to[d] = s.sums[i * plan.width + d] * inverse;
        }
    }
};

void attention_kernel(const Attention& op, Team& team) {
    const AttentionPlan plan(op, team.size());
    AttentionScratch scratch{plan};
    allocate(scratch);
    for (int64_t item; (item = team.claim(plan.items)) >= 0;) {
        const int64_t block = item % plan.query_blocks, head = item / plan.query_blocks % op.heads;
        const int64_t batch = item / plan.query_blocks / op.heads;
        const int64_t kv_head = head / (op.heads / op.kv_heads);
        const int64_t query = block * plan.query_block;
        const int64_t queries = min_of(plan.query_block, op.q_len - query);
        const float* mask = mask_of(op, batch, head);
        const float* distance_bias =
            op.distance_bias ? op.distance_bias + head * (op.q_len + op.kv_len - 1) : nullptr;
        const AttentionHead part{op,
                                 plan,
                                 scratch,
                                 op.k + batch * op.k_batch_stride + kv_head * op.head_dim,
                                 op.v + batch * op.v_batch_stride + kv_head * op.head_dim,
                                 mask,
                                 distance_bias,
                                 query,
                                 queries};
        part.load_queries(op.q + batch * op.q_batch_stride + head * op.head_dim);
        const int64_t last_key = part.visible(query + queries - 1, 0, op.kv_len);
        const int64_t tiles = ceil_div(queries, kTileRows);
        for (int64_t key = 0; key < last_key; key += plan.key_block) {
            const int64_t keys = min_of(plan.key_block, op.kv_len - key);
            part.pack_keys(key, keys);
            part.pack_values(key, keys);
            for (int64_t t = 0; t < tiles; ++t) {
                const int64_t first = part_begin(queries, tiles, t);
                const int64_t rows = part_begin(queries, tiles, t + 1) - first;
                if (part.visible(query + first + rows - 1, key, keys) > 0)
                    part.visit(first, rows, key, keys);
            }
        }
        part.write(op.output + batch * op.output_batch_stride + head * op.head_dim);
    }
    team.barrier();
}
