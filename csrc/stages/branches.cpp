#include "stages/branches.h"

#include <algorithm>

#include "base/error.h"
#include "stages/entries.h"

namespace sde {
namespace {

// The pictures of one call whose inputs are equally long.
struct Part {
    const BranchCall* call;
    std::vector<int64_t> pictures;
};

using Group = std::vector<Part>;  // parts that make up one batch

bool same_shapes(const HostArrays& a, int64_t of_a, const HostArrays& b, int64_t of_b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](const auto& l, const auto& r) {
        return l.first == r.first && entry_shape(l.second, of_a) == entry_shape(r.second, of_b);
    });
}

// Whether one picture of a call can be in one batch with one of another call.
bool fit_together(const BranchCall& a, int64_t of_a, const BranchCall& b, int64_t of_b) {
    const auto shape = [](const HostArray& extra, int64_t picture) {
        return extra.floats.empty() ? Shape{} : entry_shape(extra, picture);
    };
    return a.options == b.options && a.controls == b.controls &&
           same_shapes(a.branch->inputs, of_a, b.branch->inputs, of_b) &&
           same_shapes(a.more_inputs, of_a, b.more_inputs, of_b) &&
           shape(a.branch->extra_channels, of_a) == shape(b.branch->extra_channels, of_b);
}

// A group takes in the pictures of one call only when `split`.
std::vector<Group> grouped(const std::vector<BranchCall>& calls, int64_t pictures, bool split) {
    std::vector<Group> groups;
    for (const BranchCall& call : calls)
        for (int64_t picture = 0; picture < pictures; ++picture) {
            const auto place = std::find_if(groups.begin(), groups.end(), [&](const Group& group) {
                const Part& first = group.front();
                return (!split || first.call == &call) &&
                       fit_together(*first.call, first.pictures.front(), call, picture);
            });
            if (place == groups.end())
                groups.push_back({{&call, {picture}}});
            else if (place->back().call == &call)
                place->back().pictures.push_back(picture);
            else
                place->push_back({&call, {picture}});
        }
    return groups;
}

// One picture's latents, with the branch's extra channels behind them, behind those of `to`.
void append_latents(HostArray& to, std::span<const float> x, const Shape& latents, int64_t picture,
                    const HostArray& extra) {
    const bool more = !extra.floats.empty();
    const int64_t entries = to.shape.rank() > 0 ? to.shape[0] : 0;
    to.shape = Shape{entries + 1, latents[1] + (more ? extra.shape[1] : 0), latents[2], latents[3]};
    const size_t size = x.size() / static_cast<size_t>(latents[0]);
    const auto own = x.subspan(static_cast<size_t>(picture) * size, size);
    to.floats.insert(to.floats.end(), own.begin(), own.end());
    if (!more) return;
    const int64_t behind = extra.shape.elements() / extra.shape[0];
    const auto first = extra.floats.begin() + picture * behind;
    to.floats.insert(to.floats.end(), first, first + behind);
}

// The residuals of the group's controls, behind its other `inputs`.
void add_control(const Group& group, std::span<const float> x, const Shape& latents,
                 HostArrays& inputs, const CancelCheck& cancel) {
    const BranchCall& first = *group.front().call;
    if (first.controls.empty()) return;
    HostArray plain;
    std::vector<int64_t> pictures;
    for (const Part& part : group)
        for (int64_t picture : part.pictures) {
            append_latents(plain, x, latents, picture, {});
            pictures.push_back(picture);
        }
    add_residuals(first.controls, plain, pictures, first.options, inputs, cancel);
}

void evaluate_group(Runner& denoiser, const Group& group, std::span<const float> x,
                    const Shape& latents, float timestep, const CancelCheck& cancel) {
    HostArrays inputs;
    for (const auto& [call, pictures] : group)
        for (int64_t picture : pictures) {
            append_latents(inputs["latents"], x, latents, picture, call->branch->extra_channels);
            for (const auto* arrays : {&call->branch->inputs, &call->more_inputs})
                for (const auto& [name, array] : *arrays)
                    append_entry(inputs[name], array, picture);
        }
    HostArray& times = inputs["timesteps"];
    times.shape = Shape{inputs["latents"].shape[0]};
    times.floats.assign(static_cast<size_t>(times.shape[0]), timestep);
    add_control(group, x, latents, inputs, cancel);

    const HostArrays outputs = denoiser.run(inputs, group.front().call->options, cancel);
    const auto found = outputs.find("prediction");
    if (found == outputs.end())
        throw Error(ErrorKind::Parameter,
                    "the network '" + denoiser.kind() + "' is no denoiser: it predicts nothing");
    const std::vector<float>& output = found->second.floats;
    const auto size = static_cast<int64_t>(x.size()) / latents[0];
    if (static_cast<int64_t>(output.size()) != size * times.shape[0])
        throw Error(ErrorKind::Weights, "the denoiser returned " + found->second.shape.text() +
                                            " for latents of " + latents.text());
    auto from = output.begin();
    for (const auto& [call, pictures] : group)
        for (int64_t picture : pictures) {
            call->prediction->resize(x.size());
            std::copy(from, from + size, call->prediction->begin() + picture * size);
            from += size;
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
    const std::vector<Group> groups = grouped(calls, latents[0], split);
    denoiser.keep_graphs(groups.size());
    for (const BranchCall& call : calls)
        for (const ActiveControl& active : call.controls)
            if (active.control->network) active.control->network->keep_graphs(groups.size());
    for (const Group& group : groups) evaluate_group(denoiser, group, x, latents, timestep, cancel);
    return static_cast<int64_t>(calls.size());
}

}  // namespace sde
