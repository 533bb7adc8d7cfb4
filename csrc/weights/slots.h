// Two places on a device that hold the weights of one segment each, in turn.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/device.h"

namespace sde {

// Where values lie in host memory, and how many bytes.
using HostValues = std::pair<const void*, size_t>;

// Bytes that a tensor takes in a buffer of this type, up to where the next one may begin.
size_t placed_bytes(ggml_backend_buffer_type_t type, const ggml_tensor& tensor);
// A copy of a header that lies at an address of a buffer, to move values with.
ggml_tensor placed_at(const ggml_tensor& header, const Buffer& buffer, uint8_t* address);

class Slots {
  public:
    static constexpr int kCount = 2;
    using Sizes = std::array<size_t, kCount>;

    // Takes the memory; throws OutOfMemory.
    Slots(std::shared_ptr<Device> device, Sizes sizes);
    ~Slots();
    Slots(const Slots&) = delete;
    Slots& operator=(const Slots&) = delete;

    // Whether the slots are as large as this, or larger.
    bool hold(const Sizes& sizes) const;
    // Bytes of pinned memory that go with slots on `device`.
    static size_t staging_bytes(const Device& device, const Sizes& sizes);

    // Which contents a slot has: a segment of a graph, with the values of a time.
    struct Contents {
        uint64_t cut = 0, segment = 0, values = 0;
        bool operator==(const Contents&) const = default;
    };
    // Brings weights into a slot, after the operators that read what was there; it may go on
    // afterwards.
    void load(int slot, const Contents& contents, const std::vector<ggml_tensor*>& weights,
              const std::vector<HostValues>& values);
    // The buffer, and the address of its first weight; the others follow at placed_bytes.
    const Buffer& buffer(int slot) const { return *slots_[slot].buffer; }

    // Operators that are begun next read the slot; and: those begun last did.
    void before_compute(int slot);
    void after_compute(int slot);

  private:
    struct Slot {
        std::unique_ptr<Buffer> buffer, staging;
        ggml_backend_event_t loaded = nullptr, computed = nullptr;
        bool is_loading = false, is_read = false;
        Contents contents;
    };
    void wait_until_free(Slot& slot);

    std::shared_ptr<Device> device_;
    ggml_backend_t copier_;
    std::array<Slot, kCount> slots_;
};

}  // namespace sde
