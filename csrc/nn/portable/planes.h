// Small things that the portable operators are made of.
#pragma once

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "nn/tensor.h"

namespace sde::nn::portable {

inline ggml_context* context_of(const Tensor& x) {
    return x.graph().context();
}

// A copy where the values do not lie one behind the other.
inline ggml_tensor* dense(ggml_context* context, ggml_tensor* x) {
    return ggml_is_contiguous(x) ? x : ggml_cont(context, x);
}

// A feature map as whole planes, [W, H, C, N] in ggml's axes: made once per tensor, and not at all
// where the operator that made the tensor had them.
inline ggml_tensor* to_planes(ggml_context* context, ggml_tensor* channels_last) {
    return ggml_cont(context, ggml_permute(context, channels_last, 2, 0, 1, 3));
}
inline ggml_tensor*& known_planes(const Tensor& x) {
    return x.graph().derived("planes", x.raw());
}
inline ggml_tensor* planes(const Tensor& x) {
    ggml_tensor*& known = known_planes(x);
    if (!known) known = to_planes(context_of(x), x.raw());
    return known;
}
// The feature map whose planes these are. The copy is computed only if something reads it.
inline Tensor from_planes(Graph& graph, ggml_tensor* planes, const Shape& shape) {
    ggml_context* context = graph.context();
    const Tensor x{graph, ggml_cont(context, ggml_permute(context, planes, 1, 2, 0, 3)), shape};
    known_planes(x) = planes;
    return x;
}

// Rows [first, first + rows) of each of `entries` entries of a batch from `entry` on: all rows of
// several entries, or some rows of one.
struct Block {
    int64_t entry, entries, first, rows;
};

// Parts the rows of a batch so that the temporary values of a block, `row_bytes` for each of its
// rows, stay below a limit.
inline std::vector<Block> blocks(int64_t entries, int64_t rows, int64_t row_bytes) {
    constexpr int64_t kMostBytes = int64_t{256} << 20;
    const int64_t fitting = std::max<int64_t>(1, kMostBytes / row_bytes);
    std::vector<Block> out;
    if (fitting >= rows) {
        const int64_t step = fitting / rows;
        for (int64_t n = 0; n < entries; n += step)
            out.push_back({n, std::min(step, entries - n), 0, rows});
        return out;
    }
    for (int64_t n = 0; n < entries; ++n)
        for (int64_t first = 0; first < rows; first += fitting)
            out.push_back({n, 1, first, std::min(fitting, rows - first)});
    return out;
}

// Joins matrices [width, rows] of one width, given in order, to one of `rows` rows. Each is written
// into the result when it is computed, so that only one of them is in memory. By row numbers: an
// offset in bytes ends at 1 GiB in ggml.
class Pieces {
  public:
    Pieces(Graph& graph, int64_t rows) : graph_(graph), rows_(rows) {}
    void add(ggml_tensor* piece) {
        ggml_context* context = graph_.context();
        const int64_t count = piece->ne[1];
        if (!all_) {
            const auto missing = static_cast<int>(rows_ - count);
            all_ = missing ? ggml_pad(context, piece, 0, missing, 0, 0) : piece;
        } else {
            std::vector<int32_t> numbers(static_cast<size_t>(count));
            std::iota(numbers.begin(), numbers.end(), static_cast<int32_t>(done_));
            all_ = ggml_set_rows(context, all_, piece,
                                 graph_.add_constant(GGML_TYPE_I32, {count}, numbers.data()));
        }
        graph_.compute_first(all_);  // before the next piece is
        done_ += count;
    }
    ggml_tensor* joined() const { return all_; }

  private:
    Graph& graph_;
    ggml_tensor* all_ = nullptr;
    int64_t rows_, done_ = 0;
};

// A product with float32 sums, whatever the type of the weights: half precision overflows.
inline ggml_tensor* product(ggml_context* context, ggml_tensor* matrix, ggml_tensor* x) {
    ggml_tensor* out = ggml_mul_mat(context, matrix, x);
    ggml_prec_set_acc(out, GGML_PREC_F32);
    return out;
}

}  // namespace sde::nn::portable
