// 3x3 convolution of stride 1 by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308): a tile of
// 4x4 outputs is computed from 6x6 inputs with 36 multiplications for each pair of channels instead of 144.
//
//   output tile = A^T [ sum over channels of (G g G^T) * (B^T d B) ] A      g: 3x3 weights, d: 6x6 inputs, *: element-wise
//
// The matrices follow from the points 0, +-a, +-b and infinity (Cook and Toom). Which points matters for rounding only
// (Barabasz et al., arXiv 1803.10986). With a = 11/16, b = 3/2, found by a search over pairs of small fractions, the
// relative L2 error on normal data is 8e-7 (three times that of direct summation); with the usual 1, 2 it is 1.8e-6.

constexpr float kA = 0.6875f, kB = 1.5f;
constexpr float kA2 = kA * kA, kB2 = kB * kB;
constexpr int64_t kPoints = 36;  // 6 x 6
constexpr int64_t kOutTile = 4, kInTile = 6;

// A transform of six points computes them in three pairs that share their terms: (1, 2), (3, 4) and (0, 5). In two
// dimensions, doing all columns of one pair and then its two rows keeps everything in registers.
constexpr int kPairs[3][2] = {{1, 2}, {3, 4}, {0, 5}};

template <int Pair>
SDE_INLINE void transform_input_pair(const Vec (&d)[6], Vec& first, Vec& second) {
    if constexpr (Pair == 2) {
        first = (d[4] - d[2] * (kA2 + kB2)) + d[0] * (kA2 * kB2);
        second = (d[5] - d[3] * (kA2 + kB2)) + d[1] * (kA2 * kB2);
    } else {
        constexpr float kThis = Pair == 0 ? kA : kB, kOther2 = Pair == 0 ? kB2 : kA2;
        const Vec even = d[4] - d[2] * kOther2, odd = d[3] - d[1] * kOther2;
        first = even + odd * kThis;
        second = even - odd * kThis;
    }
}

template <int Pair>
SDE_INLINE void transform_weight_pair(const Vec (&g)[3], Vec& first, Vec& second) {
    if constexpr (Pair == 2) {
        first = g[0] * (1 / (kA2 * kB2));
        second = g[2];
    } else {
        constexpr float kThis = Pair == 0 ? kA : kB, kThis2 = kThis * kThis, kOther2 = Pair == 0 ? kB2 : kA2;
        constexpr float kScale = 1 / (2 * kThis2 * (kThis2 - kOther2));
        const Vec even = g[0] * kScale + g[2] * (kScale * kThis2), odd = g[1] * (kScale * kThis);
        first = even + odd;
        second = even - odd;
    }
}

// The four points of an output in two pairs, (0, 2) and (1, 3).
template <int Pair>
SDE_INLINE void transform_output_pair(const Vec (&m)[6], Vec& first, Vec& second) {
    if constexpr (Pair == 0) {
        const Vec even_a = m[1] + m[2], even_b = m[3] + m[4];
        first = m[0] + even_a + even_b;
        second = even_a * kA2 + even_b * kB2;
    } else {
        const Vec odd_a = m[1] - m[2], odd_b = m[3] - m[4];
        first = odd_a * kA + odd_b * kB;
        second = odd_a * (kA2 * kA) + odd_b * (kB2 * kB) + m[5];
    }
}

