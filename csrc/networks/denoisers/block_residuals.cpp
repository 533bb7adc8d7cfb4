#include "networks/denoisers/block_residuals.h"

#include <charconv>
#include <optional>

#include "base/error.h"

namespace sde::networks {
namespace {

const char* const kEven = "_of_";
const char* const kInTurns = "_every_";

struct Place {
    size_t index, count;
    bool in_turns;
};

std::optional<size_t> number(const char*& at, const char* end) {
    size_t value = 0;
    const auto [next, error] = std::from_chars(at, end, value);
    if (error != std::errc() || next == at) return std::nullopt;
    at = next;
    return value;
}

// "2_of_5" or "0_every_2"; nothing for other texts.
std::optional<Place> place(const std::string& text) {
    const char *at = text.data(), *end = at + text.size();
    const auto index = number(at, end);
    if (!index) return std::nullopt;
    const std::string rest(at, end);
    for (const char* kind : {kEven, kInTurns}) {
        const std::string word(kind);
        if (rest.rfind(word, 0) != 0) continue;
        at += word.size();
        const auto count = number(at, end);
        if (!count || at != end || *index >= *count) return std::nullopt;
        return Place{*index, *count, kind == kInTurns};
    }
    return std::nullopt;
}

size_t residual_of(size_t block, size_t blocks, const Place& place, BlockResiduals::Spread spread) {
    if (place.in_turns) return block % place.count;
    if (spread == BlockResiduals::Spread::RoundedUp)
        return block / ((blocks + place.count - 1) / place.count);
    return static_cast<size_t>(static_cast<double>(block) /
                               (static_cast<double>(blocks) / static_cast<double>(place.count)));
}

}  // namespace

BlockResiduals::BlockResiduals(Graph& graph, const InputShapes& shapes, const std::string& prefix,
                               size_t blocks, Spread spread, const Shape& shape)
    : of_block_(blocks) {
    for (const auto& [name, given] : shapes) {
        if (name.rfind(prefix, 0) != 0) continue;
        const auto found = place(name.substr(prefix.size()));
        if (!found) continue;
        if (!(given == shape))
            throw Error(ErrorKind::Parameter,
                        "the input '" + name + "' has shape " + given.text() +
                            ", the denoiser's tokens there are " + shape.text() +
                            ". Was the control network made for another family?");
        const nn::Tensor residual = nn::input(graph, name, shape);
        for (size_t block = 0; block < blocks; ++block)
            if (residual_of(block, blocks, *found, spread) == found->index)
                of_block_[block].push_back(residual);
    }
}

nn::Tensor BlockResiduals::added(const nn::Tensor& x, size_t block, int64_t start) const {
    nn::Tensor sum = x;
    for (const nn::Tensor& residual : of_block_[block])
        sum = sum.shape() == residual.shape() ? nn::add(sum, residual)
                                              : nn::add_to_tokens(sum, start, residual);
    return sum;
}

std::string BlockResiduals::name(const std::string& prefix, size_t index, size_t count,
                                 bool in_turns) {
    return prefix + std::to_string(index) + (in_turns ? kInTurns : kEven) + std::to_string(count);
}

}  // namespace sde::networks
