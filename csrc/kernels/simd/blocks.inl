// Quantized blocks, for the types where ggml's own functions (plain loops for any processor) would
// take longer than the arithmetic on the weights. The layouts are those of GGUF files.
//
// A block is read run by run; a run is kRun values with one scale. use(first, scale, offset,
// numbers) gets the one that begins with value `first`, and asks for what it needs of it:
//
//   value first + at + i = scale * (numbers(At<at>{})[i] - kZero) + offset,   i < kLanes
//
// with whole numbers, so that whoever sums may multiply by the scale once for a run. Beside that a
// type says its size in bytes, its number of values, and whether runs have offsets.

// 32 values of 4 bits, the first 16 in the low halves of 16 bytes; with a fifth bit each in a word
// before them; behind a scale, or behind a scale and a minimum.
template <bool HasFifthBit, bool HasMinimum>
struct Block32 {
    static constexpr int kScales = HasMinimum ? 4 : 2, kFifthBits = HasFifthBit ? 4 : 0;
    static constexpr int kBytes = kScales + kFifthBits + 16, kValues = 32, kRun = 32;
    static constexpr int kZero = HasMinimum ? 0 : HasFifthBit ? 16 : 8;
    static constexpr bool kHasOffset = HasMinimum;

    template <class Use>
    SDE_INLINE static void read(const uint8_t* block, const Use& use) {
        const float scale = half_at(block), minimum = HasMinimum ? half_at(block + 2) : 0;
        const uint8_t* packed = block + kScales + kFifthBits;
        if constexpr (HasFifthBit) {
            const Bytes16 both = bytes_at(packed);
            use(0, scale, minimum,
                ByteNumbers<2>{{(both & 15) | fifth_bits(block + kScales),
                                (both >> 4) | fifth_bits(block + kScales + 2)}});
        } else {
            use(0, scale, minimum, HalfByteNumbers{packed});
        }
    }
};

// Scale, 32 signed bytes.
struct Q8_0 {
    static constexpr int kBytes = 34, kValues = 32, kRun = 32, kZero = 0;
    static constexpr bool kHasOffset = false;

    template <class Use>
    SDE_INLINE static void read(const uint8_t* block, const Use& use) {
        use(0, half_at(block), 0, [&](auto at) SDE_LAMBDA { return signed_bytes(block + 2, at); });
    }
};

// The k types: 256 values with one or two half floats for all, and a small whole-number scale for
// each 16 or 32.
struct SmallScales {
    float at[16];

    SDE_INLINE SmallScales(Bytes16 numbers, float scale) {
        const ByteNumbers<1> values{{numbers}};
        for_parts<16>([&](auto i) SDE_LAMBDA { store(at + i, to_floats(values(i)) * scale); });
        // Each is read from memory into all lanes at once; compilers would rather take vectors
        // apart.
        __asm__("" : "+m"(at));
    }
};

// Scales and minima of 4 bits [16], 2 bits [64], scale, minimum.
struct Q2_K {
    static constexpr int kBytes = 84, kValues = 256, kRun = 16, kZero = 0;
    static constexpr bool kHasOffset = true;

    template <class Use>
    SDE_INLINE static void read(const uint8_t* block, const Use& use) {
        const SmallScales scales(bytes_at(block) & 15, half_at(block + 80));
        const SmallScales offsets(bytes_at(block) >> 4, -half_at(block + 82));
#pragma GCC unroll 16
        for (int n = 0; n < 16; ++n) {
            const Bytes16 packed = bytes_at(block + 16 + n / 8 * 32 + n % 2 * 16);
            use(n * 16, scales.at[n], offsets.at[n],
                ByteNumbers<1>{{packed >> (n / 2 % 4 * 2) & 3}});
        }
    }
};

// Third bits [32], lower 2 bits [64], scales of 6 bits [12]: lower 4 bits [16], upper 2; scale.
struct Q3_K {
    static constexpr int kBytes = 110, kValues = 256, kRun = 16, kZero = 0;
    static constexpr bool kHasOffset = false;

    SDE_INLINE static Bytes16 small_scales(const uint8_t* packed) {
        const uint32_t a = word_at(packed), b = word_at(packed + 4), upper = word_at(packed + 8);
        return bytes_of(bits_of_bytes(a, 0, 15) | bits_of_bytes(upper, 0, 3, 4),
                        bits_of_bytes(b, 0, 15) | bits_of_bytes(upper, 2, 3, 4),
                        bits_of_bytes(a, 4, 15) | bits_of_bytes(upper, 4, 3, 4),
                        bits_of_bytes(b, 4, 15) | bits_of_bytes(upper, 6, 3, 4));
    }

