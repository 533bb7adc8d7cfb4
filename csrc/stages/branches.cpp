#include "stages/branches.h"

#include <algorithm>

#include "base/error.h"

namespace sde {
namespace {

using Group = std::vector<const BranchCall*>;

bool same_shapes(const HostArrays& a, const HostArrays& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& l, const auto& r) {
        return l.first == r.first && l.second.shape == r.second.shape;
    });
}

bool fit_together(const BranchCall& a, const BranchCall& b) {
    return a.options == b.options && a.controls == b.controls &&
           same_shapes(a.branch->inputs, b.branch->inputs) &&
           same_shapes(a.more_inputs, b.more_inputs) &&
           a.branch->extra_channels.shape == b.branch->extra_channels.shape;
}

std::vector<Group> grouped(const std::vector<BranchCall>& calls, bool split) {
    std::vector<Group> groups;
    for (const BranchCall& call : calls) {
        const auto place = std::find_if(groups.begin(), groups.end(), [&](const Group& group) {
            return !split && fit_together(*group.front(), call);
        });
        if (place == groups.end())
            groups.push_back({&call});
        else
            place->push_back(&call);
    }
    return groups;
}

// Entries of `from` behind those of `to`, along the first axis.
void append(HostArray& to, const HostArray& from) {
    std::vector<int64_t> dims = from.shape.dims();
    if (to.shape.rank() > 0) dims[0] += to.shape[0];
    to.shape = Shape(dims);
    to.floats.insert(to.floats.end(), from.floats.begin(), from.floats.end());
    to.ids.insert(to.ids.end(), from.ids.begin(), from.ids.end());
}

// The latents with the branch's extra channels behind them, for every picture.
HostArray network_latents(std::span<const float> x, const Shape& latents, const HostArray& extra) {
    const int64_t batch = latents[0], size = latents.elements() / batch;
    const bool more = !extra.floats.empty();
    const int64_t extra_size = more ? extra.shape.elements() / batch : 0;
    HostArray out;
    out.shape = Shape{batch, latents[1] + (more ? extra.shape[1] : 0), latents[2], latents[3]};
    out.floats.reserve(static_cast<size_t>(batch * (size + extra_size)));
    for (int64_t n = 0; n < batch; ++n) {
        const auto own = x.subspan(static_cast<size_t>(n * size), static_cast<size_t>(size));
        out.floats.insert(out.floats.end(), own.begin(), own.end());
        const auto behind = extra.floats.begin() + n * extra_size;
        out.floats.insert(out.floats.end(), behind, behind + extra_size);
    }
    return out;
}

void evaluate_group(Runner& denoiser, const Group& group, std::span<const float> x,
                    const Shape& latents, float timestep, const CancelCheck& cancel) {
    HostArrays inputs;
    for (const BranchCall* call : group) {
        append(inputs["latents"], network_latents(x, latents, call->branch->extra_channels));
        for (const auto* arrays : {&call->branch->inputs, &call->more_inputs})
            for (const auto& [name, array] : *arrays) append(inputs[name], array);
    }
    HostArray& times = inputs["timesteps"];
    times.shape = Shape{latents[0] * static_cast<int64_t>(group.size())};
    times.floats.assign(static_cast<size_t>(times.shape[0]), timestep);
    const BranchCall& first = *group.front();
    if (!first.controls.empty()) {
        HostArray plain;
        for (size_t i = 0; i < group.size(); ++i) append(plain, network_latents(x, latents, {}));
        add_residuals(first.controls, plain, group.size(), first.options, inputs, cancel);
    }

    const HostArrays outputs = denoiser.run(inputs, first.options, cancel);
    const auto found = outputs.find("prediction");
    if (found == outputs.end())
        throw Error(ErrorKind::Parameter,
                    "the network '" + denoiser.kind() + "' is no denoiser: it predicts nothing");
    const std::vector<float>& output = found->second.floats;
    if (output.size() != x.size() * group.size())
        throw Error(ErrorKind::Weights, "the denoiser returned " + found->second.shape.text() +
                                            " for latents of " + latents.text());
    for (size_t i = 0; i < group.size(); ++i) {
        const auto begin = output.begin() + static_cast<int64_t>(i * x.size());
        group[i]->prediction->assign(begin, begin + static_cast<int64_t>(x.size()));
    }
}

}  // namespace

Branch::Role Branch::parse(const std::string& role) {
    if (role == "positive") return Role::Positive;
    if (role == "negative") return Role::Negative;
    if (role == "image") return Role::Image;
    throw Error(ErrorKind::Parameter,
                "a branch is positive, negative or image, not '" + role + "'");
}

int64_t evaluate(Runner& denoiser, const std::vector<BranchCall>& calls, std::span<const float> x,
                 const Shape& latents, float timestep, bool split, const CancelCheck& cancel) {
    const std::vector<Group> groups = grouped(calls, split);
    denoiser.keep_graphs(groups.size());
    for (const BranchCall& call : calls)
        for (const ActiveControl& active : call.controls)
            if (active.control->network) active.control->network->keep_graphs(groups.size());
    for (const Group& group : groups) evaluate_group(denoiser, group, x, latents, timestep, cancel);
    return static_cast<int64_t>(calls.size());
}

}  // namespace sde
