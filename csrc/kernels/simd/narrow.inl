// Convolutions to few channels, such as the last of a denoiser or an autoencoder, as dot products
// of windows and weights.

bool has_few_channels(const Product& p) {
    return p.out_channels() <= min_of(kDotColumns, kLanes / 2) && p.channels >= kLanes;
}

struct NarrowScratch {
    const Product& product;
    float *panel = nullptr, *row_buffer = nullptr;
    float* columns = nullptr;  // [out channel][tap][channel], each tap from a vector boundary on
    const float** pointers = nullptr;

    int64_t depth() const { return round_up(product.channels, kLanes); }
    void lay_out(Layout& layout) {
        panel = layout.take<float>(product.weight.row_elements * kLanes);
        row_buffer =
            layout.take<float>(row_buffer_size(product.weight, product.weight.row_elements));
        columns = layout.take<float>(kDotColumns * product.taps * depth());
        pointers = layout.take<const float*>(kDotRows * product.taps);
    }

    void pack() const {
        const Product& p = product;
        pack_weight(p.weight, 0, p.out_channels(), 0, {p.taps, p.channels}, kLanes, row_buffer,
                    panel);
        for (int64_t c = 0; c < p.out_channels(); ++c)
            for (int64_t t = 0; t < p.taps; ++t)
                for (int64_t k = 0; k < p.channels; ++k)
                    columns[(c * p.taps + t) * depth() + k] =
                        panel[(t * p.channels + k) * kLanes + c];
    }
};

template <int C>
void finish_narrow(const Product& p, const float (&sums)[kDotRows][kDotColumns], int64_t pixel,
                   int64_t rows) {
    for (int64_t i = 0; i < rows; ++i)
        finish_vector(p, load_part(sums[i], C), (pixel + i) * C, 0,
                      (pixel + i) / p.pixels_per_batch, C, true, true);
}

// The windows of an item: columns x rows of one image, so that what they share stays in the cache.
constexpr int64_t kNarrowColumns = 16 * kDotRows, kNarrowRows = 16;

template <int C>
void run_narrow_item(const Product& p, const Windows& windows, const NarrowScratch& s,
                     int64_t image_row, int64_t rows, int64_t column, int64_t columns) {
    const DotColumns weights{s.columns, p.taps * s.depth(), s.depth()};
    for (int64_t y = image_row; y < image_row + rows; ++y) {
        for (int64_t x = column; x < column + columns; x += kDotRows) {
            const int64_t found = min_of<int64_t>(kDotRows, column + columns - x);
            const int64_t pixel = y * windows.columns + x;
            windows.point(pixel, found, 0, s.pointers);
            // Missing windows are computed as the first, and dropped.
            for (int64_t t = p.taps - 1; found < kDotRows && t >= 0; --t)
                for (int64_t i = kDotRows - 1; i >= 0; --i)
                    s.pointers[t * kDotRows + i] = s.pointers[t * found + (i < found ? i : 0)];
            float sums[kDotRows][kDotColumns];
            dot_tile<C>(s.pointers, p.taps, p.channels, weights, sums);
            finish_narrow<C>(p, sums, pixel, found);
        }
    }
}

void run_narrow(const Product& p, const Windows& windows, const NarrowScratch& s, Team& team) {
    constexpr decltype(&run_narrow_item<1>) kItems[] = {run_narrow_item<1>, run_narrow_item<2>,
                                                        run_narrow_item<3>, run_narrow_item<4>};
    const auto run_item = kItems[p.out_channels() - 1];
    const int64_t across = ceil_div(windows.columns, kNarrowColumns);
    const int64_t down = ceil_div(windows.rows, kNarrowRows);
    const int64_t images = p.pixels / p.pixels_per_batch;
    bool packed = false;
    for (int64_t item; (item = team.claim(images * down * across)) >= 0;) {
        if (!packed) s.pack();
        packed = true;
        const int64_t row = item / across % down * kNarrowRows,
                      column = item % across * kNarrowColumns;
        run_item(p, windows, s, item / across / down * windows.rows + row,
                 min_of(kNarrowRows, windows.rows - row), column,
                 min_of(kNarrowColumns, windows.columns - column));
    }
    team.barrier();
}
