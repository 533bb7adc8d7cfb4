// Attention with products of bfloat16, by blocks of queries and keys as in simd/attention.inl.
// Queries, keys, values and weights are rounded; scores, weights' sums and outputs are float32.
// There are no masks here.

constexpr int64_t kKeys = 512, kQueries = 768;

struct NarrowAttentionPlan {
    int64_t depth_blocks;  // of a head
    int64_t width;         // head_dim in whole vectors
    int64_t key_block;     // tokens, whole panels
    int64_t query_block, query_blocks;
    int64_t items;

    NarrowAttentionPlan(const Attention& op, int threads) {
        depth_blocks = ceil_div(op.head_dim, kBlockValues);
        width = round_up(op.head_dim, kLanes);
        key_block = round_up(min_of(kKeys, op.kv_len), max_of(kNarrowWidth, kBlockValues));
        const int64_t heads = max_of<int64_t>(1, op.batch * op.heads);
        const int64_t wanted = ceil_div(threads * kItemsPerThread, heads);
        const int64_t share = round_up(ceil_div(op.q_len, wanted), int64_t{kRows});
        query_block = min_of(kQueries / kRows * kRows, max_of<int64_t>(8 * kRows, share));
        query_blocks = ceil_div(op.q_len, query_block);
        items = op.batch * op.heads * query_blocks;
    }
    int64_t key_bytes() const { return key_block * depth_blocks * kBlockBytes; }
    int64_t tile_bytes() const { return kRows * depth_blocks * kBlockBytes; }
};

struct NarrowAttentionScratch {
    const NarrowAttentionPlan& plan;
    uint8_t* queries = nullptr;   // [tile][block][row]
    float* sums = nullptr;        // [query_block][width]: weighted values so far
    float* row_max = nullptr;     // [query_block]
    float* row_weight = nullptr;  // [query_block]: sum of weights so far
    uint8_t* keys = nullptr;      // panels of keys
    uint8_t* values = nullptr;    // panels of channels
    uint8_t* rows = nullptr;      // [kLanes][blocks]
    float* floats = nullptr;      // of a query
    float* scores = nullptr;      // [kRows][key_block]
    uint8_t* weights = nullptr;   // [block][row]
    float* tile = nullptr;

    void lay_out(Layout& layout) {
        const int64_t tiles = plan.query_block / kRows;
        queries = layout.take<uint8_t>(tiles * plan.tile_bytes());
        sums = layout.take<float>(plan.query_block * plan.width);
        row_max = layout.take<float>(plan.query_block);
        row_weight = layout.take<float>(plan.query_block);
        keys = layout.take<uint8_t>(plan.key_bytes());
        values = layout.take<uint8_t>(round_up(plan.width, kNarrowWidth) * plan.key_block * 2);
        rows = layout.take<uint8_t>(kLanes * plan.depth_blocks * kBlockBytes);
        floats = layout.take<float>(plan.depth_blocks * kBlockValues);
        scores = layout.take<float>(kRows * plan.key_block);
        weights = layout.take<uint8_t>(kRows * plan.key_block * 2);
        tile = layout.take<float>(kRows * kNarrowWidth);
    }
};

// One head of one batch entry with a block of its queries.
struct NarrowHead {
    const Attention& op;
    const NarrowAttentionPlan& plan;
    const NarrowAttentionScratch& s;
    const float *q, *k, *v;
    int64_t queries;

    // Tiles have kRows rows but the last.
    int64_t rows_of(int64_t tile) const { return min_of<int64_t>(kRows, queries - tile * kRows); }

    void load_queries() const {
        for (int64_t i = 0; i < queries; ++i) {
            for (int64_t d = 0; d < op.head_dim; ++d)
                s.floats[d] = q[i * op.q_token_stride + d] * (op.scale * kLog2E);
            const int64_t tile = i / kRows, rows = rows_of(tile);
            round_values<kTogether>(s.floats, op.head_dim,
                                    s.queries + tile * plan.tile_bytes() + row_at(i % kRows),
                                    rows_bytes(rows));
            s.row_max[i] = -__builtin_inff();
            s.row_weight[i] = 0;
        }
        std::memset(s.sums, 0, static_cast<size_t>(queries * plan.width) * 4);
    }

    static int64_t width_at(int64_t column, int64_t columns) {
        return min_of(kNarrowWidth, round_up(columns - column, kLanes));
    }

    void pack_keys(int64_t key, int64_t keys) const {
        const int64_t row_bytes = plan.depth_blocks * kBlockBytes;
        for (int64_t c = 0; c < keys; c += kLanes) {
            const int64_t valid = min_of<int64_t>(kLanes, keys - c);
            for (int64_t i = 0; i < valid; ++i)
                round_values<1>(k + (key + c + i) * op.k_token_stride, op.head_dim,
                                s.rows + i * row_bytes, kBlockBytes);
            const int64_t panel = c / kNarrowWidth * kNarrowWidth;
            store_columns(s.rows, valid, plan.depth_blocks, width_at(panel, keys),
                          s.keys + panel * row_bytes + (c - panel) * kGroupBytes);
        }
    }

