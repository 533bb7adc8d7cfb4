#include "nn/windows.h"

#include <cstring>
#include <limits>

#include "nn/check.h"
#include "nn/custom.h"
#include "nn/portable/portable.h"

namespace sde::nn {
namespace {

// A picture of tokens and the windows it is parted into.
struct Parting {
    int64_t batch, height, width, channels, window, shift;

    int64_t down() const { return height / window; }
    int64_t across() const { return width / window; }
    int64_t windows() const { return batch * down() * across(); }
};

struct PartingSpec {
    Parting parting;
    bool together;  // true: from windows back to a picture
};

// Copies the tokens of each row of each window from, or to, their places in the picture.
void run_parting(PartingSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    const Parting& p = spec.parting;
    const float* in = source(dst, 0);
    auto* out = static_cast<float*>(dst->data);
    const auto bytes = static_cast<size_t>(p.channels) * sizeof(float);
    const int64_t rows = p.windows() * p.window;
    const int64_t end = rows * (team.rank() + 1) / team.size();
    for (int64_t row = rows * team.rank() / team.size(); row < end; ++row) {
        const int64_t window = row / p.window, picture = window / (p.down() * p.across());
        const int64_t top = window / p.across() % p.down() * p.window + row % p.window;
        const int64_t left = window % p.across() * p.window;
        const int64_t y = (top + p.shift) % p.height;
        for (int64_t i = 0; i < p.window; ++i) {
            const int64_t x = (left + i + p.shift) % p.width;
            const int64_t at = ((picture * p.height + y) * p.width + x) * p.channels;
            const int64_t parted = (row * p.window + i) * p.channels;
            if (spec.together)
                std::memcpy(out + at, in + parted, bytes);
            else
                std::memcpy(out + parted, in + at, bytes);
        }
    }
}

// The point of the picture that stands at each place of the windows, one behind the other.
std::vector<int32_t> places_in_picture(const Parting& p) {
    std::vector<int32_t> out;
    for (int64_t i = 0; i < p.windows() * p.window * p.window; ++i) {
        const int64_t window = i / (p.window * p.window),
                      picture = window / (p.down() * p.across());
        const int64_t row = i / p.window % p.window, column = i % p.window;
        const int64_t y = window / p.across() % p.down() * p.window + row + p.shift;
        const int64_t x = window % p.across() * p.window + column + p.shift;
        out.push_back(
            static_cast<int32_t>((picture * p.height + y % p.height) * p.width + x % p.width));
    }
    return out;
}

Tensor parted(const Tensor& x, const Parting& parting, bool together) {
    const Shape shape =
        together ? Shape{parting.batch, parting.height * parting.width, parting.channels}
                 : Shape{parting.windows(), parting.window * parting.window, parting.channels};
    if (x.graph().is_portable()) {
        const std::vector<int32_t> order = places_in_picture(parting);
        std::vector<int32_t> back(order.size());
        for (size_t i = 0; i < order.size(); ++i) back[order[i]] = static_cast<int32_t>(i);
        ggml_tensor* points = ggml_reshape_2d(x.graph().context(), x.raw(), parting.channels,
                                              x.shape().elements() / parting.channels);
        return portable::take_rows(x.graph(), points, together ? back : order, shape);
    }
    Sources sources;
    sources.add(x);
    return {x.graph(),
            custom(x.graph(), {shape[2], shape[1], shape[0]}, sources,
                   PartingSpec{parting, together}, run_parting),
            shape};
}

// Windows differ in what they may see only by whether they lie at the lower and at the right edge:
// bit 1 is the lower edge, bit 0 the right one.
constexpr int64_t kPlaces = 4;

std::vector<int32_t> places(const Parting& p) {
    std::vector<int32_t> found;
    for (int64_t i = 0; i < p.windows(); ++i) {
        const bool low = i / p.across() % p.down() == p.down() - 1;
        const bool right = i % p.across() == p.across() - 1;
        found.push_back(p.shift ? 2 * low + right : 0);
    }
    return found;
}

struct BiasSpec {
    int64_t heads, window, shift, places;

