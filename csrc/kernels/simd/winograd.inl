// Convolution by Winograd's method: the work around the transforms.

// Channels of a slice, tiles and out channels of a work item.
constexpr int64_t kWinogradSlice = 64, kWinogradTiles = 48, kWinogradGroup = 256;

struct WinogradPlan {
    int64_t tile_rows, tile_columns;  // of an image
    int64_t tiles;                    // of all images
    int64_t slice;                    // channels
    int64_t panels, groups;           // of out channels, as in ProductPlan
    int64_t blocks, block_tiles;      // of tiles; a work item is one group x one block
    // Channels whose weights are transformed at a time: few, to stay in the L1 cache, but at least
    // a quantization block.
    int64_t weight_part;
    // Distances between the inputs of tiles, and between points of weights and sums: a cache line
    // more than the data, lest they share cache sets.
    int64_t input_stride, weight_stride, sum_stride;

    WinogradPlan(const Product& p, int64_t out_height, int64_t out_width, int threads) {
        tile_rows = ceil_div(out_height, kOutTile);
        tile_columns = ceil_div(out_width, kOutTile);
        tiles = p.pixels / p.pixels_per_batch * tile_rows * tile_columns;
        slice = round_up(ceil_div(p.channels, ceil_div(p.channels, kWinogradSlice)), 16);
        panels = ceil_div(p.out_channels(), kPanelWidth);
        groups = ceil_div(panels, kWinogradGroup / kPanelWidth);
        blocks = max_of<int64_t>(1, ceil_div(tiles, kWinogradTiles));
        const int64_t wanted = threads * 4;
        if (groups * blocks < wanted) groups = min_of(panels, ceil_div(wanted, blocks));
        block_tiles = ceil_div(tiles, blocks);
        input_stride = kPoints * slice + 16;
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
    float *panel = nullptr, *row_buffer = nullptr;
    float* weights = nullptr;  // [kPoints][slice][kPanelWidth]
    float* inputs = nullptr;   // [block_tiles][kPoints][slice]
    float* sums = nullptr;     // for each panel of the group [kPoints][block_tiles][kPanelWidth]

    void lay_out(Layout& layout) {
        panel = layout.take<float>(9 * plan.weight_part * kPanelWidth);
        row_buffer = layout.take<float>(row_buffer_size(product.weight, 9 * plan.weight_part));
        weights = layout.take<float>(kPoints * plan.weight_stride);
        inputs = layout.take<float>(plan.block_tiles * plan.input_stride);
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
            float* to = s.inputs + tile * plan.input_stride;
            for_vectors(channels, [&](int64_t c, int64_t n) {
                const auto read = [&](int y, int x) {
                    return read_lanes(pixels[y * 6 + x] + c, n);
                };
                const auto write = [&](int y, int x, Vec v) {
                    store(to + (y * 6 + x) * plan.slice + c, v);
                };
                transform_input_rows<0>(read, write);
                transform_input_rows<1>(read, write);
                transform_input_rows<2>(read, write);
            });
        }
    }

    void load_weights(int64_t panel, int64_t width, int64_t channel, int64_t channels) const {
        const int64_t out_channel = panel * kPanelWidth;
        const int64_t valid = min_of<int64_t>(kPanelWidth, p.out_channels() - out_channel);
        for (int64_t part = 0; part < channels; part += plan.weight_part) {
            const int64_t count = min_of(plan.weight_part, channels - part);
            pack_weight(p.weight, out_channel, valid, (channel + part) * 9, {1, count * 9}, width,
                        s.row_buffer, s.panel);
            for (int64_t i = 0; i < count; ++i) {
                for (int64_t column = 0; column < width; column += kLanes) {
                    const float* from = s.panel + i * 9 * width + column;
                    float* to = s.weights + (part + i) * width + column;
                    Vec g[3][3];
                    for (int tap = 0; tap < 9; ++tap)
                        g[tap / 3][tap % 3] = load(from + tap * width);
                    const auto write = [&](int y, int x, Vec v) {
                        store(to + (y * 6 + x) * plan.weight_stride, v);
                    };
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
                    rows[i] = s.inputs + (begin + i) * plan.input_stride + point * plan.slice;
                float* to = sums + point * plan.sum_stride + begin * width;
                tile_product_for(count, width)(rows, 1, channels,
                                               s.weights + point * plan.weight_stride,
                                               {to, width, add ? to : nullptr});
            }
        }
    }

    void write(const float* sums, int64_t out_channel, int64_t width, int64_t out_height,
               int64_t out_width) const {
        const int64_t channels = min_of(width, p.out_channels() - out_channel);
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t number = first + tile;
            const int64_t x = number % plan.tile_columns * kOutTile;
            const int64_t y = number / plan.tile_columns % plan.tile_rows * kOutTile;
            const int64_t batch = number / (plan.tile_columns * plan.tile_rows);
            const int64_t height = min_of(kOutTile, out_height - y);
            const int64_t columns = min_of(kOutTile, out_width - x);
            const int64_t pixel = batch * p.pixels_per_batch + y * out_width + x;
            for_vectors(channels, [&](int64_t c, int64_t n) {
                const auto read = [&](int j, int i) {
                    return load(sums + (j * 6 + i) * plan.sum_stride + tile * width + c);
                };
                const auto write = [&](int j, int i, Vec v) {
                    if (j >= height || i >= columns) return;
                    const int64_t at =
                        (pixel + j * out_width + i) * p.out_channels() + out_channel + c;
                    finish_vector(p, v, at, out_channel + c, batch, n, true, true);
                };
                transform_output_rows<0>(read, write);
                transform_output_rows<1>(read, write);
            });
        }
    }
};

