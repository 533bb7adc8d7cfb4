// The matrix product behind convolution and linear layers:
//
//   output[p][c] = epilogue(sum over t, k of source(p, t)[k] * weight[c][k * taps + t])
//
// The channels are walked in slices. For each slice a thread packs the weights of some out channels
// into panels that stay in its L2 cache, and runs them over its pixels; slices are added up in the
// output. A sum therefore has one order, whatever the partition: over taps and channels inside a
// slice, then over slices. Short slices also keep the rounding error of long sums low.

struct Product {
    Weight weight;
    Epilogue epilogue;
    float* output;
    int64_t pixels, pixels_per_batch;
    int64_t channels, taps;

    int64_t out_channels() const { return weight.rows; }
    // Whether something is done with whole sums. A bias and a residual alone are what the sums
    // begin with.
    bool finishes_sums() const {
        return epilogue.activation != Activation::None || epilogue.batch_bias || epilogue.gate;
    }
    int64_t panel_width(int64_t panel) const {
        return min_of<int64_t>(kPanelWidth, round_up(out_channels() - panel * kPanelWidth, kLanes));
    }
};

// Elements of a weight row in one slice: few for the sake of rounding, and of the cache (a panel of
// 640 x 16 floats has 40 KB).
constexpr int64_t kSliceElements = 640;
// Of all panels that a thread holds; they share the L2 cache with pixels. Among many pixels, whose
// sums leave the cache before the next slice in any case, twice as much: the input is read half as
// often.
constexpr int64_t kPanelBytes = 288 * 1024;
constexpr int64_t kManyPixels = 1024;
// Of the input of a block of pixels, and of the next one, in the L2 cache; tiles of a block at
// most.
constexpr int64_t kInputBlockBytes = 48 * 1024;
constexpr int64_t kMostBlockTiles = 32;
// So many pixels make packing a panel cheap beside multiplying with it.
constexpr int64_t kFewPixels = 256;
// Work items per thread, so that the last ones level the threads out.
constexpr int64_t kItemsPerThread = 6;

// How the product is cut. The depth of a slice depends on the product only, the rest also on the
// number of threads.
struct ProductPlan {
    int64_t slice;   // channels
    int64_t panels;  // of out channels
    int64_t groups;  // of panels
    int64_t parts;   // of the pixels; a work item is one group x one part
    int64_t block;   // tiles of pixels

    ProductPlan(const Product& p, int threads) {
        const int64_t whole_slices = max_of<int64_t>(1, kSliceElements / p.taps);
        const int64_t even = ceil_div(p.channels, ceil_div(p.channels, whole_slices));
        const int64_t quantum =
            p.taps == 1 ? max_of<int64_t>(16, ggml_blck_size(p.weight.type)) : 16;
        slice = min_of(p.channels, p.taps > kSliceElements / 16 ? even : round_up(even, quantum));
        panels = ceil_div(p.out_channels(), kPanelWidth);
        const int64_t row_bytes = slice * p.taps * 4, panel_bytes = row_bytes * kPanelWidth;
        block =
            min_of(kMostBlockTiles, max_of<int64_t>(1, kInputBlockBytes / (row_bytes * kTileRows)));
        const int64_t held = p.pixels >= kManyPixels ? 2 * kPanelBytes : kPanelBytes;
        groups = ceil_div(panels, max_of<int64_t>(1, held / panel_bytes));
        const int64_t wanted = threads * kItemsPerThread;
        const int64_t most_parts = max_of<int64_t>(1, ceil_div(p.pixels, kFewPixels));
        parts = min_of(ceil_div(wanted, groups), most_parts);
        if (groups * parts < wanted) groups = min_of(panels, ceil_div(wanted, parts));
    }
    int64_t items() const { return groups * parts; }
    int64_t panels_in_group() const { return ceil_div(panels, groups); }
};

struct ProductScratch {
    const Product& product;
    const ProductPlan& plan;
    float* panels = nullptr;
    float* row_buffer = nullptr;
    float* tile = nullptr;
    const float** pointers = nullptr;  // to the input, of each tile of a block
    int64_t* pixels = nullptr;         // where the tiles of a block begin and end

    void lay_out(Layout& layout) {
        const int64_t elements = plan.slice * product.taps;
        panels = layout.take<float>(plan.panels_in_group() * elements * kPanelWidth);
        row_buffer = layout.take<float>(row_buffer_size(product.weight, elements));
        tile = layout.take<float>(kTileRows * kPanelWidth);
        pointers = layout.take<const float*>(plan.block * kTileRows * product.taps);
        pixels = layout.take<int64_t>(plan.block + 1);
    }
};

// One vector of a finished slice: n <= kLanes out channels from `channel` on, at element `at` of
// the output.
SDE_INLINE void finish_vector(const Product& p, Vec value, int64_t at, int64_t channel,
                              int64_t batch, int64_t n, bool first, bool last) {
    if (!first) value += read_lanes(p.output + at, n);
    if (last) {
        const Epilogue& e = p.epilogue;
        if (e.bias) value += read_lanes(e.bias + channel, n);
        if (e.batch_bias) value += read_lanes(e.batch_bias + batch * p.out_channels() + channel, n);
        if (e.residual && e.residual_inside) value += read_lanes(e.residual + at, n);
        value = activate(value, e.activation);
        if (e.gate) value *= read_lanes(e.gate + batch * e.gate_stride + channel, n);
        if (e.residual && !e.residual_inside) value += read_lanes(e.residual + at, n);
    }
    write_lanes(p.output + at, value, n);
}