    // The row of the table for a query and a key of a window.
    int64_t entry(int64_t query, int64_t key) const {
        const int64_t down = query / window - key / window, across = query % window - key % window;
        return (down + window - 1) * (2 * window - 1) + across + window - 1;
    }
};

// Whether two points of a window at an edge come from the same side of the picture.
bool same_side(int64_t a, int64_t b, const BiasSpec& spec) {
    const int64_t kept = spec.window - spec.shift;
    return (a < kept) == (b < kept);
}

// Whether the window at this place sees a key from a query.
bool sees(int64_t place, int64_t query, int64_t key, const BiasSpec& spec) {
    const int64_t w = spec.window;
    return (!(place & 2) || same_side(query / w, key / w, spec)) &&
           (!(place & 1) || same_side(query % w, key % w, spec));
}

void run_bias(BiasSpec spec, const ggml_tensor* dst, kernels::Team& team) {
    constexpr float kHidden = -std::numeric_limits<float>::infinity();
    const float* table = source(dst, 0);
    auto* out = static_cast<float*>(dst->data);
    const int64_t tokens = spec.window * spec.window, rows = spec.places * spec.heads * tokens;
    const int64_t end = rows * (team.rank() + 1) / team.size();
    for (int64_t row = rows * team.rank() / team.size(); row < end; ++row) {
        const int64_t place = row / tokens / spec.heads, head = row / tokens % spec.heads;
        for (int64_t key = 0; key < tokens; ++key) {
            const float bias = table[spec.entry(row % tokens, key) * spec.heads + head];
            out[row * tokens + key] = sees(place, row % tokens, key, spec) ? bias : kHidden;
        }
    }
}

// The same in plain operators: the table's rows in the order of the scores, and what is hidden.
ggml_tensor* portable_bias(Graph& graph, ggml_tensor* table, const BiasSpec& spec) {
    const int64_t tokens = spec.window * spec.window, scores = tokens * tokens;
    std::vector<int32_t> entries;
    for (int64_t i = 0; i < scores; ++i)
        entries.push_back(static_cast<int32_t>(spec.entry(i / tokens, i % tokens)));
    std::vector<float> hidden;
    for (int64_t i = 0; i < spec.places * scores; ++i) {
        const bool seen = sees(i / scores, i / tokens % tokens, i % tokens, spec);
        hidden.push_back(seen ? 0.0f : portable::kHidden);
    }
    ggml_context* context = graph.context();
    ggml_tensor* rows = portable::take_rows(graph, table, entries, Shape{scores, spec.heads}).raw();
    ggml_tensor* by_head = ggml_cont(context, ggml_transpose(context, rows));
    ggml_tensor* all = ggml_repeat_4d(context, by_head, scores, spec.heads, spec.places, 1);
    all = ggml_add(context, all,
                   graph.add_constant(GGML_TYPE_F32, {scores, 1, spec.places}, hidden.data()));
    return ggml_reshape_3d(context, all, tokens, tokens, spec.heads * spec.places);
}

}  // namespace

WindowAttention::WindowAttention(const Scope& scope, int64_t width, int64_t heads, int64_t window)
    : width_(width),
      heads_(heads),
      window_(window),
      qkv_(scope / "qkv", width, 3 * width),
      proj_(scope / "proj", width, width),
      table_(scope.matrix("relative_position_bias_table",
                          Shape{(2 * window - 1) * (2 * window - 1), heads})) {
    if (window < 1 || heads < 1 || width % heads != 0)
        throw Error(ErrorKind::Parameter,
                    "windows of " + std::to_string(window) + " points cannot be attended to by " +
                        std::to_string(heads) + " heads of " + std::to_string(width) + " channels");
}

Tensor WindowAttention::bias(Graph& graph, int64_t shift) const {
    const BiasSpec spec{heads_, window_, shift, shift ? kPlaces : 1};
    const int64_t tokens = window_ * window_;
    const Shape shape{spec.places * heads_, tokens, tokens};
    if (graph.is_portable()) return {graph, portable_bias(graph, table_, spec), shape};
    Sources sources;
    sources.add(ggml_cast(graph.context(), table_, GGML_TYPE_F32));
    return {graph, custom(graph, {tokens, tokens, shape[0]}, sources, spec, run_bias), shape};
}

Tensor WindowAttention::operator()(const Tensor& x, int64_t height, int64_t width,
                                   int64_t shift) const {
    expect(x.rank() == 3 && x.size(1) == height * width && x.size(2) == width_ &&
               height % window_ == 0 && width % window_ == 0,
           "windows of " + std::to_string(window_) + " take the tokens of a picture of " +
               std::to_string(height) + " x " + std::to_string(width),
           x);
    expect(shift >= 0 && shift < window_, "windows are shifted by less than their size", x);
    const Parting parting{x.size(0), height, width, width_, window_, shift};
    const Tensor qkv = qkv_(parted(x, parting, false));
    const Tensor attended =
        attention(slice_last(qkv, 0, width_), slice_last(qkv, width_, width_),
                  slice_last(qkv, 2 * width_, width_),
                  {.heads = heads_, .mask = bias(x.graph(), shift), .mask_index = places(parting)});
    return parted(proj_(attended), parting, true);
}

}  // namespace sde::nn
