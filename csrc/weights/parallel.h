// Splitting rows over short-lived threads, for work that happens once (loading and converting).
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace sde {

// Calls work(begin, end) on parts of [0, count) that start at multiples of `step`. An exception in
// one of them comes out when all have ended; where no thread can be started, the caller does the
// work itself.
template <class Work>
void in_parallel(int64_t count, int64_t step, int threads, Work work) {
    const int64_t steps = (count + step - 1) / step;
    const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
    const int64_t parts = std::clamp<int64_t>(steps, 1, std::clamp<int64_t>(threads, 1, cores));
    std::exception_ptr failure;
    std::mutex mutex;
    const auto run = [&](int64_t part) {
        try {
            work(steps * part / parts * step, std::min(count, steps * (part + 1) / parts * step));
        } catch (...) {
            const std::lock_guard lock(mutex);
            failure = std::current_exception();
        }
    };
    std::vector<std::thread> team;
    team.reserve(static_cast<size_t>(parts));
    std::vector<int64_t> left{0};  // parts that the caller does
    left.reserve(static_cast<size_t>(parts));
    for (int64_t part = 1; part < parts; ++part) {
        try {
            team.emplace_back(run, part);
        } catch (const std::system_error&) {
            left.push_back(part);
        }
    }
    for (int64_t part : left) run(part);
    for (std::thread& thread : team) thread.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace sde
