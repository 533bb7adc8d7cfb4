// Where the time of a graph goes, operator by operator.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace sde {

// One operator of one evaluation.
struct OperatorTime {
    std::string kind;       // "conv2d", "linear", "attention", ..., or ggml's name
    std::string parameter;  // the matrix that it multiplies by, or the last one before it
    double begin = 0;       // seconds of a steady clock
    double seconds = 0;
    int64_t multiply_adds = 0;
    int64_t bytes = 0;  // of its operands and its result
};

class Profile {
  public:
    void add(OperatorTime time) {
        std::lock_guard lock(mutex_);
        times_.push_back(std::move(time));
    }
    // What was added since the last call.
    std::vector<OperatorTime> take() {
        std::lock_guard lock(mutex_);
        return std::exchange(times_, {});
    }

  private:
    std::mutex mutex_;
    std::vector<OperatorTime> times_;
};

}  // namespace sde
