// Blocks of 32 values of 8 bits with a float32 scale, and the tile that multiplies them.

// Registers: tile rows x panel vectors sums of whole numbers and as many of floats, the panel's
// vectors of one step, and one broadcast value.
#if SDE_TOGETHER == 2
constexpr int kRows = 6, kVectors = 2;  // 12 + 12 + 4 + 1 of 32
#elif SDE_LANES == 16
constexpr int kRows = 6, kVectors = 2;  // 12 + 12 + 2 + 1 of 32
#elif SDE_LANES == 8
constexpr int kRows = 3, kVectors = 2;  // 6 + 6 + 2 + 1 of 16
#elif defined(__aarch64__)
constexpr int kRows = 3, kVectors = 4;  // 12 + 12 + 4 + 1 of 32
#else
constexpr int kRows = 3, kVectors = 2;
#endif

// Values in kBlockBytes, the floats behind those of each panel column, and what is known of a row.
constexpr int64_t kBlockValues = kBlockBytes, kScales = 1;
// `start` makes up for what is added to weights that have to be without sign.
struct RowTerm {
    float scale;
    int32_t start;
};

// The instructions for x86 multiply a number without sign (here weights + 128) by one with a sign.
#if SDE_LANES >= 8
constexpr int kWeightOffset = 128;
#else
constexpr int kWeightOffset = 0;
#endif

// Adds the offset to packed bytes.
SDE_INLINE Vec with_offset(Vec bytes) {
    constexpr int32_t kTopBits = kWeightOffset ? static_cast<int32_t>(0x80808080) : 0;
    return from_bits(bits_of(bytes) ^ kTopBits);
}

typedef int8_t CharVec __attribute__((vector_size(SDE_LANES)));

// sums[lane] + the sum of 4 products of bytes, of matrices 8; a byte of `weights` has kWeightOffset
// added.
SDE_INLINE IntVec multiply(IntVec sums, IntVec weights, IntVec values) {
#if SDE_TOGETHER == 2
    return reinterpret_cast<IntVec>(vmmlaq_s32(reinterpret_cast<int32x4_t>(sums),
                                               reinterpret_cast<int8x16_t>(values),
                                               reinterpret_cast<int8x16_t>(weights)));
#elif SDE_LANES == 16
    return reinterpret_cast<IntVec>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums),
                                                        reinterpret_cast<__m512i>(weights),
                                                        reinterpret_cast<__m512i>(values)));
#elif SDE_LANES == 8
    return reinterpret_cast<IntVec>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sums),
                                                            reinterpret_cast<__m256i>(weights),
                                                            reinterpret_cast<__m256i>(values)));
#elif defined(__ARM_FEATURE_DOTPROD)
    return reinterpret_cast<IntVec>(vdotq_s32(reinterpret_cast<int32x4_t>(sums),
                                              reinterpret_cast<int8x16_t>(weights),
                                              reinterpret_cast<int8x16_t>(values)));
#else
    for (int byte = 0; byte < 4; ++byte)
        sums += (weights << (24 - 8 * byte) >> 24) * (values << (24 - 8 * byte) >> 24);
    return sums;
#endif
}

SDE_INLINE IntVec round_to_int(Vec v) {
#if SDE_LANES == 16
    return reinterpret_cast<IntVec>(_mm512_maskz_cvtps_epi32(0xffff, reinterpret_cast<__m512>(v)));
#elif SDE_LANES == 8
    return reinterpret_cast<IntVec>(_mm256_cvtps_epi32(reinterpret_cast<__m256>(v)));
#elif defined(__aarch64__)
    return reinterpret_cast<IntVec>(vcvtnq_s32_f32(reinterpret_cast<float32x4_t>(v)));
#else
    IntVec rounded;
    for (int i = 0; i < kLanes; ++i) rounded[i] = static_cast<int32_t>(__builtin_lrintf(v[i]));
    return rounded;
#endif
}

