// The conditions of a run, and their evaluation in as few batches as possible.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "stages/control.h"

namespace sde {

// What the denoiser is given besides latents and time. Every array has N entries, one per picture.
struct Branch {
    enum class Role { Positive, Negative, Image };  // Image: the picture without the text

    // `role`: "positive", "negative" or "image"; throws Parameter for another one.
    static Role parse(const std::string& role);

    Role role = Role::Positive;
    HostArrays inputs;  // context (with `lengths` where texts are unequal), class_embedding, ...
    float weight = 1.0f;
    HostArray extra_channels;  // [N, E, h, w] behind the latents' channels (inpainting, editing),
                               // or empty
};

// One branch's evaluation.
struct BranchCall {
    const Branch* branch;
    std::vector<float>* prediction;  // where the raw prediction goes
    networks::Options options;
    HostArrays more_inputs;  // besides the branch's
    std::vector<ActiveControl> controls = {};
    int slot = 0;  // a number of its own among the calls of a phase
};

// Evaluates `calls` for latents x [N, C, h, w]: pictures whose inputs have equal shapes and whose
// options are equal in one batch, whichever calls they are of, and not more than `together` of
// them (0 for any number; fewer take less memory). Inputs with `lengths` are cut to those of their
// pictures first, so that no network sees what they were filled up with. Returns the number of
// branches evaluated.
int64_t evaluate(Runner& denoiser, const std::vector<BranchCall>& calls, std::span<const float> x,
                 const Shape& latents, float timestep, int64_t together, const CancelCheck& cancel);

}  // namespace sde
