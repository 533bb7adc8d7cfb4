#include "bindings/bindings.h"
#include "ggml.h"

namespace {

// ggml reports what it does; what goes wrong reaches the caller as an exception instead.
void discard_log(ggml_log_level, const char*, void*) {}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "The native core of sdengine.";
    m.attr("__version__") = SDENGINE_VERSION;
    m.attr("ggml_version") = ggml_version();
    ggml_log_set(discard_log, nullptr);
    sde::bindings::bind_errors(m);
    sde::bindings::bind_adapters(m);
    sde::bindings::bind_weights(m);
    sde::bindings::bind_backends(m);
    sde::bindings::bind_networks(m);
    sde::bindings::bind_schedules(m);
    sde::bindings::bind_stages(m);
    sde::bindings::bind_kernels(m);
    sde::bindings::bind_sampling(m);
}
