// Normal noise, equal to what torch's generators give for the same seed.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "sampling/philox.h"

namespace sde::sampling {

// torch.Generator("cpu").manual_seed(seed) followed by torch.randn(..., generator=g) in float32,
// bit for bit.
class TorchCpuNormal {
  public:
    explicit TorchCpuNormal(uint64_t seed);

    // One torch.randn call of out.size() values. Successive calls continue the stream.
    void fill(std::span<float> out);

    // The complete state as bytes, and back; the stream goes on bit for bit.
    std::string save() const;
    void restore(const std::string& state);

  private:
    void twist();  // the next 624 words
    uint32_t next_bits();
    float next_uniform();     // [0, 1), 24 bits
    double next_uniform64();  // [0, 1), 53 bits
    double next_normal();

    static constexpr int kWords = 624;
    std::array<uint32_t, kWords> words_;
    int position_ = kWords;
    std::optional<double>
        second_;  // Box-Muller makes two; torch keeps the other for the next short call
};

// One generator per picture, seeded seed, seed + 1, ...: a batch equals single runs.
class NormalSource {
  public:
    // `kind`: "torch-cpu" or "torch-cuda"; throws Parameter for another one.
    explicit NormalSource(const std::vector<uint64_t>& seeds,
                          const std::string& kind = "torch-cpu");

    // Fills [N, size] noise, N = number of seeds; out.size() must be a multiple of N.
    void fill(std::span<float> out);
    std::string save() const;
    void restore(const std::string& state);

    const std::vector<uint64_t>& seeds() const noexcept { return seeds_; }
    const std::string& kind() const noexcept { return kind_; }

  private:
    std::vector<uint64_t> seeds_;
    std::string kind_;
    std::vector<std::variant<TorchCpuNormal, TorchCudaNormal>> generators_;
};

}  // namespace sde::sampling
