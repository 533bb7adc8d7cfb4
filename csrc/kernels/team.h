// The threads that run one kernel together.
#pragma once

#include <atomic>
#include <cstdint>

namespace sde::kernels {

// State shared by the members of a team for one operator. Every kernel ends with Team::barrier(),
// which starts the item counter again, so one object serves every evaluation of a graph and any
// number of operators one after another.
struct TeamState {
    alignas(64) std::atomic<int64_t> next_item{0};
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<int> generation{0};
    alignas(64) std::atomic<void*> shared{nullptr};
};

// One thread's view: its rank, the team's size, work shared by a counter, and a barrier. All `size`
// members must run the kernel at the same time.
class Team {
  public:
    Team(int rank, int size, TeamState& state) : rank_(rank), size_(size), state_(state) {}
    int rank() const noexcept { return rank_; }
    int size() const noexcept { return size_; }

    // Claims the next work item: 0, 1, 2, ... until `count`, then -1.
    int64_t claim(int64_t count) noexcept {
        const int64_t item = state_.next_item.fetch_add(1, std::memory_order_relaxed);
        return item < count ? item : -1;
    }
    // Waits for every member. Also starts the item counter again from 0.
    void barrier() noexcept;
    // The pointer that member 0 passes, for all members. Contains a barrier. What it points to has
    // to live until the last barrier of the kernel.
    void* share(void* memory) noexcept {
        if (rank_ == 0) state_.shared.store(memory, std::memory_order_relaxed);
        barrier();
        return state_.shared.load(std::memory_order_relaxed);
    }

  private:
    int rank_, size_;
    TeamState& state_;
};

}  // namespace sde::kernels
