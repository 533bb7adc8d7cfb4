#include <algorithm>
#include <cmath>

#include "sampling/named_schedules.h"
#include "sampling/schedule_tables.h"

namespace sde::sampling {
namespace {

// The ends of a curve.
struct Ends {
    double high, low;
    Ends(const NoiseLevels& levels, const ScheduleOptions& options)
        : high(options.sigma_max.value_or(levels.sigma_max())),
          low(options.sigma_min.value_or(levels.sigma_min())) {}
};

// Karras et al. 2022, equation 5.
Schedule karras(int n, const NoiseLevels& levels, const ScheduleOptions& options) {
    std::vector<double> sigmas;
    const double rho = options.rho.value_or(7.0f);
    const Ends ends(levels, options);
    const double high = std::pow(ends.high, 1.0 / rho), low = std::pow(ends.low, 1.0 / rho);
    for (int i = 0; i < n; ++i) sigmas.push_back(std::pow(high + along(i, n) * (low - high), rho));
    return with_timesteps(sigmas, levels);
}

// Evenly spaced in log sigma.
Schedule exponential(int n, const NoiseLevels& levels, const ScheduleOptions& options) {
    std::vector<double> sigmas;
    const Ends ends(levels, options);
    const double high = std::log(ends.high), low = std::log(ends.low);
    for (int i = 0; i < n; ++i) sigmas.push_back(std::exp(high + along(i, n) * (low - high)));
    return with_timesteps(sigmas, levels);
}

// A power of the way in log sigma (k-diffusion).
Schedule polyexponential(int n, const NoiseLevels& levels, const ScheduleOptions& options) {
    std::vector<double> sigmas;
    const Ends ends(levels, options);
    const double high = std::log(ends.high), low = std::log(ends.low);
    for (int i = 0; i < n; ++i)
        sigmas.push_back(
            std::exp(low + std::pow(1.0 - along(i, n), options.rho.value_or(1.0f)) * (high - low)));
    return with_timesteps(sigmas, levels);
}

// Evenly spaced arc tangents of sigma (Align Your Steps, arXiv 2404.14507: optimal for the KL
// divergence on Gaussian data).
Schedule kl_optimal(int n, const NoiseLevels& levels, const ScheduleOptions& options) {
    std::vector<double> sigmas;
    const Ends ends(levels, options);
    const double high = std::atan(ends.high), low = std::atan(ends.low);
    for (int i = 0; i < n; ++i) sigmas.push_back(std::tan(high + along(i, n) * (low - high)));
    return with_timesteps(sigmas, levels);
}

// The quantiles of Beta(0.6, 0.6) between the ends, both included (diffusers' use_beta_sigmas).
Schedule beta_sigmas(int n, const NoiseLevels& levels, const ScheduleOptions& options) {
    std::vector<double> sigmas;
    const Ends ends(levels, options);
    for (int i = 0; i < n; ++i)
        sigmas.push_back(ends.low + beta_quantile(1.0 - along(i, n)) * (ends.high - ends.low));
    return with_timesteps(sigmas, levels);
}

// The continuous variance preserving process (Song et al. 2021, arXiv 2011.13456) from time 1 to
// 0.001, with k-diffusion's figures. It has no ends: its first sigma is 152.2 for every model.
Schedule vp(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    check_over_betas("vp", levels, "follows a process over betas");
    constexpr double kSlope = 19.9, kStart = 0.1, kLast = 1e-3;
    std::vector<double> sigmas;
    for (int i = 0; i < n; ++i) {
        const double t = 1.0 + along(i, n) * (kLast - 1.0);
        sigmas.push_back(std::sqrt(std::expm1(kSlope * t * t / 2 + kStart * t)));
    }
    return with_timesteps(sigmas, levels);
}

// The quantiles of a Laplace distribution of log sigma with mean 0 and scale 0.5 (Hang et al. 2024,
// arXiv 2407.03297; ComfyUI's figures). Beyond the ends sigmas are clamped, and equal ones taken
// once.
Schedule laplace(int n, const NoiseLevels& levels, const ScheduleOptions& options) {
    check_over_betas("laplace", levels, "is centred on the noise of training betas");
    constexpr double kScale = 0.5, kNotZero = 1e-5;
    const Ends ends(levels, options);
    std::vector<double> sigmas;
    for (int i = 0; i < n; ++i) {
        const double off = 0.5 - along(i, n);  // falls from 0.5 to -0.5
        const double side = off > 0.0 ? 1.0 : off < 0.0 ? -1.0 : 0.0;
        const double tail = std::log(1.0 - 2.0 * std::abs(off) + kNotZero);
        sigmas.push_back(std::clamp(std::exp(-side * kScale * tail), ends.low, ends.high));
    }
    sigmas.erase(std::unique(sigmas.begin(), sigmas.end()), sigmas.end());
    return with_timesteps(sigmas, levels);
}

// Small even steps for the first half, then a parabola down to 0 (Movie Gen, arXiv 2410.13720;
// the first 2.5 % of the way are taken evenly, as in Genmo's Mochi and ComfyUI).
Schedule linear_quadratic(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    constexpr double kEvenPart = 0.025;
    const int even = n / 2, rest = n - even;
    const double slope = even > 0 ? kEvenPart / even : 0.0;
    const double left = 1.0 - kEvenPart - slope * rest;  // what the parabola adds to the line
    std::vector<double> sigmas;
    for (int i = 0; i < n; ++i) {
        const double beyond = i > even ? static_cast<double>(i - even) / rest : 0.0;
        sigmas.push_back((1.0 - slope * i - left * beyond * beyond) * levels.sigma_max());
    }
    return with_timesteps(sigmas, levels);
}

// One stage of bong_tangent: n values from start to end along an arc tangent centred on `pivot`.
std::vector<double> tangent_stage(int n, double slope, int pivot, double start, double end) {
    const auto curve = [&](int i) { return std::atan(slope * (pivot - i)); };
    std::vector<double> values{start};
    for (int i = 1; i < n; ++i)
        values.push_back(end +
                         (start - end) * (curve(i) - curve(n - 1)) / (curve(0) - curve(n - 1)));
    return values;
}

// Two arc tangents that meet half way between the ends (RES4LYF's schedule of that name, with its
// defaults: pivots at 60 % of the steps, slopes 0.2 at 40 steps).
Schedule bong_tangent(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    const double high = levels.sigma_max(), low = levels.sigma_min(), middle = (high + low) / 2;
    if (n == 1) return with_timesteps({high}, levels);
    const int points = n + 2, first = points * 3 / 5;
    const double slope = 0.2 * 40 / points;
    std::vector<double> sigmas = tangent_stage(first, slope, first, high, middle);
    sigmas.pop_back();  // the second stage starts there
    for (double sigma : tangent_stage(points - first, slope, 0, middle, low))
        sigmas.push_back(sigma);
    sigmas.pop_back();  // 0 in its place
    return with_timesteps(sigmas, levels);
}

Schedule ays(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    return with_timesteps(align_your_steps(n, levels, false), levels);
}

Schedule ays_sdxl(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    return with_timesteps(align_your_steps(n, levels, true), levels);
}

Schedule gits_table(int n, const NoiseLevels& levels, const ScheduleOptions& options) {
    return with_timesteps(gits(n, levels, options.coefficient.value_or(1.2f)), levels);
}

}  // namespace

std::vector<NamedSchedule> schedules_over_sigmas() {
    return {{"karras", karras},
            {"exponential", exponential},
            {"polyexponential", polyexponential},
            {"kl_optimal", kl_optimal},
            {"beta_sigmas", beta_sigmas},
            {"vp", vp},
            {"laplace", laplace},
            {"linear_quadratic", linear_quadratic},
            {"bong_tangent", bong_tangent},
            {"ays", ays},
            {"ays_sdxl", ays_sdxl},
            {"gits", gits_table}};
}

}  // namespace sde::sampling
