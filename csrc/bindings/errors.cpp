#include <new>

#include "base/error.h"
#include "bindings/bindings.h"

namespace py = pybind11;

namespace sde::bindings {
namespace {

const char* class_name(ErrorKind kind) {
    switch (kind) {
        case ErrorKind::Format:
            return "FormatError";
        case ErrorKind::UnsupportedModel:
            return "UnsupportedModelError";
        case ErrorKind::Weights:
            return "WeightsError";
        case ErrorKind::Parameter:
            return "ParameterError";
        case ErrorKind::Numeric:
            return "NumericError";
        case ErrorKind::Device:
            return "DeviceError";
        case ErrorKind::OutOfMemory:
            return "OutOfMemoryError";
        case ErrorKind::Output:
            return "OutputError";
        case ErrorKind::Cancelled:
            return "Cancelled";
    }
    return "SDEngineError";
}

void raise(const char* name, const char* message) {
    const py::object type = py::module_::import("sdengine.errors").attr(name);
    py::set_error(type, message);
}

}  // namespace

void bind_errors(py::module_&) {
    py::register_local_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const Error& error) {
            raise(class_name(error.kind()), error.what());
        } catch (const std::bad_alloc&) {
            raise("OutOfMemoryError",
                  "the host is out of memory; use a smaller size or batch, or close programs");
        }
    });
}

}  // namespace sde::bindings
