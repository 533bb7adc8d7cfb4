#include "stages/batches.h"

#include <algorithm>

#include "base/error.h"
#include "stages/entries.h"

namespace sde {
namespace {

bool same_shapes(const HostArrays& a, int64_t of_a, const HostArrays& b, int64_t of_b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](const auto& l, const auto& r) {
        return l.first == r.first && entry_shape(l.second, of_a) == entry_shape(r.second, of_b);
    });
}

bool fit_together(const BatchEntry& a, const BatchEntry& b) {
    const auto shape = [](const BatchEntry& entry) {
        const HostArray& extra = entry.call->branch->extra_channels;
        return extra.floats.empty() ? Shape{} : entry_shape(extra, entry.picture);
    };
    return a.call->options == b.call->options && a.call->controls == b.call->controls &&
           same_shapes(a.call->branch->inputs, a.picture, b.call->branch->inputs, b.picture) &&
           same_shapes(a.call->more_inputs, a.picture, b.call->more_inputs, b.picture) &&
           shape(a) == shape(b);
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

}  // namespace

std::vector<Batch> batched(const std::vector<BranchCall>& calls, int64_t pictures,
                           int64_t together) {
    std::vector<Batch> batches;
    for (const BranchCall& call : calls)
        for (int64_t picture = 0; picture < pictures; ++picture) {
            const BatchEntry entry{&call, picture};
            const auto place = std::find_if(batches.begin(), batches.end(), [&](const Batch& b) {
                return (together == 0 || std::ssize(b) < together) &&
                       fit_together(b.front(), entry);
            });
            if (place == batches.end())
                batches.push_back({entry});
            else
                place->push_back(entry);
        }
    return batches;
}

void keep_graphs(Runner& denoiser, const std::vector<BranchCall>& calls, size_t batches,
                 size_t graphs) {
    denoiser.keep_graphs(graphs);
    for (const BranchCall& call : calls)
        for (const ActiveControl& active : call.controls)
            if (active.control->network) active.control->network->keep_graphs(batches);
}

HostArrays inputs_of(const Batch& batch, std::span<const float> x, const Shape& latents,
                     float timestep) {
    HostArrays inputs;
    for (const auto& [call, picture] : batch) {
        append_latents(inputs["latents"], x, latents, picture, call->branch->extra_channels);
        for (const auto* arrays : {&call->branch->inputs, &call->more_inputs})
            for (const auto& [name, array] : *arrays) {
                append_entry(inputs[name], array, picture);
                inputs[name].steady = true;
            }
    }
    HostArray& times = inputs["timesteps"];
    times.shape = Shape{std::ssize(batch)};
    times.floats.assign(batch.size(), timestep);
    return inputs;
}

void add_control(const Batch& batch, std::span<const float> x, const Shape& latents,
                 HostArrays& inputs, const CancelCheck& cancel) {
    const BranchCall& first = *batch.front().call;
    if (first.controls.empty()) return;
    HostArray plain;
    std::vector<int64_t> pictures;
    for (const BatchEntry& entry : batch) {
        append_latents(plain, x, latents, entry.picture, {});
        pictures.push_back(entry.picture);
    }
    add_residuals(first.controls, plain, pictures, first.options, inputs, cancel);
}

void take_predictions(const Runner& denoiser, const Batch& batch, const HostArrays& outputs,
                      const Shape& latents) {
    const auto found = outputs.find("prediction");
    if (found == outputs.end())
        throw Error(ErrorKind::Parameter,
                    "the network '" + denoiser.kind() + "' is no denoiser: it predicts nothing");
    const std::vector<float>& output = found->second.floats;
    const int64_t size = latents.elements() / latents[0];
    if (std::ssize(output) != size * std::ssize(batch))
        throw Error(ErrorKind::Weights, "the denoiser returned " + found->second.shape.text() +
                                            " for latents of " + latents.text());
    auto from = output.begin();
    for (const auto& [call, picture] : batch) {
        call->prediction->resize(static_cast<size_t>(latents.elements()));
        std::copy(from, from + size, call->prediction->begin() + picture * size);
        from += size;
    }
}

}  // namespace sde
