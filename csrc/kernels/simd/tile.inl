// The inner loop of every matrix product: a tile of up to kTileRows rows x one panel, in registers.

// Steps of the depth in one round of the loop: with eight, the rounds of an attention head are so
// few that the processor foresees the last. Wider vectors have room enough beside the products.
constexpr int kDepthSteps = kLanes == 8 ? 8 : 1;

// out[i][c] = sum over taps t and k < depth of rows[t * R + i][k] * panel[t * depth + k][c], the
// sum taken in this order; with `add`, what out holds is added to it. `out_stride` in floats.
template <int R, int V>
void tile_product(const float* const* rows, int64_t taps, int64_t depth, const float* panel,
                  float* out, int64_t out_stride, bool add) {
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
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) {
            float* to = out + i * out_stride + v * kLanes;
            store(to, add ? load(to) + sum[i][v] : sum[i][v]);
        }
    }
}

using TileProduct = void (*)(const float* const*, int64_t, int64_t, const float*, float*, int64_t,
                             bool);

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
