#include "runtime/graph.h"

#include <algorithm>

#include "base/error.h"
#include "ggml-backend.h"
#include "runtime/pages.h"

namespace sde {
namespace {

// Room for the headers of one graph's operators; the largest network here (SDXL) has about 8,000.
constexpr size_t kMaxNodes = 32768;
// Activations of fewer bytes stay in memory between runs.
constexpr size_t kWorthReleasing = size_t{64} << 20;

}  // namespace

Graph::Graph(std::shared_ptr<Device> device) : device_(std::move(device)) {
    const size_t bytes =
        ggml_tensor_overhead() * kMaxNodes + ggml_graph_overhead_custom(kMaxNodes, false);
    context_ = ggml_init({bytes, nullptr, true});
    if (!context_) throw Error(ErrorKind::OutOfMemory, "no memory for a graph's description");
    graph_ = ggml_new_graph_custom(context_, kMaxNodes, false);
}

Graph::~Graph() {
    if (allocator_) ggml_gallocr_free(allocator_);
    ggml_free(context_);
}

ggml_tensor* Graph::add_input(const std::string& name, ggml_type type,
                              const std::vector<int64_t>& ne) {
    ggml_tensor* tensor = ggml_new_tensor(context_, type, static_cast<int>(ne.size()), ne.data());
    ggml_set_name(tensor, name.c_str());
    ggml_set_input(tensor);
    inputs_[name] = tensor;
    return tensor;
}

ggml_tensor* Graph::add_id_input(const std::string& name, const std::vector<int64_t>& ne,
                                 int64_t limit) {
    id_limits_[name] = limit;
    return add_input(name, GGML_TYPE_I32, ne);
}

void Graph::add_output(const std::string& name, ggml_tensor* tensor, const Shape& shape) {
    output_shapes_[name] = shape;
    ggml_set_output(tensor);
    ggml_build_forward_expand(graph_, tensor);
    outputs_[name] = tensor;
}

void Graph::compute_first(ggml_tensor* tensor) {
    ggml_build_forward_expand(graph_, tensor);
}

void Graph::set_circular(int64_t axes) {
    if (axes < 0 || axes > 3)
        throw Error(
            ErrorKind::Parameter,
            "circular is 0 (no axis), 1 (x), 2 (y) or 3 (both), not " + std::to_string(axes));
    circular_ = axes;
}

void Graph::add_inputs() {
    // An input that no operator reads must still have memory to be set.
    for (auto& [name, tensor] : inputs_) ggml_build_forward_expand(graph_, tensor);
}

size_t Graph::planned_bytes() {
    add_inputs();
    ggml_gallocr_t plan =
        ggml_gallocr_new(ggml_backend_get_default_buffer_type(device_->backend()));
    size_t bytes = 0;
    ggml_gallocr_reserve_n_size(plan, graph_, nullptr, nullptr, &bytes);
    ggml_gallocr_free(plan);
    return bytes;
}

void Graph::allocate() {
    add_inputs();
    allocator_ = ggml_gallocr_new(ggml_backend_get_default_buffer_type(device_->backend()));
    if (allocator_ && ggml_gallocr_alloc_graph(allocator_, graph_)) return;
    throw Error(ErrorKind::OutOfMemory,
                "no memory for a network's activations; use a smaller width, height or batch_size");
}

void Graph::set_input(const std::string& name, ggml_type type, const void* data, size_t bytes) {
    auto it = inputs_.find(name);
    is_released_ = false;
    if (it == inputs_.end())
        throw Error(ErrorKind::Parameter, "the network has no input '" + name + "'");
    if (type != it->second->type)
        throw Error(ErrorKind::Parameter,
                    "input '" + name + "' must hold " +
                        (it->second->type == GGML_TYPE_I32 ? "whole numbers (ids)" : "float32"));
    if (bytes != ggml_nbytes(it->second))
        throw Error(ErrorKind::Parameter, "input '" + name + "' has " + std::to_string(bytes) +
                                              " bytes, expected " +
                                              std::to_string(ggml_nbytes(it->second)));
    if (auto limit = id_limits_.find(name); limit != id_limits_.end()) {
        const auto* ids = static_cast<const int32_t*>(data);
        for (size_t i = 0; i < bytes / sizeof(int32_t); ++i)
            if (ids[i] < 0 || ids[i] >= limit->second)
                throw Error(ErrorKind::Parameter,
                            "'" + name + "' holds the id " + std::to_string(ids[i]) +
                                "; this model knows 0 to " + std::to_string(limit->second - 1) +
                                ". Is the tokenizer another model's?");
    }
    ggml_backend_tensor_set(it->second, data, 0, bytes);
}

int Graph::useful_threads() const {
    // All threads meet after every operator. Below this much work per thread and operator (some
    // 40 us) they mostly wait for each other, and much longer where other programs hold a core.
    constexpr double kMultiplyAddsPerThread = 2e6;
    const double per_operator = work_ / std::max(1, ggml_graph_n_nodes(graph_));
    return static_cast<int>(std::clamp(per_operator / kMultiplyAddsPerThread, 1.0,
                                       static_cast<double>(device_->threads())));
}

void Graph::describe(ggml_tensor* tensor, const char* kind) {
    ggml_set_name(tensor, kind);
    if (next_work_) multiply_adds_[tensor] = std::exchange(next_work_, 0);
}

void Graph::compute(const CancelCheck& cancel, Profile* profile) {
    if (!profile) return device_->compute(graph_, useful_threads(), cancel);
    std::string parameter;
    const auto record = [&](const ggml_tensor& node, double begin, double seconds) {
        OperatorTime time;
        time.kind = node.op == GGML_OP_CUSTOM ? node.name : ggml_op_desc(&node);
        time.begin = begin;
        time.seconds = seconds;
        time.bytes = static_cast<int64_t>(ggml_nbytes(&node));
        for (const ggml_tensor* source : node.src) {
            if (!source) continue;
            time.bytes += static_cast<int64_t>(ggml_nbytes(source));
            const bool is_parameter = source->op == GGML_OP_NONE && !inputs_.count(source->name);
            if (is_parameter && source->ne[1] > 1) parameter = source->name;
        }
        time.parameter = parameter;
        if (auto work = multiply_adds_.find(&node); work != multiply_adds_.end())
            time.multiply_adds = work->second;
        profile->add(std::move(time));
    };
    device_->compute_each(graph_, useful_threads(), cancel, record);
}

void Graph::get_output(const std::string& name, void* data, size_t bytes) const {
    ggml_backend_tensor_get(outputs_.at(name), data, 0, bytes);
}

size_t Graph::activation_bytes() const {
    return allocator_ && !is_released_ ? ggml_gallocr_get_buffer_size(allocator_, 0) : 0;
}

void Graph::release_activations() {
    if (inputs_.empty() || activation_bytes() < kWorthReleasing) return;
    // Inputs are set before every run, and nothing else in the allocator's buffer outlives one.
    ggml_backend_buffer_t buffer = inputs_.begin()->second->buffer;
    if (!buffer || !ggml_backend_buffer_is_host(buffer)) return;
    is_released_ =
        discard_pages(ggml_backend_buffer_get_base(buffer), ggml_backend_buffer_get_size(buffer));
}

}  // namespace sde
