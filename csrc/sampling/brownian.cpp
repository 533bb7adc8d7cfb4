#include "sampling/brownian.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>

#include "base/error.h"
#include "sampling/random.h"

namespace sde::sampling {
namespace {

[[noreturn]] void refuse(const std::string& message) {
    throw Error(ErrorKind::Parameter, message);
}

// Appends the little-endian 32-bit words of a number; 0 has one word.
void append_words(uint64_t number, std::vector<uint32_t>& words) {
    do {
        words.push_back(static_cast<uint32_t>(number));
        number >>= 32;
    } while (number != 0);
}

constexpr uint32_t fold(uint32_t value) {
    return value ^ (value >> 16);
}

// Scrambles one word after another; the multiplier changes from word to word.
struct WordHash {
    uint32_t constant, multiplier;
    uint32_t operator()(uint32_t value) {
        value ^= constant;
        constant *= multiplier;
        return fold(value * constant);
    }
};

// To six decimals, halves to even by the exact value of `time` (a plain multiplication would see
// ties that its own rounding made).
double round_time(double time) {
    constexpr double kUnits = 1e6;
    const double scaled = time * kUnits;
    const double error = std::fma(time, kUnits, -scaled);
    const double low = std::floor(scaled);
    const double above_half = (scaled - low - 0.5) + error;
    const bool up = above_half > 0.0 || (above_half == 0.0 && std::fmod(low, 2.0) != 0.0);
    return (up ? low + 1.0 : low) / kUnits;
}

}  // namespace

uint32_t seed_sequence_word(uint64_t entropy, const std::vector<uint64_t>& spawn_key) {
    constexpr size_t kPool = 24;
    std::vector<uint32_t> words;
    append_words(entropy, words);
    if (!spawn_key.empty()) words.resize(std::max(words.size(), kPool), 0);
    for (uint64_t number : spawn_key) append_words(number, words);

    WordHash hash{0x43b0d7e5u, 0x931e8875u};
    const auto mix = [](uint32_t x, uint32_t y) { return fold(0xca01f9ddu * x - 0x4973f715u * y); };
    std::array<uint32_t, kPool> pool;
    for (size_t i = 0; i < kPool; ++i) pool[i] = hash(i < words.size() ? words[i] : 0);
    for (size_t from = 0; from < kPool; ++from)
        for (size_t to = 0; to < kPool; ++to)
            if (from != to) pool[to] = mix(pool[to], hash(pool[from]));
    for (size_t from = kPool; from < words.size(); ++from)
        for (uint32_t& word : pool) word = mix(word, hash(words[from]));
    return WordHash{0x8b51f9ddu, 0x58f38dedu}(pool[0]);
}

BrownianTree::BrownianTree(uint64_t seed, double start, double end, size_t size,
                           const std::string& kind)
    : seed_(seed), kind_(kind) {
    if (!(end > start && end - start <= 1e6))
        refuse("a Brownian path cannot lead from " + std::to_string(start) + " to " +
               std::to_string(end) + "; the end must lie behind the start, by at most 1000000");
    root_ = {round_time(start), round_time(end), 0, 0};
    total_ = seeded_normal(seed_sequence_word(seed, {}), size);
    const auto deviation = static_cast<float>(std::sqrt(end - start));
    for (float& value : total_) value *= deviation;
}

BrownianTree::Values BrownianTree::seeded_normal(uint32_t seed, size_t size) const {
    Values values(size);
    NormalSource({seed}, kind_).fill(values);
    return values;
}

void BrownianTree::increment(double from, double to, std::span<float> out) {
    if (out.size() != total_.size())
        refuse("a Brownian path of " + std::to_string(total_.size()) + " numbers cannot fill " +
               std::to_string(out.size()));
    if (!(from < to))
        refuse("a Brownian increment cannot lead from " + std::to_string(from) + " to " +
               std::to_string(to) + "; the end must lie behind the start");
    from = round_time(std::clamp(from, root_.start, root_.end));
    to = round_time(std::clamp(to, root_.start, root_.end));
    Values sum;
    if (from < to) collect(root_, total_, from, to, sum);
    sum.resize(out.size());  // zeros when both ends round to the same time
    std::copy(sum.begin(), sum.end(), out.begin());
    before_ = std::exchange(now_, {});
}

// Adds up the largest nodes that tile [from, to], from left to right.
void BrownianTree::collect(const Node& node, const Values& values, double from, double to,
                           Values& sum) {
    if (from == node.start && to == node.end) {
        if (sum.empty()) {
            sum = values;
        } else {
            for (size_t i = 0; i < sum.size(); ++i) sum[i] += values[i];
        }
        return;
    }
    const double middle = round_time(0.5 * (node.end + node.start));
    const Values& left = left_half(node, middle, values);
    if (from < middle) {
        const Node child{node.start, middle, 2 * node.key, node.depth + 1};
        collect(child, left, from, std::min(to, middle), sum);
    }
    if (to > middle) {
        Values right(values.size());
        for (size_t i = 0; i < right.size(); ++i) right[i] = values[i] - left[i];
        const Node child{middle, node.end, 2 * node.key + 1, node.depth + 1};
        collect(child, right, std::max(from, middle), to, sum);
    }
}

// The Brownian bridge: given the increment over a node, that over its left part is normal.
const BrownianTree::Values& BrownianTree::left_half(const Node& node, double middle,
                                                    const Values& values) {
    const NodeName name{node.depth, node.key};
    if (auto known = before_.extract(name)) return now_.insert(std::move(known)).position->second;
    const double left = middle - node.start, right = node.end - middle;
    const double per_width = 1.0 / (node.end - node.start);
    const auto width = static_cast<float>(left);
    const auto share = static_cast<float>(per_width);
    const auto deviation = static_cast<float>(std::sqrt(left * right * per_width));
    Values half = seeded_normal(seed_sequence_word(seed_, {node.key, node.depth}), values.size());
    for (size_t i = 0; i < half.size(); ++i)
        half[i] = width * values[i] * share + deviation * half[i];
    return now_.insert_or_assign(name, std::move(half)).first->second;
}

BrownianNoise::BrownianNoise(const std::vector<uint64_t>& seeds, double sigma_min, double sigma_max,
                             size_t size, const std::string& kind) {
    if (seeds.empty()) refuse("Brownian noise needs a seed per picture");
    for (uint64_t seed : seeds) trees_.emplace_back(seed, sigma_min, sigma_max, size, kind);
}

void BrownianNoise::fill(float sigma, float next, std::span<float> out) {
    const size_t size = trees_.front().size();
    if (out.size() != size * trees_.size())
        refuse("Brownian noise of " + std::to_string(trees_.size()) + " pictures of " +
               std::to_string(size) + " numbers cannot fill " + std::to_string(out.size()));
    const float low = std::min(sigma, next), high = std::max(sigma, next);
    const float scale = (next < sigma ? -1.0f : 1.0f) * std::sqrt(high - low);
    for (size_t i = 0; i < trees_.size(); ++i) {
        const auto picture = out.subspan(i * size, size);
        trees_[i].increment(low, high, picture);
        for (float& value : picture) value /= scale;
    }
}

}  // namespace sde::sampling
