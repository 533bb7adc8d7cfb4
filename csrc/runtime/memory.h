// Memory of devices: every piece of it is asked for, checked and counted here.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "ggml-backend.h"

namespace sde {

// What is taken on one device, and the most that was.
class MemoryTally {
  public:
    void add(size_t bytes) noexcept;
    void subtract(size_t bytes) noexcept { allocated_ -= bytes; }
    size_t allocated() const noexcept { return allocated_; }
    size_t peak() const noexcept { return peak_; }
    void reset_peak() noexcept { peak_ = allocated_.load(); }

  private:
    std::atomic<size_t> allocated_{0}, peak_{0};
};

// Bytes that are in use on a device for as long as this lives.
class Tallied {
  public:
    Tallied() = default;
    Tallied(std::shared_ptr<MemoryTally> tally, size_t bytes)
        : tally_(std::move(tally)), bytes_(bytes) {
        tally_->add(bytes_);
    }
    Tallied(Tallied&& other) noexcept
        : tally_(std::move(other.tally_)), bytes_(std::exchange(other.bytes_, 0)) {}
    Tallied& operator=(Tallied&& other) noexcept {
        std::swap(tally_, other.tally_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~Tallied() {
        if (tally_) tally_->subtract(bytes_);
    }
    size_t bytes() const noexcept { return bytes_; }

  private:
    std::shared_ptr<MemoryTally> tally_;
    size_t bytes_ = 0;
};

// One piece of memory from a backend. Throws OutOfMemory, saying what it was for.
class Buffer {
  public:
    Buffer(ggml_backend_buffer_type_t type, size_t bytes, std::shared_ptr<MemoryTally> tally,
           const std::string& purpose);
    ~Buffer();
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    ggml_backend_buffer_t raw() const noexcept { return raw_; }
    uint8_t* base() const { return static_cast<uint8_t*>(ggml_backend_buffer_get_base(raw_)); }
    size_t bytes() const noexcept { return tallied_.bytes(); }

  private:
    ggml_backend_buffer_t raw_ = nullptr;
    Tallied tallied_;
};

// Asked before every allocation of memory on a device and of memory to copy from. Throws
// OutOfMemory when a test has so wished.
void before_allocation(const std::string& purpose, size_t bytes);
// Throws OutOfMemory: so many bytes (0: unknown) for `purpose` could not be had.
[[noreturn]] void fail_allocation(const std::string& purpose, size_t bytes);

namespace testing {
// Makes the n-th allocation from now on fail, in whatever thread; with -n all after it, too; 0 ends
// it.
void fail_allocation(int64_t n);
}  // namespace testing

}  // namespace sde