// Adds a computed tile to the output.
void finish_tile(const Product& p, const float* tile, int64_t width, int64_t pixel, int64_t rows,
                 int64_t channel, bool first, bool last) {
    const int64_t channels = min_of(width, p.out_channels() - channel);
    int64_t batch = pixel / p.pixels_per_batch;
    int64_t next_batch = (batch + 1) * p.pixels_per_batch;
    for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = (pixel + i) * p.out_channels() + channel;
        if (pixel + i == next_batch) {
            ++batch;
            next_batch += p.pixels_per_batch;
        }
        for_vectors(channels, [&](int64_t c, int64_t n) {
            finish_vector(p, load(tile + i * width + c), at + c, channel + c, batch, n, first,
                          last);
        });
    }
}

// One work item: some panels of out channels for some pixels.
template <class Source>
struct ProductItem {
    const Product& p;
    const Source& source;
    const ProductScratch& s;
    int64_t first_panel, last_panel;
    int64_t begin, end;  // pixels

    float* packed(int64_t panel) const {
        return s.panels + (panel - first_panel) * s.plan.slice * p.taps * kPanelWidth;
    }

    void pack(int64_t channel, int64_t channels) const {
        const int64_t begin = channel * p.taps, count = channels * p.taps;
        const auto valid = [&](int64_t panel) {
            return min_of<int64_t>(kPanelWidth, p.out_channels() - panel * kPanelWidth);
        };
        for (int64_t panel = first_panel; panel < last_panel; ++panel) {
            const int64_t row = panel * kPanelWidth;
            if (panel + 1 < last_panel)
                prefetch_weight(p.weight, row + kPanelWidth, valid(panel + 1), begin, count);
            pack_weight(p.weight, row, valid(panel), begin, {p.taps, channels},
                        p.panel_width(panel), s.row_buffer, packed(panel));
        }
    }

    // Fetches what a tile will be written to while it is computed.
    void expect_tile(int64_t pixel, int64_t rows, int64_t channel, int64_t width) const {
        const int64_t channels = min_of(width, p.out_channels() - channel);
        for (int64_t i = 0; i < rows; ++i) {
            const float* to = p.output + (pixel + i) * p.out_channels() + channel;
            for (int64_t c = 0; c < channels; c += kLine) __builtin_prefetch(to + c, 1);
        }
    }

    // Where a tile's sums are in the output, and what they begin with.
    TileEnd sums_of(int64_t pixel, int64_t out_channel, bool first) const {
        const Epilogue& e = p.epilogue;
        const int64_t at = pixel * p.out_channels() + out_channel;
        TileEnd sums{p.output + at, p.out_channels(), p.output + at};
        if (!first) return sums;
        const bool begins = !p.finishes_sums();
        sums.start = begins && e.residual ? e.residual + at : nullptr;
        sums.bias = begins && e.bias ? e.bias + out_channel : nullptr;
        return sums;
    }

    const float** pointers(int64_t tile) const { return s.pointers + tile * kTileRows * p.taps; }

    void multiply_tile(int64_t panel, int64_t pixel, int64_t rows, const float* const* input,
                       int64_t channel, int64_t channels) const {
        const bool first = channel == 0, last = channel + channels == p.channels;
        const int64_t width = p.panel_width(panel), out_channel = panel * kPanelWidth;
        const TileProduct product = tile_product_for(rows, width);
        expect_tile(pixel, rows, out_channel, width);
        if (out_channel + width > p.out_channels() || (last && p.finishes_sums())) {
            product(input, p.taps, channels, packed(panel), {s.tile, width});
            finish_tile(p, s.tile, width, pixel, rows, out_channel, first, last);
        } else {
            product(input, p.taps, channels, packed(panel), sums_of(pixel, out_channel, first));
        }
    }

    // Pixels in blocks that stay in the L2 cache while one panel after another, from the L1 cache,
    // meets them.
    void multiply(int64_t channel, int64_t channels) const {
        const int64_t tiles = ceil_div(end - begin, kTileRows);
        const int64_t share = round_up(ceil_div(channels, last_panel - first_panel), kLine);
        for (int64_t block = 0; block < tiles; block += s.plan.block) {
            const int64_t found = min_of(s.plan.block, tiles - block);
            for (int64_t t = 0; t <= found; ++t)
                s.pixels[t] = begin + part_begin(end - begin, tiles, block + t);
            for (int64_t t = 0; t < found; ++t)
                source.point(s.pixels[t], s.pixels[t + 1] - s.pixels[t], channel, pointers(t));
            const int64_t next = s.pixels[found] - s.pixels[0];
            for (int64_t panel = first_panel; panel < last_panel; ++panel) {
                // Each panel's turn fetches its share of the next block's input.
                const int64_t fetched = min_of(channels, (panel - first_panel) * share);
                const int64_t fetch = min_of(channels, fetched + share);
                for (int64_t t = 0; t < found; ++t) {
                    const int64_t pixel = s.pixels[t], rows = s.pixels[t + 1] - pixel;
                    if (pixel + next + rows <= end)
                        source.prefetch(pixel + next, rows, channel + fetched, channel + fetch);
                    multiply_tile(panel, pixel, rows, pointers(t), channel, channels);
                }
            }
        }
    }
};

// Runs the product. `source.point(pixel, rows, channel, pointers)` says where the input of `rows`
// pixels lies from `channel` on, for each tap: pointers[tap * rows + i]. `source.prefetch(pixel,
// rows, begin, end)` may bring some channels of coming pixels nearer.
template <class Source>
void run_product(const Product& p, const Source& source, const ProductScratch& scratch,
                 Team& team) {
    const ProductPlan& plan = scratch.plan;
    for (int64_t number; (number = team.claim(plan.items())) >= 0;) {
        const int64_t group = number % plan.groups, part = number / plan.groups;
        const ProductItem<Source> item{p,
                                       source,
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
