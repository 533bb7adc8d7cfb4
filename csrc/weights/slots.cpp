#include "weights/slots.h"

#include <cstring>

#include "base/error.h"
#include "weights/parallel.h"

namespace sde {
namespace {

constexpr const char* kPurpose = "weights on their way through the device";

// The processor copies into pinned memory with several threads: one alone is slower than the bus.
void copy_to_staging(uint8_t* to, const void* from, size_t bytes) {
    constexpr int kThreads = 4;
    constexpr int64_t kStep = 4 << 20;  // a thread's start costs what copying some 100 KB does
    in_parallel(static_cast<int64_t>(bytes), kStep, kThreads, [&](int64_t begin, int64_t end) {
        std::memcpy(to + begin, static_cast<const uint8_t*>(from) + begin,
                    static_cast<size_t>(end - begin));
    });
}

}  // namespace

size_t placed_bytes(ggml_backend_buffer_type_t type, const ggml_tensor& tensor) {
    const size_t alignment = ggml_backend_buft_get_alignment(type);
    return (ggml_backend_buft_get_alloc_size(type, &tensor) + alignment - 1) / alignment *
           alignment;
}

ggml_tensor placed_at(const ggml_tensor& header, const Buffer& buffer, uint8_t* address) {
    ggml_tensor placed = header;
    placed.buffer = nullptr;
    placed.data = nullptr;
    if (ggml_backend_tensor_alloc(buffer.raw(), &placed, address) != GGML_STATUS_SUCCESS)
        throw Error(ErrorKind::Device,
                    "the device refused the parameter '" + std::string(header.name) + "'");
    return placed;
}

Slots::Slots(std::shared_ptr<Device> device, Sizes sizes)
    : device_(std::move(device)), copier_(device_->copier()) {
    for (int i = 0; i < kCount; ++i) {
        if (sizes[i] == 0) continue;
        Slot& slot = slots_[i];
        slot.buffer =
            std::make_unique<Buffer>(device_->buffer_type(), sizes[i], device_->tally(), kPurpose);
        ggml_backend_buffer_set_usage(slot.buffer->raw(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        if (size_t bytes = copier_ ? sizes[i] : 0)
            slot.staging = std::make_unique<Buffer>(device_->staging_type(), bytes,
                                                    device_->host_tally(), kPurpose);
    }
    if (!copier_) return;
    for (Slot& slot : slots_) {
        slot.loaded = ggml_backend_event_new(ggml_backend_get_device(copier_));
        slot.computed = ggml_backend_event_new(ggml_backend_get_device(copier_));
    }
}

Slots::~Slots() {
    if (copier_) ggml_backend_synchronize(copier_);
    device_->wait();
    for (Slot& slot : slots_) {
        if (slot.loaded) ggml_backend_event_free(slot.loaded);
        if (slot.computed) ggml_backend_event_free(slot.computed);
    }
}

bool Slots::hold(const Sizes& sizes) const {
    for (int i = 0; i < kCount; ++i)
        if (sizes[i] > (slots_[i].buffer ? slots_[i].buffer->bytes() : 0)) return false;
    return true;
}

size_t Slots::staging_bytes(const Device& device, const Sizes& sizes) {
    return device.copies_beside() ? sizes[0] + sizes[1] : 0;
}

void Slots::wait_until_free(Slot& slot) {
    if (copier_) {
        if (slot.is_read) ggml_backend_event_synchronize(slot.computed);
        if (slot.is_loading) ggml_backend_event_synchronize(slot.loaded);
    } else if (slot.is_read) {
        device_->wait();
    }
    slot.is_read = slot.is_loading = false;
}

void Slots::load(int index, const Contents& contents, const std::vector<ggml_tensor*>& weights,
                 const std::vector<HostValues>& values) {
    Slot& slot = slots_[index];
    if (!slot.buffer || slot.contents == contents) return;
    wait_until_free(slot);
    slot.contents = {};  // what is there is overwritten
    uint8_t* address = slot.buffer->base();
    size_t staged = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
        ggml_tensor placed = placed_at(*weights[i], *slot.buffer, address);
        const auto [data, bytes] = values[i];
        if (copier_) {
            uint8_t* staging = slot.staging->base() + staged;
            copy_to_staging(staging, data, bytes);
            ggml_backend_tensor_set_async(copier_, &placed, staging, 0, bytes);
        } else {
            ggml_backend_tensor_set(&placed, data, 0, bytes);
        }
        address += placed_bytes(device_->buffer_type(), *weights[i]);
        staged += bytes;
    }
    if (copier_) ggml_backend_event_record(slot.loaded, copier_);
    slot.is_loading = copier_ != nullptr;
    slot.contents = contents;
}

void Slots::before_compute(int index) {
    if (slots_[index].is_loading) ggml_backend_event_wait(device_->backend(), slots_[index].loaded);
}

void Slots::after_compute(int index) {
    slots_[index].is_read = true;
    if (copier_) ggml_backend_event_record(slots_[index].computed, device_->backend());
}

}  // namespace sde
