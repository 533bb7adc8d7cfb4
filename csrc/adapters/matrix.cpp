#include "adapters/matrix.h"

#include <algorithm>

#include "kernels/kernels.h"

namespace sde {

std::vector<float> transposed(const std::vector<float>& matrix, int64_t rows, int64_t columns) {
    constexpr int64_t kTile = 16;  // of both, so that neither side jumps a page per value
    std::vector<float> turned(matrix.size());
    for (int64_t r0 = 0; r0 < rows; r0 += kTile)
        for (int64_t c0 = 0; c0 < columns; c0 += kTile)
            for (int64_t r = r0; r < std::min(rows, r0 + kTile); ++r)
                for (int64_t c = c0; c < std::min(columns, c0 + kTile); ++c)
                    turned[c * rows + r] = matrix[r * columns + c];
    return turned;
}

std::vector<float> product(const std::vector<float>& a, const std::vector<float>& b, int64_t m,
                           int64_t k, int64_t n, const float* sum) {
    const std::vector<float> weight = transposed(b, k, n);
    std::vector<float> result(static_cast<size_t>(m * n));
    kernels::Linear op{};
    op.input = a.data();
    op.output = result.data();
    op.rows = op.rows_per_batch = m;
    op.in_features = k;
    op.weight = {weight.data(), GGML_TYPE_F32, n, k};
    op.epilogue.residual = sum;
    kernels::TeamState state;
    kernels::Team alone(0, 1, state);
    kernels::linear(op, alone);
    return result;
}

}  // namespace sde
