// Quantized blocks to float32, for the types where ggml's own functions (plain loops for any
// processor) would take longer than the arithmetic on the weights. The layouts are those of GGUF
// files.

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
typedef uint64_t Words2 __attribute__((vector_size(16)));

SDE_INLINE Bytes16 bytes_at(const uint8_t* p) {
    Bytes16 bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    return bytes;
}

// The bytes [Part * kLanes, (Part + 1) * kLanes) as whole numbers of 32 bits.
template <int Part>
SDE_INLINE IntVec widen(Bytes16 v) {
#if SDE_LANES == 16
    return reinterpret_cast<IntVec>(
        _mm512_maskz_cvtepu8_epi32(0xffff, reinterpret_cast<__m128i>(v)));
#elif SDE_LANES == 8
    const __m128i bytes = reinterpret_cast<__m128i>(v);
    return reinterpret_cast<IntVec>(
        _mm256_cvtepu8_epi32(Part ? _mm_unpackhi_epi64(bytes, bytes) : bytes));
#else
    constexpr int i = 4 * Part;
    return reinterpret_cast<IntVec>(__builtin_shufflevector(
        v, Bytes16{}, i, 16, 16, 16, i + 1, 16, 16, 16, i + 2, 16, 16, 16, i + 3, 16, 16, 16));
#endif
}

// out[i] = scale * (values[i] - zero) + offset for 16 values.
template <int Part = 0>
SDE_INLINE void scale_values(Bytes16 values, int zero, float scale, float offset, float* out) {
    store(out + Part * kLanes,
          __builtin_convertvector(widen<Part>(values) - zero, Vec) * scale + offset);
    if constexpr ((Part + 1) * kLanes < 16)
        scale_values<Part + 1>(values, zero, scale, offset, out);
}

// Bit i of a little-endian word of 16 bits as bit 4 of value i.
SDE_INLINE Bytes16 fifth_bits(const uint8_t* word) {
    constexpr Bytes16 kBit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    constexpr uint64_t kEachByte = 0x0101010101010101;
    const Words2 words = {word[0] * kEachByte, word[1] * kEachByte};
    const Bytes16 bytes = reinterpret_cast<Bytes16>(words);
    return reinterpret_cast<Bytes16>((bytes & kBit) == kBit) & 16;
}

// A block type: its size in bytes, its number of values, and how one block is unpacked.
//
// 32 values of 4 bits, the first 16 in the low halves of 16 bytes; with a fifth bit each in a word
// before them; behind a scale, or behind a scale and a minimum.
template <bool HasFifthBit, bool HasMinimum>
struct Block32 {
    static constexpr int kScales = HasMinimum ? 4 : 2, kFifthBits = HasFifthBit ? 4 : 0;
    static constexpr int kBytes = kScales + kFifthBits + 16, kValues = 32;

    SDE_INLINE static void unpack(const uint8_t* block, float* out) {
        constexpr int kZero = HasMinimum ? 0 : HasFifthBit ? 16 : 8;
        const float scale = half_at(block), minimum = HasMinimum ? half_at(block + 2) : 0;
        const Bytes16 packed = bytes_at(block + kScales + kFifthBits);
        Bytes16 low = packed & 15, high = packed >> 4;
        if (HasFifthBit) {
            low |= fifth_bits(block + kScales);
            high |= fifth_bits(block + kScales + 2);
        }
        scale_values(low, kZero, scale, minimum, out);
        scale_values(high, kZero, scale, minimum, out + 16);
    }
};

// Scale, 32 signed bytes.
struct Q8_0 {
    static constexpr int kBytes = 34, kValues = 32;

    SDE_INLINE static void unpack(const uint8_t* block, float* out) {
        const float scale = half_at(block);
        scale_values(bytes_at(block + 2) ^ 128, 128, scale, 0, out);
        scale_values(bytes_at(block + 18) ^ 128, 128, scale, 0, out + 16);
    }
};

// The k types: 256 values with one or two half floats for all, and a small whole-number scale for
// each 16.

// Scales and minima of 4 bits [16], 2 bits [64], scale, minimum.
struct Q2_K {
    static constexpr int kBytes = 84, kValues = 256;

    SDE_INLINE static void unpack(const uint8_t* block, float* out) {
        const float scale = half_at(block + 80), minimum = half_at(block + 82);
#pragma GCC unroll 16
        for (int n = 0; n < 16; ++n) {
            const Bytes16 packed = bytes_at(block + 16 + n / 8 * 32 + n % 2 * 16);
            scale_values(packed >> (n / 2 % 4 * 2) & 3, 0,
                         scale * static_cast<float>(block[n] & 15),
                         -minimum * static_cast<float>(block[n] >> 4), out + n * 16);
        }
    }
};

// Third bits [32], lower 2 bits [64], scales of 6 bits [12], scale.
struct Q3_K {
    static constexpr int kBytes = 110, kValues = 256;

