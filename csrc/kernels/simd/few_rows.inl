// Matrix products with few rows: embeddings, modulations. They take as long as their weights take
// to come from memory, so weight rows are read once, from beginning to end, and some side by side:
// a processor fetches several streams faster than one.

// Fewer rows than this are multiplied here. Among them the sums of a row do not depend on their
// number, so that a picture does not on its batch. Eight would be faster here, too (bench/ops.py),
// but they are an image prompt's of one picture, and those of two pictures are many.
constexpr int64_t kFewRows = 8;
// Elements that are added up by themselves, for the sake of rounding.
constexpr int64_t kDotSlice = 1024;
// Sums that are held in registers.
#if SDE_LANES == 16 || defined(__aarch64__)
constexpr int kSums = 16;  // of 32
#else
constexpr int kSums = 8;  // of 16
#endif
// Weight rows side by side, and rows of the input that meet them at a time.
constexpr int kStreams = 8, kMostInputs = 4;

// Whether rows of weights are read as they lie, not through a buffer.
bool reads_in_place(const Weight& weight) {
    const ggml_type type = weight.type;
    if (weight.row_elements % ggml_blck_size(type) != 0) return false;
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 ||
           with_block_type(type, [](auto) {});
}

// A long run of a block is summed before it meets its scale, and its zeros meet the sum of the
// input: fewer steps with one input or two, as many with four. Where runs are short or have
// offsets, scaling the weights takes fewer.
template <class Block>
constexpr bool kScalesSums = Block::kRun == 32 && !Block::kHasOffset;

// A long block takes a processor more steps than it looks ahead, so that it would wait for each
// (twice as long with q6_K); they are called for so many before they are read.
template <class Block>
constexpr bool kIsLong = Block::kValues > 32;
constexpr int kBlocksAhead = 4;

template <class Block>
SDE_INLINE void fetch_block(const uint8_t* block) {
    for (int64_t at = 0; at < Block::kBytes; at += kLine * 4) __builtin_prefetch(block + at);
}

// The dot products of C input rows and `count` <= kStreams weight rows of `depth` elements, that of
// input c and weight row i as sums[c * kStreams + i].
template <int C>
struct FewRows {
    const float* inputs[C];
    int64_t depth, count;
    float* sums;

