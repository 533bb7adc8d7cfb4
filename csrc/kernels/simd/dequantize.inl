// Reading weights of any ggml type as float32.

// Part of a weight row: how to read kLanes consecutive elements of row r from element k on; n of
// them exist.
struct FloatRows {
    const char* data;
    int64_t row_bytes;

    SDE_INLINE Vec operator()(int64_t r, int64_t k, int64_t n) const {
        return read_lanes(data + r * row_bytes + k * 4, n);
    }
};

typedef uint16_t ShortVec __attribute__((vector_size(2 * SDE_LANES)));

struct ShortRows {
    const char* data;
    int64_t row_bytes;

    SDE_INLINE ShortVec bits(int64_t r, int64_t k, int64_t n) const {
        const char* p = data + r * row_bytes + k * 2;
        ShortVec v = {};
        if (n == kLanes)
            __builtin_memcpy(&v, p, sizeof v);
        else
            __builtin_memcpy(&v, p, static_cast<size_t>(n) * 2);
        return v;
    }
};

struct Bf16Rows : ShortRows {
    SDE_INLINE Vec operator()(int64_t r, int64_t k, int64_t n) const {
        const ShortVec b = bits(r, k, n);
#if SDE_LANES == 16
        const auto wide = reinterpret_cast<IntVec>(
            _mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(b)));
#elif SDE_LANES == 8
        const auto wide =
            reinterpret_cast<IntVec>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(b)));
#else
        const auto wide = __builtin_convertvector(b, IntVec);
#endif
        return from_bits(wide << 16);
    }
};

struct HalfRows : ShortRows {
    SDE_INLINE Vec operator()(int64_t r, int64_t k, int64_t n) const {
        const ShortVec h = bits(r, k, n);
#if SDE_LANES == 16
        return reinterpret_cast<Vec>(_mm512_maskz_cvtph_ps(0xffff, reinterpret_cast<__m256i>(h)));
#elif SDE_LANES == 8
        return reinterpret_cast<Vec>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(h)));
#elif defined(__aarch64__)
        return reinterpret_cast<Vec>(vcvt_f32_f16(reinterpret_cast<float16x4_t>(h)));
#else
        Vec v;
        for (int i = 0; i < kLanes; ++i) v[i] = ggml_fp16_to_fp32(h[i]);
        return v;
#endif
    }
};

// Where the elements [first, first + count) of a weight lie in `out` once `unpack(data, blocks,
// out)` has made floats of the blocks that they touch.
template <class Unpack>
SDE_INLINE const float* unpack_touched(const Weight& weight, int64_t first, int64_t count,
                                       int64_t block_values, int64_t block_bytes, float* out,
                                       const Unpack& unpack) {
    const int64_t block = first / block_values;
    const int64_t blocks = ceil_div(first + count, block_values) - block;
    unpack(static_cast<const uint8_t*>(weight.data) + block * block_bytes, blocks, out);
    return out + (first - block * block_values);
}

// Elements [begin, begin + count) of the weight's row `row`. `out` has room for the whole blocks
// that these elements touch, that is count + 2 * block size; returns where the first element lies
// in it.
const float* dequantize(const Weight& weight, int64_t row, int64_t begin, int64_t count,
                        float* out) {
    const int64_t first = row * weight.row_elements + begin;
    const float* at = nullptr;
    const bool known = with_block_type(weight.type, [&](auto block) {
        // Constants: a division takes as long as some vectors of values.
        using Block = decltype(block);
        at = unpack_touched(weight, first, count, Block::kValues, Block::kBytes, out,
                            unpack_blocks<Block>);
    });
    if (known) return at;
    const ggml_type_traits* traits = ggml_get_type_traits(weight.type);
    return unpack_touched(weight, first, count, traits->blck_size,
                          static_cast<int64_t>(traits->type_size), out,
                          [&](const uint8_t* data, int64_t blocks, float* to) {
                              traits->to_float(data, to, blocks * traits->blck_size);
                          });
}
