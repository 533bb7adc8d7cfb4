#include "runtime/steady.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

namespace sde {
namespace {

// A result is kept where a byte of it saves so many multiply-adds in every run: a megabyte then
// saves about a millisecond of a core. Keys and values of texts save 192 (Stable Diffusion 1.x) to
// 1,024 (FLUX.1); embedded patches of a reference 16, so they are computed again.
constexpr double kWorthOfByte = 64;
// Smaller results are always kept: an operator costs more than its arithmetic.
constexpr size_t kSmall = size_t{64} << 10;

bool is_view(const ggml_tensor* tensor) {
    return tensor->op == GGML_OP_VIEW || tensor->op == GGML_OP_RESHAPE ||
           tensor->op == GGML_OP_PERMUTE || tensor->op == GGML_OP_TRANSPOSE;
}

template <class Visit>
void for_each_source(const ggml_tensor* tensor, const Visit& visit) {
    for (ggml_tensor* source : tensor->src)
        if (source) visit(source);
}

struct Facts {
    bool steady = true;
    bool overwritten = false;  // by an operator that works in place
    double saved = 0;          // multiply-adds that lie behind the result, at least
    bool read_by_steady = false, read_by_others = false;
    bool first = false;  // one of those that are left out
};

using AllFacts = std::unordered_map<const ggml_tensor*, Facts>;

// What overwrites, and what is overwritten, is computed in every run, as are outputs.
void find_steady(ggml_cgraph* graph, const Steady::Work& work, AllFacts& facts) {
    const int count = ggml_graph_n_nodes(graph);
    for (int i = 0; i < count; ++i) {
        const ggml_tensor* node = ggml_graph_node(graph, i);
        if (node->view_src && !is_view(node)) facts[node->view_src].overwritten = true;
    }
    for (int i = 0; i < count; ++i) {
        const ggml_tensor* node = ggml_graph_node(graph, i);
        Facts own = facts[node];
        const bool in_place = node->view_src && !is_view(node);
        own.steady =
            own.steady && !in_place && !own.overwritten && !(node->flags & GGML_TENSOR_FLAG_OUTPUT);
        for_each_source(node, [&](const ggml_tensor* source) {
            const Facts& of_source = facts[source];
            own.steady = own.steady && of_source.steady && !of_source.overwritten;
            own.saved = std::max(own.saved, of_source.saved);
        });
        if (node->op != GGML_OP_NONE && !is_view(node))
            own.saved += static_cast<double>(std::max(work(node), ggml_nelements(node)));
        facts[node] = own;
    }
}

bool is_worth_keeping(const ggml_tensor* result, const Facts& facts) {
    const auto bytes = ggml_nbytes(result);
    return bytes <= kSmall || facts.saved >= kWorthOfByte * static_cast<double>(bytes);
}

}  // namespace

Steady::Steady(ggml_cgraph* graph, const Inputs& inputs, const Inputs& steady, const Work& work) {
    Inputs varying = inputs;
    for (const auto& [name, tensor] : steady) {
        varying.erase(name);
        values_[name];
    }
    part(graph, varying, work);
}

void Steady::part(ggml_cgraph* graph, const Inputs& varying, const Work& work) {
    AllFacts facts;
    for (const auto& [name, tensor] : varying) facts[tensor].steady = false;
    find_steady(graph, work, facts);
    ggml_tensor** const nodes = ggml_graph_nodes(graph);
    ggml_tensor** const end = nodes + ggml_graph_n_nodes(graph);
    // From the end, so that the readers of a result are known. One that is not worth its memory is
    // computed in every run, unless something kept is made from it.
    for (ggml_tensor** at = end; at-- != nodes;) {
        Facts& own = facts[*at];
        const bool kept = own.steady && own.read_by_others && !is_view(*at) &&
                          (own.read_by_steady || is_worth_keeping(*at, own));
        if (kept) kept_.push_back(*at);
        own.first = own.steady && (own.read_by_steady || kept);
        const Facts read = own;
        for_each_source(*at, [&](const ggml_tensor* source) {
            Facts& of_source = facts[source];
            const bool view = is_view(*at) && read.steady;
            of_source.read_by_steady |= view ? read.read_by_steady : read.first;
            of_source.read_by_others |= view ? read.read_by_others : !read.first;
        });
    }
    // A view goes with what it shows, so that it never comes before it.
    for (ggml_tensor** at = nodes; at != end; ++at)
        if (is_view(*at) && facts[*at].steady && (*at)->view_src->op != GGML_OP_NONE)
            facts[*at].first = facts[(*at)->view_src].first;
    std::stable_partition(nodes, end, [&](const ggml_tensor* node) { return facts[node].first; });
    for (ggml_tensor** at = nodes; at != end && facts[*at].first; ++at) ++count_;
}

size_t Steady::bytes(ggml_backend_buffer_type_t type) const {
    const size_t alignment = ggml_backend_buft_get_alignment(type);
    size_t bytes = 0;
    for (const ggml_tensor* tensor : kept_)
        bytes += (ggml_backend_buft_get_alloc_size(type, tensor) + alignment - 1) / alignment *
                 alignment;
    return bytes;
}

void Steady::allocate(const Device& device) {
    if (kept_.empty()) return;
    const ggml_backend_buffer_type_t type = device.buffer_type();
    buffer_ = std::make_unique<Buffer>(type, bytes(type), device.tally(),
                                       "what a network keeps between evaluations");
    const size_t alignment = ggml_backend_buft_get_alignment(type);
    auto* address = buffer_->base();
    for (ggml_tensor* tensor : kept_) {
        ggml_backend_tensor_alloc(buffer_->raw(), tensor, address);
        address += (ggml_backend_buft_get_alloc_size(type, tensor) + alignment - 1) / alignment *
                   alignment;
    }
}

void Steady::free() {
    buffer_.reset();
    forget();
}

void Steady::pretend() {
    // A plan takes any address for memory that is not its own.
    for (ggml_tensor* tensor : kept_) tensor->data = tensor;
}

void Steady::see(const std::string& input, const void* data, size_t bytes) {
    const auto place = values_.find(input);
    if (place == values_.end()) return;
    std::vector<char>& known = place->second;
    if (known.size() == bytes && std::memcmp(known.data(), data, bytes) == 0) return;
    known.assign(static_cast<const char*>(data), static_cast<const char*>(data) + bytes);
    is_fresh_ = false;
}

}  // namespace sde