// Two rows of the transformed tile, from `read(y, x)` to `write(y, x, value)`.
template <int Pair, class Read, class Write>
SDE_INLINE void transform_input_rows(const Read& read, const Write& write) {
    Vec rows[2][6];
#pragma GCC unroll 6
    for (int x = 0; x < 6; ++x) {
        const Vec d[6] = {Pair == 2 ? read(0, x) : Vec{}, read(1, x), read(2, x),
                          read(3, x), read(4, x), Pair == 2 ? read(5, x) : Vec{}};
        transform_input_pair<Pair>(d, rows[0][x], rows[1][x]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        Vec t[6];
        transform_input_pair<0>(rows[i], t[1], t[2]);
        transform_input_pair<1>(rows[i], t[3], t[4]);
        transform_input_pair<2>(rows[i], t[0], t[5]);
#pragma GCC unroll 6
        for (int x = 0; x < 6; ++x) write(kPairs[Pair][i], x, t[x]);
    }
}

template <int Pair, class Write>
SDE_INLINE void transform_weight_rows(const Vec (&g)[3][3], const Write& write) {
    Vec rows[2][3];
    for (int x = 0; x < 3; ++x) transform_weight_pair<Pair>({g[0][x], g[1][x], g[2][x]}, rows[0][x], rows[1][x]);
    for (int i = 0; i < 2; ++i) {
        Vec t[6];
        transform_weight_pair<0>(rows[i], t[1], t[2]);
        transform_weight_pair<1>(rows[i], t[3], t[4]);
        transform_weight_pair<2>(rows[i], t[0], t[5]);
        for (int x = 0; x < 6; ++x) write(kPairs[Pair][i], x, t[x]);
    }
}

template <int Pair, class Read, class Write>
SDE_INLINE void transform_output_rows(const Read& read, const Write& write) {
    Vec rows[2][6];
#pragma GCC unroll 6
    for (int x = 0; x < 6; ++x) {
        const Vec m[6] = {Pair == 0 ? read(0, x) : Vec{}, read(1, x), read(2, x),
                          read(3, x), read(4, x), Pair == 1 ? read(5, x) : Vec{}};
        transform_output_pair<Pair>(m, rows[0][x], rows[1][x]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        Vec y[4];
        transform_output_pair<0>(rows[i], y[0], y[2]);
        transform_output_pair<1>(rows[i], y[1], y[3]);
        for (int x = 0; x < 4; ++x) write(Pair + 2 * i, x, y[x]);
    }
}

// Channels of a slice, tiles and out channels of a work item.
constexpr int64_t kWinogradSlice = 64, kWinogradTiles = 48, kWinogradGroup = 256;

struct WinogradPlan {
    int64_t tile_rows, tile_columns, tiles;
    int64_t slice;  // channels
    int64_t panels, groups, blocks;
    int64_t block_tiles;
    int64_t weight_part;  // channels transformed at a time: few, to stay in the L1 cache, but whole quantization blocks
    // Distances between points, one cache line more than the data so that the points do not share cache sets.
    int64_t input_stride, weight_stride, sum_stride;

    WinogradPlan(const Product& p, int64_t out_height, int64_t out_width, int threads) {
        tile_rows = ceil_div(out_height, kOutTile);
        tile_columns = ceil_div(out_width, kOutTile);
        tiles = p.pixels / p.pixels_per_batch * tile_rows * tile_columns;
        slice = round_up(ceil_div(p.channels, ceil_div(p.channels, kWinogradSlice)), 16);
        panels = ceil_div(p.out_channels(), kPanelWidth);
        groups = ceil_div(panels, kWinogradGroup / kPanelWidth);
        blocks = ceil_div(tiles, kWinogradTiles);
        const int64_t wanted = threads * 4;
        if (groups * blocks < wanted) groups = min_of(panels, ceil_div(wanted, blocks));
        block_tiles = ceil_div(tiles, blocks);
        input_stride = block_tiles * slice + 16;
        weight_part = min_of<int64_t>(slice, max_of<int64_t>(16, ggml_blck_size(p.weight.type)));
        weight_stride = slice * kPanelWidth + 16;
        sum_stride = block_tiles * kPanelWidth + 16;
    }
    int64_t panels_in_group() const { return ceil_div(panels, groups); }
};

struct WinogradScratch {
    const Product& product;
    const WinogradPlan& plan;
    Windows& windows;
    float *panel, *row_buffer;
    float* weights;  // [kPoints][slice][kPanelWidth]
    float* inputs;   // [kPoints][block_tiles][slice]
    float* sums;     // for each panel of the group [kPoints][block_tiles][kPanelWidth]

    void lay_out(Layout& layout) {
        panel = layout.take<float>(9 * plan.weight_part * kPanelWidth);
        row_buffer = layout.take<float>(row_buffer_size(product.weight, 9 * plan.weight_part));
        weights = layout.take<float>(kPoints * plan.weight_stride);
        inputs = layout.take<float>(kPoints * plan.input_stride);
        sums = layout.take<float>(plan.panels_in_group() * kPoints * plan.sum_stride);
        windows.lay_out(layout);
    }
};

// One work item: the tiles [first, first + tiles) of some panels of out channels.
struct WinogradItem {
    const Product& p;
    const WinogradPlan& plan;
    const WinogradScratch& s;
    int64_t first, tiles;

    void load_inputs(int64_t channel, int64_t channels) const {
        const float* pixels[kPoints];
        for (int64_t tile = 0; tile < tiles; ++tile) {
            s.windows.point(first + tile, 1, channel, pixels);
            float* to = s.inputs + tile * plan.slice;
            for_vectors(channels, [&](int64_t c, int64_t n) {
                const auto read = [&](int y, int x) { return read_lanes(pixels[y * 6 + x] + c, n); };
                const auto write = [&](int y, int x, Vec v) { store(to + (y * 6 + x) * plan.input_stride + c, v); };
                transform_input_rows<0>(read, write);
                transform_input_rows<1>(read, write);
                transform_input_rows<2>(read, write);
            });
        }
    }

    void load_weights(int64_t panel, int64_t width, int64_t channel, int64_t channels) const {
        const int64_t out_channel = panel * kPanelWidth, valid = min_of<int64_t>(kPanelWidth, p.out_channels() - out_channel);
        for (int64_t part = 0; part < channels; part += plan.weight_part) {
            const int64_t count = min_of(plan.weight_part, channels - part);
            pack_weight(p.weight, out_channel, valid, (channel + part) * 9, {1, count * 9}, width, s.row_buffer, s.panel);
            for (int64_t i = 0; i < count; ++i) {
                for (int64_t column = 0; column < width; column += kLanes) {
                    const float* from = s.panel + i * 9 * width + column;
                    float* to = s.weights + (part + i) * width + column;
                    Vec g[3][3];
                    for (int tap = 0; tap < 9; ++tap) g[tap / 3][tap % 3] = load(from + tap * width);
                    const auto write = [&](int y, int x, Vec v) { store(to + (y * 6 + x) * plan.weight_stride, v); };
                    transform_weight_rows<0>(g, write);
                    transform_weight_rows<1>(g, write);
                    transform_weight_rows<2>(g, write);
                }
            }
        }
    }

    void multiply(float* sums, int64_t width, int64_t channels, bool add) const {
        const int64_t parts = ceil_div(tiles, kTileRows);
        const float* rows[kTileRows];
        for (int64_t point = 0; point < kPoints; ++point) {
            for (int64_t part = 0; part < parts; ++part) {
                const int64_t begin = part_begin(tiles, parts, part);
                const int64_t count = part_begin(tiles, parts, part + 1) - begin;
                for (int64_t i = 0; i < count; ++i)
                    rows[i] = s.inputs + point * plan.input_stride + (begin + i) * plan.slice;
                tile_product_for(count, width)(rows, 1, channels, s.weights + point * plan.weight_stride,
                                               sums + point * plan.sum_stride + begin * width, width, add);
            }
        }
    }

    void write(const float* sums, int64_t out_channel, int64_t width, int64_t out_height, int64_t out_width) const {
        const int64_t channels = min_of(width, p.out_channels() - out_channel);
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t number = first + tile;
            const int64_t x = number % plan.tile_columns * kOutTile;
            const int64_t y = number / plan.tile_columns % plan.tile_rows * kOutTile;
            const int64_t batch = number / (plan.tile_columns * plan.tile_rows);
            const int64_t height = min_of(kOutTile, out_height - y), columns = min_of(kOutTile, out_width - x);
            const int64_t pixel = batch * p.pixels_per_batch + y * out_width + x;
            for_vectors(channels, [&](int64_t c, int64_t n) {
                const auto read = [&](int j, int i) { return load(sums + (j * 6 + i) * plan.sum_stride + tile * width + c); };
                const auto write = [&](int j, int i, Vec v) {
                    if (j >= height || i >= columns) return;
                    const int64_t at = (pixel + j * out_width + i) * p.out_channels() + out_channel + c;
                    finish_vector(p, v, at, out_channel + c, batch, n, true, true);
                };
                transform_output_rows<0>(read, write);
                transform_output_rows<1>(read, write);
            });
        }
    }
};

// Whether this way is the faster one, by a model of the cycles for one input channel and one vector of out channels:
// 9 per pixel directly; 44 per tile (36 products, the rest for its transforms) and 120 more for transforming weights.
// Within a tenth of what bench/kernels.py measures. A question of shapes only, so that results do not depend on threads.
bool suits_winograd(const Conv2d& op, const Product& p, const WinogradPlan& plan) {
    if (op.kernel_h != 3 || op.kernel_w != 3 || op.stride != 1 || op.method == ConvMethod::Direct) return false;
    return op.method == ConvMethod::Winograd || (p.channels >= 16 && 9 * p.pixels > 44 * plan.tiles + 120);
}

void run_winograd(const Conv2d& op, const Product& p, const WinogradPlan& plan, int64_t out_height, int64_t out_width,
                  Team& team) {
    Windows windows{op, kInTile, kInTile, kOutTile, plan.tile_rows, plan.tile_columns};
    WinogradScratch scratch{p, plan, windows, nullptr, nullptr, nullptr, nullptr, nullptr};
    allocate(scratch);
    windows.prepare();
    for (int64_t number; (number = team.claim(plan.groups * plan.blocks)) >= 0;) {
        const int64_t group = number % plan.groups, block = number / plan.groups;
        const int64_t first_panel = part_begin(plan.panels, plan.groups, group);
        const int64_t last_panel = part_begin(plan.panels, plan.groups, group + 1);
        const int64_t first = part_begin(plan.tiles, plan.blocks, block);
        const WinogradItem item{p, plan, scratch, first, part_begin(plan.tiles, plan.blocks, block + 1) - first};
        for (int64_t channel = 0; channel < p.channels; channel += plan.slice) {
            const int64_t channels = min_of(plan.slice, p.channels - channel);
            item.load_inputs(channel, channels);
            for (int64_t panel = first_panel; panel < last_panel; ++panel) {
                item.load_weights(panel, p.panel_width(panel), channel, channels);
                item.multiply(scratch.sums + (panel - first_panel) * kPoints * plan.sum_stride, p.panel_width(panel), channels,
                              channel > 0);
            }
        }
        for (int64_t panel = first_panel; panel < last_panel; ++panel)
            item.write(scratch.sums + (panel - first_panel) * kPoints * plan.sum_stride, panel * kPanelWidth,
                       p.panel_width(panel), out_height, out_width);
    }
    team.barrier();
}

void conv2d_kernel(const Conv2d& op, Team& team) {
    const int64_t scale = op.upsample2x ? 2 : 1;
    const int64_t out_height = (scale * op.height + op.pad_top + op.pad_bottom - op.kernel_h) / op.stride + 1;
    const int64_t out_width = (scale * op.width + op.pad_left + op.pad_right - op.kernel_w) / op.stride + 1;
    const int64_t pixels = out_height * out_width;
    const Product product{op.weight, op.epilogue, op.output, op.batch * pixels, pixels, op.in_channels,
                          int64_t{op.kernel_h} * op.kernel_w};
    if (product.taps == 1 && op.stride == 1 && !op.upsample2x && pixels == op.height * op.width)
        return run_matrix_product(product, op.input, team);
    const WinogradPlan plan(product, out_height, out_width, team.size());
    if (suits_winograd(op, product, plan))
        run_winograd(op, product, plan, out_height, out_width, team);
    else
        run_direct(op, product, out_height, out_width, team);
}
