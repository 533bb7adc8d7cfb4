#include "stages/branches.h"

#include "base/error.h"
#include "stages/batches.h"

namespace sde {

Branch::Role Branch::parse(const std::string& role) {
    if (role == "positive") return Role::Positive;
    if (role == "negative") return Role::Negative;
    if (role == "image") return Role::Image;
    throw Error(ErrorKind::Parameter,
                "a branch is positive, negative or image, not '" + role + "'");
}

int64_t evaluate(Runner& denoiser, const std::vector<BranchCall>& calls, std::span<const float> x,
                 const Shape& latents, float timestep, int64_t together,
                 const CancelCheck& cancel) {
    const std::vector<Batch> batches = batched(calls, latents[0], together);
    keep_graphs(denoiser, calls, batches.size(), batches.size());
    for (const Batch& batch : batches) {
        HostArrays inputs = inputs_of(batch, x, latents, timestep);
        add_control(batch, x, latents, inputs, cancel);
        take_predictions(denoiser, batch, denoiser.run(inputs, batch.front().call->options, cancel),
                         latents);
    }
    return static_cast<int64_t>(calls.size());
}

}  // namespace sde
