// Quantized blocks to float32, for the types where ggml's own functions (plain loops for any
// processor) would take longer than the arithmetic on the weights. The layouts are those of GGUF
// files. `put(at, values)` gets a block vector by vector: values at, at + 1, ... of it.

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
typedef uint32_t Words4 __attribute__((vector_size(16)));

SDE_INLINE Bytes16 bytes_at(const uint8_t* p) {
    Bytes16 bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    return bytes;
}

// The signed bytes [Part * kLanes, (Part + 1) * kLanes) as floats.
template <int Part>
SDE_INLINE Vec widen(Bytes16 v) {
#if SDE_LANES == 16
    const auto wide =
        reinterpret_cast<IntVec>(_mm512_maskz_cvtepi8_epi32(0xffff, reinterpret_cast<__m128i>(v)));
#elif SDE_LANES == 8
    const __m128i bytes = reinterpret_cast<__m128i>(v);
    const auto wide = reinterpret_cast<IntVec>(
        _mm256_cvtepi8_epi32(Part ? _mm_unpackhi_epi64(bytes, bytes) : bytes));
#else
    constexpr int i = 4 * Part;
    const auto wide = reinterpret_cast<IntVec>(
                          __builtin_shufflevector(v, Bytes16{}, 16, 16, 16, i, 16, 16, 16, i + 1,
                                                  16, 16, 16, i + 2, 16, 16, 16, i + 3)) >>
                      24;
#endif
    return __builtin_convertvector(wide, Vec);
}

// scale * numbers[i] + offset for 16 signed bytes, the first of which is value `at` of its block.
template <int Part = 0, class Put>
SDE_INLINE void scale_values(Bytes16 numbers, float scale, float offset, int at, const Put& put) {
    put(at + Part * kLanes, widen<Part>(numbers) * scale + offset);
    if constexpr ((Part + 1) * kLanes < 16) scale_values<Part + 1>(numbers, scale, offset, at, put);
}

