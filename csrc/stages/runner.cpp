#include "stages/runner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "runtime/memory.h"

namespace sde {
namespace {

// Graphs of a component that stay ready at least: the shapes of one generation (single and guided
// batch).
constexpr size_t kGraphsKept = 2;

// [N, C, pixels] <-> [N, pixels, C] for one feature map.
void to_channels_last(const float* in, float* out, int64_t batch, int64_t channels,
                      int64_t pixels) {
    for (int64_t n = 0; n < batch; ++n)
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t p = 0; p < pixels; ++p)
                out[(n * pixels + p) * channels + c] = in[(n * channels + c) * pixels + p];
}

void to_channels_first(const float* in, float* out, int64_t batch, int64_t channels,
                       int64_t pixels) {
    for (int64_t n = 0; n < batch; ++n)
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t p = 0; p < pixels; ++p)
                out[(n * channels + c) * pixels + p] = in[(n * pixels + p) * channels + c];
}

// Room for values on their way to or from a network. Throws OutOfMemory when a test has so wished.
void make_room(std::vector<float>& values, size_t count) {
    if (values.capacity() < count)
        before_allocation("a network's inputs or results", count * sizeof(float));
    values.resize(count);
}

// Shares of each device that add up to 1.
std::vector<double> checked_shares(const std::vector<std::shared_ptr<Device>>& devices,
                                   std::vector<double> shares) {
    if (shares.empty()) shares.assign(devices.size(), 1.0);
    const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
    const bool positive =
        std::all_of(shares.begin(), shares.end(), [](double share) { return share >= 0; });
    if (devices.empty() || shares.size() != devices.size() || !positive || !(sum > 0) ||
        !std::isfinite(sum))
        throw Error(
            ErrorKind::Parameter,
            "a network needs a device, and for each of several a share of at least 0, not " +
                std::to_string(devices.size()) + " devices and " + std::to_string(shares.size()) +
                " shares");
    for (double& share : shares) share /= sum;
    if (devices.size() > 1 && std::any_of(devices.begin(), devices.end(),
                                          [](const auto& device) { return device->runs_custom(); }))
        throw Error(ErrorKind::Parameter,
                    "a network is split over devices with memory of their own; 'cpu' is none");
    return shares;
}

}  // namespace

networks::InputShapes shapes_of(const HostArrays& inputs) {
    networks::InputShapes shapes;
    for (const auto& [name, array] : inputs) shapes[name] = array.shape;
    return shapes;
}

std::vector<std::string> steady_of(const HostArrays& inputs) {
    std::vector<std::string> names;
    for (const auto& [name, array] : inputs)
        if (array.steady) names.push_back(name);
    return names;
}

std::string graph_key(const networks::InputShapes& shapes, const networks::Options& options,
                      const std::vector<std::string>& steady) {
    std::string key;
    for (const auto& [name, shape] : shapes) key += name + shape.text();
    for (const auto& [name, value] : options) key += name + "=" + std::to_string(value) + ";";
    for (const std::string& name : steady) key += name + "!";
    return key;
}

Runner::Runner(const std::string& kind, const Config& config, std::shared_ptr<WeightStore> store,
               std::vector<std::shared_ptr<Device>> devices, std::vector<double> shares)
    : kind_(kind),
      config_(config),
      store_(std::move(store)),
      devices_(std::move(devices)),
      shares_(checked_shares(devices_, std::move(shares))),
      residency_(store_, devices_),
      adapters_(store_),
      network_(networks::make_network(kind, nn::Scope(*store_, ""), config)),
      graphs_kept_(kGraphsKept) {}

std::unique_ptr<Graph> Runner::build(const networks::InputShapes& shapes,
                                     const networks::Options& options,
                                     const std::vector<std::string>& steady) const {
    auto graph = std::make_unique<Graph>(devices_, shares_);
    graph->set_circular(networks::option(options, "circular", 0));
    network_->forward(*graph, shapes, options);
    graph->set_steady(steady);
    return graph;
}

void Runner::set_profile(std::shared_ptr<Profile> profile) {
    std::lock_guard lock(mutex_);
    profile_ = std::move(profile);
}

size_t Runner::planned_bytes(const networks::InputShapes& shapes, const networks::Options& options,
                             const std::vector<std::string>& steady) const {
    const std::lock_guard store_lock(store_->in_use());
    return build(shapes, options, steady)->planned_bytes();
}

PlannedRuns Runner::planned(const std::vector<Evaluation>& runs, const Residence& residence) const {
    const std::lock_guard store_lock(store_->in_use());
    PlannedRuns planned;
    std::vector<KeptWeights> kept;
    for (const Evaluation& run : runs)
        planned.each.push_back(
            residency_.planned(*build(run.shapes, run.options, run.steady), residence, kept));
    for (const KeptWeights& weights : kept) planned.kept += weights.bytes();
    return planned;
}

void Runner::set_residency(const Residence& residence) {
    std::lock_guard lock(mutex_);
    residency_.set(residence);
}

