// Matrix products with few rows or few out channels (narrow.inl). There a panel would be packed for
// almost nothing, or be almost empty; so these sum along vectors, over the depth: dot products of
// rows and columns that lie in memory as they are needed.

// Registers: rows x columns accumulators, a vector of each row, and one of a column.
#if SDE_LANES == 16
constexpr int kDotRows = 6;
#elif SDE_LANES == 8
constexpr int kDotRows = 3;
#elif defined(__aarch64__)
constexpr int kDotRows = 4;
#else
constexpr int kDotRows = 2;
#endif
constexpr int kDotColumns = 4;
// Elements of a slice: few for the sake of the caches, and of rounding.
constexpr int64_t kDotSlice = 1024;
// Fewer rows than this are multiplied here (measured with bench/kernels.py).
constexpr int64_t kFewRows = 8;

// Columns of a dot product: column c begins at data + c * stride, the part of a tap at `tap_stride`
// behind that of the tap before.
struct DotColumns {
    const float* data;
    int64_t stride, tap_stride;
};

// out[i][c] = sum over taps t and k < depth of rows[t * kDotRows + i][k] * columns(c, t)[k]
template <int C>
void dot_tile(const float* const* rows, int64_t taps, int64_t depth, DotColumns columns,
              float (&out)[kDotRows][kDotColumns]) {
    Vec sum[kDotRows][C] = {};
    for (int64_t t = 0; t < taps; ++t, rows += kDotRows) {
        const float* column = columns.data + t * columns.tap_stride;
        const auto add = [&](int64_t k, int64_t n) {
            Vec x[kDotRows];
#pragma GCC unroll 6
            for (int i = 0; i < kDotRows; ++i) x[i] = read_lanes(rows[i] + k, n);
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) {
                const Vec w = read_lanes(column + c * columns.stride + k, n);
#pragma GCC unroll 6
                for (int i = 0; i < kDotRows; ++i) sum[i][c] += x[i] * w;
            }
        };
        int64_t k = 0;
        for (; k + kLanes <= depth; k += kLanes) add(k, kLanes);
        if (k < depth) add(k, depth - k);
    }
#pragma GCC unroll 6
    for (int i = 0; i < kDotRows; ++i)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) out[i][c] = add_lanes(sum[i][c]);
}

using DotTile = void (*)(const float* const*, int64_t, int64_t, DotColumns,
                         float (&)[kDotRows][kDotColumns]);
constexpr DotTile kDotTiles[kDotColumns] = {dot_tile<1>, dot_tile<2>, dot_tile<3>, dot_tile<4>};

struct FewRowsScratch {
    const Product& product;
    float* weights = nullptr;  // of kLanes out channels
    float* sums = nullptr;     // [rows][kLanes]

    int64_t weight_stride() const { return row_part_size(product.weight, kDotSlice); }
    void lay_out(Layout& layout) {
        weights = layout.take<float>(kLanes * weight_stride());
        sums = layout.take<float>(product.pixels * kLanes);
    }
};

template <class Rows>
const float* copy_row(const Rows& rows, int64_t count, float* to) {
    for_vectors(count, [&](int64_t k, int64_t n) { store(to + k, rows(0, k, n)); });
    return to;
}

// Elements [begin, begin + count) of a weight row as floats; `to` has room for row_part_size().
const float* read_weight_row(const Weight& weight, int64_t row, int64_t begin, int64_t count,
                             float* to) {
    const char* data = static_cast<const char*>(weight.data);
    const int64_t first = row * weight.row_elements + begin;
    switch (weight.type) {
        case GGML_TYPE_F32:
            return copy_row(FloatRows{data + first * 4, 0}, count, to);
        case GGML_TYPE_F16:
            return copy_row(HalfRows{{data + first * 2, 0}}, count, to);
        case GGML_TYPE_BF16:
            return copy_row(Bf16Rows{{data + first * 2, 0}}, count, to);
        default:
            return dequantize(weight, row, begin, count, to);
    }
}

// The out channels [channel, channel + valid), valid <= kLanes, of all rows.
void multiply_few_rows(const Product& p, const float* input, const FewRowsScratch& s,
                       int64_t channel, int64_t valid) {
    std::memset(s.sums, 0, static_cast<size_t>(p.pixels * kLanes) * 4);
    for (int64_t begin = 0; begin < p.channels; begin += kDotSlice) {
        const int64_t count = min_of(kDotSlice, p.channels - begin);
        for (int64_t first = 0; first < valid; first += kDotRows) {
            const int64_t found = min_of<int64_t>(kDotRows, valid - first);
            const float* rows[kDotRows];
            for (int64_t i = 0; i < kDotRows; ++i)
                rows[i] = i < found ? read_weight_row(p.weight, channel + first + i, begin, count,
                                                      s.weights + i * s.weight_stride())
                                    : rows[0];
            for (int64_t row = 0; row < p.pixels; row += kDotColumns) {
                const int64_t columns = min_of<int64_t>(kDotColumns, p.pixels - row);
                float sums[kDotRows][kDotColumns];
                kDotTiles[columns - 1](rows, 1, count,
                                       {input + row * p.channels + begin, p.channels, 0}, sums);
                for (int64_t c = 0; c < columns; ++c)
                    for (int64_t i = 0; i < found; ++i)
                        s.sums[(row + c) * kLanes + first + i] += sums[i][c];
            }
        }
    }
}

void run_few_rows(const Product& p, const float* input, Team& team) {
    FewRowsScratch scratch{p};
    allocate(scratch);
    for (int64_t item; (item = team.claim(ceil_div(p.out_channels(), kLanes))) >= 0;) {
        const int64_t channel = item * kLanes;
        const int64_t valid = min_of<int64_t>(kLanes, p.out_channels() - channel);
        multiply_few_rows(p, input, scratch, channel, valid);
        for (int64_t row = 0; row < p.pixels; ++row)
            finish_vector(p, load(scratch.sums + row * kLanes), row * p.out_channels() + channel,
                          channel, row / p.pixels_per_batch, valid, true, true);
    }
    team.barrier();
}
