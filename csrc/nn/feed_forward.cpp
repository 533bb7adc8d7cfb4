#include "nn/feed_forward.h"

#include <algorithm>
#include <cstring>

#include "nn/check.h"
#include "nn/custom.h"
#include "nn/dit.h"
#include "nn/ops.h"

namespace sde::nn {
namespace {

// Tokens of a group. Weights are turned into float32 once per group: with so many tokens that is a
// hundredth of the work, and the middle of a group fits into the last cache.
constexpr int64_t kGroup = 512;

struct RoomSpec {};

void hold_room(RoomSpec, const ggml_tensor*, kernels::Team&) {}

kernels::Weight describe(const ggml_tensor* weight) {
    return {nullptr, weight->type, weight->ne[1], weight->ne[0]};
}

// Memory without contents that nothing else uses until its last reader has run.
ggml_tensor* room(Graph& graph, int64_t elements, const Tensor& after) {
    Sources sources;
    sources.add(after);
    return custom(graph, {elements}, sources, RoomSpec{}, hold_room);
}

struct FeedForwardSpec {
    static constexpr const char* kName = "feed_forward";
    // Groups do not cross the ends of `entries`, which have a gate each.
    int64_t entries, rows, group;
    kernels::Linear in, out;  // without addresses
    bool geglu;
    int64_t inner, beside_width;
    int room, in_bias, out_bias, residual, gate, beside;
};

// Rows [beside, middle], each thread its share.
void join(const FeedForwardSpec& spec, const float* beside, const float* middle, float* to,
          int64_t rows, kernels::Team& team) {
    const int64_t width = spec.beside_width + spec.inner;
    const int64_t end = rows * (team.rank() + 1) / team.size();
    for (int64_t row = rows * team.rank() / team.size(); row < end; ++row) {
        std::memcpy(to + row * width, beside + row * spec.beside_width,
                    static_cast<size_t>(spec.beside_width) * sizeof(float));
        std::memcpy(to + row * width + spec.beside_width, middle + row * spec.inner,
                    static_cast<size_t>(spec.inner) * sizeof(float));
    }
    team.barrier();
}

// Operands 0 to 2: x and the two weights.
void run_feed_forward(FeedForwardSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    kernels::Linear &in = spec.in, &out = spec.out;
    auto* wide = static_cast<float*>(dst->src[spec.room]->data);
    float* narrow = wide + spec.group * in.weight.rows;
    in.weight.data = dst->src[1]->data;
    out.weight.data = dst->src[2]->data;
    in.epilogue.bias = source(dst, spec.in_bias);
    out.epilogue.bias = source(dst, spec.out_bias);
    const float *gate = source(dst, spec.gate), *residual = source(dst, spec.residual);
    const float* beside = source(dst, spec.beside);
    for (int64_t entry = 0; entry < spec.entries; ++entry)
        for (int64_t done = 0; done < spec.rows; done += spec.group) {
            const int64_t first = entry * spec.rows + done;
            in.rows = out.rows = std::min(spec.group, spec.rows - done);
            in.rows_per_batch = out.rows_per_batch = in.rows;
            in.input = source(dst, 0) + first * in.in_features;
            in.output = wide;
            kernels::linear(in, team);
            if (spec.geglu) kernels::geglu({wide, narrow, in.rows, spec.inner}, team);
            if (beside) join(spec, beside + first * spec.beside_width, wide, narrow, in.rows, team);
            out.input = spec.geglu || beside ? narrow : wide;
            out.output = static_cast<float*>(dst->data) + first * out.weight.rows;
            out.epilogue.residual = residual ? residual + first * out.weight.rows : nullptr;
            out.epilogue.gate = gate ? gate + entry * out.epilogue.gate_stride : nullptr;
            kernels::linear(out, team);
        }
}

// The same for all tokens at once.
Tensor in_one(const Linear& in, const Linear& out, const Tensor& x, Middle middle,
              const Epilogue& epilogue, const Tensor& beside) {
    const Tensor inner =
        middle == Middle::Geglu ? geglu(in(x)) : in(x, {.activation = Activation::GeluTanh});
    return out(beside ? concat_last(beside, inner) : inner, epilogue);
}

void check(const Tensor& x, const Epilogue& epilogue, const Tensor& beside, const Shape& output) {
    const auto fits = [](const Tensor& operand, const Shape& wanted) {
        return !operand || (operand.shape() == wanted && ggml_is_contiguous(operand.raw()));
    };
    expect(fits(epilogue.residual, output), "a residual must be " + output.text(), x);
    const Shape gate{output[0], output[2]};
    if (epilogue.gate)
        expect(epilogue.gate.shape() == gate, "a gate must be " + gate.text(), epilogue.gate);
    if (beside)
        expect(fits(beside, Shape{x.size(0), x.size(1), beside.size(-1)}),
               "what stands beside must be tokens of " + x.shape().text(), beside);
}

}  // namespace

Tensor feed_forward(const Linear& in, const Linear& out, const Tensor& x, Middle middle,
                    const Epilogue& epilogue, const Tensor& beside) {
    // What adapters add beside a layer is made for all tokens at once, and so is all of it where
    // our kernels do not run.
    if (in.has_side_path() || out.has_side_path() || x.graph().is_portable())
        return in_one(in, out, x, middle, epilogue, beside);
    FeedForwardSpec spec{};
    spec.in.in_features = in.weight()->ne[0];
    spec.out.in_features = out.weight()->ne[0];
    expect(x.rank() == 3 && x.size(2) == spec.in.in_features && ggml_is_contiguous(x.raw()),
           "a feed-forward network takes [N, tokens, " + std::to_string(spec.in.in_features) + "]",
           x);
    spec.in.weight = describe(in.weight());
    spec.out.weight = describe(out.weight());
    spec.in.fast = spec.out.fast = x.graph().is_fast();
    const Shape shape{x.size(0), x.size(1), spec.out.weight.rows};
    check(x, epilogue, beside, shape);
    spec.geglu = middle == Middle::Geglu;
    if (!spec.geglu) spec.in.epilogue.activation = Activation::GeluTanh;
    spec.inner = spec.in.weight.rows / (spec.geglu ? 2 : 1);
    spec.beside_width = beside ? beside.size(2) : 0;
    expect(spec.beside_width + spec.inner == spec.out.in_features,
           "the second product takes " + std::to_string(spec.out.in_features) + " values", x);
    spec.entries = epilogue.gate ? x.size(0) : 1;
    spec.rows = x.size(0) * x.size(1) / spec.entries;
    const int64_t groups = (spec.rows + kGroup - 1) / kGroup;
    spec.group = (spec.rows + groups - 1) / groups;
    const bool joined = spec.geglu || beside;
    const int64_t held = spec.in.weight.rows + (joined ? spec.out.in_features : 0);
    spec.out.epilogue.gate_stride = epilogue.gate ? row_stride(epilogue.gate) : 0;
    Sources sources;
    sources.add(x);
    sources.add(in.weight());
    sources.add(out.weight());
    spec.room = sources.add(room(x.graph(), spec.group * held, x));
    spec.in_bias = sources.add(in.bias());
    spec.out_bias = sources.add(out.bias());
    spec.residual = sources.add(epilogue.residual);
    spec.gate = sources.add(epilogue.gate);
    spec.beside = sources.add(beside);
    // Counted for the next operator: not for the room.
    x.graph().add_work(
        x.size(0) * x.size(1) *
        (spec.in.in_features * spec.in.weight.rows + spec.out.in_features * spec.out.weight.rows));
    return {x.graph(),
            custom(x.graph(), {shape[2], shape[1], shape[0]}, sources, spec, run_feed_forward),
            shape};
}

}  // namespace sde::nn
