// Which pictures of which branches a network evaluates together.
#pragma once

#include <span>
#include <vector>

#include "stages/branches.h"

namespace sde {

// One picture of a call.
struct BatchEntry {
    const BranchCall* call;
    int64_t picture;
};
using Batch = std::vector<BatchEntry>;

// Pictures whose inputs have equal shapes and whose options are equal are in one batch, of
// `together` at most (0: any number).
std::vector<Batch> batched(const std::vector<BranchCall>& calls, int64_t pictures,
                           int64_t together);

// So many graphs of the denoiser, and of the controls' networks one per batch, stay ready.
void keep_graphs(Runner& denoiser, const std::vector<BranchCall>& calls, size_t batches,
                 size_t graphs);

// What the denoiser is given for a batch, but for the residuals of its controls, which add_control
// puts behind it. x are latents of shape `latents`.
HostArrays inputs_of(const Batch& batch, std::span<const float> x, const Shape& latents,
                     float timestep);
void add_control(const Batch& batch, std::span<const float> x, const Shape& latents,
                 HostArrays& inputs, const CancelCheck& cancel);

// Hands the output `prediction` to the calls. Throws Parameter where there is none, Weights where
// it has another size than the latents.
void take_predictions(const Runner& denoiser, const Batch& batch, const HostArrays& outputs,
                      const Shape& latents);

}  // namespace sde
