// Long native calls: without the GIL, stopped by a token or by Ctrl-C.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>

#include "base/cancel.h"
#include "base/error.h"
#include "runtime/device.h"

namespace sde::bindings {

// Calls work(cancel_check) with the GIL released. In the main thread Python's signal handlers run
// every now and then; what they raise (KeyboardInterrupt) comes out.
template <class Work>
auto without_gil(const CancelToken* token, Work work) {
    namespace py = pybind11;
    constexpr auto kBetweenLooks = std::chrono::milliseconds(100);
    bool raised = false;
    auto last = std::chrono::steady_clock::now();
    const CancelCheck check = [&] {
        if (token && token->cancelled()) return true;
        const auto now = std::chrono::steady_clock::now();
        if (now - last < kBetweenLooks) return false;
        last = now;
        const py::gil_scoped_acquire acquire;
        raised = PyErr_CheckSignals() != 0;
        return raised;
    };
    const py::gil_scoped_release release;
    try {
        return work(check);
    } catch (const Error&) {
        if (!raised) throw;
    }
    const py::gil_scoped_acquire acquire;
    throw py::error_already_set();
}

}  // namespace sde::bindings
