// Operands in bfloat16, and the tile that multiplies pairs of them.

// Registers: tile rows x panel vectors sums, the panel's vectors of one step, one broadcast pair.
#if SDE_TOGETHER == 2
constexpr int kRows = 12, kVectors = 2;  // 24 + 4 + 1 of 32
#elif SDE_LANES == 16
constexpr int kRows = 12, kVectors = 2;  // 24 + 2 + 1 of 32
#else
constexpr int kRows = 3, kVectors = 2;
#endif

// Values in kBlockBytes; nothing else is kept of columns and rows.
constexpr int64_t kBlockValues = kBlockBytes / 2, kScales = 0;
struct RowTerm {};

SDE_INLINE Vec with_offset(Vec bytes) {
    return bytes;
}

// sums[lane] + the two products of the lane's pairs, of matrices four. Arm's instruction adds pair
// by pair and rounds to odd: a sum that does not fit becomes the neighbour whose last bit is 1.
// That errs by up to 2^-23 of the sum instead of 2^-24, and no more to one side than to the other.
SDE_INLINE Vec multiply(Vec sums, Vec weights, Vec values) {
#if SDE_TOGETHER == 2
    return reinterpret_cast<Vec>(vbfmmlaq_f32(reinterpret_cast<float32x4_t>(sums),
                                              reinterpret_cast<bfloat16x8_t>(values),
                                              reinterpret_cast<bfloat16x8_t>(weights)));
#elif defined(__AVX512BF16__)
    return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sums),
                                                  reinterpret_cast<__m512bh>(weights),
                                                  reinterpret_cast<__m512bh>(values)));
#else
    constexpr int32_t kUpper = static_cast<int32_t>(0xffff0000);
    sums += from_bits(bits_of(weights) << 16) * from_bits(bits_of(values) << 16);
    return sums + from_bits(bits_of(weights) & kUpper) * from_bits(bits_of(values) & kUpper);
#endif
}

// kLanes floats, rounded to the nearest, of two the even one. A NaN stays one.
SDE_INLINE ShortVec round_to_bf16(Vec v) {
#if SDE_TOGETHER == 2
    return reinterpret_cast<ShortVec>(vcvt_bf16_f32(reinterpret_cast<float32x4_t>(v)));
#elif defined(__AVX512BF16__)
    return reinterpret_cast<ShortVec>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(v)));
#else
    const IntVec bits = bits_of(v), even = bits >> 16 & 1;
    const IntVec rounded = (bits + even + 0x7fff) >> 16, nan = bits >> 16 | 0x40;
    return __builtin_convertvector(v == v ? rounded : nan, ShortVec);
#endif
}

// `count` floats, then zeros up to whole blocks; block b lies at to + b * stride. Groups of so many
// rows take turns.
template <int Rows>
SDE_INLINE void round_values(const float* values, int64_t count, uint8_t* to, int64_t stride) {
    for (int64_t k = 0; k < count; k += kBlockValues, to += stride)
#pragma GCC unroll 4
        for (int64_t i = 0; i < kBlockValues; i += kLanes) {
            const int64_t n = max_of<int64_t>(0, min_of<int64_t>(kLanes, count - k - i));
            const ShortVec rounded = round_to_bf16(read_lanes(values + k + (n ? i : 0), n));
            __builtin_memcpy(to + byte_at<Rows>(2 * i), &rounded, sizeof rounded);
        }
}

// A row of the input, `channels` floats, as whole blocks.
void round_row(const float* row, int64_t channels, uint8_t* to, int64_t stride, RowTerm*, int64_t) {
    round_values<kTogether>(row, channels, to, stride);
}

// Floats that round_weight_row() needs.
int64_t weight_row_floats(const Weight& weight, int64_t count) {
    return row_part_size(weight, count);
}

// Elements [begin, begin + count) of a weight row in whole blocks. `floats` has
// weight_row_floats().
void round_weight_row(const Weight& weight, int64_t row, int64_t begin, int64_t count,
                      float* floats, uint8_t* to, float*) {
    round_values<1>(read_weight_row(weight, row, begin, count, floats), count, to, kBlockBytes);
}

// out[i * out_stride + c] = sum over k of row i's value k * the panel's value (k, c)
template <int R, int V>
void narrow_tile(const uint8_t* rows, const RowTerm*, const uint8_t* panel, int64_t blocks,
                 float* out, int64_t out_stride) {
    constexpr int kWidth = V * kLanes, kSums = V * kTogether, kSets = ceil_div(R, kTogether);
    Vec sum[kSets][kSums] = {};
    for (int64_t b = 0; b < blocks; ++b, rows += rows_bytes(R))
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; ++g, panel += kWidth * kGroupBytes) {
            Vec w[kSums];
#pragma GCC unroll 16
            for (int v = 0; v < kSums; ++v) w[v] = load(panel + v * kLanes * 4);
#pragma GCC unroll 16
            for (int i = 0; i < kSets; ++i) {
                const Vec x =
                    load_rows(rows + i * rows_bytes(kTogether) + g * kTogether * kGroupBytes);
#pragma GCC unroll 16
                for (int v = 0; v < kSums; ++v) sum[i][v] = multiply(sum[i][v], w[v], x);
            }
        }
#pragma GCC unroll 16
    for (int i = 0; i < R; i += kTogether)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v)
            store_sums(sum[i / kTogether] + v * kTogether, R - i, out + i * out_stride + v * kLanes,
                       out_stride);
}
