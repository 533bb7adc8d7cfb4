// Where the input of a convolution lies.

// What a window of kernel_h x kernel_w input pixels shows at each of its positions. Padding,
// stride, enlargement and wrapping around are all in the two tables.
struct Windows {
    const Conv2d& op;
    int64_t kernel_h, kernel_w, step;  // size of the window, distance of its positions
    int64_t rows, columns;             // positions in an image
    // Of an input row in its image, of a pixel in its row, or kOutside.
    int64_t* row_offsets = nullptr;     // [rows][kernel_h]
    int64_t* column_offsets = nullptr;  // [columns][kernel_w]
    float* zeros = nullptr;             // in_channels zeros

    static constexpr int64_t kOutside = -1;

    void lay_out(Layout& layout) {
        row_offsets = layout.take<int64_t>(rows * kernel_h);
        column_offsets = layout.take<int64_t>(columns * kernel_w);
        zeros = layout.take<float>(op.in_channels);
    }

    void prepare() {
        fill_axis(row_offsets, rows, kernel_h, op.pad_top, op.height, op.circular_y,
                  op.width * op.in_channels);
        fill_axis(column_offsets, columns, kernel_w, op.pad_left, op.width, op.circular_x,
                  op.in_channels);
        std::memset(zeros, 0, static_cast<size_t>(op.in_channels) * 4);
    }

    void fill_axis(int64_t* offsets, int64_t positions, int64_t kernel, int pad, int64_t size,
                   bool circular, int64_t stride) const {
        const int64_t seen = op.upsample2x ? 2 * size : size;
        for (int64_t position = 0; position < positions; ++position) {
            for (int64_t k = 0; k < kernel; ++k) {
                int64_t i = position * step - pad + k;
                if (circular) i = (i % seen + seen) % seen;
                const bool inside = i >= 0 && i < seen;
                offsets[position * kernel + k] =
                    inside ? (op.upsample2x ? i / 2 : i) * stride : kOutside;
            }
        }
    }

    // Windows overlap: most of the next ones' pixels are near already.
    void prefetch(int64_t, int64_t, int64_t, int64_t) const {}

    // Where the pixels of `count` windows from number `first` on lie, from `channel` on:
    // pointers[tap * count + i].
    void point(int64_t first, int64_t count, int64_t channel, const float** pointers) const {
        int64_t x = first % columns;
        int64_t y = first / columns % rows;
        const int64_t image_size = op.height * op.width * op.in_channels;
        const float* image = op.input + first / (columns * rows) * image_size + channel;
        for (int64_t i = 0; i < count; ++i) {
            const float** to = pointers + i;
            for (int64_t ky = 0; ky < kernel_h; ++ky) {
                const int64_t row = row_offsets[y * kernel_h + ky];
                for (int64_t kx = 0; kx < kernel_w; ++kx, to += count) {
                    const int64_t column = column_offsets[x * kernel_w + kx];
                    *to = row == kOutside || column == kOutside ? zeros : image + row + column;
                }
            }
            if (++x == columns) {
                x = 0;
                if (++y == rows) {
                    y = 0;
                    image += image_size;
                }
            }
        }
    }
};
