#include "stages/control.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "stages/entries.h"

namespace sde {
namespace {

HostArrays evaluated(const Control& control, const HostArray& latents,
                     const std::vector<int64_t>& pictures, const networks::Options& options,
                     const HostArrays& denoiser, const CancelCheck& cancel) {
    HostArrays inputs;
    for (const auto& [name, array] : control.inputs) inputs[name] = gathered(array, pictures);
    if (!control.network) return inputs;
    for (auto& [name, array] : inputs) array.steady = true;
    inputs["latents"] = latents;
    for (const std::string& name : control.shared)
        if (const auto found = denoiser.find(name); found != denoiser.end()) inputs.insert(*found);
    networks::Options own;
    if (const auto circular = options.find("circular"); circular != options.end())
        own.insert(*circular);
    return control.network->run(inputs, own, cancel, Layout::AsStored);
}

// Each channel's mean over the pixels, at every pixel (ControlNets for shuffled pictures).
void pool(HostArray& map) {
    const int64_t channels = map.shape[1], pixels = map.shape[2] * map.shape[3];
    for (int64_t n = 0; n < map.shape[0]; ++n)
        for (int64_t c = 0; c < channels; ++c) {
            float* first = map.floats.data() + n * channels * pixels + c;
            double sum = 0.0;
            for (int64_t p = 0; p < pixels; ++p) sum += first[p * channels];
            const auto mean = static_cast<float>(sum / static_cast<double>(pixels));
            for (int64_t p = 0; p < pixels; ++p) first[p * channels] = mean;
        }
}

void accumulate(HostArray& sum, HostArray&& residual, float factor, const std::string& name) {
    if (sum.floats.empty()) {
        sum = std::move(residual);
        for (float& value : sum.floats) value *= factor;
        return;
    }
    if (!(sum.shape == residual.shape) || sum.layout != residual.layout)
        throw Error(ErrorKind::Parameter, "two controls leave residuals '" + name +
                                              "' of different shapes, " + sum.shape.text() +
                                              " and " + residual.shape.text());
    for (size_t i = 0; i < sum.floats.size(); ++i) sum.floats[i] += factor * residual.floats[i];
}

}  // namespace

void Control::check(int64_t pictures, int steps) const {
    if (weights.size() != static_cast<size_t>(steps))
        throw Error(ErrorKind::Parameter, "a control has " + std::to_string(weights.size()) +
                                              " weights for " + std::to_string(steps) + " steps");
    const auto finite = [](float v) { return std::isfinite(v); };
    if (!std::all_of(weights.begin(), weights.end(), finite) ||
        !std::all_of(factors.begin(), factors.end(),
                     [&](const auto& f) { return finite(f.second); }))
        throw Error(ErrorKind::Parameter, "a control's weights must be numbers");
    for (const auto& [name, array] : inputs) {
        if (array.shape.rank() == 0 || array.shape[0] != pictures || array.shape.elements() == 0)
            throw Error(ErrorKind::Parameter, "a control's '" + name + "' has the shape " +
                                                  array.shape.text() + "; it must have " +
                                                  std::to_string(pictures) +
                                                  " entries, one per picture");
        if (!std::all_of(array.floats.begin(), array.floats.end(), finite))
            throw Error(ErrorKind::Parameter, "a control's '" + name + "' holds NaN or infinity");
    }
}

void add_residuals(const std::vector<ActiveControl>& controls, const HostArray& latents,
                   const std::vector<int64_t>& pictures, const networks::Options& options,
                   HostArrays& inputs, const CancelCheck& cancel) {
    HostArrays sums;
    for (const auto& [control, weight] : controls) {
        HostArrays residuals = evaluated(*control, latents, pictures, options, inputs, cancel);
        for (auto& [name, residual] : residuals) {
            if (control->pooled) pool(residual);
            const auto factor = control->factors.find(name);
            const float own = factor == control->factors.end() ? 1.0f : factor->second;
            accumulate(sums[name], std::move(residual), weight * own, name);
        }
    }
    inputs.merge(sums);
}

}  // namespace sde
