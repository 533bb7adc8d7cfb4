#include "adapters/rotation.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace sde {
namespace {

using Matrix = std::vector<double>;  // [n, n]

Matrix identity(int64_t n) {
    Matrix one(static_cast<size_t>(n * n), 0.0);
    for (int64_t i = 0; i < n; ++i) one[i * n + i] = 1.0;
    return one;
}

Matrix times(const Matrix& a, const Matrix& b, int64_t n) {
    Matrix out(a.size(), 0.0);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t k = 0; k < n; ++k)
            for (int64_t j = 0; j < n; ++j) out[i * n + j] += a[i * n + k] * b[k * n + j];
    return out;
}

// Gauss and Jordan's elimination with pivots. I - Q has an inverse for every skew-symmetric Q.
Matrix inverse(Matrix m, int64_t n) {
    Matrix out = identity(n);
    for (int64_t column = 0; column < n; ++column) {
        int64_t pivot = column;
        for (int64_t row = column + 1; row < n; ++row)
            if (std::abs(m[row * n + column]) > std::abs(m[pivot * n + column])) pivot = row;
        std::swap_ranges(m.begin() + pivot * n, m.begin() + (pivot + 1) * n,
                         m.begin() + column * n);
        std::swap_ranges(out.begin() + pivot * n, out.begin() + (pivot + 1) * n,
                         out.begin() + column * n);
        const double by = 1.0 / m[column * n + column];
        for (int64_t j = 0; j < n; ++j) m[column * n + j] *= by, out[column * n + j] *= by;
        for (int64_t row = 0; row < n; ++row) {
            const double factor = m[row * n + column];
            if (row == column || factor == 0.0) continue;
            for (int64_t j = 0; j < n; ++j) {
                m[row * n + j] -= factor * m[column * n + j];
                out[row * n + j] -= factor * out[column * n + j];
            }
        }
    }
    return out;
}

// Cayley's map (I + Q) (I - Q)^-1.
Matrix cayley(const Matrix& q, int64_t n) {
    Matrix plus = identity(n), minus = plus;
    for (size_t i = 0; i < q.size(); ++i) plus[i] += q[i], minus[i] -= q[i];
    return times(plus, inverse(std::move(minus), n), n);
}

Matrix neumann(const Matrix& q, int64_t n, int terms) {
    Matrix sum = identity(n), power = sum;
    if (terms == 3) terms = 4;  // PEFT's sum is the same for both
    for (int term = 1; term < terms; ++term) {
        power = times(power, q, n);
        const double weight = term > 2 && term == terms - 1 ? 1.0 : 2.0;
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += weight * power[i];
    }
    return sum;
}

// rows [n, rest] := r rows, or r^T rows.
void apply(const Matrix& r, float* rows, int64_t n, int64_t rest, bool transposed) {
    std::vector<double> column(static_cast<size_t>(n));
    for (int64_t j = 0; j < rest; ++j) {
        for (int64_t i = 0; i < n; ++i) column[i] = rows[i * rest + j];
        for (int64_t i = 0; i < n; ++i) {
            double sum = 0;
            for (int64_t k = 0; k < n; ++k)
                sum += r[transposed ? k * n + i : i * n + k] * column[k];
            rows[i * rest + j] = static_cast<float>(sum);
        }
    }
}

// Rows (c g k) as (c k g) with g = 2, or back.
std::vector<float> shuffled(const std::vector<float>& weight, int64_t out, int64_t k, bool back) {
    const int64_t rest = static_cast<int64_t>(weight.size()) / out;
    std::vector<float> turned(weight.size());
    for (int64_t c = 0; c < out / (2 * k); ++c)
        for (int64_t g = 0; g < 2; ++g)
            for (int64_t i = 0; i < k; ++i) {
                int64_t from = (c * 2 + g) * k + i, to = (c * k + i) * 2 + g;
                if (back) std::swap(from, to);
                std::copy_n(weight.begin() + from * rest, rest, turned.begin() + to * rest);
            }
    return turned;
}

}  // namespace

void rotate_rows(std::vector<float>& weight, int64_t out, std::vector<float> blocks, int64_t stages,
                 int64_t count, int64_t size, float limit) {
    const int64_t rest = static_cast<int64_t>(weight.size()) / out, area = size * size;
    Matrix q(blocks.size());
    double squares = 0;
    for (int64_t block = 0; block < stages * count; ++block)
        for (int64_t i = 0; i < size; ++i)
            for (int64_t j = 0; j < size; ++j) {
                const int64_t at = block * area;
                q[at + i * size + j] =
                    static_cast<double>(blocks[at + i * size + j]) - blocks[at + j * size + i];
                squares += q[at + i * size + j] * q[at + i * size + j];
            }
    const double length = std::sqrt(squares);
    if (limit > 0 && length > limit)
        for (double& value : q) value *= limit / length;
    for (int64_t stage = 0; stage < stages; ++stage) {
        const int64_t k = (int64_t{1} << stage) * (size / 2);
        if (stages > 1) weight = shuffled(weight, out, k, false);
        for (int64_t block = 0; block < count; ++block) {
            const auto at = q.begin() + (stage * count + block) * area;
            apply(cayley({at, at + area}, size), weight.data() + block * size * rest, size, rest,
                  stages == 1);
        }
        if (stages > 1) weight = shuffled(weight, out, k, true);
    }
}

void rotate_columns(std::vector<float>& weight, int64_t out, const std::vector<float>& skew,
                    int64_t count, int64_t size, int terms) {
    const int64_t rest = static_cast<int64_t>(weight.size()) / out, blocks = rest / size;
    const int64_t triangle = size * (size - 1) / 2;
    std::vector<Matrix> rotations;
    for (int64_t block = 0; block < count; ++block) {
        Matrix q(static_cast<size_t>(size * size), 0.0);
        int64_t at = block * triangle;
        for (int64_t i = 0; i < size; ++i)
            for (int64_t j = i + 1; j < size; ++j) {
                // The exact map of PEFT has the other sign.
                const double value = terms > 0 ? skew[at] : -skew[at];
                q[i * size + j] = value;
                q[j * size + i] = -value;
                ++at;
            }
        rotations.push_back(terms > 0 ? neumann(q, size, terms) : cayley(q, size));
    }
    for (int64_t row = 0; row < out; ++row)
        for (int64_t block = 0; block < blocks; ++block)
            apply(rotations[count == 1 ? 0 : block], weight.data() + row * rest + block * size,
                  size, 1, false);
}

}  // namespace sde
