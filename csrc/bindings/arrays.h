// numpy arrays to host arrays and back.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>

#include "stages/runner.h"

namespace sde::bindings {

using FloatArray = pybind11::array_t<float, pybind11::array::c_style | pybind11::array::forcecast>;
using IdArray = pybind11::array_t<int32_t, pybind11::array::c_style | pybind11::array::forcecast>;

inline Shape shape_of(const pybind11::array& array) {
    return Shape(std::vector<int64_t>(array.shape(), array.shape() + array.ndim()));
}

// Whole numbers become ids, everything else float32.
inline HostArray to_host(const pybind11::array& array) {
    HostArray host;
    host.shape = shape_of(array);
    const char kind = array.dtype().kind();
    if (kind == 'i' || kind == 'u') {
        const IdArray ids(array);
        host.ids.assign(ids.data(), ids.data() + ids.size());
    } else {
        const FloatArray floats(array);
        host.floats.assign(floats.data(), floats.data() + floats.size());
    }
    return host;
}

inline pybind11::array_t<float> to_numpy(const std::vector<float>& values, const Shape& shape) {
    pybind11::array_t<float> array(
        std::vector<pybind11::ssize_t>(shape.dims().begin(), shape.dims().end()));
    std::copy(values.begin(), values.end(), array.mutable_data());
    return array;
}

// The same for a large result: the array takes the values over, without a copy.
inline pybind11::array_t<float> moved_to_numpy(std::vector<float>&& values, const Shape& shape) {
    auto owned = std::make_unique<std::vector<float>>(std::move(values));
    float* data = owned->data();
    const pybind11::capsule owner(
        owned.get(), [](void* held) { delete static_cast<std::vector<float>*>(held); });
    owned.release();
    return pybind11::array_t<float>(
        std::vector<pybind11::ssize_t>(shape.dims().begin(), shape.dims().end()), data, owner);
}

}  // namespace sde::bindings
