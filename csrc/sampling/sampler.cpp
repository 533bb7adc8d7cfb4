#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numbers>

#include "base/error.h"
#include "sampling/samplers/samplers.h"

namespace sde::sampling {
namespace {

const std::map<std::string, NamedSampler>& samplers() {
    static const auto all = [] {
        std::map<std::string, NamedSampler> table;
        for (const auto& kin :
             {euler_kin(), consistency_kin(), dpm_solver_kin(), dpm_solver_sde_kin(),
              multistep_kin(), unipc_kin(), exponential_kin(), er_sde_kin(), ddim_kin()})
            for (const NamedSampler& sampler : kin) table.emplace(sampler.name, sampler);
        return table;
    }();
    return all;
}

bool finite(std::span<const float> values) {
    return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

// Where a rectified flow begins for samplers that need a finite lambda: ComfyUI takes the level at
// 1e-4 of the way, which without a shift of the levels is this one.
constexpr float kNearlyNoise = 0.9999f;

[[noreturn]] void refuse(const std::string& message) {
    throw Error(ErrorKind::Parameter, message);
}

}  // namespace

Sampler::Sampler(Values x, std::vector<float> sigmas, NormalSource noise, SamplerOptions options)
    : x_(std::move(x)),
      denoised_(x_.size(), 0.0f),
      sigmas_(std::move(sigmas)),
      noise_(std::move(noise)),
      options_(options) {
    if (sigmas_.size() < 2) refuse("a run needs at least two sigmas");
    if (!finite(sigmas_) || sigmas_.back() < 0.0f) refuse("sigmas must be numbers from 0 up");
    for (size_t i = 1; i < sigmas_.size(); ++i)
        if (sigmas_[i] >= sigmas_[i - 1])
            refuse("sigmas must fall: entry " + std::to_string(i) + " is " +
                   std::to_string(sigmas_[i]) + " after " + std::to_string(sigmas_[i - 1]));
    if (options_.flow && sigmas_.front() > 1.0f)
        refuse("a rectified flow has sigmas from 0 to 1; the first one is " +
               std::to_string(sigmas_.front()));
    if (!finite(x_)) throw Error(ErrorKind::Numeric, "the start latents hold NaN or infinity");
}

void Sampler::check_options(const std::string& name) const {
    const auto& [amount, low, high] = options_.churn;
    if (!(eta(0.0f) >= 0.0f && eta(0.0f) <= 10.0f && std::isfinite(options_.s_noise)))
        refuse("eta must be 0 to 10, and s_noise a number");
    if (!(amount >= 0.0f && std::isfinite(amount) && low >= 0.0f && low <= high))
        refuse("s_churn must be a number from 0 up, and s_tmin at most s_tmax");
    if (options_.flow && !flow_refusal().empty())
        refuse("there is no " + name + " for rectified flow: " + flow_refusal());
    if (amount > 0.0f && !churns())
        refuse(name + " has no s_churn; euler, heun, heunpp2 and dpm2 have");
    if (amount > 0.0f && options_.flow)
        refuse("s_churn is not defined for rectified flow; use euler_a, which adds noise there");
    if (!options_.order) return;
    const int order = *options_.order;
    if (max_order() == 0) refuse(name + " has no order to choose; leave the order out");
    if (order < 1 || order > max_order())
        refuse("the order of " + name + " is 1 to " + std::to_string(max_order()) + ", not " +
               std::to_string(order));
}

void Sampler::prepare(const std::string& name) {
    check_options(name);
    const bool ends_at_0 = sigmas_.back() == 0.0f;
    const float last = sigmas_[sigmas_.size() - (ends_at_0 ? 2 : 1)];
    // A run of one step to 0 has no path, and needs no noise.
    if (options_.brownian.value_or(brownian_by_default()) && last < sigmas_.front())
        brownian_.emplace(noise_.seeds(), last, sigmas_.front(), x_.size() / noise_.seeds().size(),
                          noise_.kind());
    if (options_.flow && reads_log_snr() && sigmas_[0] == 1.0f)
        sigmas_[0] = std::max(kNearlyNoise, (1.0f + sigmas_[1]) / 2.0f);
}

void Sampler::step(const Denoiser& denoiser) {
    if (done()) refuse("the run is finished; there is no step left");
    // Samplers with several evaluations per step change x_ and their history after the last one, so
    // a throwing denoiser leaves them; churn and noise come before.
    const NormalSource noise = noise_;
    const Values x = x_;
    Values denoised(x_.size());
    unguided_.resize(reads_unguided() ? x_.size() : 0);
    bool swapped = false;
    try {
        const float level = churn();
        evaluate(denoiser, x_, level, denoised, unguided_);
        denoised_.swap(denoised);
        swapped = true;
        advance(denoiser, level, sigmas_[index_ + 1]);
    } catch (...) {
        if (swapped) denoised_.swap(denoised);
        x_ = x;
        noise_ = noise;
        throw;
    }
    if (!finite(x_))
        throw Error(ErrorKind::Numeric,
                    "NaN or infinity in the latents after step " + std::to_string(index_ + 1));
    ++index_;
}

float Sampler::churn() {
    const auto& [amount, low, high] = options_.churn;
    const float level = sigma();
    if (amount == 0.0f) return level;
    // k-diffusion draws at every step, whether it is used or not.
    Values noise(x_.size());
    noise_.fill(noise);
    if (level < low || level > high) return level;
    const float part = amount / static_cast<float>(steps());
    const float raised = level * (1.0f + std::min(part, std::numbers::sqrt2_v<float> - 1.0f));
    const float scale = options_.s_noise * std::sqrt(raised * raised - level * level);
    for (size_t i = 0; i < x_.size(); ++i) x_[i] += scale * noise[i];
    return raised;
}

void Sampler::set_x(Values x) {
    if (x.size() != x_.size())
        throw Error(ErrorKind::Parameter, "x has " + std::to_string(x_.size()) + " values, not " +
                                              std::to_string(x.size()));
    if (!finite(x)) throw Error(ErrorKind::Numeric, "the new latents hold NaN or infinity");
    x_ = std::move(x);
}

void Sampler::evaluate(const Denoiser& denoiser, const Values& x, float sigma, Values& denoised,
                       std::span<float> unguided) const {
    denoiser(x, sigma, denoised, unguided);
    if (!finite(denoised) || !finite(unguided))
        throw Error(ErrorKind::Numeric, "the denoiser produced NaN or infinity at step " +
                                            std::to_string(index_ + 1) + " of " +
                                            std::to_string(steps()) + " (sigma " +
                                            std::to_string(sigma) + ")");
}

void Sampler::add_noise(float scale, float sigma, float next, Values& x) {
    Values noise(x.size());
    if (brownian_)
        brownian_->fill(sigma, next, noise);
    else
        noise_.fill(noise);
    for (size_t i = 0; i < x.size(); ++i) x[i] += noise[i] * options_.s_noise * scale;
}

double Sampler::log_snr(double sigma) const {
    return std::log((options_.flow ? 1.0 - sigma : 1.0) / sigma);
}

Sampler::Values Sampler::slope() const {
    Values slope(x_.size());
    for (size_t i = 0; i < x_.size(); ++i) slope[i] = (x_[i] - denoised_[i]) / sigma();
    return slope;
}

const NoiseLevels& Sampler::levels() const {
    static const NoiseLevels stable_diffusion("scaled_linear", 0.00085, 0.012, 1000, false);
    return options_.levels ? *options_.levels : stable_diffusion;
}

std::string Sampler::save() const {
    std::string state(reinterpret_cast<const char*>(&index_), sizeof(index_));
    const auto put = [&state](const Values& values) {
        const auto size = static_cast<uint64_t>(values.size());
        state.append(reinterpret_cast<const char*>(&size), sizeof(size));
        state.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    };
    put(x_);
    put(denoised_);
    for (const Values* values : const_cast<Sampler*>(this)->history()) put(*values);
    return state + noise_.save();
}

void Sampler::restore(const std::string& state) {
    const auto damaged = [] {
        return Error(ErrorKind::Format, "a saved run is damaged, or another run's");
    };
    size_t at = 0;
    const auto take = [&](void* data, size_t size) {
        if (size > state.size() - at) throw damaged();
        std::memcpy(data, state.data() + at, size);
        at += size;
    };
    int index;
    take(&index, sizeof(index));
    if (index < 0 || index > steps()) throw damaged();
    std::vector<Values> arrays;
    for (size_t i = 0; i < 2 + history().size(); ++i) {
        uint64_t size;
        take(&size, sizeof(size));
        if (size != x_.size() && size != 0) throw damaged();
        take(arrays.emplace_back(size).data(), size * sizeof(float));
    }
    noise_.restore(state.substr(at));
    index_ = index;
    x_ = arrays[0];
    denoised_ = arrays[1];
    for (size_t i = 0; i < history().size(); ++i) *history()[i] = arrays[i + 2];
}

std::unique_ptr<Sampler> make_sampler(const std::string& name, std::vector<float> x,
                                      std::vector<float> sigmas, NormalSource noise,
                                      SamplerOptions options) {
    const auto it = samplers().find(name);
    if (it != samplers().end()) {
        auto sampler = it->second.make(std::move(x), std::move(sigmas), std::move(noise), options);
        sampler->prepare(name);
        return sampler;
    }
    std::string known;
    for (const std::string& other : sampler_names()) known += (known.empty() ? "" : ", ") + other;
    refuse("there is no sampler '" + name + "'; known are " + known);
}

std::vector<std::string> sampler_names() {
    std::vector<std::string> names;
    for (const auto& [name, sampler] : samplers()) names.push_back(name);
    return names;
}

bool reads_unguided(const std::string& sampler) {
    return make_sampler(sampler, {0.0f}, {1.0f, 0.0f}, NormalSource({0}), {})->reads_unguided();
}

}  // namespace sde::sampling