    template <int R, class Rows>
    void add_slice(const Rows& weights, const int64_t (&row)[R], int64_t begin, int64_t end,
                   Vec (&sum)[C][R]) const {
        Vec part[C][R] = {};
        const auto add = [&](int64_t k, int64_t n) SDE_LAMBDA {
            Vec w[R];
#pragma GCC unroll 8
            for (int i = 0; i < R; ++i) w[i] = weights(row[i], k, n);
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) {
                const Vec x = read_lanes(inputs[c] + k, n);
#pragma GCC unroll 8
                for (int i = 0; i < R; ++i) part[c][i] += w[i] * x;
            }
        };
        int64_t k = begin;
        for (; k + kLanes <= end; k += kLanes) add(k, kLanes);
        if (k < end) add(k, end - k);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
            for (int i = 0; i < R; ++i) sum[c][i] += part[c][i];
    }

    template <class Rows>
    void multiply_floats(const Rows& weights) const {
        constexpr int kRows = min_of(kStreams, kSums / C);
        for (int64_t first = 0; first < count; first += kRows) {
            int64_t row[kRows];  // missing ones are the last once more
            for (int i = 0; i < kRows; ++i) row[i] = min_of(first + i, count - 1);
            Vec sum[C][kRows] = {};
            for (int64_t k = 0; k < depth; k += kDotSlice)
                add_slice(weights, row, k, min_of(k + kDotSlice, depth), sum);
            for (int c = 0; c < C; ++c)
                for (int i = 0; i < kRows; ++i) sums[c * kStreams + row[i]] = add_lanes(sum[c][i]);
        }
    }

    // Adds the products of some elements of a weight row, from k on, and the inputs'.
    SDE_INLINE void add(Vec w, int64_t k, Vec (&to)[C]) const {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) to[c] += w * load(inputs[c] + k);
    }

    // Those of a block, the first element of which is k; `zeros` are what its zeros add to a run.
    template <class Block>
    SDE_INLINE void add_block(const uint8_t* block, int64_t k, const Vec (&zeros)[C],
                              Vec (&sum)[C]) const {
        constexpr int kChains = kIsLong<Block> ? 2 : 1;  // a sum waits for the addition before
        Vec part[kChains][C] = {};
        Block::read(block, [&](int first, float scale, float offset, auto numbers) SDE_LAMBDA {
            if constexpr (kScalesSums<Block>) {
                Vec run[C];
#pragma GCC unroll 4
                for (int c = 0; c < C; ++c) run[c] = zeros[c];
                for_parts<Block::kRun>(
                    [&](auto at) SDE_LAMBDA { add(to_floats(numbers(at)), k + first + at, run); });
#pragma GCC unroll 4
                for (int c = 0; c < C; ++c) sum[c] += run[c] * scale;
            } else {
                for_parts<Block::kRun>([&](auto at) SDE_LAMBDA {
                    add(to_floats(numbers(at) - Block::kZero) * scale + offset, k + first + at,
                        part[(first + at) / kLanes % kChains]);
                });
            }
        });
        if constexpr (!kScalesSums<Block>)
#pragma GCC unroll 2
            for (int j = 0; j < kChains; ++j)
#pragma GCC unroll 4
                for (int c = 0; c < C; ++c) sum[c] += part[j][c];
    }

    template <class Block>
    void multiply_blocks(const uint8_t* weights) const {
        constexpr float kZero = kScalesSums<Block> ? Block::kZero : 0;
        static_assert(kZero == 0 || Block::kRun == Block::kValues);
        const int64_t row_bytes = depth / Block::kValues * Block::kBytes;
        Vec sum[kStreams][C] = {};
        for (int64_t k = 0; k < depth; k += Block::kValues, weights += Block::kBytes) {
            Vec zeros[C] = {};
            if constexpr (kZero != 0)
                for_parts<Block::kRun>([&](auto at)
                                           SDE_LAMBDA { add(splat(-kZero), k + at, zeros); });
            for (int64_t i = 0; i < count; ++i) {
                const uint8_t* block = weights + i * row_bytes;
                if constexpr (kIsLong<Block>)
                    fetch_block<Block>(block + kBlocksAhead * Block::kBytes);
                add_block<Block>(block, k, zeros, sum[i]);
            }
        }
        for (int c = 0; c < C; ++c)
            for (int64_t i = 0; i < count; ++i) sums[c * kStreams + i] = add_lanes(sum[i][c]);
    }

    // The weight rows from `row` on, which reads_in_place().
    void multiply(const Weight& weight, int64_t row) const {
        const auto row_bytes = static_cast<int64_t>(ggml_row_size(weight.type, depth));
        const char* data = static_cast<const char*>(weight.data) + row * row_bytes;
        switch (weight.type) {
            case GGML_TYPE_F32:
                return multiply_floats(FloatRows{data, row_bytes});
            case GGML_TYPE_F16:
                return multiply_floats(HalfRows{{data, row_bytes}});
            case GGML_TYPE_BF16:
                return multiply_floats(Bf16Rows{{data, row_bytes}});
            default:
                with_block_type(weight.type, [&](auto block) {
                    multiply_blocks<decltype(block)>(reinterpret_cast<const uint8_t*>(data));
                });
        }
    }

    // Any others; the buffer has FewRowsScratch's size.
    void multiply_through(float* buffer, const Weight& weight, int64_t row) const {
        const int64_t stride = row_part_size(weight, depth);
        for (int64_t i = 0; i < count; ++i) {
            float* to = buffer + i * stride;
            std::memmove(to, dequantize(weight, row + i, 0, depth, to),
                         static_cast<size_t>(depth) * 4);
        }
        multiply_floats(FloatRows{reinterpret_cast<const char*>(buffer), stride * 4});
    }
};

struct FewRowsScratch {
    const Product& product;
    float* weights = nullptr;

    void lay_out(Layout& layout) {
        const int64_t rows = reads_in_place(product.weight) ? 0 : kStreams;
        weights = layout.take<float>(rows * row_part_size(product.weight, product.channels));
    }
};

// Rows [row, row + found), found <= C, and out channels [channel, channel + count) of the output.
template <int C>
void multiply_few_rows(const Product& p, const float* input, int64_t row, int64_t found,
                       int64_t channel, int64_t count, float* buffer) {
    float sums[C * kStreams];
    FewRows<C> rows{{}, p.channels, count, sums};
    for (int64_t c = 0; c < C; ++c)
        rows.inputs[c] = input + (row + min_of(c, found - 1)) * p.channels;
    if (reads_in_place(p.weight))
        rows.multiply(p.weight, channel);
    else
        rows.multiply_through(buffer, p.weight, channel);
    for (int64_t c = 0; c < found; ++c)
        for_vectors(count, [&](int64_t i, int64_t n) {
            finish_vector(p, load_part(sums + c * kStreams + i, n),
                          (row + c) * p.out_channels() + channel + i, channel + i,
                          (row + c) / p.pixels_per_batch, n, true, true);
        });
}

void run_few_rows(const Product& p, const float* input, Team& team) {
    FewRowsScratch scratch{p};
    allocate(scratch);
    for (int64_t item; (item = team.claim(ceil_div(p.out_channels(), kStreams))) >= 0;) {
        const int64_t channel = item * kStreams;
        const int64_t count = min_of<int64_t>(kStreams, p.out_channels() - channel);
        for (int64_t row = 0; row < p.pixels; row += kMostInputs) {
            const int64_t found = min_of<int64_t>(kMostInputs, p.pixels - row);
            const auto multiply = found == 1   ? multiply_few_rows<1>
                                  : found == 2 ? multiply_few_rows<2>
                                               : multiply_few_rows<kMostInputs>;
            multiply(p, input, row, found, channel, count, scratch.weights);
        }
    }
    team.barrier();
}
