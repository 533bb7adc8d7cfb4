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

// One row of B^T d.
SDE_INLINE void transform_input(const Vec (&d)[6], Vec (&t)[6]) {
    const Vec even_a = d[4] - d[2] * kB2, odd_a = d[3] - d[1] * kB2;
    const Vec even_b = d[4] - d[2] * kA2, odd_b = d[3] - d[1] * kA2;
    t[0] = (d[4] - d[2] * (kA2 + kB2)) + d[0] * (kA2 * kB2);
    t[1] = even_a + odd_a * kA;
    t[2] = even_a - odd_a * kA;
    t[3] = even_b + odd_b * kB;
    t[4] = even_b - odd_b * kB;
    t[5] = (d[5] - d[3] * (kA2 + kB2)) + d[1] * (kA2 * kB2);
}

// One row of G g.
SDE_INLINE void transform_weight(const Vec (&g)[3], Vec (&t)[6]) {
    constexpr float kScaleA = 1 / (2 * kA2 * (kA2 - kB2)), kScaleB = 1 / (2 * kB2 * (kB2 - kA2));
    const Vec even_a = g[0] * kScaleA + g[2] * (kScaleA * kA2), odd_a = g[1] * (kScaleA * kA);
    const Vec even_b = g[0] * kScaleB + g[2] * (kScaleB * kB2), odd_b = g[1] * (kScaleB * kB);
    t[0] = g[0] * (1 / (kA2 * kB2));
    t[1] = even_a + odd_a;
    t[2] = even_a - odd_a;
    t[3] = even_b + odd_b;
    t[4] = even_b - odd_b;
    t[5] = g[2];
}

// One row of A^T m.
SDE_INLINE void transform_output(const Vec (&m)[6], Vec (&y)[4]) {
    const Vec even_a = m[1] + m[2], odd_a = m[1] - m[2];
    const Vec even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[1] = odd_a * kA + odd_b * kB;
    y[2] = even_a * kA2 + even_b * kB2;
    y[3] = odd_a * (kA2 * kA) + odd_b * (kB2 * kB) + m[5];
}

// Channels of a slice, tiles and out channels of a work item.
constexpr int64_t kWinogradSlice = 64;
constexpr int64_t kWinogradTiles = 96;
constexpr int64_t kWinogradGroup = 64;

struct WinogradPlan {
    int64_t tile_rows, tile_columns, tiles;
    int64_t slice;  // channels
    int64_t panels, groups, blocks;
    int64_t block_tiles;
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
        panel = layout.take<float>(9 * plan.slice * kPanelWidth);
        row_buffer = layout.take<float>(row_buffer_size(product.weight, 9 * plan.slice));
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

    __attribute__((noinline)) void load_inputs(int64_t channel, int64_t channels) const {
        const float* pixels[kPoints];
        for (int64_t tile = 0; tile < tiles; ++tile) {
            s.windows.point(first + tile, 1, channel, channels, pixels);
            float* to = s.inputs + tile * plan.slice;
            for_vectors(channels, [&](int64_t c, int64_t n) {
                Vec columns[6][6], d[6], t[6];
                for (int x = 0; x < 6; ++x) {
                    for (int y = 0; y < 6; ++y) d[y] = read_lanes(pixels[y * 6 + x] + c, n);
                    transform_input(d, t);
                    for (int y = 0; y < 6; ++y) columns[y][x] = t[y];
                }
                for (int y = 0; y < 6; ++y) {
                    transform_input(columns[y], t);
                    for (int x = 0; x < 6; ++x) store(to + (y * 6 + x) * plan.input_stride + c, t[x]);
                }
            });
        }
    }

    __attribute__((noinline)) void load_weights(int64_t panel, int64_t width, int64_t channel, int64_t channels) const {
        const int64_t out_channel = panel * kPanelWidth;
        pack_weight(p.weight, out_channel, min_of<int64_t>(kPanelWidth, p.out_channels() - out_channel), channel * 9,
                    {9, channels}, width, s.row_buffer, s.panel);
        for (int64_t at = 0; at < channels * width; at += kLanes) {
            Vec columns[6][3], g[3], t[6];
            for (int x = 0; x < 3; ++x) {
                for (int y = 0; y < 3; ++y) g[y] = load(s.panel + (y * 3 + x) * channels * width + at);
                transform_weight(g, t);
                for (int y = 0; y < 6; ++y) columns[y][x] = t[y];
            }
            for (int y = 0; y < 6; ++y) {
                transform_weight(columns[y], t);
                for (int x = 0; x < 6; ++x) store(s.weights + (y * 6 + x) * plan.weight_stride + at, t[x]);
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

    __attribute__((noinline)) void write(const float* sums, int64_t out_channel, int64_t width, int64_t out_height, int64_t out_width) const {
        const int64_t channels = min_of(width, p.out_channels() - out_channel);
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t number = first + tile;
            const int64_t x = number % plan.tile_columns * kOutTile;
            const int64_t y = number / plan.tile_columns % plan.tile_rows * kOutTile;
            const int64_t batch = number / (plan.tile_columns * plan.tile_rows);
            const int64_t height = min_of(kOutTile, out_height - y), columns = min_of(kOutTile, out_width - x);
            const int64_t pixel = batch * p.pixels_per_batch + y * out_width + x;
            for_vectors(channels, [&](int64_t c, int64_t n) {
                Vec half[4][6], m[6], t[4];
                for (int i = 0; i < 6; ++i) {
                    for (int j = 0; j < 6; ++j) m[j] = load(sums + (j * 6 + i) * plan.sum_stride + tile * width + c);
                    transform_output(m, t);
                    for (int j = 0; j < 4; ++j) half[j][i] = t[j];
                }
                for (int64_t j = 0; j < height; ++j) {
                    transform_output(half[j], t);
                    for (int64_t i = 0; i < columns; ++i) {
                        const int64_t at = (pixel + j * out_width + i) * p.out_channels() + out_channel + c;
                        finish_vector(p, t[i], at, out_channel + c, batch, n, true, true);
                    }
                }
            });
        }
    }
};

// Whether this way is the faster one: measured, see bench/kernels.py. A question of shapes only, so that results do not
// depend on the number of threads.
bool suits_winograd(const Conv2d& op, const Product& p) {
    return op.kernel_h == 3 && op.kernel_w == 3 && op.stride == 1 && p.channels >= 16 && p.pixels_per_batch >= 16;
}

void run_winograd(const Conv2d& op, const Product& p, int64_t out_height, int64_t out_width, Team& team) {
    const WinogradPlan plan(p, out_height, out_width, team.size());
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
        run_matrix_product(product, op.input, team);
    else if (suits_winograd(op, product))
        run_winograd(op, product, out_height, out_width, team);
    else
        run_direct(op, product, out_height, out_width, team);
}
