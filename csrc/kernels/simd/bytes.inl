// What quantized blocks consist of: half floats, bytes and parts of bytes, and how whole numbers in
// bytes become vectors of kLanes.

SDE_INLINE float half_to_float(uint16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#elif defined(__aarch64__)
    __fp16 half;
    __builtin_memcpy(&half, &h, 2);
    return half;
#else
    return ggml_fp16_to_fp32(h);
#endif
}

SDE_INLINE float half_at(const uint8_t* p) {
    uint16_t h;
    __builtin_memcpy(&h, p, 2);
    return half_to_float(h);
}

typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint16_t Shorts8 __attribute__((vector_size(16)));
typedef uint32_t Words4 __attribute__((vector_size(16)));
typedef uint64_t Longs2 __attribute__((vector_size(16)));

SDE_INLINE Bytes16 bytes_at(const uint8_t* p) {
    Bytes16 bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    return bytes;
}

// A place in a block, known to the compiler.
template <int N>
struct At {
    constexpr operator int() const { return N; }
};

// Calls use(At<...>{}) for each vector of `Count` values.
template <class Use, int... I>
SDE_INLINE void for_places(const Use& use, Lanes<I...>) {
    (use(At<I * kLanes>{}), ...);
}
template <int Count, class Use>
SDE_INLINE void for_parts(const Use& use) {
    for_places(use, typename MakeLanes<Count / kLanes>::type{});
}

// The signed bytes [Part * kLanes, (Part + 1) * kLanes).
template <int Part>
SDE_INLINE IntVec widen(Bytes16 v) {
#if SDE_LANES == 16
    return reinterpret_cast<IntVec>(
        _mm512_maskz_cvtepi8_epi32(0xffff, reinterpret_cast<__m128i>(v)));
#elif SDE_LANES == 8
    const __m128i bytes = reinterpret_cast<__m128i>(v);
    return reinterpret_cast<IntVec>(
        _mm256_cvtepi8_epi32(Part ? _mm_unpackhi_epi64(bytes, bytes) : bytes));
#else
    // By interleaving, which every processor has for bytes.
    constexpr int b = Part / 2 * 8, s = Part % 2 * 4;
    const auto twice = reinterpret_cast<Shorts8>(
        __builtin_shufflevector(v, v, b, b, b + 1, b + 1, b + 2, b + 2, b + 3, b + 3, b + 4, b + 4,
                                b + 5, b + 5, b + 6, b + 6, b + 7, b + 7));
    const auto four_times = reinterpret_cast<IntVec>(
        __builtin_shufflevector(twice, twice, s, s, s + 1, s + 1, s + 2, s + 2, s + 3, s + 3));
    return four_times >> 24;
#endif
}

// Bytes I + i, i < kLanes, of memory; x86 processors widen them as they fetch them.
template <int I>
SDE_INLINE IntVec signed_bytes(const uint8_t* p, At<I>) {
#if SDE_LANES == 8
    return reinterpret_cast<IntVec>(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + I))));
#else
    return widen<I % 16 / kLanes>(bytes_at(p + I / 16 * 16));
#endif
}
template <int I>
SDE_INLINE IntVec unsigned_bytes(const uint8_t* p, At<I>) {
#if SDE_LANES == 16
    return reinterpret_cast<IntVec>(
        _mm512_maskz_cvtepu8_epi32(0xffff, reinterpret_cast<__m128i>(bytes_at(p + I))));
#elif SDE_LANES == 8
    return reinterpret_cast<IntVec>(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + I))));
#else
    return signed_bytes(p, At<I>{}) & 255;
#endif
}

// Numbers of N runs of 16 signed bytes.
template <int N>
struct ByteNumbers {
    Bytes16 bytes[N];

    template <int I>
    SDE_INLINE IntVec operator()(At<I>) const {
        return widen<I % 16 / kLanes>(bytes[I / 16]);
    }
};

// Numbers of 16 bytes with 4 bits each: the lower halves, then the upper ones.
struct HalfByteNumbers {
    const uint8_t* bytes;

    template <int I>
    SDE_INLINE IntVec operator()(At<I>) const {
        const IntVec both = unsigned_bytes(bytes, At<I % 16>{});
        return I < 16 ? both & 15 : both >> 4;
    }
};

SDE_INLINE Vec to_floats(IntVec v) {
    return __builtin_convertvector(v, Vec);
}

// Bit i of a little-endian word of 16 bits as bit 4 of value i.
SDE_INLINE Bytes16 fifth_bits(const uint8_t* word) {
#if SDE_LANES == 16
    uint16_t mask;
    __builtin_memcpy(&mask, word, 2);
    return reinterpret_cast<Bytes16>(_mm_maskz_set1_epi8(mask, 16));
#else
    constexpr Bytes16 kBit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
#if SDE_LANES == 8
    constexpr Bytes16 kWhich = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    uint16_t bits;
    __builtin_memcpy(&bits, word, 2);
    const auto bytes = reinterpret_cast<Bytes16>(_mm_shuffle_epi8(
        _mm_set1_epi16(static_cast<short>(bits)), reinterpret_cast<__m128i>(kWhich)));
#else
    constexpr uint64_t kEachByte = 0x0101010101010101;
    const Longs2 both = {word[0] * kEachByte, word[1] * kEachByte};
    const auto bytes = reinterpret_cast<Bytes16>(both);
#endif
    return reinterpret_cast<Bytes16>((bytes & kBit) == kBit) & 16;
#endif
}

SDE_INLINE uint32_t word_at(const uint8_t* p) {
    uint32_t word;
    __builtin_memcpy(&word, p, 4);
    return word;
}

// Each byte's bits from `shift` on, as many as the mask has, at `to`.
SDE_INLINE uint32_t bits_of_bytes(uint32_t word, int shift, uint8_t mask, int to = 0) {
    return (word >> shift & mask * 0x01010101u) << to;
}

SDE_INLINE Bytes16 bytes_of(uint32_t a, uint32_t b, uint32_t c = 0, uint32_t d = 0) {
    const Words4 words = {a, b, c, d};
    return reinterpret_cast<Bytes16>(words);
}