// Bit i of a little-endian word of 16 bits as bit 4 of value i.
SDE_INLINE Bytes16 fifth_bits(const uint8_t* word) {
#if SDE_LANES == 16
    uint16_t mask;
    __builtin_memcpy(&mask, word, 2);
    return reinterpret_cast<Bytes16>(_mm_maskz_set1_epi8(mask, 16));
#else
    constexpr Bytes16 kBit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const Bytes16 both = {word[0], word[1]};
#if SDE_LANES == 8
    constexpr Bytes16 kWhich = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    const auto bytes = reinterpret_cast<Bytes16>(
        _mm_shuffle_epi8(reinterpret_cast<__m128i>(both), reinterpret_cast<__m128i>(kWhich)));
#else
    const Bytes16 bytes =
        __builtin_shufflevector(both, both, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
#endif
    return reinterpret_cast<Bytes16>((bytes & kBit) == kBit) & 16;
#endif
}

// A block type: its size in bytes, its number of values, and how one block is unpacked.
//
// 32 values of 4 bits, the first 16 in the low halves of 16 bytes; with a fifth bit each in a word
// before them; behind a scale, or behind a scale and a minimum.
template <bool HasFifthBit, bool HasMinimum>
struct Block32 {
    static constexpr int kScales = HasMinimum ? 4 : 2, kFifthBits = HasFifthBit ? 4 : 0;
    static constexpr int kBytes = kScales + kFifthBits + 16, kValues = 32;

    template <class Put>
    SDE_INLINE static void unpack(const uint8_t* block, const Put& put) {
        constexpr uint8_t kZero = HasMinimum ? 0 : HasFifthBit ? 16 : 8;
        const float scale = half_at(block), minimum = HasMinimum ? half_at(block + 2) : 0;
        const Bytes16 packed = bytes_at(block + kScales + kFifthBits);
        Bytes16 low = packed & 15, high = packed >> 4;
        if (HasFifthBit) {
            low |= fifth_bits(block + kScales);
            high |= fifth_bits(block + kScales + 2);
        }
        scale_values(low - kZero, scale, minimum, 0, put);
        scale_values(high - kZero, scale, minimum, 16, put);
    }
};

// Scale, 32 signed bytes.
struct Q8_0 {
    static constexpr int kBytes = 34, kValues = 32;

    template <class Put>
    SDE_INLINE static void unpack(const uint8_t* block, const Put& put) {
        const float scale = half_at(block);
        scale_values(bytes_at(block + 2), scale, 0, 0, put);
        scale_values(bytes_at(block + 18), scale, 0, 16, put);
    }
};

// The k types: 256 values with one or two half floats for all, and a small whole-number scale for
// each 16 or 32.
struct SmallScales {
    float at[16];

    SDE_INLINE SmallScales(Bytes16 numbers, float scale) {
        scale_values(numbers, scale, 0, 0, [&](int i, Vec v) SDE_LAMBDA { store(at + i, v); });
        // Each is read from memory into all lanes at once; compilers would rather take vectors
        // apart.
        __asm__("" : "+m"(at));
    }
};

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

// Scales and minima of 4 bits [16], 2 bits [64], scale, minimum.
struct Q2_K {
    static constexpr int kBytes = 84, kValues = 256;

    template <class Put>
    SDE_INLINE static void unpack(const uint8_t* block, const Put& put) {
        const SmallScales scales(bytes_at(block) & 15, half_at(block + 80));
        const SmallScales offsets(bytes_at(block) >> 4, -half_at(block + 82));
#pragma GCC unroll 16
        for (int n = 0; n < 16; ++n) {
            const Bytes16 packed = bytes_at(block + 16 + n / 8 * 32 + n % 2 * 16);
            scale_values(packed >> (n / 2 % 4 * 2) & 3, scales.at[n], offsets.at[n], n * 16, put);
        }
    }
};

// Third bits [32], lower 2 bits [64], scales of 6 bits [12]: lower 4 bits [16], upper 2; scale.
struct Q3_K {
    static constexpr int kBytes = 110, kValues = 256;

    SDE_INLINE static Bytes16 small_scales(const uint8_t* packed) {
        const uint32_t a = word_at(packed), b = word_at(packed + 4), upper = word_at(packed + 8);
        return bytes_of(bits_of_bytes(a, 0, 15) | bits_of_bytes(upper, 0, 3, 4),
                        bits_of_bytes(b, 0, 15) | bits_of_bytes(upper, 2, 3, 4),
                        bits_of_bytes(a, 4, 15) | bits_of_bytes(upper, 4, 3, 4),
                        bits_of_bytes(b, 4, 15) | bits_of_bytes(upper, 6, 3, 4));
    }

    template <class Put>
    SDE_INLINE static void unpack(const uint8_t* block, const Put& put) {
        const SmallScales scales(small_scales(block + 96) - 32, half_at(block + 108));
#pragma GCC unroll 16
        for (int n = 0; n < 16; ++n) {
            const Bytes16 low =
                bytes_at(block + 32 + n / 8 * 32 + n % 2 * 16) >> (n / 2 % 4 * 2) & 3;
            const Bytes16 high = (bytes_at(block + n % 2 * 16) >> (n / 2) & 1) << 2;
            scale_values((low | high) - 4, scales.at[n], 0, n * 16, put);
        }
    }
};

// Scale, minimum, small scales and minima of 6 bits for runs of 32 values [12]: four of each, with
// two bits of the other four above; the lower four bits of those. Then fifth bits [32] or none,
// lower 4 bits [128].
template <bool HasFifthBit>
struct Q45_K {
    static constexpr int kFifthBits = HasFifthBit ? 32 : 0;
    static constexpr int kBytes = 16 + kFifthBits + 128, kValues = 256;

    template <class Put>
    SDE_INLINE static void unpack(const uint8_t* block, const Put& put) {
        const uint32_t a = word_at(block + 4), b = word_at(block + 8), rest = word_at(block + 12);
        const Bytes16 small = bytes_of(bits_of_bytes(a, 0, 63),
                                       bits_of_bytes(rest, 0, 15) | bits_of_bytes(a, 6, 3, 4));
        const Bytes16 minima = bytes_of(bits_of_bytes(b, 0, 63),
                                        bits_of_bytes(rest, 4, 15) | bits_of_bytes(b, 6, 3, 4));
        const SmallScales scales(small, half_at(block)), offsets(minima, -half_at(block + 2));
#pragma GCC unroll 16
        for (int n = 0; n < 16; ++n) {
            const int run = n / 2;
            Bytes16 values =
                bytes_at(block + 16 + kFifthBits + n / 4 * 32 + n % 2 * 16) >> (run % 2 * 4) & 15;
            if (HasFifthBit) values |= (bytes_at(block + 16 + n % 2 * 16) >> run & 1) << 4;
            scale_values(values, scales.at[run], offsets.at[run], n * 16, put);
        }
    }
};

// Lower 4 bits [128], upper 2 bits [64], signed scales [16], scale.
struct Q6_K {
    static constexpr int kBytes = 210, kValues = 256;

    template <class Put>
    SDE_INLINE static void unpack(const uint8_t* block, const Put& put) {
        const SmallScales scales(bytes_at(block + 192), half_at(block + 208));
#pragma GCC unroll 16
        for (int n = 0; n < 16; ++n) {
            const Bytes16 low = bytes_at(block + n / 8 * 64 + n % 4 * 16) >> (n / 4 % 2 * 4) & 15;
            const Bytes16 high =
                (bytes_at(block + 128 + n / 8 * 32 + n % 2 * 16) >> (n / 2 % 4 * 2) & 3) << 4;
            scale_values((low | high) - 32, scales.at[n], 0, n * 16, put);
        }
    }
};

// The types with values of 4 bits that are numbers of entries in a table of signed bytes.
SDE_INLINE Bytes16 look_up(Bytes16 numbers) {
    constexpr Bytes16 kTable = {129, 152, 173, 191, 207, 221, 234, 246,
                                1,   13,  25,  38,  53,  69,  89,  113};
#if SDE_LANES >= 8
    return reinterpret_cast<Bytes16>(
        _mm_shuffle_epi8(reinterpret_cast<__m128i>(kTable), reinterpret_cast<__m128i>(numbers)));
#elif defined(__aarch64__)
    return reinterpret_cast<Bytes16>(
        vqtbl1q_u8(reinterpret_cast<uint8x16_t>(kTable), reinterpret_cast<uint8x16_t>(numbers)));
#else
    Bytes16 found;
    for (int i = 0; i < 16; ++i) found[i] = kTable[numbers[i]];
    return found;
#endif
}

template <class Put>
SDE_INLINE void look_up_nibbles(const uint8_t* packed, float scale, int at, const Put& put) {
    const Bytes16 bytes = bytes_at(packed);
    scale_values(look_up(bytes & 15), scale, 0, at, put);
    scale_values(look_up(bytes >> 4), scale, 0, at + 16, put);
}

struct IQ4_NL {
    static constexpr int kBytes = 18, kValues = 32;

    template <class Put>
    SDE_INLINE static void unpack(const uint8_t* block, const Put& put) {
        look_up_nibbles(block + 2, half_at(block), 0, put);
    }
};

// Scale, upper 2 bits of the scales of 32 values each [2], their lower 4 bits [4], values [128].
struct IQ4_XS {
    static constexpr int kBytes = 136, kValues = 256;

    template <class Put>
    SDE_INLINE static void unpack(const uint8_t* block, const Put& put) {
        const float scale = half_at(block);
        for (int n = 0; n < 8; ++n) {
            const int low = block[4 + n / 2] >> (n % 2 * 4) & 15,
                      high = block[2 + n / 4] >> (n % 4 * 2) & 3;
            look_up_nibbles(block + 8 + n * 16, scale * static_cast<float>((low | high << 4) - 32),
                            n * 32, put);
        }
    }
};

// Calls use(block type); false for types that are not here.
template <class Use>
bool with_block_type(ggml_type type, const Use& use) {
    switch (type) {
        case GGML_TYPE_Q4_0:
            use(Block32<false, false>{});
            return true;
        case GGML_TYPE_Q4_1:
            use(Block32<false, true>{});
            return true;
        case GGML_TYPE_Q5_0:
            use(Block32<true, false>{});
            return true;
        case GGML_TYPE_Q5_1:
            use(Block32<true, true>{});
            return true;
        case GGML_TYPE_Q8_0:
            use(Q8_0{});
            return true;
        case GGML_TYPE_Q2_K:
            use(Q2_K{});
            return true;
        case GGML_TYPE_Q3_K:
            use(Q3_K{});
            return true;
        case GGML_TYPE_Q4_K:
            use(Q45_K<false>{});
            return true;
        case GGML_TYPE_Q5_K:
            use(Q45_K<true>{});
            return true;
        case GGML_TYPE_Q6_K:
            use(Q6_K{});
            return true;
        case GGML_TYPE_IQ4_NL:
            use(IQ4_NL{});
            return true;
        case GGML_TYPE_IQ4_XS:
            use(IQ4_XS{});
            return true;
        default:
            return false;
    }
}

template <class Block>
void unpack_blocks(const uint8_t* data, int64_t blocks, float* out) {
    for (int64_t i = 0; i < blocks; ++i, data += Block::kBytes, out += Block::kValues)
        Block::unpack(data, [out](int at, Vec values) SDE_LAMBDA { store(out + at, values); });
}

void dequantize_blocks(ggml_type type, const uint8_t* data, int64_t blocks, float* out) {
    if (with_block_type(type,
                        [&](auto block) { unpack_blocks<decltype(block)>(data, blocks, out); }))
        return;
    const ggml_type_traits* traits = ggml_get_type_traits(type);
    traits->to_float(data, out, blocks * traits->blck_size);
}
