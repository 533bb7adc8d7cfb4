#include "base/cancel.h"
#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "stages/autoencode.h"

namespace py = pybind11;

namespace sde::bindings {
namespace {

using Stage = HostArray (*)(Runner&, const HostArray&, int64_t, const Tiling&, const CancelCheck&);

template <Stage stage>
py::array_t<float> run_autoencoder(Runner& network, const FloatArray& array, int64_t factor, int64_t tile,
                                   int64_t overlap, const CancelToken* cancel) {
    const HostArray input = to_host(array);
    HostArray output;
    {
        const py::gil_scoped_release release;
        output = stage(network, input, factor, {tile, overlap},
                       cancel ? CancelCheck([cancel] { return cancel->cancelled(); }) : nullptr);
    }
    return to_numpy(output.floats, output.shape);
}

}  // namespace

void bind_stages(py::module_& m) {
    m.def("decode_latents", run_autoencoder<decode_latents>, py::arg("decoder"), py::arg("latents"), py::arg("factor"),
          py::arg("tile") = 0, py::arg("overlap") = 0, py::arg("cancel") = nullptr,
          "Latents [N, C, h, w] (unscaled) to pictures [N, 3, h * factor, w * factor]; tile 0 means one piece.");
    m.def("encode_image", run_autoencoder<encode_image>, py::arg("encoder"), py::arg("image"), py::arg("factor"),
          py::arg("tile") = 0, py::arg("overlap") = 0, py::arg("cancel") = nullptr,
          "Pictures [N, 3, H, W] to moments [N, 2 C, H / factor, W / factor]; tile 0 means one piece.");
}

}  // namespace sde::bindings
