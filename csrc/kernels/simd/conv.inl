// Convolution and linear layers: where the input of a pixel lies.

struct MatrixRows {
    const float* input;
    int64_t row_stride;

    void point(int64_t row, int64_t rows, int64_t channel, const float** pointers) const {
        for (int64_t i = 0; i < rows; ++i) pointers[i] = input + (row + i) * row_stride + channel;
    }

    void prefetch(int64_t row, int64_t rows, int64_t begin, int64_t end) const {
        constexpr int kIntoL2 = 2;
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t c = begin; c < end; c += kLine)
                __builtin_prefetch(input + (row + i) * row_stride + c, 0, kIntoL2);
    }
};

void run_matrix_product(const Product& product, const float* input, Team& team) {
    const MatrixRows rows{input, product.channels};
    if (product.pixels < kFewRows) return run_few_rows(product, input, team);
    const ProductPlan plan(product, team.size());
    ProductScratch scratch{product, plan};
    allocate(scratch);
    run_product(product, rows, scratch, team);
}

void linear_kernel(const Linear& op, Team& team) {
    const int64_t rows_per_batch =
        op.rows_per_batch > 0 ? op.rows_per_batch : max_of<int64_t>(op.rows, 1);
    run_matrix_product(
        {op.weight, op.epilogue, op.output, op.rows, rows_per_batch, op.in_features, 1}, op.input,
        team);
}

template <class Scratch>
struct DirectScratch {
    Scratch product;
    Windows& windows;

    void lay_out(Layout& layout) {
        product.lay_out(layout);
        windows.lay_out(layout);
    }
};

void run_direct(const Conv2d& op, const Product& product, int64_t out_height, int64_t out_width,
                Team& team) {
    Windows windows{op, op.kernel_h, op.kernel_w, op.stride, out_height, out_width};
    if (has_few_channels(product)) {
        DirectScratch<NarrowScratch> scratch{{product}, windows};
        allocate(scratch);
        windows.prepare();
        return run_narrow(product, windows, scratch.product, team);
    }
    const ProductPlan plan(product, team.size());
    DirectScratch<ProductScratch> scratch{{product, plan}, windows};
    allocate(scratch);
    windows.prepare();
    run_product(product, windows, scratch.product, team);
}
