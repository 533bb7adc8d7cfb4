// Splitting rows over short-lived threads, for work that happens once (loading and converting).
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace sde {

// Calls work(begin, end) on parts of [0, count) that start at multiples of `step`.
template <class Work>
void in_parallel(int64_t count, int64_t step, int threads, Work work) {
    const int64_t steps = (count + step - 1) / step;
    const int64_t used = std::clamp<int64_t>(steps, 1, threads);
    std::vector<std::thread> team;
    for (int64_t i = 1; i < used; ++i)
        team.emplace_back(
            [=] { work(steps * i / used * step, std::min(count, steps * (i + 1) / used * step)); });
    work(0, std::min(count, steps / used * step));
    for (std::thread& thread : team) thread.join();
}

}  // namespace sde
