// Operands in bfloat16, and the tile that multiplies pairs of them.

// Registers: tile rows x panel vectors sums, the panel's vectors of one step, one broadcast pair.
#if SDE_LANES == 16
constexpr int kRows = 12, kVectors = 2;  // 24 + 2 + 1 of 32
#else
constexpr int kRows = 3, kVectors = 2;
#endif

// Values in kBlockBytes; nothing else is kept of columns and rows.
constexpr int64_t kBlockValues = 16, kBlockBytes = 32, kScales = 0;
struct RowTerm {};

SDE_INLINE Vec with_offset(Vec bytes) {
    return bytes;
}

// sums[lane] + the two products of the lane's pairs.
SDE_INLINE Vec dot2(Vec sums, Vec a, Vec b) {
#if defined(__AVX512BF16__)
    return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sums),
                                                  reinterpret_cast<__m512bh>(a),
                                                  reinterpret_cast<__m512bh>(b)));
#else
    constexpr int32_t kUpper = static_cast<int32_t>(0xffff0000);
    sums += from_bits(bits_of(a) << 16) * from_bits(bits_of(b) << 16);
    return sums + from_bits(bits_of(a) & kUpper) * from_bits(bits_of(b) & kUpper);
#endif
}

// kLanes floats, rounded to the nearest, of two the even one. A NaN stays one.
SDE_INLINE ShortVec round_to_bf16(Vec v) {
#if defined(__AVX512BF16__)
    return reinterpret_cast<ShortVec>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(v)));
#else
    const IntVec bits = bits_of(v), even = bits >> 16 & 1;
    const IntVec rounded = (bits + even + 0x7fff) >> 16, nan = bits >> 16 | 0x40;
    return __builtin_convertvector(v == v ? rounded : nan, ShortVec);
#endif
}

// `count` floats, then zeros up to whole blocks; block b lies at to + b * stride.
SDE_INLINE void round_values(const float* values, int64_t count, uint8_t* to, int64_t stride) {
    for (int64_t k = 0; k < count; k += kBlockValues, to += stride)
#pragma GCC unroll 4
        for (int64_t i = 0; i < kBlockValues; i += kLanes) {
            const int64_t n = max_of<int64_t>(0, min_of<int64_t>(kLanes, count - k - i));
            const ShortVec rounded = round_to_bf16(read_lanes(values + k + (n ? i : 0), n));
            __builtin_memcpy(to + 2 * i, &rounded, sizeof rounded);
        }
}

// A row of the input, `channels` floats, as whole blocks.
void round_row(const float* row, int64_t channels, uint8_t* to, int64_t stride, RowTerm*, int64_t) {
    round_values(row, channels, to, stride);
}

// Floats that round_weight_row() needs.
int64_t weight_row_floats(const Weight& weight, int64_t count) {
    return row_part_size(weight, count);
}

// Elements [begin, begin + count) of a weight row in whole blocks. `floats` has
// weight_row_floats().
void round_weight_row(const Weight& weight, int64_t row, int64_t begin, int64_t count,
                      float* floats, uint8_t* to, float*) {
    round_values(read_weight_row(weight, row, begin, count, floats), count, to, kBlockBytes);
}

// out[i * out_stride + c] = sum over k of row i's value k * the panel's value (k, c)
template <int R, int V>
void narrow_tile(const uint8_t* rows, const RowTerm*, const uint8_t* panel, int64_t blocks,
                 float* out, int64_t out_stride) {
    constexpr int kWidth = V * kLanes;
    Vec sum[R][V] = {};
    for (int64_t b = 0; b < blocks; ++b, rows += R * kBlockBytes)
#pragma GCC unroll 8
        for (int g = 0; g < 8; ++g, panel += kWidth * 4) {
            Vec w[V];
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) w[v] = load(panel + v * kLanes * 4);
#pragma GCC unroll 16
            for (int i = 0; i < R; ++i) {
                int32_t pair;
                __builtin_memcpy(&pair, rows + i * kBlockBytes + g * 4, 4);
                const Vec x = from_bits(pair - IntVec{});
#pragma GCC unroll 16
                for (int v = 0; v < V; ++v) sum[i][v] = dot2(sum[i][v], w[v], x);
            }
        }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) store(out + i * out_stride + v * kLanes, sum[i][v]);
}
