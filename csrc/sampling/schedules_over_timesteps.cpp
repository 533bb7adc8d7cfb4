#include <cmath>

#include "base/error.h"
#include "sampling/named_schedules.h"

namespace sde::sampling {
namespace {

// The first n of `points` evenly spaced timesteps from the largest sigma's to the smallest's, both
// included. Over betas sigma is interpolated in log sigma, as k-diffusion does. A flow model's
// times are shifted, though its ends are shifted already: ComfyUI's and diffusers' convention.
Schedule evenly(int n, int points, const NoiseLevels& levels) {
    const bool flow = levels.kind() == NoiseLevels::Kind::Flow;
    const double first = levels.timestep_of(levels.count() - 1), last = levels.timestep_of(0);
    Schedule schedule;
    for (int i = 0; i < n; ++i) {
        const double t = first + along(i, points) * (last - first);
        const float sigma = flow ? static_cast<float>(levels.shifted(t / levels.multiplier()))
                                 : levels.sigma(static_cast<float>(t));
        schedule.sigmas.push_back(sigma);
        schedule.timesteps.push_back(levels.timestep(sigma));
    }
    return schedule;
}

// From the last timestep to the first, both included (k-diffusion's DiscreteSchedule; over a flow
// diffusers' FlowMatchEulerDiscreteScheduler left to itself).
Schedule discrete(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    return evenly(n, n, levels);
}

// From the last timestep towards the first, which is left out (generative-models).
Schedule sgm_uniform(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    return evenly(n, n + 1, levels);
}

// Entries of the table; an entry that comes twice is taken once.
Schedule from_entries(const std::vector<int>& entries, const NoiseLevels& levels) {
    Schedule schedule;
    int before = -1;
    for (int entry : entries) {
        if (entry == before) continue;
        before = entry;
        schedule.timesteps.push_back(levels.timestep_of(entry));
        schedule.sigmas.push_back(levels[entry]);
    }
    return schedule;
}

// Every (N / n)-th entry of the table, from its end (ComfyUI).
Schedule simple(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    std::vector<int> entries;
    const double stride = static_cast<double>(levels.count()) / n;
    for (int i = 0; i < n; ++i)
        entries.push_back(levels.count() - 1 - static_cast<int>(i * stride));
    return from_entries(entries, levels);
}

// Every (N / n)-th entry from the second one on (Song et al. 2020, DDIM). Where n does not divide N
// there may be one more than n of them, as in ComfyUI.
Schedule ddim_uniform(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    const int stride = levels.count() / n;
    std::vector<int> entries;
    for (int at = 1; at < levels.count(); at += stride) entries.insert(entries.begin(), at);
    if (entries.empty()) entries.push_back(0);
    return from_entries(entries, levels);
}

// Entries dense at both ends (Lee et al. 2024, arXiv 2407.12173), alpha = beta = 0.6.
Schedule beta(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    std::vector<int> entries;
    for (int i = 0; i < n; ++i) {
        const double at = beta_quantile(1.0 - static_cast<double>(i) / n) * (levels.count() - 1);
        // The middle is a tie, and goes up.
        entries.push_back(static_cast<int>(std::round(at + 1e-9)));
    }
    return from_entries(entries, levels);
}

// Entries along the polynomial 3 u^2 - 2 u^3 (stable-diffusion.cpp).
Schedule smoothstep(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    std::vector<int> entries;
    for (int i = 0; i < n; ++i) {
        const double u = 1.0 - static_cast<double>(i) / n;
        entries.push_back(
            static_cast<int>(std::round(u * u * (3.0 - 2.0 * u) * (levels.count() - 1))));
    }
    return from_entries(entries, levels);
}

// Of the `trained` timesteps that a distilled model knows: the first n from the end, or n spread
// evenly.
Schedule distilled(int n, const NoiseLevels& levels, int trained, bool first_ones) {
    if (n > trained || levels.count() < trained)
        throw Error(ErrorKind::Parameter, "this schedule has at most " + std::to_string(trained) +
                                              " steps, not " + std::to_string(n));
    const int spacing = levels.count() / trained;
    std::vector<int> entries;
    for (int i = 0; i < n; ++i)
        entries.push_back((trained - (first_ones ? i : i * trained / n)) * spacing - 1);
    return from_entries(entries, levels);
}

// Latent consistency models (Luo et al. 2023, arXiv 2310.04378): n of the 50 timesteps.
Schedule lcm(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    check_over_betas("lcm", levels, "picks training timesteps");
    return distilled(n, levels, 50, false);
}

// Adversarial diffusion distillation, SD-Turbo and SDXL-Turbo (Sauer et al. 2023, arXiv
// 2311.17042): the first n of ten timesteps.
Schedule turbo(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    check_over_betas("turbo", levels, "picks training timesteps");
    return distilled(n, levels, 10, true);
}

}  // namespace

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

std::vector<NamedSchedule> schedules_over_timesteps() {
    return {{"discrete", discrete}, {"sgm_uniform", sgm_uniform},
            {"simple", simple},     {"ddim_uniform", ddim_uniform},
            {"beta", beta},         {"smoothstep", smoothstep},
            {"lcm", lcm},           {"turbo", turbo}};
}

}  // namespace sde::sampling
