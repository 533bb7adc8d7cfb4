#include "sampling/schedules.h"

#include <cmath>
#include <map>

#include "base/error.h"

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
    const double high = std::pow(levels.sigma_max(), 1.0 / options.rho);
    const double low = std::pow(levels.sigma_min(), 1.0 / options.rho);
    for (int i = 0; i < n; ++i)
        sigmas.push_back(std::pow(high + along(i, n) * (low - high), options.rho));
    return from_sigmas(sigmas, levels);
}

// Evenly spaced in log sigma.
Schedule exponential(int n, const NoiseLevels& levels, const ScheduleOptions&) {
    std::vector<double> sigmas;
    const double high = std::log(levels.sigma_max()), low = std::log(levels.sigma_min());
    for (int i = 0; i < n; ++i) sigmas.push_back(std::exp(high + along(i, n) * (low - high)));
    return from_sigmas(sigmas, levels);
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
        {"discrete", discrete},       {"karras", karras},     {"exponential", exponential},
        {"sgm_uniform", sgm_uniform}, {"simple", simple},     {"leading", leading},
        {"linspace", linspace},       {"trailing", trailing},
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
    if (!(options.rho >= 1.0f && options.rho <= 100.0f))
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
