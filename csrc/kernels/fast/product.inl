// The product of simd/product.inl with operands of few bits. A thread takes some out channels and
// some pixels, slice by slice: it packs the slice's weights into panels
// [block][group][column][byte] that stay in its L2 cache, rounds the input of a few tiles of
// pixels, and runs these over the panels.

static_assert(kRows % kTogether == 0);
constexpr int64_t kNarrowWidth = kVectors * kLanes;
// Elements of a weight row in one slice: a panel is about as large as half the L1 cache.
constexpr int64_t kNarrowSlice = 576;
// Of all panels of a thread: much, for the input is rounded once for each such group of channels.
constexpr int64_t kNarrowPanelBytes = 400 * 1024;
// Packing takes as long as multiplying with some 100 pixels.
constexpr int64_t kNarrowPixels = 768;
// Tiles that a panel serves while it is in the L1 cache.
constexpr int64_t kTiles = 4;

// Of a panel so many columns wide.
constexpr int64_t block_bytes_of(int64_t width) {
    return width * (kBlockBytes + 4 * kScales);
}

struct NarrowPlan {
    int64_t slice;                  // channels
    int64_t blocks;                 // of a slice
    int64_t panel_bytes;            // of one panel
    int64_t panels, groups, parts;  // as in ProductPlan

    NarrowPlan(const Product& p, int threads) {
        slice = round_up(ceil_div(p.channels, ceil_div(p.channels, kNarrowSlice)),
                         max_of(kBlockValues, ggml_blck_size(p.weight.type)));
        blocks = ceil_div(min_of(slice, p.channels), kBlockValues);
        panel_bytes = blocks * block_bytes_of(kNarrowWidth);
        panels = ceil_div(p.out_channels(), kNarrowWidth);
        groups = ceil_div(panels, max_of<int64_t>(1, kNarrowPanelBytes / panel_bytes));
        const int64_t wanted = threads == 1 ? 1 : threads * kItemsPerThread;
        parts =
            min_of(ceil_div(wanted, groups), max_of<int64_t>(1, ceil_div(p.pixels, kNarrowPixels)));
        if (groups * parts < wanted) groups = min_of(panels, ceil_div(wanted, parts));
    }
    int64_t items() const { return groups * parts; }
    int64_t panels_in_group() const { return ceil_div(panels, groups); }
};

struct NarrowScratch {
    const Product& product;
    const NarrowPlan& plan;
    uint8_t* panels = nullptr;
    float* floats = nullptr;         // of a weight row
    uint8_t* weight_rows = nullptr;  // [kLanes][blocks]
    float* scales = nullptr;         // [kLanes][blocks]
    uint8_t* rows = nullptr;         // [tile][block][row]
    RowTerm* terms = nullptr;        // [tile][block][row]
    float* tile = nullptr;

    void lay_out(Layout& layout) {
        const int64_t blocks = plan.blocks;
        panels = layout.take<uint8_t>(plan.panels_in_group() * plan.panel_bytes);
        floats = layout.take<float>(weight_row_floats(product.weight, plan.slice));
        weight_rows = layout.take<uint8_t>(kLanes * blocks * kBlockBytes);
        scales = layout.take<float>(kLanes * blocks);
        rows = layout.take<uint8_t>(kTiles * kRows * blocks * kBlockBytes);
        terms = layout.take<RowTerm>(kTiles * kRows * blocks);
        tile = layout.take<float>(kRows * kNarrowWidth);
    }
};

// `valid` rows [blocks][kBlockBytes] become kLanes columns of a panel; the others are 0.
void store_columns(const uint8_t* rows, int64_t valid, int64_t blocks, int64_t width,
                   uint8_t* panel) {
    for (int64_t g = 0; g < 8 * blocks; g += kLanes) {
        const int64_t n = min_of<int64_t>(kLanes, 8 * blocks - g);
        Vec m[kLanes];
        for (int64_t r = 0; r < kLanes; ++r)
            m[r] = r < valid ? read_lanes(rows + (r * blocks * 8 + g) * 4, n) : Vec{};
        transpose(m);
        for (Vec& word : m) word = with_offset(word);
        for (int64_t j = 0; j < n; j += kTogether)
            store_group(panel + (g + j) / 8 * block_bytes_of(width) + (g + j) % 8 * width * 4,
                        m + j);
    }
}

using NarrowTile = void (*)(const uint8_t*, const RowTerm*, const uint8_t*, int64_t, float*,
                            int64_t);
struct NarrowTiles {
    NarrowTile of[kRows][kVectors];
};
template <int R, int V>
constexpr void fill_narrow_tiles(NarrowTiles& table) {
    table.of[R - 1][V - 1] = narrow_tile<R, V>;
    if constexpr (V > 1)
        fill_narrow_tiles<R, V - 1>(table);
    else if constexpr (R > 1)
        fill_narrow_tiles<R - 1, kVectors>(table);
}
constexpr NarrowTiles make_narrow_tiles() {
    NarrowTiles table{};
    fill_narrow_tiles<kRows, kVectors>(table);
    return table;
}
constexpr NarrowTiles kNarrowTiles = make_narrow_tiles();

SDE_INLINE NarrowTile narrow_tile_for(int64_t rows, int64_t width) {
    return kNarrowTiles.of[rows - 1][width / kLanes - 1];
}

