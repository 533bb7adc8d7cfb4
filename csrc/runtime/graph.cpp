#include "runtime/graph.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "ggml-backend.h"
#include "ggml-impl.h"
#include "runtime/pages.h"
#include "runtime/scratch.h"

namespace sde {
namespace {

// Room for the headers of one graph's operators; the largest network here (SDXL) has about 8,000.
constexpr size_t kMaxNodes = 32768;
// Activations of fewer bytes are in pages of the usual size.
constexpr size_t kWorthHugePages = size_t{64} << 20;

// Gives a buffer's memory back; what it held is lost, and it can be used again.
bool discard(ggml_backend_buffer_t buffer) {
    return buffer && ggml_backend_buffer_is_host(buffer) &&
           discard_pages(ggml_backend_buffer_get_base(buffer),
                         ggml_backend_buffer_get_size(buffer));
}

}  // namespace

Graph::Graph(std::shared_ptr<Device> device)
    : Graph(std::vector<std::shared_ptr<Device>>{std::move(device)}, {1.0}) {}

Graph::Graph(std::vector<std::shared_ptr<Device>> devices, std::vector<double> shares)
    : devices_(std::move(devices)), shares_(std::move(shares)) {
    const size_t bytes =
        ggml_tensor_overhead() * kMaxNodes + ggml_graph_overhead_custom(kMaxNodes, false);
    context_ = ggml_init({bytes, nullptr, true});
    if (!context_) throw Error(ErrorKind::OutOfMemory, "no memory for a graph's description");
    graph_ = ggml_new_graph_custom(context_, kMaxNodes, false);
}

Graph::~Graph() {
    free_activations();
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

ggml_tensor* Graph::add_constant(ggml_type type, const std::vector<int64_t>& ne,
                                 const void* values) {
    ggml_tensor* tensor = ggml_new_tensor(context_, type, static_cast<int>(ne.size()), ne.data());
    // An input has memory before anything runs, and an output keeps it: nothing else is put there.
    ggml_set_input(tensor);
    ggml_set_output(tensor);
    const auto* bytes = static_cast<const uint8_t*>(values);
    constants_.emplace_back(tensor, std::vector<uint8_t>(bytes, bytes + ggml_nbytes(tensor)));
    return tensor;
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

bool Graph::is_parameter(const ggml_tensor* tensor) const {
    return tensor->op == GGML_OP_NONE && !tensor->view_src &&
           !(tensor->flags & GGML_TENSOR_FLAG_INPUT);
}

void Graph::set_steady(const std::vector<std::string>& names) {
    std::map<std::string, ggml_tensor*> steady;
    for (const std::string& name : names)
        if (const auto found = inputs_.find(name); found != inputs_.end()) steady.insert(*found);
    if (steady.empty() || devices_.size() > 1) return;  // it would be copied in every run
    steady_ = std::make_unique<Steady>(graph_, inputs_, steady, [&](const ggml_tensor* node) {
        const auto work = multiply_adds_.find(node);
        return work == multiply_adds_.end() ? 0 : work->second;
    });
}

void Graph::forget_steady() noexcept {
    if (steady_) steady_->forget();
}

void Graph::complete() {
    add_inputs();
    if (devices_.size() == 1 || split_) return;
    check_operators();  // later there are copies among them
    split_ = std::make_unique<Split>(*this, shares_);
    graph_ = split_->graph();
    add_inputs();
}

ggml_gallocr_t Graph::new_allocator() const {
    std::vector<ggml_backend_buffer_type_t> types;
    for (const auto& device : devices_) types.push_back(device->buffer_type());
    return ggml_gallocr_new_n(types.data(), static_cast<int>(types.size()));
}

size_t Graph::planned_bytes() {
    const std::vector<size_t> bytes = planned_by_device();
    return std::accumulate(bytes.begin(), bytes.end(), size_t{0});
}

std::vector<size_t> Graph::planned_by_device() {
    complete();
    if (steady_) steady_->pretend();
    std::vector<size_t> bytes(devices_.size());
    ggml_gallocr_t plan = new_allocator();
    const std::vector<int> leafs(static_cast<size_t>(graph_->n_leafs), 0);
    ggml_gallocr_reserve_n_size(plan, graph_, split_ ? split_->devices().data() : nullptr,
                                leafs.data(), bytes.data());
    ggml_gallocr_free(plan);
    if (steady_) bytes[0] += steady_->bytes(devices_[0]->buffer_type());
    return bytes;
}

std::vector<size_t> Graph::scratch_by_device() {
    complete();
    std::vector<size_t> bytes;
    for (size_t i = 0; i < devices_.size(); ++i) {
        Scratch scratch(devices_[i]->name());
        for (int node = 0; node < ggml_graph_n_nodes(graph_); ++node)
            if (device_of(node) == static_cast<int>(i)) scratch.add(*ggml_graph_node(graph_, node));
        bytes.push_back(scratch.bytes());
    }
    return bytes;
}

void Graph::check_operators() const {
    if (!is_portable()) return;
    std::string parameter = "its first layer";
    for (int i = 0; i < ggml_graph_n_nodes(graph_); ++i) {
        const ggml_tensor* node = ggml_graph_node(graph_, i);
        for (const ggml_tensor* source : node->src)
            if (source && source->op == GGML_OP_NONE && source->name[0]) parameter = source->name;
        if (devices_[0]->supports(node)) continue;
        std::string operands;
        for (const ggml_tensor* source : node->src)
            if (source) operands += std::string(" ") + ggml_type_name(source->type);
        throw Error(ErrorKind::Device, devices_[0]->name() + " cannot compute the operator " +
                                           ggml_op_desc(node) + " of" + operands + " at '" +
                                           parameter +
                                           "'; run this component on the device \"cpu\", or use a "
                                           "file with another type of weights");
    }
}

void Graph::upload_constants() {
    for (const auto& [tensor, bytes] : constants_)
        if (tensor->buffer) ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
}

void Graph::allocate() {
    complete();
    if (!split_) check_operators();
    const auto plan = [&](ggml_context* context) {
        for (ggml_tensor* tensor = ggml_get_first_tensor(context); tensor;
             tensor = ggml_get_next_tensor(context, tensor))
            if (!tensor->data) planned_.push_back(tensor);
    };
    plan(context_);
    if (split_) plan(split_->context());
    prepare();
}

void Graph::prepare() {
    if (allocator_) return;
    try {
        take_memory();
    } catch (...) {
        free_activations();
        throw;
    }
}

void Graph::take_memory() {
    constexpr const char* kPurpose = "a network's activations";
    if (steady_) steady_->allocate(*devices_[0]);
    before_allocation(kPurpose, 0);
    allocator_ = new_allocator();
    if (!allocator_) fail_allocation(kPurpose, 0);
    const std::vector<int> leafs(static_cast<size_t>(graph_->n_leafs), 0);
    if (split_ &&
        !ggml_gallocr_reserve_n(allocator_, graph_, split_->devices().data(), leafs.data()))
        fail_allocation(kPurpose, 0);
    if (!ggml_gallocr_alloc_graph(allocator_, graph_)) fail_allocation(kPurpose, 0);
    for (size_t i = 0; i < devices_.size(); ++i)
        activations_.emplace_back(devices_[i]->tally(),
                                  ggml_gallocr_get_buffer_size(allocator_, static_cast<int>(i)));
    if (devices_[0]->runs_custom() && !inputs_.empty() && activation_bytes() >= kWorthHugePages) {
        // All inputs lie in the one buffer of a processor's activations.
        ggml_backend_buffer_t buffer = inputs_.begin()->second->buffer;
        prefer_huge_pages(ggml_backend_buffer_get_base(buffer),
                          ggml_backend_buffer_get_size(buffer));
    }
    upload_constants();
}

void Graph::free_activations() {
    if (allocator_) ggml_gallocr_free(std::exchange(allocator_, nullptr));
    activations_.clear();
    if (steady_) steady_->free();
    for (ggml_tensor* tensor : planned_) {
        tensor->data = nullptr;
        tensor->buffer = nullptr;
    }
}

void Graph::set_input(const std::string& name, ggml_type type, const void* data, size_t bytes) {
    auto it = inputs_.find(name);
    if (std::exchange(is_released_, false)) upload_constants();
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
    if (steady_) steady_->see(name, data, bytes);
    ggml_backend_tensor_set(it->second, data, 0, bytes);
}

int Graph::useful_threads() const {
    // All threads meet after every operator. Below this much work per thread and operator (some
    // 40 us) they mostly wait for each other, and much longer where other programs hold a core.
    constexpr double kMultiplyAddsPerThread = 2e6;
    const double per_operator = work_ / std::max(1, ggml_graph_n_nodes(graph_));
    return static_cast<int>(std::clamp(per_operator / kMultiplyAddsPerThread, 1.0,
                                       static_cast<double>(devices_[0]->threads())));
}

void Graph::describe(ggml_tensor* tensor, const char* kind) {
    ggml_set_name(tensor, kind);
    if (next_work_) multiply_adds_[tensor] = std::exchange(next_work_, 0);
}

void Graph::compute(const CancelCheck& cancel, Profile* profile) {
    compute_part(first_operator(), ggml_graph_n_nodes(graph_), cancel, profile);
    devices_[0]->wait();
    computed();
}

bool Graph::is_copy(int node) const {
    return split_ && split_->is_copy(ggml_graph_node(graph_, node));
}

void Graph::copy_part(int begin, int end) {
    for (const auto& device : devices_) device->wait();
    for (int i = begin; i < end; ++i)
        if (is_copy(i))
            ggml_backend_tensor_copy(ggml_graph_node(graph_, i)->src[0],
                                     ggml_graph_node(graph_, i));
}

int Graph::first_operator() const noexcept {
    return steady_ && steady_->is_fresh() ? steady_->count() : 0;
}

int Graph::steady_operators() const noexcept {
    return steady_ ? steady_->count() : 0;
}

void Graph::computed() noexcept {
    if (steady_) steady_->end();
}

void Graph::compute_part(int begin, int end, const CancelCheck& cancel, Profile* profile) {
    // Some operators of a graph are a graph, too (ggml_graph_view of ggml's private interface).
    ggml_cgraph part = *graph_;
    part.nodes += begin;
    part.n_nodes = end - begin;
    part.n_leafs = 0;
    part.leafs = nullptr;
    part.uid = 0;
    Device& device = *devices_[device_of(begin)];
    if (!profile) return device.begin(&part, useful_threads(), cancel);
    std::string parameter;
    device.compute_each(&part, useful_threads(), cancel, recorder(*profile, parameter));
}

Device::Record Graph::recorder(Profile& profile, std::string& parameter) const {
    return [this, &profile, &parameter](const ggml_tensor& node, double begin, double seconds) {
        OperatorTime time;
        time.kind = node.op == GGML_OP_CUSTOM ? node.name : ggml_op_desc(&node);
        time.begin = begin;
        time.seconds = seconds;
        time.bytes = static_cast<int64_t>(ggml_nbytes(&node));
        for (const ggml_tensor* source : node.src) {
            if (!source) continue;
            time.bytes += static_cast<int64_t>(ggml_nbytes(source));
            if (is_parameter(source) && source->ne[1] > 1) parameter = source->name;
        }
        time.parameter = parameter;
        if (auto work = multiply_adds_.find(&node); work != multiply_adds_.end())
            time.multiply_adds = work->second;
        profile.add(std::move(time));
    };
}

void Graph::get_output(const std::string& name, void* data, size_t bytes) const {
    ggml_backend_tensor_get(outputs_.at(name), data, 0, bytes);
}

size_t Graph::activation_bytes() const {
    if (is_released_) return 0;
    size_t bytes = 0;
    for (const Tallied& activations : activations_) bytes += activations.bytes();
    return bytes + (steady_ ? steady_->allocated_bytes() : 0);
}

void Graph::release_activations() {
    if (!devices_[0]->runs_custom()) return free_activations();
    if (inputs_.empty()) return;
    // Inputs are set before every run, constants when it begins, and nothing else in the
    // allocator's buffer outlives one.
    is_released_ = discard(inputs_.begin()->second->buffer);
    if (!is_released_ || !steady_) return;
    discard(steady_->buffer());
    steady_->forget();
}

}  // namespace sde
