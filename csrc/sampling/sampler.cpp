#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "base/error.h"
#include "sampling/samplers/samplers.h"

namespace sde::sampling {
namespace {

const std::map<std::string, NamedSampler>& samplers() {
    static const auto all = [] {
        std::map<std::string, NamedSampler> table;
        for (const auto& kin :
             {euler_kin(), consistency_kin(), dpm_solver_kin(), dpm_solver_sde_kin(),
              multistep_kin(), unipc_kin(), exponential_kin(), er_sde_kin()})
            for (const NamedSampler& sampler : kin) table.emplace(sampler.name, sampler);
        return table;
    }();
    return all;
}

bool finite(std::span<const float> values) {
    return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

}  // namespace

Sampler::Sampler(Values x, std::vector<float> sigmas, NormalSource noise, SamplerOptions options)
    : x_(std::move(x)),
      denoised_(x_.size(), 0.0f),
      sigmas_(std::move(sigmas)),
      noise_(std::move(noise)),
      options_(options) {
    if (sigmas_.size() < 2) throw Error(ErrorKind::Parameter, "a run needs at least two sigmas");
    if (!finite(sigmas_) || sigmas_.back() < 0.0f)
        throw Error(ErrorKind::Parameter, "sigmas must be numbers from 0 up");
    for (size_t i = 1; i < sigmas_.size(); ++i)
        if (sigmas_[i] >= sigmas_[i - 1])
            throw Error(ErrorKind::Parameter, "sigmas must fall: entry " + std::to_string(i) +
                                                  " is " + std::to_string(sigmas_[i]) + " after " +
                                                  std::to_string(sigmas_[i - 1]));
    if (!(eta(0.0f) >= 0.0f && eta(0.0f) <= 10.0f && std::isfinite(options_.s_noise)))
        throw Error(ErrorKind::Parameter, "eta must be 0 to 10, and s_noise a number");
    if (!finite(x_)) throw Error(ErrorKind::Numeric, "the start latents hold NaN or infinity");
}

void Sampler::step(const Denoiser& denoiser) {
    if (done()) throw Error(ErrorKind::Parameter, "the run is finished; there is no step left");
    Values denoised(x_.size());
    unguided_.resize(reads_unguided() ? x_.size() : 0);
    evaluate(denoiser, x_, sigma(), denoised, unguided_);
    // Samplers with several evaluations per step change x_ and their history after the last one, so
    // a throwing denoiser leaves them; noise they may have drawn before.
    const NormalSource noise = noise_;
    denoised_.swap(denoised);
    try {
        advance(denoiser, sigmas_[index_], sigmas_[index_ + 1]);
    } catch (...) {
        denoised_.swap(denoised);
        noise_ = noise;
        throw;
    }
    if (!finite(x_))
        throw Error(ErrorKind::Numeric,
                    "NaN or infinity in the latents after step " + std::to_string(index_ + 1));
    ++index_;
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

void Sampler::add_noise(float scale, Values& to) {
    Values noise(to.size());
    noise_.fill(noise);
    for (size_t i = 0; i < to.size(); ++i) to[i] += noise[i] * options_.s_noise * scale;
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
    if (it != samplers().end())
        return it->second.make(std::move(x), std::move(sigmas), std::move(noise), options);
    std::string known;
    for (const std::string& other : sampler_names()) known += (known.empty() ? "" : ", ") + other;
    throw Error(ErrorKind::Parameter, "there is no sampler '" + name + "'; known are " + known);
}

std::vector<std::string> sampler_names() {
    std::vector<std::string> names;
    for (const auto& [name, sampler] : samplers()) names.push_back(name);
    return names;
}

}  // namespace sde::sampling
