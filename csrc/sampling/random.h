// Normally distributed numbers, equal bit for bit to torch's generators on the CPU and (up to the last bits of the
// device's sine and logarithm) on CUDA.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sampling/state.h"

namespace sde::sampling {

// A stream of N(0, 1) float32 numbers. Successive draws continue the stream. As in torch, a draw of n numbers is not
// the same as two draws of n/2: the length of every draw is part of the result.
class NormalGenerator {
  public:
    virtual ~NormalGenerator() = default;
    virtual void normal(std::span<float> out) = 0;
    virtual std::unique_ptr<NormalGenerator> clone() const = 0;
    virtual void save(StateWriter& writer) const = 0;
    virtual void load(StateReader& reader) = 0;
};

// MT19937 (Matsumoto and Nishimura 1998), seeded as torch.Generator("cpu").manual_seed does.
class Mt19937 {
  public:
    explicit Mt19937(uint64_t seed);
    uint32_t next();
    void save(StateWriter& writer) const;
    void load(StateReader& reader);

  private:
    static constexpr size_t kWords = 624;
    void refill();
    std::array<uint32_t, kWords> words_;
    size_t used_ = kWords;
};

// torch.randn(n, generator=torch.Generator("cpu").manual_seed(seed)). From 16 numbers on torch transforms blocks of 16
// uniforms in float32; below that it takes pairs in float64 and keeps the second of a pair for the next short draw.
class TorchCpuGenerator final : public NormalGenerator {
  public:
    explicit TorchCpuGenerator(uint64_t seed) : engine_(seed) {}
    void normal(std::span<float> out) override;
    std::unique_ptr<NormalGenerator> clone() const override;
    void save(StateWriter& writer) const override;
    void load(StateReader& reader) override;

  private:
    float uniform();
    double uniform_double();
    float normal_double();
    Mt19937 engine_;
    std::optional<double> spare_;
};

// torch.randn(n, device="cuda") with manual_seed(seed): Philox4x32-10 (Salmon et al. 2011), one counter per thread.
// `max_threads` is the size of the grid on the device (multiprocessors x threads each); 0 stands for a grid that is
// large enough for every draw, which is what web UIs that imitate CUDA assume.
class TorchCudaGenerator final : public NormalGenerator {
  public:
    explicit TorchCudaGenerator(uint64_t seed, uint64_t max_threads = 0)
        : seed_(seed), max_threads_(max_threads) {}
    void normal(std::span<float> out) override;
    std::unique_ptr<NormalGenerator> clone() const override;
    void save(StateWriter& writer) const override;
    void load(StateReader& reader) override;

  private:
    uint64_t seed_;
    uint64_t max_threads_;
    uint64_t offset_ = 0;  // in 128-bit counter values
};

// Ten rounds of Philox4x32 on one counter.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

enum class RandomKind : uint8_t { TorchCpu, TorchCuda };
RandomKind random_kind(std::string_view name);  // "torch-cpu", "torch-cuda"; throws Parameter otherwise

// One generator per image, so that a batch equals the same images run one at a time. Copying copies the streams.
class NormalSource {
  public:
    NormalSource() = default;
    NormalSource(RandomKind kind, const std::vector<uint64_t>& seeds, uint64_t max_threads = 0);
    NormalSource(const NormalSource& other);
    NormalSource& operator=(const NormalSource& other);
    NormalSource(NormalSource&&) noexcept = default;
    NormalSource& operator=(NormalSource&&) noexcept = default;

    size_t images() const { return generators_.size(); }
    const std::vector<uint64_t>& seeds() const { return seeds_; }
    // Fills [images, ...]; the size of `out` must be a multiple of images().
    void normal(std::span<float> out);
    std::vector<float> normal(size_t count);

    void save(StateWriter& writer) const;
    static NormalSource load(StateReader& reader);

  private:
    RandomKind kind_ = RandomKind::TorchCpu;
    uint64_t max_threads_ = 0;
    std::vector<uint64_t> seeds_;
    std::vector<std::unique_ptr<NormalGenerator>> generators_;
};

}  // namespace sde::sampling