template <int Shift = kLanes / 2>
SDE_INLINE int32_t max_lane_of(IntVec v) {
    const IntVec other = bits_of(rotate<Shift>(from_bits(v), MakeLanes<kLanes>::type{}));
    v = v > other ? v : other;
    if constexpr (Shift > 1) return max_lane_of<Shift / 2>(v);
    return v[0];
}
template <int Shift = kLanes / 2>
SDE_INLINE int32_t add_lanes_of(IntVec v) {
    v += bits_of(rotate<Shift>(from_bits(v), MakeLanes<kLanes>::type{}));
    if constexpr (Shift > 1) return add_lanes_of<Shift / 2>(v);
    return v[0];
}

// Rounds 32 floats to a block: the largest becomes 127. Returns its scale and, as `start`, the sum
// of its values. With a number in it that is not finite, the scale is none either and the values
// are 0, as they are where 127 over the largest would be infinite. Groups of so many rows take
// turns.
template <int Rows>
SDE_INLINE RowTerm round_block(const float* values, int8_t* to) {
    constexpr int kParts = kBlockValues / kLanes;
    Vec v[kParts];
    IntVec highest = {};  // as bits, which keeps a NaN: it is more than infinity
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) {
        v[i] = load(values + i * kLanes);
        const IntVec size = bits_of(abs_of(v[i]));
        highest = highest > size ? highest : size;
    }
    const int32_t bits = max_lane_of(highest);
    float largest;
    __builtin_memcpy(&largest, &bits, 4);
    if (!(largest >= 1e-36f && largest < __builtin_inff())) {
        for (int i = 0; i < kParts; ++i) std::memset(to + byte_at<Rows>(i * kLanes), 0, kLanes);
        return {largest / 127, 0};
    }
    const float factor = 127 / largest;
    IntVec sum = {};
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) {
        const IntVec rounded = round_to_int(v[i] * factor);
        sum += rounded;
        const CharVec bytes = __builtin_convertvector(rounded, CharVec);
        __builtin_memcpy(to + byte_at<Rows>(i * kLanes), &bytes, sizeof bytes);
    }
    return {largest / 127, add_lanes_of(sum)};
}

// A row of the input, `channels` floats, as whole blocks; block b lies at to + b * stride and its
// term at terms[b * term_stride].
void round_row(const float* row, int64_t channels, uint8_t* to, int64_t stride, RowTerm* terms,
               int64_t term_stride) {
    for (int64_t k = 0; k < channels; k += kBlockValues, to += stride, terms += term_stride) {
        float part[kBlockValues] = {};
        const bool whole = channels - k >= kBlockValues;
        if (!whole) std::memcpy(part, row + k, static_cast<size_t>(channels - k) * 4);
        *terms = round_block<kTogether>(whole ? row + k : part, reinterpret_cast<int8_t*>(to));
        terms->start *= -kWeightOffset;
    }
}

// The types whose blocks are multiplied as they are: 32 values of 8 bits or less, and a scale.
bool has_such_blocks(ggml_type type) {
    return type == GGML_TYPE_Q8_0 || type == GGML_TYPE_Q4_0 || type == GGML_TYPE_Q5_0 ||
           type == GGML_TYPE_IQ4_NL;
}

// One of them, from the file; returns its scale. See blocks.inl for the layouts.
SDE_INLINE float read_block(ggml_type type, const uint8_t* block, int8_t* to) {
    Bytes16 low, high;
    if (type == GGML_TYPE_Q8_0) {
        low = bytes_at(block + 2);
        high = bytes_at(block + 18);
    } else {
        const Bytes16 packed = bytes_at(block + (type == GGML_TYPE_Q5_0 ? 6 : 2));
        low = packed & 15;
        high = packed >> 4;
        if (type == GGML_TYPE_Q5_0) {
            low = (low | fifth_bits(block + 2)) - 16;
            high = (high | fifth_bits(block + 4)) - 16;
        } else if (type == GGML_TYPE_Q4_0) {
            low -= 8;
            high -= 8;
        } else {
            low = look_up(low);
            high = look_up(high);
        }
    }
    __builtin_memcpy(to, &low, 16);
    __builtin_memcpy(to + 16, &high, 16);
    return half_at(block);
}

// Floats that whole_blocks() needs.
int64_t weight_row_floats(const Weight& weight, int64_t count) {
    return row_part_size(weight, count) + round_up(count, kBlockValues);
}

