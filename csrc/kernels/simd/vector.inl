// Vectors of kLanes floats through the vector extensions of GCC and Clang, and small helpers.

constexpr int kLanes = SDE_LANES;
// Floats of a cache line.
constexpr int64_t kLine = 16;

typedef float Vec __attribute__((vector_size(4 * SDE_LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * SDE_LANES)));

#define SDE_INLINE inline __attribute__((always_inline))
#define SDE_LAMBDA __attribute__((always_inline))

template <class T>
constexpr T min_of(T a, T b) {
    return a < b ? a : b;
}
template <class T>
constexpr T max_of(T a, T b) {
    return a > b ? a : b;
}
constexpr int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}
constexpr int64_t round_up(int64_t a, int64_t b) {
    return ceil_div(a, b) * b;
}

// The index where part `i` of `parts` begins when `count` things are shared out evenly.
constexpr int64_t part_begin(int64_t count, int64_t parts, int64_t i) {
    return count * i / parts;
}

SDE_INLINE Vec splat(float x) {
    return x - Vec{};
}

// Memory of any alignment; `n` lanes at most, the others 0.
SDE_INLINE Vec load(const void* p) {
    Vec v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
SDE_INLINE Vec load_part(const void* p, int64_t n) {
    Vec v = {};
    __builtin_memcpy(&v, p, static_cast<size_t>(n) * 4);
    return v;
}
SDE_INLINE void store(void* p, Vec v) {
    __builtin_memcpy(p, &v, sizeof v);
}
SDE_INLINE void store_part(void* p, Vec v, int64_t n) {
    __builtin_memcpy(p, &v, static_cast<size_t>(n) * 4);
}

// A vector of which the first n lanes lie in memory.
SDE_INLINE Vec read_lanes(const void* p, int64_t n) {
    return n == kLanes ? load(p) : load_part(p, n);
}
SDE_INLINE void write_lanes(void* p, Vec v, int64_t n) {
    if (n == kLanes)
        store(p, v);
    else
        store_part(p, v, n);
}

// Calls use(first, lanes) for each vector of `count` values.
template <class Use>
SDE_INLINE void for_vectors(int64_t count, const Use& use) {
    for (int64_t c = 0; c < count; c += kLanes) use(c, min_of<int64_t>(kLanes, count - c));
}

SDE_INLINE IntVec bits_of(Vec v) {
    return reinterpret_cast<IntVec>(v);
}
SDE_INLINE Vec from_bits(IntVec v) {
    return reinterpret_cast<Vec>(v);
}

// Where b is a NaN, the result is one. Written as comparisons, these become two instructions each.
SDE_INLINE Vec min_of(Vec a, Vec b) {
#if SDE_LANES == 16
    return reinterpret_cast<Vec>(
        _mm512_maskz_min_ps(0xffff, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif SDE_LANES == 8
    return reinterpret_cast<Vec>(
        _mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#elif defined(__aarch64__)
    return reinterpret_cast<Vec>(
        vminq_f32(reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
#else
    return a < b ? a : b;
#endif
}
SDE_INLINE Vec max_of(Vec a, Vec b) {
#if SDE_LANES == 16
    return reinterpret_cast<Vec>(
        _mm512_maskz_max_ps(0xffff, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif SDE_LANES == 8
    return reinterpret_cast<Vec>(
        _mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#elif defined(__aarch64__)
    return reinterpret_cast<Vec>(
        vmaxq_f32(reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
#else
    return a > b ? a : b;
#endif
}
SDE_INLINE Vec abs_of(Vec a) {
    return from_bits(bits_of(a) & 0x7fffffff);
}

SDE_INLINE double sum_lanes(Vec v) {
    double sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += static_cast<double>(v[i]);
    return sum;
}
// 0, 1, 2, ... as template arguments, to write lane numbers in terms of.
template <int... I>
struct Lanes {};
template <int N, int... I>
struct MakeLanes : MakeLanes<N - 1, N - 1, I...> {};
template <int... I>
struct MakeLanes<0, I...> {
    using type = Lanes<I...>;
};

// The lanes in the order (i + Shift) % kLanes.
template <int Shift, int... I>
SDE_INLINE Vec rotate(Vec v, Lanes<I...>) {
    return __builtin_shufflevector(v, v, ((I + Shift) % kLanes)...);
}

// Reductions in log2(kLanes) steps.
template <int Shift = kLanes / 2>
SDE_INLINE float max_lane(Vec v) {
    v = max_of(v, rotate<Shift>(v, MakeLanes<kLanes>::type{}));
    if constexpr (Shift > 1) return max_lane<Shift / 2>(v);
    return v[0];
}
template <int Shift = kLanes / 2>
SDE_INLINE float add_lanes(Vec v) {
    v += rotate<Shift>(v, MakeLanes<kLanes>::type{});
    if constexpr (Shift > 1) return add_lanes<Shift / 2>(v);
    return v[0];
}

// Two vectors that take turns, inside each 128-bit block, with runs of Run floats: first the
// blocks' lower halves, then the upper. These are the shuffles that every processor does in one
// step.
template <int Run, int... I>
SDE_INLINE void interleave_in_blocks(Vec a, Vec b, Vec& low, Vec& high, Lanes<I...>) {
    constexpr auto from = [](int i) {
        return i / 4 * 4 + i % 4 / (2 * Run) * Run + i % Run + i / Run % 2 * kLanes;
    };
    low = __builtin_shufflevector(a, b, from(I)...);
    high = __builtin_shufflevector(a, b, (from(I) + 2)...);
}

// The even and the odd 128-bit blocks of two vectors.
template <int... I>
SDE_INLINE void separate_blocks(Vec a, Vec b, Vec& even, Vec& odd, Lanes<I...>) {
    even = __builtin_shufflevector(a, b, (I / 4 * 8 + I % 4)...);
    odd = __builtin_shufflevector(a, b, (I / 4 * 8 + I % 4 + 4)...);
}

// Transposes kLanes x kLanes floats: first blocks of 4 x 4, inside the vectors, then the blocks.
SDE_INLINE void transpose(Vec (&m)[kLanes]) {
    constexpr typename MakeLanes<kLanes>::type lanes{};
    for (int i = 0; i < kLanes; i += 4) {
        Vec t[4];
        interleave_in_blocks<1>(m[i], m[i + 1], t[0], t[1], lanes);
        interleave_in_blocks<1>(m[i + 2], m[i + 3], t[2], t[3], lanes);
        interleave_in_blocks<2>(t[0], t[2], m[i], m[i + 1], lanes);
        interleave_in_blocks<2>(t[1], t[3], m[i + 2], m[i + 3], lanes);
    }
    // Now block L of m[4 j + c] is column 4 L + c of the rows 4 j ... 4 j + 3.
    if constexpr (kLanes == 8) {
        for (int c = 0; c < 4; ++c) separate_blocks(m[c], m[4 + c], m[c], m[4 + c], lanes);
    } else if constexpr (kLanes == 16) {
        for (int c = 0; c < 4; ++c) {
            Vec even[2], odd[2];
            separate_blocks(m[c], m[4 + c], even[0], odd[0], lanes);
            separate_blocks(m[8 + c], m[12 + c], even[1], odd[1], lanes);
            separate_blocks(even[0], even[1], m[c], m[8 + c], lanes);
            separate_blocks(odd[0], odd[1], m[4 + c], m[12 + c], lanes);
        }
    }
}

// Hands out parts of one block of scratch memory. A kernel lays its parts out twice by the same
// function: first without memory, to learn the size, then with it.
class Layout {
  public:
    explicit Layout(void* base) : base_(static_cast<char*>(base)) {}

    template <class T>
    T* take(int64_t count) {
        T* part = base_ ? reinterpret_cast<T*>(base_ + size_) : nullptr;
        size_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
        return part;
    }
    size_t size() const { return size_; }

  private:
    char* base_;
    size_t size_ = 0;
};

// A Parts has a member `void lay_out(Layout&)`.
template <class Parts>
void allocate(Parts& parts) {
    Layout measure(nullptr);
    parts.lay_out(measure);
    Layout layout(thread_scratch(measure.size()));
    parts.lay_out(layout);
}
