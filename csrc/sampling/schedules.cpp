#include "sampling/schedules.h"

#include <cmath>
#include <map>

#include "base/error.h"
#include "sampling/named_schedules.h"

namespace sde::sampling {
namespace {

const std::map<std::string, NamedSchedule>& schedules() {
    static const auto all = [] {
        std::map<std::string, NamedSchedule> table;
        for (const auto& kin :
             {schedules_over_sigmas(), schedules_over_timesteps(), schedules_of_diffusers()})
            for (const NamedSchedule& schedule : kin) table.emplace(schedule.name, schedule);
        return table;
    }();
    return all;
}

const NamedSchedule& find(const std::string& name) {
    const auto it = schedules().find(name);
    if (it != schedules().end()) return it->second;
    std::string known;
    for (const std::string& other : schedule_names()) known += (known.empty() ? "" : ", ") + other;
    throw Error(ErrorKind::Parameter, "there is no schedule '" + name + "'; known are " + known);
}

void check_falling(const char* what, const std::vector<float>& values) {
    if (values.empty())
        throw Error(ErrorKind::Parameter, std::string("explicit ") + what + ": there are none");
    for (size_t i = 0; i < values.size(); ++i)
        if (!(std::isfinite(values[i]) && (i == 0 || values[i] < values[i - 1])))
            throw Error(ErrorKind::Parameter,
                        std::string("explicit ") + what + " must be numbers that fall: entry " +
                            std::to_string(i) + " is " + std::to_string(values[i]));
}

void check(int steps, const NoiseLevels& levels, const ScheduleOptions& options) {
    if (steps < 1 || steps > levels.count())
        throw Error(ErrorKind::Parameter, "steps must be 1 to " + std::to_string(levels.count()) +
                                              ", not " + std::to_string(steps));
    if (options.rho && !(*options.rho >= 1.0f && *options.rho <= 100.0f))
        throw Error(ErrorKind::Parameter, "rho must be 1 to 100");
    const bool flow = levels.kind() == NoiseLevels::Kind::Flow;
    const float low = options.sigma_min.value_or(levels.sigma_min()),
                high = options.sigma_max.value_or(levels.sigma_max());
    const bool falls = low < high || (low == high && steps == 1);
    if (!(low > 0.0f && falls && std::isfinite(high) && (high <= 1.0f || !flow)))
        throw Error(ErrorKind::Parameter, "a schedule's ends satisfy 0 < sigma_min < sigma_max" +
                                              std::string(flow ? " <= 1" : "") + ", not " +
                                              std::to_string(low) + " and " + std::to_string(high));
    if (!options.terminal) return;
    if (!flow)
        throw Error(ErrorKind::Parameter,
                    "a terminal sigma belongs to flow models; leave it away for this one");
    if (!(*options.terminal > 0.0f && *options.terminal < 1.0f))
        throw Error(ErrorKind::Parameter, "the terminal sigma is above 0 and below 1, not " +
                                              std::to_string(*options.terminal));
}

// Stretches the way from 1 so that the last sigma is `terminal`. A single step has no way.
void stretch(Schedule& schedule, float terminal, const NoiseLevels& levels) {
    const double left = 1.0 - schedule.sigmas.back();
    if (left <= 0.0) return;
    for (int i = 0; i < schedule.steps(); ++i) {
        const double way = (1.0 - schedule.sigmas[i]) * (1.0 - terminal) / left;
        schedule.sigmas[i] = static_cast<float>(1.0 - way);
        schedule.timesteps[i] = levels.timestep(schedule.sigmas[i]);
    }
}

// `options` with the ends of another schedule.
ScheduleOptions with_ends(int steps, const NoiseLevels& levels, ScheduleOptions options) {
    if (options.sigma_min || options.sigma_max)
        throw Error(ErrorKind::Parameter,
                    "a schedule's ends are those of a spacing, or sigma_min and sigma_max: give "
                    "one of the two");
    ScheduleOptions plain;
    plain.steps_offset = options.steps_offset;
    plain.terminal = options.terminal;
    const Schedule ends = make_schedule(options.spacing, steps, levels, plain);
    options.spacing.clear();
    options.sigma_max = ends.sigmas.front();
    options.sigma_min = ends.sigmas[ends.steps() - 1];
    return options;
}

}  // namespace

Schedule with_timesteps(const std::vector<double>& sigmas, const NoiseLevels& levels) {
    Schedule schedule;
    for (double sigma : sigmas) {
        schedule.sigmas.push_back(static_cast<float>(sigma));
        schedule.timesteps.push_back(levels.timestep(schedule.sigmas.back()));
    }
    return schedule;
}

void check_over_betas(const char* name, const NoiseLevels& levels, const char* why) {
    if (levels.kind() != NoiseLevels::Kind::Betas)
        throw Error(ErrorKind::Parameter,
                    std::string("schedule ") + name + " " + why + ", which " +
                        (levels.kind() == NoiseLevels::Kind::Flow ? "flow" : "EDM") +
                        " models do not have; simple, discrete and karras are for all models");
}

Schedule Schedule::part(int first, int last) const {
    if (first < 0 || first >= last || last > steps())
        throw Error(ErrorKind::Parameter,
                    "a part of a schedule of " + std::to_string(steps()) +
                        " steps goes from one of them to a later one, not from " +
                        std::to_string(first) + " to " + std::to_string(last));
    Schedule part;
    part.sigmas.assign(sigmas.begin() + first, sigmas.begin() + last + 1);
    part.timesteps.assign(timesteps.begin() + first, timesteps.begin() + last);
    part.initial_scale = first == 0 ? initial_scale : part.sigmas[0];
    return part;
}

Schedule Schedule::from_sigmas(std::vector<float> sigmas, const NoiseLevels& levels) {
    check_falling("sigmas", sigmas);
    if (sigmas.size() > 1 && sigmas.back() == 0.0f) sigmas.pop_back();
    if (!(sigmas.back() > 0.0f))
        throw Error(ErrorKind::Parameter, "explicit sigmas are above 0 but for a final 0");
    if (levels.kind() == NoiseLevels::Kind::Flow && sigmas.front() > 1.0f)
        throw Error(ErrorKind::Parameter,
                    "a flow model's sigmas are at most 1, not " + std::to_string(sigmas.front()));
    Schedule schedule = with_timesteps({sigmas.begin(), sigmas.end()}, levels);
    schedule.initial_scale = sigmas[0];
    schedule.sigmas.push_back(0.0f);
    return schedule;
}

Schedule Schedule::from_timesteps(std::vector<float> timesteps, const NoiseLevels& levels) {
    check_falling("timesteps", timesteps);
    const bool betas = levels.kind() == NoiseLevels::Kind::Betas;
    const float first = levels.timestep_of(levels.count() - 1);
    if ((betas && timesteps.back() < 0.0f) || timesteps.front() > first)
        throw Error(ErrorKind::Parameter, "explicit timesteps are at most " +
                                              std::to_string(first) +
                                              (betas ? " and at least 0" : ""));
    std::vector<float> sigmas;
    for (float t : timesteps) sigmas.push_back(levels.sigma_linear(t));
    Schedule schedule = from_sigmas(std::move(sigmas), levels);
    timesteps.resize(schedule.timesteps.size());
    schedule.timesteps = std::move(timesteps);
    return schedule;
}

Schedule make_schedule(const std::string& name, int steps, const NoiseLevels& levels,
                       const ScheduleOptions& options) {
    const NamedSchedule& named = find(name);
    const ScheduleOptions all =
        options.spacing.empty() ? options : with_ends(steps, levels, options);
    check(steps, levels, all);
    Schedule schedule = named.make(steps, levels, all);
    if (all.terminal) stretch(schedule, *all.terminal, levels);
    if (schedule.initial_scale == 0.0f) schedule.initial_scale = schedule.sigmas[0];
    schedule.sigmas.push_back(0.0f);
    return schedule;
}

std::vector<std::string> schedule_names() {
    std::vector<std::string> names;
    for (const auto& [name, make] : schedules()) names.push_back(name);
    return names;
}

}  // namespace sde::sampling
