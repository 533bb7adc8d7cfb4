#include "sampling/schedules.h"

#include <cmath>
#include <map>

#include "base/error.h"
#include "sampling/schedule_tables.h"

namespace sde::sampling {
namespace {

// Sigmas from timesteps, interpolated in log sigma as k-diffusion does.
Schedule from_timesteps(const std::vector<double>& timesteps, const NoiseLevels& levels) {
    Schedule schedule;
    for (double t : timesteps) {
        schedule.timesteps.push_back(static_cast<float>(t));
        schedule.sigmas.push_back(levels.sigma(static_cast<float>(t)));
    }
    return schedule;
}

Schedule from_sigmas(const std::vector<double>& sigmas, const NoiseLevels& levels) {
    Schedule schedule;
    for (double sigma : sigmas) {
        schedule.sigmas.push_back(static_cast<float>(sigma));
        schedule.timesteps.push_back(levels.timestep(schedule.sigmas.back()));
    }
    return schedule;
}

// i / (n - 1), and 0 for the only step of one.
double along(int i, int n) {
    return n > 1 ? static_cast<double>(i) / (n - 1) : 0.0;
}

// Evenly spaced timesteps from the last to 0, both included (k-diffusion's DiscreteSchedule).
Schedule discrete(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    std::vector<double> t;
    for (int i = 0; i < n; ++i) t.push_back((levels.count() - 1) * (1.0 - along(i, n)));
    return from_timesteps(t, levels);
}

// Evenly spaced timesteps from the last towards 0, which is left out (generative-models).
Schedule sgm_uniform(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    std::vector<double> t;
    for (int i = 0; i < n; ++i)
        t.push_back((levels.count() - 1) * (1.0 - static_cast<double>(i) / n));
    return from_timesteps(t, levels);
}

// Every (N / n)-th entry of the table, from its end (ComfyUI).
Schedule simple(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    std::vector<double> sigmas;
    const double stride = static_cast<double>(levels.count()) / n;
    for (int i = 0; i < n; ++i)
        sigmas.push_back(levels[levels.count() - 1 - static_cast<int>(i * stride)]);
    return from_sigmas(sigmas, levels);
}

// Karras et al. 2022, equation 5.
Schedule karras(int n, const NoiseLevels& levels, const ScheduleOptions& options) {
    std::vector<double> sigmas;
    const double rho = options.rho.value_or(7.0f);
    const double high = std::pow(levels.sigma_max(), 1.0 / rho);
    const double low = std::pow(levels.sigma_min(), 1.0 / rho);
    for (int i = 0; i < n; ++i) sigmas.push_back(std::pow(high + along(i, n) * (low - high), rho));
    return from_sigmas(sigmas, levels);
}

// Evenly spaced in log sigma.
Schedule exponential(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    std::vector<double> sigmas;
    const double high = std::log(levels.sigma_max()), low = std::log(levels.sigma_min());
    for (int i = 0; i < n; ++i) sigmas.push_back(std::exp(high + along(i, n) * (low - high)));
    return from_sigmas(sigmas, levels);
}

// A power of the way in log sigma (k-diffusion).
Schedule polyexponential(int n, const NoiseLevels& levels, const ScheduleOptions& options) {
    std::vector<double> sigmas;
    const double high = std::log(levels.sigma_max()), low = std::log(levels.sigma_min());
    for (int i = 0; i < n; ++i)
        sigmas.push_back(
            std::exp(low + std::pow(1.0 - along(i, n), options.rho.value_or(1.0f)) * (high - low)));
    return from_sigmas(sigmas, levels);
}

// Evenly spaced arc tangents of sigma (Align Your Steps, arXiv 2404.14507: optimal for the KL
// divergence on Gaussian data).
Schedule kl_optimal(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    std::vector<double> sigmas;
    const double high = std::atan(levels.sigma_max()), low = std::atan(levels.sigma_min());
    for (int i = 0; i < n; ++i) sigmas.push_back(std::tan(high + along(i, n) * (low - high)));
    return from_sigmas(sigmas, levels);
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
    return from_sigmas(sigmas, levels);
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
    if (n == 1) return from_sigmas({high}, levels);
    const int points = n + 2, first = points * 3 / 5;
    const double slope = 0.2 * 40 / points;
    std::vector<double> sigmas = tangent_stage(first, slope, first, high, middle);
    sigmas.pop_back();  // the second stage starts there
    for (double sigma : tangent_stage(points - first, slope, 0, middle, low))
        sigmas.push_back(sigma);
    sigmas.pop_back();  // 0 in its place
    return from_sigmas(sigmas, levels);
}

// Entries of the table; a timestep that comes twice is taken once.
Schedule from_entries(const std::vector<int>& timesteps, const NoiseLevels& levels) {
    Schedule schedule;
    for (int t : timesteps) {
        if (!schedule.timesteps.empty() && schedule.timesteps.back() == static_cast<float>(t))
            continue;
        schedule.timesteps.push_back(static_cast<float>(t));
        schedule.sigmas.push_back(levels[t]);
    }
    return schedule;
}

// Every (N / n)-th entry from the second one on (Song et al. 2020, DDIM). Where n does not divide N
// there may be one more than n of them, as in ComfyUI.
Schedule ddim_uniform(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    const int stride = levels.count() / n;
    std::vector<int> t;
    for (int at = 1; at < levels.count(); at += stride) t.insert(t.begin(), at);
    if (t.empty()) t.push_back(0);
    return from_entries(t, levels);
}

// Where the distribution Beta(0.6, 0.6) has the share `part` below it.
double beta_quantile(double part) {
    constexpr double kA = 0.6;
    if (part > 0.5) return 1.0 - beta_quantile(1.0 - part);
    const double scale = std::exp(std::lgamma(2 * kA) - 2 * std::lgamma(kA));
    // The power series of the incomplete beta function, which converges fast below 1 / 2.
    const auto below = [&](double x) {
        double sum = 0.0, factor = 1.0;
        for (int k = 0; k < 60; ++k) {
            sum += factor / (kA + k);
            factor *= (k + 1 - kA) / (k + 1) * x;
        }
        return scale * std::pow(x, kA) * sum;
    };
    double low = 0.0, high = 0.5;
    for (int i = 0; i < 60; ++i) {
        const double middle = (low + high) / 2;
        (below(middle) < part ? low : high) = middle;
    }
    return (low + high) / 2;
}

// Timesteps dense at both ends (Lee et al. 2024, arXiv 2407.12173), alpha = beta = 0.6.
Schedule beta(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    std::vector<int> t;
    for (int i = 0; i < n; ++i) {
        const double at = beta_quantile(1.0 - static_cast<double>(i) / n) * (levels.count() - 1);
        t.push_back(static_cast<int>(std::round(at + 1e-9)));  // the middle is a tie, and goes up
    }
    return from_entries(t, levels);
}

// Timesteps along the polynomial 3 u^2 - 2 u^3 (stable-diffusion.cpp).
Schedule smoothstep(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    std::vector<int> t;
    for (int i = 0; i < n; ++i) {
        const double u = 1.0 - static_cast<double>(i) / n;
        t.push_back(static_cast<int>(std::round(u * u * (3.0 - 2.0 * u) * (levels.count() - 1))));
    }
    return from_entries(t, levels);
}

// Of the `trained` timesteps that a distilled model knows: the first n from the end, or n spread
// evenly.
Schedule distilled(int n, const NoiseLevels& levels, int trained, bool first_ones) {
    if (n > trained || levels.count() < trained)
        throw Error(ErrorKind::Parameter, "this schedule has at most " + std::to_string(trained) +
                                              " steps, not " + std::to_string(n));
    const int spacing = levels.count() / trained;
    std::vector<int> t;
    for (int i = 0; i < n; ++i)
        t.push_back((trained - (first_ones ? i : i * trained / n)) * spacing - 1);
    return from_entries(t, levels);
}

// Latent consistency models (Luo et al. 2023, arXiv 2310.04378): n of the 50 timesteps.
Schedule lcm(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    return distilled(n, levels, 50, false);
}

// Adversarial diffusion distillation, SD-Turbo and SDXL-Turbo (Sauer et al. 2023, arXiv
// 2311.17042): the first n of ten timesteps.
Schedule turbo(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    return distilled(n, levels, 10, true);
}

Schedule ays(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    return from_sigmas(align_your_steps(n, levels, false), levels);
}

Schedule ays_sdxl(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    return from_sigmas(align_your_steps(n, levels, true), levels);
}

Schedule gits_table(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    return from_sigmas(gits(n, levels), levels);
}

// diffusers' timestep spacings (Lin et al. 2023, table 2), rounded and interpolated as its
// EulerDiscreteScheduler does.
Schedule spaced(std::vector<double> timesteps, const NoiseLevels& levels,
                bool variance_preserving) {
    Schedule schedule;
    for (double t : timesteps) {
        if (t < 0 || t > levels.count() - 1)
            throw Error(ErrorKind::Parameter,
                        "this many steps lead to timestep " + std::to_string(static_cast<int>(t)) +
                            ", outside of the model's 0 to " + std::to_string(levels.count() - 1));
        schedule.timesteps.push_back(static_cast<float>(t));
        schedule.sigmas.push_back(levels.sigma_linear(static_cast<float>(t)));
    }
    if (variance_preserving)
        schedule.initial_scale = std::sqrt(schedule.sigmas[0] * schedule.sigmas[0] + 1.0f);
    return schedule;
}

Schedule leading(int n, const NoiseLevels& levels, const ScheduleOptions& options) {
    const int ratio = levels.count() / n;
    std::vector<double> t;
    for (int i = n - 1; i >= 0; --i) t.push_back(i * ratio + options.steps_offset);
    return spaced(t, levels, true);
}

Schedule linspace(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    std::vector<double> t;
    for (int i = n - 1; i >= 0; --i)
        t.push_back(static_cast<float>((levels.count() - 1) * along(i, n)));
    return spaced(t, levels, false);
}

Schedule trailing(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    const double ratio = static_cast<double>(levels.count()) / n;
    std::vector<double> t;
    // std::nearbyint rounds halves to even, as numpy does.
    for (int i = 0; i < n; ++i) t.push_back(std::nearbyint(levels.count() - i * ratio) - 1);
    return spaced(t, levels, false);
}

const std::map<std::string, Schedule (*)(int, const NoiseLevels&, const ScheduleOptions&)>
    kSchedules = {
        {"discrete", discrete},
        {"karras", karras},
        {"exponential", exponential},
        {"polyexponential", polyexponential},
        {"sgm_uniform", sgm_uniform},
        {"simple", simple},
        {"ddim_uniform", ddim_uniform},
        {"beta", beta},
        {"linear_quadratic", linear_quadratic},
        {"kl_optimal", kl_optimal},
        {"smoothstep", smoothstep},
        {"bong_tangent", bong_tangent},
        {"lcm", lcm},
        {"turbo", turbo},
        {"ays", ays},
        {"ays_sdxl", ays_sdxl},
        {"gits", gits_table},
        {"leading", leading},
        {"linspace", linspace},
        {"trailing", trailing},
};

}  // namespace

Schedule make_schedule(const std::string& name, int steps, const NoiseLevels& levels,
                       const ScheduleOptions& options) {
    const auto it = kSchedules.find(name);
    if (it == kSchedules.end()) {
        std::string known;
        for (const std::string& other : schedule_names())
            known += (known.empty() ? "" : ", ") + other;
        throw Error(ErrorKind::Parameter,
                    "there is no schedule '" + name + "'; known are " + known);
    }
    if (steps < 1 || steps > levels.count())
        throw Error(ErrorKind::Parameter, "steps must be 1 to " + std::to_string(levels.count()) +
                                              ", not " + std::to_string(steps));
    if (options.rho && !(*options.rho >= 1.0f && *options.rho <= 100.0f))
        throw Error(ErrorKind::Parameter, "rho must be 1 to 100");
    Schedule schedule = it->second(steps, levels, options);
    if (schedule.initial_scale == 0.0f) schedule.initial_scale = schedule.sigmas[0];
    schedule.sigmas.push_back(0.0f);
    return schedule;
}

std::vector<std::string> schedule_names() {
    std::vector<std::string> names;
    for (const auto& [name, make] : kSchedules) names.push_back(name);
    return names;
}

}  // namespace sde::sampling
