#include "sampling/random.h"

#include <cmath>
#include <cstring>
#include <numbers>

#include "base/error.h"

namespace sde::sampling {
namespace {

// From 16 values on, torch draws Box-Muller pairs in blocks of 16 with single precision logarithm,
// sine and cosine after Cephes (S. Moshier, logf.c and sinf.c), eight lanes at a time. To get the
// same bits, the operations below are rounded where torch's build rounds them: every product that
// is added to something is fused with the addition.
constexpr int kBlock = 16, kLanes = kBlock / 2;

// Fused operations are exact wherever they run, but without the processor's own they are calls of
// the C library: the functions below exist a second time for processors that have them.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define SDE_WITH_FMA __attribute__((target_clones("fma", "default")))
#else
#define SDE_WITH_FMA
#endif
// The standard library's are functions of their own, which a clone calls instead of taking them in.
#if defined(__GNUC__)
#define SDE_INLINE [[gnu::always_inline]] inline
#define SDE_FUSED __builtin_fmaf
#else
#define SDE_INLINE inline
#define SDE_FUSED std::fma
#endif

SDE_INLINE float cephes_log(float x) {
    const auto bits = __builtin_bit_cast(uint32_t, x > 0x1p-126f ? x : 0x1p-126f);
    float exponent = static_cast<float>(static_cast<int32_t>(bits >> 23) - 127) + 1.0f;
    float m =
        __builtin_bit_cast(float, (bits & 0x007fffffu) | 0x3f000000u);  // mantissa in [0.5, 1)
    constexpr float kSqrtHalf = 0.707106781186547524f;
    const float carry = m < kSqrtHalf ? m : 0.0f;
    if (m < kSqrtHalf) exponent -= 1.0f;
    m = (m - 1.0f) + carry;
    constexpr float kP[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                            -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                            2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
    const float square = m * m;
    float y = kP[0];
    for (int i = 1; i < 9; ++i) y = SDE_FUSED(y, m, kP[i]);
    // log(2) in two parts, 0.693359375 and the small rest.
    y = SDE_FUSED(y * m, square, exponent * -2.12194440e-4f);
    y = SDE_FUSED(-square, 0.5f, y);
    return SDE_FUSED(exponent, 0.693359375f, m + y);
}

struct SinCos {
    float sine, cosine;
};

SDE_INLINE SinCos cephes_sincos(float angle) {  // angle >= 0
    const auto octant = (static_cast<int32_t>(angle * 1.27323954473516f) + 1) & ~1;
    const auto j = static_cast<float>(octant);
    // pi / 4 in three parts.
    float x = SDE_FUSED(j, -0.78515625f, angle);
    x = SDE_FUSED(j, -2.4187564849853515625e-4f, x);
    x = SDE_FUSED(j, -3.77489497744594108e-8f, x);
    const float square = x * x;
    float c = SDE_FUSED(2.443315711809948e-5f, square, -1.388731625493765e-3f);
    c = SDE_FUSED(c, square, 4.166664568298827e-2f);
    c = SDE_FUSED(c * square, square, -(square * 0.5f)) + 1.0f;
    float s = SDE_FUSED(-1.9515295891e-4f, square, 8.3321608736e-3f);
    s = SDE_FUSED(s, square, -1.6666654611e-1f);
    s = SDE_FUSED(s * square, x, x);
    const bool swapped = octant & 2;
    const float sine = swapped ? c : s, cosine = swapped ? s : c;
    return {octant & 4 ? -sine : sine, (octant - 2) & 4 ? cosine : -cosine};
}

// Blocks of 16 uniform values become 16 normal ones each: the first eight of a block give radii,
// the last eight angles.
SDE_WITH_FMA void box_muller(float* values, size_t blocks) {
    for (float* block = values; block != values + blocks * kBlock; block += kBlock) {
        float squares[kLanes], sines[kLanes], cosines[kLanes];
        for (int i = 0; i < kLanes; ++i) squares[i] = -2.0f * cephes_log(1.0f - block[i]);
        for (int i = 0; i < kLanes; ++i) {
            const auto [sine, cosine] =
                cephes_sincos(static_cast<float>(2.0 * std::numbers::pi) * block[i + kLanes]);
            sines[i] = sine;
            cosines[i] = cosine;
        }
        for (int i = 0; i < kLanes; ++i) {
            const float radius = std::sqrt(squares[i]);
            block[i] = radius * cosines[i];
            block[i + kLanes] = radius * sines[i];
        }
    }
}

}  // namespace

// The Mersenne Twister (Matsumoto and Nishimura 1998) with its usual initialisation from 32 bits.
TorchCpuNormal::TorchCpuNormal(uint64_t seed) {
    words_[0] = static_cast<uint32_t>(seed);
    for (int i = 1; i < kWords; ++i)
        words_[i] =
            1812433253u * (words_[i - 1] ^ (words_[i - 1] >> 30)) + static_cast<uint32_t>(i);
}

void TorchCpuNormal::twist() {
    constexpr int kShift = 397;
    const auto mixed = [this](int i, int after, int far) {
        const uint32_t y = (words_[i] & 0x80000000u) | (words_[after] & 0x7fffffffu);
        return words_[far] ^ (y >> 1) ^ ((0u - (y & 1u)) & 0x9908b0dfu);
    };
    for (int i = 0; i < kWords - kShift; ++i) words_[i] = mixed(i, i + 1, i + kShift);
    for (int i = kWords - kShift; i < kWords - 1; ++i)
        words_[i] = mixed(i, i + 1, i + kShift - kWords);
    words_[kWords - 1] = mixed(kWords - 1, 0, kShift - 1);
    position_ = 0;
}

uint32_t TorchCpuNormal::next_bits() {
    if (position_ == kWords) twist();
    uint32_t y = words_[position_++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

float TorchCpuNormal::next_uniform() {
    return static_cast<float>(next_bits() & 0xffffffu) * 0x1p-24f;
}

double TorchCpuNormal::next_uniform64() {
    const uint64_t high = next_bits();
    const uint64_t bits = (high << 32) | next_bits();
    return static_cast<double>(bits & ((uint64_t{1} << 53) - 1)) * 0x1p-53;
}

double TorchCpuNormal::next_normal() {
    if (second_) {
        const double value = *second_;
        second_.reset();
        return value;
    }
    const double angle = 2.0 * std::numbers::pi * next_uniform64();
    const double radius = std::sqrt(-2.0 * std::log1p(-next_uniform64()));
    second_ = radius * std::sin(angle);
    return radius * std::cos(angle);
}

void TorchCpuNormal::fill(std::span<float> out) {
    if (out.size() < kBlock) {
        for (float& value : out) value = static_cast<float>(next_normal());
        return;
    }
    for (float& value : out) value = next_uniform();
    box_muller(out.data(), out.size() / kBlock);
    if (out.size() % kBlock == 0) return;
    // The values of the last, incomplete block are drawn again, together with their left
    // neighbours.
    float* last = out.data() + out.size() - kBlock;
    for (int i = 0; i < kBlock; ++i) last[i] = next_uniform();
    box_muller(last, 1);
}

std::string TorchCpuNormal::save() const {
    std::string state(sizeof(words_) + sizeof(position_) + 1 + sizeof(double), '\0');
    char* at = state.data();
    const auto put = [&at](const void* data, size_t size) {
        std::memcpy(at, data, size);
        at += size;
    };
    const char has_second = second_.has_value();
    const double second = second_.value_or(0.0);
    put(words_.data(), sizeof(words_));
    put(&position_, sizeof(position_));
    put(&has_second, 1);
    put(&second, sizeof(second));
    return state;
}

void TorchCpuNormal::restore(const std::string& state) {
    if (state.size() != sizeof(words_) + sizeof(position_) + 1 + sizeof(double))
        throw Error(ErrorKind::Format, "a saved random state has the wrong length");
    const char* at = state.data();
    const auto take = [&at](void* data, size_t size) {
        std::memcpy(data, at, size);
        at += size;
    };
    char has_second;
    double second;
    int position;
    take(words_.data(), sizeof(words_));
    take(&position, sizeof(position));
    take(&has_second, 1);
    take(&second, sizeof(second));
    if (position < 0 || position > kWords)
        throw Error(ErrorKind::Format, "a saved random state is damaged");
    position_ = position;
    second_ = has_second ? std::optional(second) : std::nullopt;
}

NormalSource::NormalSource(const std::vector<uint64_t>& seeds, const std::string& kind)
    : seeds_(seeds), kind_(kind) {
    if (seeds.empty()) throw Error(ErrorKind::Parameter, "noise needs at least one seed");
    if (kind != "torch-cpu" && kind != "torch-cuda")
        throw Error(ErrorKind::Parameter,
                    "a kind of noise is torch-cpu or torch-cuda, not '" + kind + "'");
    for (uint64_t seed : seeds) {
        if (kind == "torch-cuda")
            generators_.emplace_back(TorchCudaNormal(seed));
        else
            generators_.emplace_back(TorchCpuNormal(seed));
    }
}

void NormalSource::fill(std::span<float> out) {
    const size_t size = out.size() / generators_.size();
    for (size_t i = 0; i < generators_.size(); ++i)
        std::visit([&](auto& generator) { generator.fill(out.subspan(i * size, size)); },
                   generators_[i]);
}

std::string NormalSource::save() const {
    std::string state;
    for (const auto& one : generators_)
        state += std::visit([](const auto& generator) { return generator.save(); }, one);
    return state;
}

void NormalSource::restore(const std::string& state) {
    const size_t size = generators_.empty() ? 0 : save().size() / generators_.size();
    if (state.size() != size * generators_.size())
        throw Error(ErrorKind::Format, "a saved random state is for another number of pictures");
    for (size_t i = 0; i < generators_.size(); ++i)
        std::visit([&](auto& generator) { generator.restore(state.substr(i * size, size)); },
                   generators_[i]);
}

}  // namespace sde::sampling
