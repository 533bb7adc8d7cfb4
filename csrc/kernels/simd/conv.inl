// Convolution and linear layers: where the input of a pixel lies.

// Rows of a matrix. Rows whose distance is a multiple of a large power of two fall into the same few cache sets, so
// those are copied side by side first.
struct MatrixRows {
    const float* input;
    int64_t row_stride;
    float* staging = nullptr;  // kTileRows rows of staging_stride floats
    int64_t staging_stride = 0;

    bool needs_staging() const { return row_stride % 256 == 0; }

    void point(int64_t row, int64_t rows, int64_t channel, int64_t channels, const float** pointers) {
        for (int64_t i = 0; i < rows; ++i) {
            const float* from = input + (row + i) * row_stride + channel;
            if (staging) {
                float* to = staging + i * staging_stride;
                std::memcpy(to, from, static_cast<size_t>(channels) * 4);
                from = to;
            }
            pointers[i] = from;
        }
    }
};

struct MatrixScratch {
    ProductScratch product;
    MatrixRows& rows;

    void lay_out(Layout& layout) {
        product.lay_out(layout);
        rows.staging_stride = round_up(product.plan.slice, 16) + 16;
        rows.staging = rows.needs_staging() ? layout.take<float>(kTileRows * rows.staging_stride) : nullptr;
    }
};

void run_matrix_product(const Product& product, const float* input, Team& team) {
    MatrixRows rows{input, product.channels};
    const ProductPlan plan(product, team.size());
    MatrixScratch scratch{{product, plan, nullptr, nullptr, nullptr, nullptr}, rows};
    allocate(scratch);
    run_product(product, rows, plan, scratch.product, team);
}

void linear_kernel(const Linear& op, Team& team) {
    const int64_t rows_per_batch = op.rows_per_batch > 0 ? op.rows_per_batch : max_of<int64_t>(op.rows, 1);
    run_matrix_product({op.weight, op.epilogue, op.output, op.rows, rows_per_batch, op.in_features, 1}, op.input, team);
}

// Pixels seen through a kernel window. Padding, stride, enlargement and wrapping around are all in the two tables.
struct WindowPixels {
    const Conv2d& op;
    int64_t out_height, out_width;
    int64_t* column_offsets;  // [out_width][kernel_w]: offset in an input row, or kOutside
    int64_t* row_offsets;     // [out_height][kernel_h]: offset of the input row in its image, or kOutside
    float* zeros;             // in_channels zeros

    static constexpr int64_t kOutside = -1;

    void lay_out(Layout& layout) {
        column_offsets = layout.take<int64_t>(out_width * op.kernel_w);
        row_offsets = layout.take<int64_t>(out_height * op.kernel_h);
        zeros = layout.take<float>(op.in_channels);
    }

    void prepare() {
        fill_axis(column_offsets, out_width, op.kernel_w, op.pad_left, op.width, op.circular_x, op.in_channels);
        fill_axis(row_offsets, out_height, op.kernel_h, op.pad_top, op.height, op.circular_y, op.width * op.in_channels);
        std::memset(zeros, 0, static_cast<size_t>(op.in_channels) * 4);
    }

    void fill_axis(int64_t* offsets, int64_t outputs, int kernel, int pad, int64_t size, bool circular, int64_t stride) {
        const int64_t seen = op.upsample2x ? 2 * size : size;
        for (int64_t o = 0; o < outputs; ++o) {
            for (int k = 0; k < kernel; ++k) {
                int64_t i = o * op.stride - pad + k;
                if (circular) i = (i % seen + seen) % seen;
                const bool inside = i >= 0 && i < seen;
                offsets[o * kernel + k] = inside ? (op.upsample2x ? i / 2 : i) * stride : kOutside;
            }
        }
    }

    void point(int64_t pixel, int64_t rows, int64_t channel, int64_t, const float** pointers) {
        int64_t x = pixel % out_width;
        int64_t y = pixel / out_width % out_height;
        const int64_t image_size = op.height * op.width * op.in_channels;
        const float* image = op.input + pixel / (out_width * out_height) * image_size + channel;
        for (int64_t i = 0; i < rows; ++i) {
            const float** to = pointers + i;
            for (int ky = 0; ky < op.kernel_h; ++ky) {
                const int64_t row = row_offsets[y * op.kernel_h + ky];
                for (int kx = 0; kx < op.kernel_w; ++kx, to += rows) {
                    const int64_t column = column_offsets[x * op.kernel_w + kx];
                    *to = row == kOutside || column == kOutside ? zeros : image + row + column;
                }
            }
            if (++x == out_width) {
                x = 0;
                if (++y == out_height) {
                    y = 0;
                    image += image_size;
                }
            }
        }
    }
};

struct WindowScratch {
    ProductScratch product;
    WindowPixels& pixels;

    void lay_out(Layout& layout) {
        product.lay_out(layout);
        pixels.lay_out(layout);
    }
};

void conv2d_kernel(const Conv2d& op, Team& team) {
    const int64_t scale = op.upsample2x ? 2 : 1;
    const int64_t out_height = (scale * op.height + op.pad_top + op.pad_bottom - op.kernel_h) / op.stride + 1;
    const int64_t out_width = (scale * op.width + op.pad_left + op.pad_right - op.kernel_w) / op.stride + 1;
    const int64_t pixels_per_batch = out_height * out_width;
    const Product product{op.weight,         op.epilogue,    op.output,
                          op.batch * pixels_per_batch, pixels_per_batch, op.in_channels,
                          int64_t{op.kernel_h} * op.kernel_w};
    const bool pointwise = product.taps == 1 && op.stride == 1 && !op.upsample2x && pixels_per_batch == op.height * op.width;
    if (pointwise) return run_matrix_product(product, op.input, team);
    WindowPixels pixels{op, out_height, out_width, nullptr, nullptr, nullptr};
    const ProductPlan plan(product, team.size());
    WindowScratch scratch{{product, plan, nullptr, nullptr, nullptr, nullptr}, pixels};
    allocate(scratch);
    pixels.prepare();
    run_product(product, pixels, plan, scratch.product, team);
}
