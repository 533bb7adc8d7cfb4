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

// Elements [begin, begin + count) of the weight's row `row`. `out` has room for the whole blocks
// that these elements touch, that is count + 2 * block size; returns where the first element lies
// in it.
const float* dequantize(const Weight& weight, int64_t row, int64_t begin, int64_t count,
                        float* out) {
    const ggml_type_traits* traits = ggml_get_type_traits(weight.type);
    const int64_t first = row * weight.row_elements + begin;
    const int64_t block = first / traits->blck_size;
    const int64_t blocks = ceil_div(first + count, traits->blck_size) - block;
    const auto* data =
        static_cast<const uint8_t*>(weight.data) + block * static_cast<int64_t>(traits->type_size);
    dequantize_blocks(weight.type, data, blocks, out);
    return out + (first - block * traits->blck_size);
}
