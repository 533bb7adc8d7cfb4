// Exponential, activations. The polynomials are minimax fits found with Remez' algorithm in 40
// digits (weights chosen for the relative error); their error is given with each. A NaN stays a NaN
// in all of them.

constexpr float kLog2E = 1.44269504088896341f;
// ln 2 in two parts; the first has zeros enough at its end for n * kLn2High to be exact (Cody and
// Waite).
constexpr float kLn2High = 0.693359375f;
constexpr float kLn2Low = -2.12194440e-4f;
// Adding and subtracting 1.5 * 2^23 rounds to the nearest whole number, which then stands in the
// low mantissa bits.
constexpr float kRounder = 12582912.0f;

// mantissa * 2^n, where `shifted` is n + kRounder; n in [-126, 127].
SDE_INLINE Vec scale_by_power(Vec mantissa, Vec shifted) {
    return from_bits(bits_of(mantissa) + (bits_of(shifted) << 23));
}

// e^x, relative error below 1.2e-7 (1 ulp); 0 below -87, e^88 above 88.
SDE_INLINE Vec exp_of(Vec x) {
    const Vec inside = min_of(splat(88.0f), max_of(splat(-87.0f), x));
    const Vec shifted = inside * kLog2E + kRounder;
    const Vec n = shifted - kRounder;
    const Vec r = (inside - n * kLn2High) - n * kLn2Low;
    // e^r on |r| <= ln(2)/2, error 1.9e-9
    Vec p = r * 1.38368461369e-3f + 8.37481577816e-3f;
    p = p * r + 4.16682255661e-2f;
    p = p * r + 1.66664201703e-1f;
    p = p * r + 4.99999920798e-1f;
    p = p * r + 1.00000003632f;
    p = p * r + 1.0f;
    return from_bits(bits_of(scale_by_power(p, shifted)) & ~(x < -87.0f));
}

// 2^x for x <= 0, exactly 0 below -126; relative error below 1.5e-7.
SDE_INLINE Vec exp2_of_negative(Vec x) {
    const Vec inside = max_of(splat(-126.0f), x);
    const Vec shifted = inside + kRounder;
    const Vec r = inside - (shifted - kRounder);
    // 2^r on |r| <= 1/2, error 7.5e-8
    Vec p = r * 1.3276472632e-3f + 9.67554134312e-3f;
    p = p * r + 5.55071327186e-2f;
    p = p * r + 2.40221197237e-1f;
    p = p * r + 6.93146967065e-1f;
    p = p * r + 1.00000007165f;
    return from_bits(bits_of(scale_by_power(p, shifted)) & ~(x < -126.0f));
}

// x * sigmoid(z)
SDE_INLINE Vec gated(Vec x, Vec z) {
    return from_bits(bits_of(x / (exp_of(-z) + 1.0f)) & ~(z < -88.0f));
}

SDE_INLINE Vec silu_of(Vec x) {
    return gated(x, x);
}

// x * Phi(x) with the normal distribution's Phi (erf form, Hendrycks and Gimpel, arXiv 1606.08415),
// as max(x, 0) - |x| Phi(-|x|). Phi(-t) = exp(-t^2/2) R(t); R is a polynomial of u = 1 / (1 + 0.3
// t), the shape of Abramowitz and Stegun 7.1.26, relative error 4e-8 up to t = 9. Beyond, the
// exponential makes the term vanish.
SDE_INLINE Vec gelu_of(Vec x) {
    const Vec t = abs_of(x);
    const Vec u = 1.0f / (t * 0.3f + 1.0f);
    Vec p = u * 3.621426279e-2f - 1.583591409e-1f;
    p = p * u + 2.056258676e-1f;
    p = p * u - 4.918564647e-2f;
    p = p * u + 1.228458757e-1f;
    p = p * u + 1.034983422e-1f;
    p = p * u + 1.195296117e-1f;
    p = p * u + 1.198464788e-1f;
    p = p * u - 1.563132222e-5f;
    return max_of(x, Vec{}) - t * (exp_of(t * t * -0.5f) * p);
}

// The tanh form: 0.5 x (1 + tanh(w)) = x sigmoid(2 w), w = sqrt(2/pi) (x + 0.044715 x^3).
SDE_INLINE Vec gelu_tanh_of(Vec x) {
    constexpr float kTwiceSqrt2OverPi = 1.59576912160573f;
    return gated(x, (x * x * 0.044715f + 1.0f) * x * kTwiceSqrt2OverPi);
}

// CLIP's form of GELU.
SDE_INLINE Vec quick_gelu_of(Vec x) {
    return gated(x, x * 1.702f);
}

SDE_INLINE Vec activate(Vec x, Activation activation) {
    switch (activation) {
        case Activation::None:
            return x;
        case Activation::Silu:
            return silu_of(x);
        case Activation::Gelu:
            return gelu_of(x);
        case Activation::GeluTanh:
            return gelu_tanh_of(x);
        case Activation::QuickGelu:
            return quick_gelu_of(x);
        case Activation::Relu:
            return max_of(Vec{}, x);  // in this order a NaN stays
        case Activation::LeakyRelu:
            return max_of(x * kLeakySlope, x);
    }
    return x;
}
