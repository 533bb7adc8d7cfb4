// Runs that compute nothing: what they ask of their networks tells how much memory they take.
#include "stages/runner.h"

namespace sde {
namespace {

// Values in -1..1 that repeat nowhere soon: guidance divides by norms and deviations, which must
// not be zero. A linear congruential generator (Knuth's MMIX constants).
void fill(std::vector<float>& values) {
    uint64_t state = 1;
    for (float& value : values) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        value = static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f;
    }
}

}  // namespace

std::shared_ptr<Runner> Runner::rehearsal() const {
    auto twin = std::make_shared<Runner>(kind_, config_, store_, devices_, shares_);
    twin->rehearsal_ = std::make_unique<Rehearsal>();
    return twin;
}

std::vector<Evaluation> Runner::rehearsed() const {
    std::lock_guard lock(mutex_);
    return rehearsal_ ? rehearsal_->asked : std::vector<Evaluation>{};
}

HostArrays Runner::rehearse(const HostArrays& inputs, const networks::Options& options,
                            Layout layout) {
    networks::InputShapes shapes = shapes_of(inputs);
    std::vector<std::string> steady = steady_of(inputs);
    auto [found, fresh] = rehearsal_->outputs.try_emplace(graph_key(shapes, options, steady));
    if (fresh) {
        const std::lock_guard store_lock(store_->in_use());
        found->second = build(shapes, options, steady)->output_shapes();
    }
    rehearsal_->asked.push_back({std::move(shapes), options, std::move(steady), graphs_kept_});
    HostArrays outputs;
    for (const auto& [name, shape] : found->second) {
        HostArray& array = outputs[name];
        array.shape = shape;
        array.layout = layout;
        array.floats.resize(static_cast<size_t>(shape.elements()));
        fill(array.floats);
    }
    return outputs;
}

}  // namespace sde
