#include "runtime/memory.h"

#include <algorithm>

#include "base/error.h"
#include "runtime/failing.h"

namespace sde {
namespace {

// Those to come before the first that fails; below zero all after it fail, too.
std::atomic<int64_t> until_failure{0};

bool is_to_fail() {
    int64_t left = until_failure;
    while (left != 0) {
        const int64_t next = left > 0 ? left - 1 : std::min<int64_t>(left + 1, -1);
        if (until_failure.compare_exchange_weak(left, next)) return left == 1 || left == -1;
    }
    return false;
}

std::string megabytes(size_t bytes) {
    constexpr size_t kMiB = size_t{1} << 20;
    if (bytes < kMiB) return std::to_string(bytes) + " bytes";
    return std::to_string((bytes + kMiB - 1) / kMiB) + " MiB";
}

}  // namespace

void MemoryTally::add(size_t bytes) noexcept {
    const size_t now = allocated_ += bytes;
    size_t most = peak_;
    while (most < now && !peak_.compare_exchange_weak(most, now)) {
    }
}

Buffer::Buffer(ggml_backend_buffer_type_t type, size_t bytes, std::shared_ptr<MemoryTally> tally,
               const std::string& purpose) {
    before_allocation(purpose, bytes);
    raw_ = ggml_backend_buft_alloc_buffer(type, bytes);
    if (!raw_) fail_allocation(purpose, bytes);
    tallied_ = Tallied(std::move(tally), bytes);
}

Buffer::~Buffer() {
    ggml_backend_buffer_free(raw_);
}

void before_allocation(const std::string& purpose, size_t bytes) {
    if (is_to_fail()) fail_allocation(purpose, bytes);
}

void fail_allocation(const std::string& purpose, size_t bytes) {
    throw Error(ErrorKind::OutOfMemory,
                "no memory for " + purpose + (bytes ? ", " + megabytes(bytes) : "") +
                    "; use a smaller width, height or batch_size, or another residency of the "
                    "weights (offload, stream)");
}

namespace testing {

void fail_allocation(int64_t n) {
    until_failure = n;
}

int64_t allocations_until_failure() {
    return until_failure;
}

}  // namespace testing
}  // namespace sde
