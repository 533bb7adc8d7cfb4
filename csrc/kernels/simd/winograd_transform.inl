// 3x3 convolution of stride 1 by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, arXiv
// 1509.09308): a tile of 4x4 outputs is computed from 6x6 inputs with 36 multiplications for each
// pair of channels instead of 144.
//
//   output tile = A^T [ sum over channels of (G g G^T) * (B^T d B) ] A
//
// with 3x3 weights g, 6x6 inputs d, and * taken element by element.
//
// The matrices follow from the points 0, +-a, +-b and infinity (Cook and Toom). Which points
// matters for rounding only (Barabasz et al., arXiv 1803.10986). With a = 11/16, b = 3/2, found by
// a search over pairs of small fractions, the relative L2 error on normal data is 8e-7 (three times
// that of direct summation); with the usual 1, 2 it is 1.8e-6.

constexpr float kA = 0.6875f, kB = 1.5f;
constexpr float kA2 = kA * kA, kB2 = kB * kB;
constexpr int64_t kPoints = 36;  // 6 x 6
constexpr int64_t kOutTile = 4, kInTile = 6;

// A transform of six points computes them in three pairs that share their terms: (1, 2), (3, 4) and
// (0, 5). In two dimensions, doing all columns of one pair and then its two rows keeps everything
// in registers.
constexpr int kPairs[3][2] = {{1, 2}, {3, 4}, {0, 5}};

template <int Pair>
SDE_INLINE void transform_input_pair(const Vec (&d)[6], Vec& first, Vec& second) {
    if constexpr (Pair == 2) {
        first = (d[4] - d[2] * (kA2 + kB2)) + d[0] * (kA2 * kB2);
        second = (d[5] - d[3] * (kA2 + kB2)) + d[1] * (kA2 * kB2);
    } else {
        constexpr float kThis = Pair == 0 ? kA : kB, kOther2 = Pair == 0 ? kB2 : kA2;
        const Vec even = d[4] - d[2] * kOther2, odd = d[3] - d[1] * kOther2;
        first = even + odd * kThis;
        second = even - odd * kThis;
    }
}

template <int Pair>
SDE_INLINE void transform_weight_pair(const Vec (&g)[3], Vec& first, Vec& second) {
    if constexpr (Pair == 2) {
        first = g[0] * (1 / (kA2 * kB2));
        second = g[2];
    } else {
        constexpr float kThis = Pair == 0 ? kA : kB, kThis2 = kThis * kThis,
                        kOther2 = Pair == 0 ? kB2 : kA2;
        constexpr float kScale = 1 / (2 * kThis2 * (kThis2 - kOther2));
        const Vec even = g[0] * kScale + g[2] * (kScale * kThis2), odd = g[1] * (kScale * kThis);
        first = even + odd;
        second = even - odd;
    }
}

// The four points of an output in two pairs, (0, 2) and (1, 3).
template <int Pair>
SDE_INLINE void transform_output_pair(const Vec (&m)[6], Vec& first, Vec& second) {
    if constexpr (Pair == 0) {
        const Vec even_a = m[1] + m[2], even_b = m[3] + m[4];
        first = m[0] + even_a + even_b;
        second = even_a * kA2 + even_b * kB2;
    } else {
        const Vec odd_a = m[1] - m[2], odd_b = m[3] - m[4];
        first = odd_a * kA + odd_b * kB;
        second = odd_a * (kA2 * kA) + odd_b * (kB2 * kB) + m[5];
    }
}

// Two rows of the transformed tile, from `read(y, x)` to `write(y, x, value)`.
template <int Pair, class Read, class Write>
SDE_INLINE void transform_input_rows(const Read& read, const Write& write) {
    Vec rows[2][6];
#pragma GCC unroll 6
    for (int x = 0; x < 6; ++x) {
        const Vec d[6] = {
            Pair == 2 ? read(0, x) : Vec{}, read(1, x), read(2, x), read(3, x), read(4, x),
            Pair == 2 ? read(5, x) : Vec{}};
        transform_input_pair<Pair>(d, rows[0][x], rows[1][x]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        Vec t[6];
        transform_input_pair<0>(rows[i], t[1], t[2]);
        transform_input_pair<1>(rows[i], t[3], t[4]);
        transform_input_pair<2>(rows[i], t[0], t[5]);
#pragma GCC unroll 6
        for (int x = 0; x < 6; ++x) write(kPairs[Pair][i], x, t[x]);
    }
}

template <int Pair, class Write>
SDE_INLINE void transform_weight_rows(const Vec (&g)[3][3], const Write& write) {
    Vec rows[2][3];
    for (int x = 0; x < 3; ++x)
        transform_weight_pair<Pair>({g[0][x], g[1][x], g[2][x]}, rows[0][x], rows[1][x]);
    for (int i = 0; i < 2; ++i) {
        Vec t[6];
        transform_weight_pair<0>(rows[i], t[1], t[2]);
        transform_weight_pair<1>(rows[i], t[3], t[4]);
        transform_weight_pair<2>(rows[i], t[0], t[5]);
        for (int x = 0; x < 6; ++x) write(kPairs[Pair][i], x, t[x]);
    }
}

template <int Pair, class Read, class Write>
SDE_INLINE void transform_output_rows(const Read& read, const Write& write) {
    Vec rows[2][6];
#pragma GCC unroll 6
    for (int x = 0; x < 6; ++x) {
        const Vec m[6] = {
            Pair == 0 ? read(0, x) : Vec{}, read(1, x), read(2, x), read(3, x), read(4, x),
            Pair == 1 ? read(5, x) : Vec{}};
        transform_output_pair<Pair>(m, rows[0][x], rows[1][x]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        Vec y[4];
        transform_output_pair<0>(rows[i], y[0], y[2]);
        transform_output_pair<1>(rows[i], y[1], y[3]);
        for (int x = 0; x < 4; ++x) write(Pair + 2 * i, x, y[x]);
    }
}