// Elements [begin, begin + count) of a weight row, with zeros up to a whole block.
const float* whole_blocks(const Weight& weight, int64_t row, int64_t begin, int64_t count,
                          float* floats) {
    const float* values = read_weight_row(weight, row, begin, count, floats);
    if (count % kBlockValues == 0) return values;
    float* padded = floats + row_part_size(weight, count);
    std::memcpy(padded, values, static_cast<size_t>(count) * 4);
    for (int64_t k = count; k < round_up(count, kBlockValues); ++k) padded[k] = 0;
    return padded;
}

// Elements [begin, begin + count) of a weight row as blocks. `floats` has weight_row_floats().
void round_weight_row(const Weight& weight, int64_t row, int64_t begin, int64_t count,
                      float* floats, uint8_t* to, float* scales) {
    auto* values = reinterpret_cast<int8_t*>(to);
    const int64_t first = row * weight.row_elements + begin;
    if (has_such_blocks(weight.type) && first % kBlockValues == 0 && count % kBlockValues == 0) {
        const int64_t bytes = static_cast<int64_t>(ggml_get_type_traits(weight.type)->type_size);
        const auto* block = static_cast<const uint8_t*>(weight.data) + first / kBlockValues * bytes;
        for (int64_t k = 0; k < count; k += kBlockValues, block += bytes)
            *scales++ = read_block(weight.type, block, values + k);
        return;
    }
    const float* part = whole_blocks(weight, row, begin, count, floats);
    for (int64_t k = 0; k < count; k += kBlockValues)
        *scales++ = round_block<1>(part + k, values + k).scale;
}

// The scales of the rows that are multiplied together, as their sums have them.
template <int R>
SDE_INLINE Vec row_scales(const RowTerm* terms, int row) {
    const Vec first = splat(terms[row].scale);
    if constexpr (kTogether == 1) return first;
    const Vec second = splat(terms[min_of(row + 1, R - 1)].scale);
    Vec low, high;
    interleave_in_blocks<2>(first, second, low, high, MakeLanes<kLanes>::type{});
    return low;
}

// out[i * out_stride + c] = sum over blocks b of terms[b][i].scale * scales[b][c] * (whole number
// product)
template <int R, int V>
void narrow_tile(const uint8_t* rows, const RowTerm* terms, const uint8_t* panel, int64_t blocks,
                 float* out, int64_t out_stride) {
    constexpr int kWidth = V * kLanes, kSums = V * kTogether, kSets = ceil_div(R, kTogether);
    Vec sum[kSets][kSums] = {};
    for (int64_t b = 0; b < blocks; ++b, rows += rows_bytes(R), terms += R) {
        IntVec dots[kSets][kSums];
#pragma GCC unroll 16
        for (int i = 0; i < kSets; ++i)
#pragma GCC unroll 16
            for (int v = 0; v < kSums; ++v)
                dots[i][v] = (kWeightOffset ? terms[i].start : 0) - IntVec{};
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; ++g, panel += kWidth * kGroupBytes) {
            IntVec w[kSums];
#pragma GCC unroll 16
            for (int v = 0; v < kSums; ++v) w[v] = bits_of(load(panel + v * kLanes * 4));
#pragma GCC unroll 16
            for (int i = 0; i < kSets; ++i) {
                const IntVec x = bits_of(
                    load_rows(rows + i * rows_bytes(kTogether) + g * kTogether * kGroupBytes));
#pragma GCC unroll 16
                for (int v = 0; v < kSums; ++v) dots[i][v] = multiply(dots[i][v], w[v], x);
            }
        }
        Vec scale[kSums];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) load_factors(panel + v * kLanes * 4, scale + v * kTogether);
        panel += kWidth * 4;
#pragma GCC unroll 16
        for (int i = 0; i < kSets; ++i)
#pragma GCC unroll 16
            for (int v = 0; v < kSums; ++v)
                sum[i][v] += __builtin_convertvector(dots[i][v], Vec) *
                             (scale[v] * row_scales<R>(terms, i * kTogether));
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; i += kTogether)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v)
            store_sums(sum[i / kTogether] + v * kTogether, R - i, out + i * out_stride + v * kLanes,
                       out_stride);
}