// Whether this way is the faster one, by a model of the cycles for one input channel and one vector
// of out channels: 9 per pixel directly; 44 per tile (36 products, the rest for its transforms) and
// 120 more for transforming weights. Within a tenth of what bench/kernels.py measures. A question
// of shapes only, so that results do not depend on threads.
bool suits_winograd(const Conv2d& op, const Product& p, const WinogradPlan& plan) {
    if (op.kernel_h != 3 || op.kernel_w != 3 || op.stride != 1 || op.method == ConvMethod::Direct)
        return false;
    return op.method == ConvMethod::Winograd ||
           (!has_few_channels(p) && p.channels >= 16 && 9 * p.pixels > 44 * plan.tiles + 120);
}

void run_winograd(const Conv2d& op, const Product& p, const WinogradPlan& plan, int64_t out_height,
                  int64_t out_width, Team& team) {
    Windows windows{op, kInTile, kInTile, kOutTile, plan.tile_rows, plan.tile_columns};
    WinogradScratch scratch{p, plan, windows};
    allocate(scratch);
    windows.prepare();
    for (int64_t number; (number = team.claim(plan.groups * plan.blocks)) >= 0;) {
        const int64_t group = number % plan.groups, block = number / plan.groups;
        const int64_t first_panel = part_begin(plan.panels, plan.groups, group);
        const int64_t last_panel = part_begin(plan.panels, plan.groups, group + 1);
        const int64_t first = part_begin(plan.tiles, plan.blocks, block);
        const int64_t last = part_begin(plan.tiles, plan.blocks, block + 1);
        const WinogradItem item{p, plan, scratch, first, last - first};
        const auto sums_of = [&](int64_t panel) {
            return scratch.sums + (panel - first_panel) * kPoints * plan.sum_stride;
        };
        for (int64_t channel = 0; channel < p.channels; channel += plan.slice) {
            const int64_t channels = min_of(plan.slice, p.channels - channel);
            item.load_inputs(channel, channels);
            for (int64_t panel = first_panel; panel < last_panel; ++panel) {
                item.load_weights(panel, p.panel_width(panel), channel, channels);
                item.multiply(sums_of(panel), p.panel_width(panel), channels, channel > 0);
            }
        }
        for (int64_t panel = first_panel; panel < last_panel; ++panel)
            item.write(sums_of(panel), panel * kPanelWidth, p.panel_width(panel), out_height,
                       out_width);
    }
    team.barrier();
}

void conv2d_kernel(const Conv2d& op, Team& team) {
    const int64_t scale = op.upsample2x ? 2 : 1;
    const int64_t out_height =
        (scale * op.height + op.pad_top + op.pad_bottom - op.kernel_h) / op.stride + 1;
    const int64_t out_width =
        (scale * op.width + op.pad_left + op.pad_right - op.kernel_w) / op.stride + 1;
    const int64_t pixels = out_height * out_width;
    const Product product{op.weight,
                          op.epilogue,
                          op.output,
                          op.batch * pixels,
                          pixels,
                          op.in_channels,
                          int64_t{op.kernel_h} * op.kernel_w};
    if (product.taps == 1 && op.stride == 1 && !op.upsample2x && pixels == op.height * op.width)
        return run_matrix_product(product, op.input, team);
    const WinogradPlan plan(product, out_height, out_width, team.size());
    if (suits_winograd(op, product, plan))
        run_winograd(op, product, plan, out_height, out_width, team);
    else
        run_direct(op, product, out_height, out_width, team);
}
