#include "sampling/philox.h"

#include <array>
#include <cmath>
#include <cstring>
#include <numbers>

#include "base/error.h"

namespace sde::sampling {
namespace {

// Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four random
// words that depend on nothing but a counter and a key.
using Words = std::array<uint32_t, 4>;

Words philox(Words counter, uint64_t key) {
    auto low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
        const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
        counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ low, static_cast<uint32_t>(b),
                   static_cast<uint32_t>(a >> 32) ^ counter[3] ^ high, static_cast<uint32_t>(a)};
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
    return counter;
}

// Box-Muller as cuRAND has it: words to the middles of 2^32 even parts of (0, 1) and of a turn, in
// float32, and the sine first.
float normal(uint32_t radius_word, uint32_t angle_word) {
    constexpr float kPart = 0x1p-32f;
    constexpr auto kTurn = static_cast<float>(2.0 * std::numbers::pi * 0x1p-32);
    const float uniform = std::fma(static_cast<float>(radius_word), kPart, kPart / 2);
    const float angle = std::fma(static_cast<float>(angle_word), kTurn, kTurn / 2);
    return static_cast<float>(std::sqrt(-2.0 * std::log(static_cast<double>(uniform))) *
                              std::sin(static_cast<double>(angle)));
}

}  // namespace

void TorchCudaNormal::fill(std::span<float> out) {
    // Each value is the first of its thread's sequence; a call takes four words from each.
    for (size_t i = 0; i < out.size(); ++i) {
        const uint64_t thread = i;
        const Words words =
            philox({static_cast<uint32_t>(calls_), static_cast<uint32_t>(calls_ >> 32),
                    static_cast<uint32_t>(thread), static_cast<uint32_t>(thread >> 32)},
                   seed_);
        out[i] = normal(words[0], words[1]);
    }
    if (!out.empty()) ++calls_;
}

std::string TorchCudaNormal::save() const {
    std::string state(sizeof(calls_), '\0');
    std::memcpy(state.data(), &calls_, sizeof(calls_));
    return state;
}

void TorchCudaNormal::restore(const std::string& state) {
    if (state.size() != sizeof(calls_))
        throw Error(ErrorKind::Format, "a saved random state has the wrong length");
    std::memcpy(&calls_, state.data(), sizeof(calls_));
}

}  // namespace sde::sampling
