// Dot products of rows and columns that lie in memory as they are needed, for matrix products with
// few rows (few_rows.inl) or few out channels (narrow.inl): there a panel would be packed for
// almost nothing, or be almost empty.

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
