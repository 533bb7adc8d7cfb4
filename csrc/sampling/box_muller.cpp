// torch fills float32 normals 8 at a time with polynomial approximations of ln, sin and cos (the Cephes single precision
// coefficients, Moshier 1989). To give the same bits on every machine this file evaluates the same polynomials in the
// same order, with a fused multiply-add exactly where torch's compiled code has one, and nowhere else: it must be
// compiled without contraction and without fast-math.
#include "sampling/box_muller.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

namespace sde::sampling {
namespace {

float polynomial(float x, std::span<const float> coefficients) {
    float y = coefficients[0];
    for (const float coefficient : coefficients.subspan(1)) y = std::fma(y, x, coefficient);
    return y;
}

// ln x for a normal x > 0: x = m 2^e with m in [sqrt(1/2), sqrt(2)), ln x = ln m + e ln 2, ln 2 split in two.
float cephes_log(float x) {
    static constexpr std::array<float, 9> kCoefficients = {
        7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,  -1.2420140846e-1f, 1.4249322787e-1f,
        -1.6668057665e-1f, 2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    float exponent = static_cast<float>(static_cast<int32_t>(bits >> 23) - 126);
    float m = std::bit_cast<float>((bits & 0x007fffffu) | 0x3f000000u);  // in [1/2, 1)
    if (m < 0.707106781186547524f) {
        exponent -= 1.0f;
        m = (m - 1.0f) + m;
    } else {
        m -= 1.0f;
    }
    const float square = m * m;
    float y = polynomial(m, kCoefficients) * m;
    y = std::fma(y, square, exponent * -2.12194440e-4f);
    y = std::fma(-square, 0.5f, y);
    return std::fma(exponent, 0.693359375f, m + y);
}

struct SineCosine {
    float sine, cosine;
};

// sin x and cos x for x >= 0: x is reduced by a multiple of pi/4 that is split in three parts.
SineCosine cephes_sine_cosine(float x) {
    static constexpr std::array<float, 3> kCosine = {2.443315711809948e-5f, -1.388731625493765e-3f,
                                                     4.166664568298827e-2f};
    static constexpr std::array<float, 3> kSine = {-1.9515295891e-4f, 8.3321608736e-3f,
                                                   -1.6666654611e-1f};
    const int32_t octant = (static_cast<int32_t>(x * 1.27323954473516f) + 1) & ~1;
    const float multiple = static_cast<float>(octant);
    x = std::fma(multiple, -0.78515625f, x);
    x = std::fma(multiple, -2.4187564849853515625e-4f, x);
    x = std::fma(multiple, -3.77489497744594108e-8f, x);

    const float square = x * x;
    float cosine = polynomial(square, kCosine) * square;
    cosine = std::fma(cosine, square, -(square * 0.5f)) + 1.0f;
    const float sine = std::fma(polynomial(square, kSine) * square, x, x);

    const bool swapped = (octant & 2) != 0;
    const bool sine_negative = (octant & 4) != 0;
    const bool cosine_negative = ((octant - 2) & 4) == 0;
    const float s = swapped ? cosine : sine;
    const float c = swapped ? sine : cosine;
    return {sine_negative ? -s : s, cosine_negative ? -c : c};
}

}  // namespace

void box_muller_block(std::span<float, kBoxMullerBlock> block) {
    constexpr size_t kHalf = kBoxMullerBlock / 2;
    for (size_t i = 0; i < kHalf; ++i) {
        const float radius = std::sqrt(-2.0f * cephes_log(1.0f - block[i]));
        const auto [sine, cosine] = cephes_sine_cosine(6.283185307179586f * block[i + kHalf]);
        block[i] = radius * cosine;
        block[i + kHalf] = radius * sine;
    }
}

}  // namespace sde::sampling