    template <class Use>
    SDE_INLINE static void read(const uint8_t* block, const Use& use) {
        const SmallScales scales(small_scales(block + 96) - 32, half_at(block + 108));
#pragma GCC unroll 16
        for (int n = 0; n < 16; ++n) {
            const Bytes16 low =
                bytes_at(block + 32 + n / 8 * 32 + n % 2 * 16) >> (n / 2 % 4 * 2) & 3;
            const Bytes16 high = (bytes_at(block + n % 2 * 16) >> (n / 2) & 1) << 2;
            use(n * 16, scales.at[n], 0, ByteNumbers<1>{{(low | high) - 4}});
        }
    }
};

// Scale, minimum, small scales and minima of 6 bits for runs of 32 values [12]: four of each, with
// two bits of the other four above; the lower four bits of those. Then fifth bits [32] or none,
// lower 4 bits [128].
template <bool HasFifthBit>
struct Q45_K {
    static constexpr int kFifthBits = HasFifthBit ? 32 : 0;
    static constexpr int kBytes = 16 + kFifthBits + 128, kValues = 256, kRun = 32, kZero = 0;
    static constexpr bool kHasOffset = true;

    template <class Use>
    SDE_INLINE static void read(const uint8_t* block, const Use& use) {
        const uint32_t a = word_at(block + 4), b = word_at(block + 8), rest = word_at(block + 12);
        const Bytes16 small = bytes_of(bits_of_bytes(a, 0, 63),
                                       bits_of_bytes(rest, 0, 15) | bits_of_bytes(a, 6, 3, 4));
        const Bytes16 minima = bytes_of(bits_of_bytes(b, 0, 63),
                                        bits_of_bytes(rest, 4, 15) | bits_of_bytes(b, 6, 3, 4));
        const SmallScales scales(small, half_at(block)), offsets(minima, -half_at(block + 2));
#pragma GCC unroll 8
        for (int run = 0; run < 8; ++run) {
            const auto half = [&](int n) SDE_LAMBDA {
                Bytes16 values =
                    bytes_at(block + 16 + kFifthBits + run / 2 * 32 + n) >> (run % 2 * 4) & 15;
                if (HasFifthBit) values |= (bytes_at(block + 16 + n) >> run & 1) << 4;
                return values;
            };
            use(run * 32, scales.at[run], offsets.at[run], ByteNumbers<2>{{half(0), half(16)}});
        }
    }
};

// Lower 4 bits [128], upper 2 bits [64], signed scales [16], scale.
struct Q6_K {
    static constexpr int kBytes = 210, kValues = 256, kRun = 16, kZero = 0;
    static constexpr bool kHasOffset = false;

    template <class Use>
    SDE_INLINE static void read(const uint8_t* block, const Use& use) {
        const SmallScales scales(bytes_at(block + 192), half_at(block + 208));
#pragma GCC unroll 16
        for (int n = 0; n < 16; ++n) {
            const Bytes16 low = bytes_at(block + n / 8 * 64 + n % 4 * 16) >> (n / 4 % 2 * 4) & 15;
            const Bytes16 high =
                (bytes_at(block + 128 + n / 8 * 32 + n % 2 * 16) >> (n / 2 % 4 * 2) & 3) << 4;
            use(n * 16, scales.at[n], 0, ByteNumbers<1>{{(low | high) - 32}});
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
    uint8_t values[16];
    __builtin_memcpy(values, &numbers, 16);
    for (uint8_t& value : values) value = kTable[value];
    return bytes_at(values);
#endif
}

SDE_INLINE ByteNumbers<2> look_up_halves(const uint8_t* packed) {
    const Bytes16 both = bytes_at(packed);
    return {{look_up(both & 15), look_up(both >> 4)}};
}

struct IQ4_NL {
    static constexpr int kBytes = 18, kValues = 32, kRun = 32, kZero = 0;
    static constexpr bool kHasOffset = false;

    template <class Use>
    SDE_INLINE static void read(const uint8_t* block, const Use& use) {
        use(0, half_at(block), 0, look_up_halves(block + 2));
    }
};

// Scale, upper 2 bits of the scales of 32 values each [2], their lower 4 bits [4], values [128].
struct IQ4_XS {
    static constexpr int kBytes = 136, kValues = 256, kRun = 32, kZero = 0;
    static constexpr bool kHasOffset = false;

    template <class Use>
    SDE_INLINE static void read(const uint8_t* block, const Use& use) {
        const float scale = half_at(block);
#pragma GCC unroll 8
        for (int n = 0; n < 8; ++n) {
            const int low = block[4 + n / 2] >> (n % 2 * 4) & 15,
                      high = block[2 + n / 4] >> (n % 4 * 2) & 3;
            use(n * 32, scale * static_cast<float>((low | high << 4) - 32), 0,
                look_up_halves(block + 8 + n * 16));
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
        Block::read(data, [&](int first, float scale, float offset, auto numbers) SDE_LAMBDA {
            for_parts<Block::kRun>([&](auto at) SDE_LAMBDA {
                store(out + first + at, to_floats(numbers(at) - Block::kZero) * scale + offset);
            });
        });
}