Policy Runner::residency() const {
    std::lock_guard lock(mutex_);
    return residency_.policy();
}

void Runner::release_weights() {
    if (rehearsal_) return;
    std::lock_guard lock(mutex_);
    residency_.release();
}

Runner::Compiled& Runner::compiled(const HostArrays& inputs, const networks::Options& options) {
    const networks::InputShapes shapes = shapes_of(inputs);
    const std::vector<std::string> steady = steady_of(inputs);
    const std::string key = graph_key(shapes, options, steady);
    // Addresses of parameters are the host's while no network over the store runs on a device.
    const std::lock_guard store_lock(store_->in_use());
    for (auto it = cache_.begin(); it != cache_.end(); ++it) {
        if (it->key != key) continue;
        it->graph->prepare();
        cache_.splice(cache_.begin(), cache_, it);
        return cache_.front();
    }
    while (cache_.size() >= graphs_kept_)
        cache_.pop_back();  // before building: its memory is needed
    Compiled fresh;
    fresh.key = key;
    fresh.graph = build(shapes, options, steady);
    fresh.graph->allocate();
    fresh.outputs = fresh.graph->output_shapes();
    ++graphs_built_;
    cache_.push_front(std::move(fresh));
    return cache_.front();
}

HostArrays Runner::run(const HostArrays& inputs, const networks::Options& options,
                       const CancelCheck& cancel, Layout layout) {
    std::lock_guard lock(mutex_);
    if (rehearsal_) return rehearse(inputs, options, layout);
    store_->check_files();
    Compiled& current = compiled(inputs, options);
    for (const auto& [name, array] : inputs) {
        if (!array.ids.empty()) {
            current.graph->set_input(name, GGML_TYPE_I32, array.ids.data(),
                                     array.ids.size() * sizeof(int32_t));
        } else if (array.shape.rank() == 4 && array.layout == Layout::Torch) {
            make_room(staging_, array.floats.size());
            to_channels_last(array.floats.data(), staging_.data(), array.shape[0], array.shape[1],
                             array.shape[2] * array.shape[3]);
            current.graph->set_input(name, GGML_TYPE_F32, staging_.data(),
                                     staging_.size() * sizeof(float));
        } else {
            current.graph->set_input(name, GGML_TYPE_F32, array.floats.data(),
                                     array.floats.size() * sizeof(float));
        }
    }
    residency_.run(*current.graph, cancel, profile_.get());
    HostArrays outputs;
    for (const auto& [name, shape] : current.outputs) {
        HostArray& array = outputs[name];
        array.shape = shape;
        array.layout = layout;
        make_room(array.floats, static_cast<size_t>(shape.elements()));
        const size_t bytes = array.floats.size() * sizeof(float);
        if (shape.rank() == 4 && layout == Layout::Torch) {
            make_room(staging_, array.floats.size());
            current.graph->get_output(name, staging_.data(), bytes);
            to_channels_first(staging_.data(), array.floats.data(), shape[0], shape[1],
                              shape[2] * shape[3]);
        } else {
            current.graph->get_output(name, array.floats.data(), bytes);
        }
        if (!std::all_of(array.floats.begin(), array.floats.end(),
                         [](float v) { return std::isfinite(v); }))
            report_not_finite(name);
    }
    return outputs;
}

void Runner::report_not_finite(const std::string& output) const {
    std::string message =
        "the " + kind_ + " network produced NaN or infinity in '" + output + "'. ";
    if (auto name = store_->first_not_finite())
        throw Error(ErrorKind::Weights,
                    message + "Its parameter '" + *name +
                        "' holds NaN or infinity: the file is damaged; download it again");
    throw Error(ErrorKind::Numeric, message + "Its parameters are finite; look at the inputs");
}

void Runner::set_adapters(const std::vector<AdapterUse>& uses) {
    std::lock_guard lock(mutex_);
    if (uses == adapters_.uses()) return;
    const std::lock_guard store_lock(store_->in_use());
    for (Compiled& compiled : cache_) compiled.graph->forget_steady();
    try {
        if (adapters_.apply(uses)) cache_.clear();
    } catch (...) {
        cache_.clear();
        throw;
    }
}

size_t Runner::adapter_bytes() const {
    std::lock_guard lock(mutex_);
    return adapters_.bytes();
}

void Runner::keep_graphs(size_t count) {
    std::lock_guard lock(mutex_);
    graphs_kept_ = std::max(count, kGraphsKept);
}

void Runner::release() {
    std::lock_guard lock(mutex_);
    cache_.clear();
    staging_ = {};
}

void Runner::release_activations() {
    std::lock_guard lock(mutex_);
    for (Compiled& compiled : cache_) compiled.graph->release_activations();
}

void Runner::rest() {
    release_weights();
    release_activations();
}

size_t Runner::activation_bytes() const {
    std::lock_guard lock(mutex_);
    size_t bytes = 0;
    for (const Compiled& compiled : cache_) bytes += compiled.graph->activation_bytes();
    return bytes;
}

}  // namespace sde
