// The inner loop of every matrix product: a tile of up to kTileRows rows x one panel, in registers.

// Steps of the depth in one round of the loop: with eight, the rounds of an attention head are so
// few that the processor foresees the last. Wider vectors have room enough beside the products.
constexpr int kDepthSteps = kLanes == 8 ? 8 : 1;

// Where the sums of a tile go, and what is added to them there.
struct TileEnd {
    float* out;
    int64_t stride;                // in floats, of out and start
    const float* start = nullptr;  // a row for each row; may be out
    const float* bias = nullptr;   // one row for all
};

template <int R, int V>
SDE_INLINE void write_tile(Vec (&sum)[R][V], const TileEnd& end) {
    if (end.bias) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) {
            const Vec bias = load(end.bias + v * kLanes);
#pragma GCC unroll 16
            for (int i = 0; i < R; ++i) sum[i][v] += bias;
        }
    }
    if (end.start) {
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i)
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) sum[i][v] += load(end.start + i * end.stride + v * kLanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) store(end.out + i * end.stride + v * kLanes, sum[i][v]);
}

// For each row i and column c the sum over taps t and k < depth of rows[t * R + i][k] * panel[t *
// depth + k][c], taken in this order.
template <int R, int V>
void tile_product(const float* const* rows, int64_t taps, int64_t depth, const float* panel,
                  const TileEnd& end) {
    Vec sum[R][V] = {};
    for (int64_t t = 0; t < taps; ++t, rows += R) {
        const float* row[R];
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) row[i] = rows[i];
#pragma GCC unroll kDepthSteps
        for (int64_t k = 0; k < depth; ++k, panel += V * kLanes) {
            Vec w[V];
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) w[v] = load(panel + v * kLanes);
#pragma GCC unroll 16
            for (int i = 0; i < R; ++i) {
                const Vec x = splat(row[i][k]);
#pragma GCC unroll 16
                for (int v = 0; v < V; ++v) sum[i][v] += x * w[v];
            }
        }
    }
    write_tile(sum, end);
}

using TileProduct = void (*)(const float* const*, int64_t, int64_t, const float*, const TileEnd&);

struct TileProducts {
    TileProduct of[kTileRows][kPanelVectors];
};

template <int R, int V>
constexpr void fill_tile_products(TileProducts& table) {
    table.of[R - 1][V - 1] = tile_product<R, V>;
    if constexpr (V > 1)
        fill_tile_products<R, V - 1>(table);
    else if constexpr (R > 1)
        fill_tile_products<R - 1, kPanelVectors>(table);
}

constexpr TileProducts make_tile_products() {
    TileProducts table{};
    fill_tile_products<kTileRows, kPanelVectors>(table);
    return table;
}

constexpr TileProducts kTileProducts = make_tile_products();

// The tile of `rows` <= kTileRows rows with a panel `width` <= kPanelWidth floats wide.
SDE_INLINE TileProduct tile_product_for(int64_t rows, int64_t width) {
    return kTileProducts.of[rows - 1][width / kLanes - 1];
}

// The peak rate: as many independent accumulators as the tile has, and nothing else.
int64_t multiply_add_kernel(int64_t rounds) {
    constexpr int kChains = min_of(kTileRows * kPanelVectors, 12);
    Vec sum[kChains] = {};
    Vec x = splat(0.999f), y = splat(1e-3f);
    asm volatile("" : "+m"(x), "+m"(y));  // unknown to the compiler
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int repeat = 0; repeat < 16; ++repeat)
#pragma GCC unroll 16
            for (int i = 0; i < kChains; ++i) sum[i] = sum[i] * x + y;
    }
    for (int i = 0; i < kChains; ++i) asm volatile("" ::"m"(sum[i]));
    return rounds * 16 * kChains * kLanes * 2;
}
