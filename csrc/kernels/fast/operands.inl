// How both operands lie in memory: in groups of the bytes that one step of the product takes.
//
// Most instructions multiply vectors: 4 bytes of one row, in every lane, with 4 bytes of each of
// kLanes columns. Arm's i8mm and bf16 multiply matrices: 8 bytes of each of two rows with 8 bytes
// of each of two columns, and the sums of such a step are one vector [row][column]. A unit of that
// kind defines SDE_TOGETHER as 2.
#ifndef SDE_TOGETHER
#define SDE_TOGETHER 1
#endif

constexpr int kTogether = SDE_TOGETHER;  // rows, and columns where that is more than one
constexpr int64_t kBlockBytes = 32, kGroupBytes = 4 * kTogether;
constexpr int kGroups = kBlockBytes / kGroupBytes;

// A block of a tile's rows is [row / kTogether][group][row % kTogether][byte].
constexpr int64_t row_at(int64_t row) {
    return row / kTogether * kTogether * kBlockBytes + row % kTogether * kGroupBytes;
}
constexpr int64_t rows_bytes(int64_t rows) {
    return round_up(rows, kTogether) * kBlockBytes;
}
// The place of a row's byte where groups of so many rows take turns.
template <int Rows>
constexpr int64_t byte_at(int64_t byte) {
    return byte / kGroupBytes * kGroupBytes * Rows + byte % kGroupBytes;
}

// One group of each row that is multiplied together, for all lanes.
SDE_INLINE Vec load_rows(const uint8_t* group) {
    if constexpr (kTogether > 1) return load(group);
    int32_t bytes;
    __builtin_memcpy(&bytes, group, 4);
    return from_bits(bytes - IntVec{});
}

// One group of kLanes columns, of which words[i] holds bytes 4 i ... 4 i + 3.
SDE_INLINE void store_group(uint8_t* to, const Vec* words) {
    if constexpr (kTogether > 1) {
        Vec low, high;
        interleave_in_blocks<1>(words[0], words[1], low, high, MakeLanes<kLanes>::type{});
        store(to, low);
        store(to + sizeof low, high);
    } else {
        store(to, words[0]);
    }
}

// What kLanes columns are multiplied with, as the sums of kTogether rows have it.
SDE_INLINE void load_factors(const uint8_t* columns, Vec* factors) {
    factors[0] = load(columns);
    if constexpr (kTogether > 1)
        interleave_in_blocks<2>(factors[0], factors[0], factors[0], factors[1],
                                MakeLanes<kLanes>::type{});
}

// The sums of kTogether rows and kLanes columns; of the rows only so many exist.
SDE_INLINE void store_sums(const Vec* sums, int rows, float* out, int64_t out_stride) {
    if constexpr (kTogether > 1) {
        Vec low, high;
        interleave_in_blocks<2>(sums[0], sums[1], low, high, MakeLanes<kLanes>::type{});
        store(out, low);
        if (rows > 1) store(out + out_stride, high);
    } else {
        store(out, sums[0]);
    }
}

template <class Rows>
const float* copy_row(const Rows& rows, int64_t count, float* to) {
    for_vectors(count, [&](int64_t k, int64_t n) { store(to + k, rows(0, k, n)); });
    return to;
}

// Elements [begin, begin + count) of a weight row as floats; `to` has room for row_part_size().
const float* read_weight_row(const Weight& weight, int64_t row, int64_t begin, int64_t count,
                             float* to) {
    const char* data = static_cast<const char*>(weight.data);
    const int64_t first = row * weight.row_elements + begin;
    switch (weight.type) {
        case GGML_TYPE_F32:
            return copy_row(FloatRows{data + first * 4, 0}, count, to);
        case GGML_TYPE_F16:
            return copy_row(HalfRows{{data + first * 2, 0}}, count, to);
        case GGML_TYPE_BF16:
            return copy_row(Bf16Rows{{data + first * 2, 0}}, count, to);
        default:
            return dequantize(weight, row, begin, count, to);
    }
}