// One work item: some panels of out channels for some pixels.
struct NarrowItem {
    const Product& p;
    const float* input;
    const NarrowScratch& s;
    int64_t first_panel, last_panel;
    int64_t begin, end;  // pixels

    int64_t width(int64_t panel) const {
        return min_of(kNarrowWidth, round_up(p.out_channels() - panel * kNarrowWidth, kLanes));
    }
    uint8_t* packed(int64_t panel) const {
        return s.panels + (panel - first_panel) * s.plan.panel_bytes;
    }

    // kLanes columns of a panel, from `column` on.
    void pack_columns(int64_t number, int64_t column, int64_t channel, int64_t channels) const {
        const int64_t row = number * kNarrowWidth + column, wide = width(number);
        const int64_t valid = min_of<int64_t>(kLanes, p.out_channels() - row);
        const int64_t blocks = ceil_div(channels, kBlockValues);
        for (int64_t r = 0; r < valid; ++r)
            round_weight_row(p.weight, row + r, channel, channels, s.floats,
                             s.weight_rows + r * blocks * kBlockBytes, s.scales + r * blocks);
        store_columns(s.weight_rows, valid, blocks, wide, packed(number) + column * kGroupBytes);
        for (int64_t b = 0; kScales && b < blocks; ++b) {
            float scales[kLanes] = {};
            for (int64_t r = 0; r < valid; ++r) scales[r] = s.scales[r * blocks + b];
            std::memcpy(packed(number) + b * block_bytes_of(wide) + kBlockBytes * wide + column * 4,
                        scales, sizeof scales);
        }
    }

    void pack(int64_t channel, int64_t channels) const {
        for (int64_t panel = first_panel; panel < last_panel; ++panel)
            for (int64_t column = 0; column < width(panel); column += kLanes)
                pack_columns(panel, column, channel, channels);
    }

    // Rounds the input of a tile.
    void round_tile(int64_t pixel, int64_t rows, int64_t channel, int64_t channels, uint8_t* to,
                    RowTerm* terms) const {
        for (int64_t i = 0; i < rows; ++i)
            round_row(input + (pixel + i) * p.channels + channel, channels, to + row_at(i),
                      rows_bytes(rows), terms + i, rows);
    }

    void multiply(int64_t channel, int64_t channels) const {
        const bool first = channel == 0, last = channel + channels == p.channels;
        const int64_t blocks = ceil_div(channels, kBlockValues);
        const int64_t tiles = ceil_div(end - begin, int64_t{kRows});
        const auto pixel_of = [&](int64_t t) { return begin + part_begin(end - begin, tiles, t); };
        const int64_t tile_bytes = kRows * blocks * kBlockBytes, tile_terms = kRows * blocks;
        for (int64_t done = 0; done < tiles; done += kTiles) {
            const int64_t n = min_of(kTiles, tiles - done);
            for (int64_t t = 0; t < n; ++t)
                round_tile(pixel_of(done + t), pixel_of(done + t + 1) - pixel_of(done + t), channel,
                           channels, s.rows + t * tile_bytes, s.terms + t * tile_terms);
            for (int64_t panel = first_panel; panel < last_panel; ++panel)
                for (int64_t t = 0; t < n; ++t) {
                    const int64_t pixel = pixel_of(done + t), wide = width(panel);
                    const int64_t rows = pixel_of(done + t + 1) - pixel;
                    narrow_tile_for(rows, wide)(s.rows + t * tile_bytes, s.terms + t * tile_terms,
                                                packed(panel), blocks, s.tile, wide);
                    finish_tile(p, s.tile, wide, pixel, rows, panel * kNarrowWidth, first, last);
                }
        }
    }
};

void narrow_rows(const Product& p, const float* input, Team& team) {
    const NarrowPlan plan(p, team.size());
    NarrowScratch scratch{p, plan};
    allocate(scratch);
    for (int64_t number; (number = team.claim(plan.items())) >= 0;) {
        const int64_t group = number % plan.groups, part = number / plan.groups;
        const NarrowItem item{p,
                              input,
                              scratch,
                              part_begin(plan.panels, plan.groups, group),
                              part_begin(plan.panels, plan.groups, group + 1),
                              part_begin(p.pixels, plan.parts, part),
                              part_begin(p.pixels, plan.parts, part + 1)};
        for (int64_t channel = 0; channel < p.channels; channel += plan.slice) {
            const int64_t channels = min_of(plan.slice, p.channels - channel);
            item.pack(channel, channels);
            item.multiply(channel, channels);
        }
    }
    team.barrier();
}

void narrow_linear(const Linear& op, Team& team) {
    const int64_t rows_per_batch =
        op.rows_per_batch > 0 ? op.rows_per_batch : max_of<int64_t>(op.rows, 1);
    narrow_rows({op.weight, op.epilogue, op.output, op.rows, rows_per_batch, op.in_features, 1},
                op.input, team);
}

// Of the convolutions only those that are products of the pixels' rows, see is_product().
void narrow_conv2d(const Conv2d& op, Team& team) {
    const int64_t pixels = op.height * op.width;
    narrow_rows({op.weight, op.epilogue, op.output, op.batch * pixels, pixels, op.in_channels, 1},
                op.input, team);
}