    // Pairs of tokens lie side by side; what a whole block lacks is 0.
    void pack_values(int64_t key, int64_t keys) const {
        const int64_t pairs = round_up(keys, kBlockValues) / 2;
        for (int64_t d = 0; d < op.head_dim; d += kLanes) {
            const int64_t panel = d / kNarrowWidth * kNarrowWidth;
            const int64_t wide = width_at(panel, op.head_dim);
            const int64_t n = min_of<int64_t>(kLanes, op.head_dim - d);
            uint8_t* to = s.values + panel * plan.key_block * 2 + (d - panel) * kGroupBytes;
            for (int64_t pair = 0; pair < pairs; pair += kTogether, to += wide * kGroupBytes) {
                const auto token = [&](int64_t i) {
                    const Vec x =
                        i < keys ? read_lanes(v + (key + i) * op.v_token_stride + d, n) : Vec{};
                    return __builtin_convertvector(round_to_bf16(x), IntVec);
                };
                Vec words[kTogether];
                for (int64_t i = pair; i < pair + kTogether; ++i)
                    words[i - pair] = from_bits(token(2 * i) | token(2 * i + 1) << 16);
                store_group(to, words);
            }
        }
    }

    // Turns a row of scores into weights relative to its new maximum, in bfloat16; returns the
    // factor for what was summed before.
    float weigh(float* scores, int64_t i, int64_t keys, uint8_t* to, int64_t stride) const {
        const int64_t padded = round_up(keys, kBlockValues);
        for (int64_t j = keys; j < padded; ++j) scores[j] = -__builtin_inff();
        Vec highest = splat(s.row_max[i]);
        for (int64_t j = 0; j < padded; j += kLanes) highest = max_of(highest, load(scores + j));
        const float before = s.row_max[i], now = max_lane(highest);
        Vec total = {};
        for (int64_t j = 0; j < padded; j += kBlockValues, to += stride)
#pragma GCC unroll 4
            for (int64_t part = 0; part < kBlockValues; part += kLanes) {
                const Vec weight = exp2_of_negative(load(scores + j + part) - now);
                total += weight;
                const ShortVec rounded = round_to_bf16(weight);
                __builtin_memcpy(to + byte_at<kTogether>(2 * part), &rounded, sizeof rounded);
            }
        const float factor = exp2_of_negative(splat(before - now))[0];
        s.row_max[i] = now;
        s.row_weight[i] = s.row_weight[i] * factor + add_lanes(total);
        return factor;
    }

    // One tile of queries against the packed keys and values.
    void visit(int64_t tile, int64_t keys) const {
        const int64_t rows = rows_of(tile), first = tile * kRows;
        for (int64_t c = 0; c < keys; c += kNarrowWidth)
            narrow_tile_for(rows, width_at(c, keys))(s.queries + tile * plan.tile_bytes(), nullptr,
                                                     s.keys + c * plan.depth_blocks * kBlockBytes,
                                                     plan.depth_blocks, s.scores + c,
                                                     plan.key_block);
        float factors[kRows];
        for (int64_t r = 0; r < rows; ++r)
            factors[r] = weigh(s.scores + r * plan.key_block, first + r, keys,
                               s.weights + row_at(r), rows_bytes(rows));
        for (int64_t d = 0; d < op.head_dim; d += kNarrowWidth) {
            const int64_t wide = width_at(d, op.head_dim);
            narrow_tile_for(rows, wide)(s.weights, nullptr, s.values + d * plan.key_block * 2,
                                        ceil_div(keys, kBlockValues), s.tile, wide);
            for (int64_t r = 0; r < rows; ++r) {
                float* sums = s.sums + (first + r) * plan.width + d;
                for (int64_t c = 0; c < wide; c += kLanes)
                    store(sums + c, load(sums + c) * factors[r] + load(s.tile + r * wide + c));
            }
        }
    }

    void write(float* output) const {
        for (int64_t i = 0; i < queries; ++i) {
            const float weight = s.row_weight[i], inverse = weight == 0 ? 0 : 1 / weight;
            float* to = output + i * op.output_token_stride;
            for (int64_t d = 0; d < op.head_dim; ++d) to[d] = s.sums[i * plan.width + d] * inverse;
        }
    }
};

void narrow_attention(const Attention& op, Team& team) {
    const NarrowAttentionPlan plan(op, team.size());
    NarrowAttentionScratch scratch{plan};
    allocate(scratch);
    for (int64_t item; (item = team.claim(plan.items)) >= 0;) {
        const int64_t head = item / plan.query_blocks % op.heads;
        const int64_t batch = item / plan.query_blocks / op.heads;
        const int64_t kv_head = head / (op.heads / op.kv_heads);
        const int64_t query = item % plan.query_blocks * plan.query_block;
        const NarrowHead part{
            op,
            plan,
            scratch,
            op.q + batch * op.q_batch_stride + query * op.q_token_stride + head * op.head_dim,
            op.k + batch * op.k_batch_stride + kv_head * op.head_dim,
            op.v + batch * op.v_batch_stride + kv_head * op.head_dim,
            min_of(plan.query_block, op.q_len - query)};
        part.load_queries();
        for (int64_t key = 0; key < op.kv_len; key += plan.key_block) {
            const int64_t keys = min_of(plan.key_block, op.kv_len - key);
            part.pack_keys(key, keys);
            part.pack_values(key, keys);
            for (int64_t tile = 0; tile * kRows < part.queries; ++tile) part.visit(tile, keys);
        }
        part.write(op.output + batch * op.output_batch_stride + query * op.output_token_stride +
                   head * op.head_dim);
    }
    team.barrier();
}
