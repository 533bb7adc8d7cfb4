#include "kernels/team.h"

#include <thread>

namespace sde::kernels {
namespace {

// Pauses before the waiting thread offers its core to others: some microseconds, the imbalance of a
// good partition.
constexpr int kSpinsBeforeYield = 4096;

inline void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

void Team::barrier() noexcept {
    const int generation = state_.generation.load(std::memory_order_relaxed);
    if (state_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        // The last to arrive: nobody claims any more, and nobody leaves before the generation
        // changes.
        state_.arrived.store(0, std::memory_order_relaxed);
        state_.next_item.store(0, std::memory_order_relaxed);
        state_.generation.store(generation + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; state_.generation.load(std::memory_order_acquire) == generation; ++spins) {
        if (spins < kSpinsBeforeYield)
            pause();
        else
            std::this_thread::yield();
    }
}

}  // namespace sde::kernels
