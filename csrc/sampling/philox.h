// Normal noise as torch's CUDA generator draws it.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace sde::sampling {

// torch.Generator("cuda").manual_seed(seed) followed by torch.randn(..., generator=g) in float32,
// on a GPU that runs a thread for every value. Equal but for the last bits of that GPU's logarithm
// and sine.
class TorchCudaNormal {
  public:
    explicit TorchCudaNormal(uint64_t seed) : seed_(seed) {}

    // One torch.randn call of out.size() values. Successive calls continue the stream.
    void fill(std::span<float> out);

    // The complete state as bytes, and back; the stream goes on bit for bit.
    std::string save() const;
    void restore(const std::string& state);

  private:
    uint64_t seed_;
    uint64_t calls_ = 0;
};

}  // namespace sde::sampling
