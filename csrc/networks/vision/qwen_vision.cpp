#include "networks/vision/qwen_vision.h"

#include <algorithm>

#include "base/error.h"
#include "nn/text.h"

namespace sde::networks {
namespace {

constexpr float kEps = 1e-6f;
constexpr double kTheta = 10000;  // of the rotary positions
constexpr int64_t kCell = 2;      // patches of a cell along each side
constexpr int64_t kCellArea = kCell * kCell;

nn::Conv2dOptions patches(const Config& config) {
    const int size = static_cast<int>(config["patch_size"].integer());
    return {.kernel = size, .stride = size, .bias = false, .pad = false};
}

// Sides of windows along one side of a picture: full ones, then what is left.
struct Sides {
    int64_t full, rest;
    Sides(int64_t cells, int64_t window) : full(cells / window), rest(cells % window) {}
};

}  // namespace

QwenVision::Block::Block(const nn::Scope& scope, const Config& config)
    : heads_(config["heads"].integer()),
      head_dim_(config["hidden_size"].integer() / heads_),
      norm1_(scope / "norm1", config["hidden_size"].integer(), kEps),
      norm2_(scope / "norm2", config["hidden_size"].integer(), kEps),
      q_(scope / "attn" / "q", heads_ * head_dim_, heads_ * head_dim_),
      k_(scope / "attn" / "k", heads_ * head_dim_, heads_ * head_dim_),
      v_(scope / "attn" / "v", heads_ * head_dim_, heads_ * head_dim_),
      proj_(scope / "attn" / "proj", heads_ * head_dim_, heads_ * head_dim_),
      gate_(scope / "mlp" / "gate_proj", heads_ * head_dim_, config["intermediate_size"].integer()),
      up_(scope / "mlp" / "up_proj", heads_ * head_dim_, config["intermediate_size"].integer()),
      down_(scope / "mlp" / "down_proj", config["intermediate_size"].integer(),
            heads_ * head_dim_) {}

nn::Tensor QwenVision::Block::attend(const nn::Tensor& q, const nn::Tensor& k, const nn::Tensor& v,
                                     const std::vector<Windows>& windows) const {
    if (windows.empty()) return nn::attention(q, k, v, {.heads = heads_});
    std::vector<nn::Tensor> parts;
    int64_t start = 0;
    for (const Windows& group : windows) {
        const int64_t count = group.count * group.tokens;
        const auto apart = [&](const nn::Tensor& x) {
            return nn::reshape(nn::slice_tokens(x, start, count),
                               Shape{group.count, group.tokens, heads_ * head_dim_});
        };
        const nn::Tensor attended = nn::attention(apart(q), apart(k), apart(v), {.heads = heads_});
        parts.push_back(nn::reshape(attended, Shape{1, count, heads_ * head_dim_}));
        start += count;
    }
    return nn::concat_tokens(parts);
}

nn::Tensor QwenVision::Block::operator()(const nn::Tensor& x, const nn::Tensor& rotary,
                                         const std::vector<Windows>& windows) const {
    nn::Tensor h = norm1_(x);
    const nn::Tensor attended = attend(nn::rotate(q_(h), rotary, head_dim_, false),
                                       nn::rotate(k_(h), rotary, head_dim_, false), v_(h), windows);
    const nn::Tensor after = proj_(attended, {.residual = x});
    h = norm2_(after);
    const nn::Tensor gate = gate_(h, {.activation = nn::Activation::Silu});
    return down_(nn::multiply(gate, up_(h)), {.residual = after});
}

QwenVision::QwenVision(const nn::Scope& scope, const Config& config)
    : width_(config["hidden_size"].integer()),
      head_dim_(width_ / std::max<int64_t>(1, config["heads"].integer())),
      patch_(config["patch_size"].integer()),
      window_(config["window_cells"].integer()),
      whole_(config["whole_layers"].integers()),
      first_frame_(scope / "patch_embed" / 0, 3, width_, patches(config)),
      second_frame_(scope / "patch_embed" / 1, 3, width_, patches(config)),
      blocks_([&] {
          constexpr int64_t kPairs = 4;  // half a head for rows, half for columns, in pairs
          if (head_dim_ % kPairs || head_dim_ * config["heads"].integer() != width_ ||
              window_ < 1 || patch_ < 1)
              throw Error(ErrorKind::Parameter,
                          "a vision encoder parts its width into heads of multiples of 4, and its "
                          "pictures into windows");
          std::vector<Block> blocks;
          for (int i = 0; i < config["layers"].integer(); ++i)
              blocks.emplace_back(scope / "blocks" / i, config);
          return blocks;
      }()),
      merger_norm_(scope / "merger" / "ln_q", width_, kEps),
      merger_in_(scope / "merger" / "mlp" / 0, kCellArea * width_, kCellArea * width_),
      merger_out_(scope / "merger" / "mlp" / 2, kCellArea * width_, config["out_width"].integer()) {
}

QwenVision::Order QwenVision::order(int64_t rows, int64_t columns) const {
    const Sides down(rows, window_), across(columns, window_);
    Order order;
    order.cells.resize(static_cast<size_t>(rows * columns));
    int32_t place = 0;
    const auto add_cell = [&](int64_t y, int64_t x) {
        order.cells[static_cast<size_t>(y * columns + x)] = place++;
        for (int64_t i = 0; i < kCellArea; ++i) {
            const int64_t row = y * kCell + i / kCell, column = x * kCell + i % kCell;
            order.patches.push_back(static_cast<int32_t>(row * columns * kCell + column));
            order.positions.push_back({static_cast<float>(row), static_cast<float>(column)});
        }
    };
    // `high` x `wide` cells each, from the window (top, left) on.
    const auto add_windows = [&](int64_t top, int64_t many, int64_t high, int64_t left,
                                 int64_t more, int64_t wide) {
        if (many * high == 0 || more * wide == 0) return;
        for (int64_t i = 0; i < many * more; ++i)
            for (int64_t cell = 0; cell < high * wide; ++cell)
                add_cell((top + i / more) * window_ + cell / wide,
                         (left + i % more) * window_ + cell % wide);
        order.windows.push_back({many * more, high * wide * kCellArea});
    };
    add_windows(0, down.full, window_, 0, across.full, window_);
    add_windows(0, down.full, window_, across.full, 1, across.rest);
    add_windows(down.full, 1, down.rest, 0, across.full, window_);
    add_windows(down.full, 1, down.rest, across.full, 1, across.rest);
    return order;
}

void QwenVision::forward(Graph& graph, const InputShapes& shapes, const Options&) const {
    const Shape& shape = required(shapes, "pixels", 4);
    const int64_t side = kCell * patch_, rows = shape[2] / side, columns = shape[3] / side;
    if (!(shape == Shape{1, 3, rows * side, columns * side}))
        throw Error(ErrorKind::Parameter,
                    "the vision encoder reads one picture [1, 3, height, width], both sides "
                    "multiples of " +
                        std::to_string(side) + ", not " + shape.text());
    const Order order = this->order(rows, columns);
    const nn::Tensor pixels = nn::input(graph, "pixels", shape);
    nn::Tensor x = nn::tokens(second_frame_(pixels, {.residual = first_frame_(pixels)}));
    const int64_t count = x.size(1);
    const Shape whole{1, count, width_};
    x = nn::reshape(nn::take_rows(x, nn::constant_ids(graph, order.patches)), whole);
    const nn::Tensor rotary = nn::reshape(
        nn::rotary_constant(graph, order.positions, {head_dim_ / 2, head_dim_ / 2}, kTheta),
        Shape{1, count, head_dim_});
    for (size_t i = 0; i < blocks_.size(); ++i) {
        const bool sees_all = std::count(whole_.begin(), whole_.end(), static_cast<int64_t>(i)) > 0;
        x = blocks_[i](x, rotary, sees_all ? std::vector<Windows>{} : order.windows);
    }
    const Shape cells{1, count / kCellArea, kCellArea * width_};
    x = merger_in_(nn::reshape(merger_norm_(x), cells), {.activation = nn::Activation::Gelu});
    x = merger_out_(x);
    const nn::Tensor in_order = nn::take_rows(x, nn::constant_ids(graph, order.cells));
    nn::output("tokens", nn::reshape(in_order, x.shape()));
}

}  // namespace sde::networks