    SDE_INLINE static void unpack(const uint8_t* block, float* out) {
        const uint8_t* scales = block + 96;
        const float scale = half_at(block + 108);
#pragma GCC unroll 16
        for (int n = 0; n < 16; ++n) {
            const Bytes16 low =
                bytes_at(block + 32 + n / 8 * 32 + n % 2 * 16) >> (n / 2 % 4 * 2) & 3;
            const Bytes16 high = (bytes_at(block + n % 2 * 16) >> (n / 2) & 1) << 2;
            const int scale_low = n < 8 ? scales[n] & 15 : scales[n - 8] >> 4;
            const int scale_high = scales[8 + n % 4] >> (n / 4 * 2) & 3;
            scale_values(low | high, 4,
                         scale * static_cast<float>((scale_low | scale_high << 4) - 32), 0,
                         out + n * 16);
        }
    }
};

// Lower 4 bits [128], upper 2 bits [64], signed scales [16], scale.
struct Q6_K {
    static constexpr int kBytes = 210, kValues = 256;

    SDE_INLINE static void unpack(const uint8_t* block, float* out) {
        const float scale = half_at(block + 208);
#pragma GCC unroll 16
        for (int n = 0; n < 16; ++n) {
            const Bytes16 low = bytes_at(block + n / 8 * 64 + n % 4 * 16) >> (n / 4 % 2 * 4) & 15;
            const Bytes16 high =
                (bytes_at(block + 128 + n / 8 * 32 + n % 2 * 16) >> (n / 2 % 4 * 2) & 3) << 4;
            const auto small_scale = static_cast<int8_t>(block[192 + n]);
            scale_values(low | high, 32, scale * static_cast<float>(small_scale), 0, out + n * 16);
        }
    }
};

// The types with values of 4 bits that are numbers of entries in a table, here with 128 added.
SDE_INLINE Bytes16 look_up(Bytes16 numbers) {
    constexpr Bytes16 kTable = {1,   24,  45,  63,  79,  93,  106, 118,
                                129, 141, 153, 166, 181, 197, 217, 241};
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

SDE_INLINE void look_up_nibbles(const uint8_t* packed, float scale, float* out) {
    const Bytes16 bytes = bytes_at(packed);
    scale_values(look_up(bytes & 15), 128, scale, 0, out);
    scale_values(look_up(bytes >> 4), 128, scale, 0, out + 16);
}

struct IQ4_NL {
    static constexpr int kBytes = 18, kValues = 32;

    SDE_INLINE static void unpack(const uint8_t* block, float* out) {
        look_up_nibbles(block + 2, half_at(block), out);
    }
};

// Scale, upper 2 bits of the scales of 32 values each [2], their lower 4 bits [4], values [128].
struct IQ4_XS {
    static constexpr int kBytes = 136, kValues = 256;

    SDE_INLINE static void unpack(const uint8_t* block, float* out) {
        const float scale = half_at(block);
        for (int n = 0; n < 8; ++n) {
            const int low = block[4 + n / 2] >> (n % 2 * 4) & 15,
                      high = block[2 + n / 4] >> (n % 4 * 2) & 3;
            look_up_nibbles(block + 8 + n * 16, scale * static_cast<float>((low | high << 4) - 32),
                            out + n * 32);
        }
    }
};

template <class Block>
void unpack_blocks(const uint8_t* data, int64_t blocks, float* out) {
    for (int64_t i = 0; i < blocks; ++i)
        Block::unpack(data + i * Block::kBytes, out + i * Block::kValues);
}

void dequantize_blocks(ggml_type type, const uint8_t* data, int64_t blocks, float* out) {
    switch (type) {
        case GGML_TYPE_Q4_0:
            return unpack_blocks<Block32<false, false>>(data, blocks, out);
        case GGML_TYPE_Q4_1:
            return unpack_blocks<Block32<false, true>>(data, blocks, out);
        case GGML_TYPE_Q5_0:
            return unpack_blocks<Block32<true, false>>(data, blocks, out);
        case GGML_TYPE_Q5_1:
            return unpack_blocks<Block32<true, true>>(data, blocks, out);
        case GGML_TYPE_Q8_0:
            return unpack_blocks<Q8_0>(data, blocks, out);
        case GGML_TYPE_Q2_K:
            return unpack_blocks<Q2_K>(data, blocks, out);
        case GGML_TYPE_Q3_K:
            return unpack_blocks<Q3_K>(data, blocks, out);
        case GGML_TYPE_Q6_K:
            return unpack_blocks<Q6_K>(data, blocks, out);
        case GGML_TYPE_IQ4_NL:
            return unpack_blocks<IQ4_NL>(data, blocks, out);
        case GGML_TYPE_IQ4_XS:
            return unpack_blocks<IQ4_XS>(data, blocks, out);
        default: {
            const ggml_type_traits* traits = ggml_get_type_traits(type);
            traits->to_float(data, out, blocks * traits->blck_size);
        }
    }
}
