// Convolutions as products of the weight matrix [out, in * kernel * kernel] with the pixels that
// each output reads, side by side (im2col): this works for weights of any type, and the result is
// channels last.
#include "nn/portable/planes.h"
#include "nn/portable/portable.h"

namespace sde::nn::portable {
namespace {

struct Padding {
    int64_t left, right, top, bottom;
};

int64_t wrapped(int64_t i, int64_t size) {
    return (i % size + size) % size;
}

// x with its own pixels from the other side around it.
Tensor wrap_around(const Tensor& x, const Padding& pad) {
    const int64_t height = x.size(2), width = x.size(3);
    return rearranged(x, height + pad.top + pad.bottom, width + pad.left + pad.right,
                      [&](int64_t row, int64_t column) {
                          return std::pair{wrapped(row - pad.top, height),
                                           wrapped(column - pad.left, width)};
                      });
}

// im2col() reads the shape of the kernel from a tensor; quantized weights cannot have it.
ggml_tensor* kernel_shape(Graph& graph, int64_t kernel, int64_t channels) {
    const std::string what = "kernel " + std::to_string(kernel) + " " + std::to_string(channels);
    ggml_tensor*& known = graph.derived(what, nullptr);
    if (!known) {
        const std::vector<float> zeros(static_cast<size_t>(kernel * kernel * channels));
        known = graph.add_constant(GGML_TYPE_F32, {kernel, kernel, channels, 1}, zeros.data());
    }
    return known;
}

// What the outputs of `planes` read, [in * kernel * kernel, outputs].
ggml_tensor* columns(Graph& graph, ggml_tensor* planes, const kernels::Conv2d& op,
                     const Padding& pad) {
    ggml_context* context = graph.context();
    const bool is_even = pad.left == pad.right && pad.top == pad.bottom;
    if (!is_even)
        planes =
            ggml_pad_ext(context, planes, static_cast<int>(pad.left), static_cast<int>(pad.right),
                         static_cast<int>(pad.top), static_cast<int>(pad.bottom), 0, 0, 0, 0);
    ggml_tensor* shape = kernel_shape(graph, op.kernel_h, op.in_channels);
    ggml_tensor* read = ggml_im2col(
        context, shape, planes, op.stride, op.stride, is_even ? static_cast<int>(pad.left) : 0,
        is_even ? static_cast<int>(pad.top) : 0, 1, 1, true, GGML_TYPE_F32);
    return ggml_reshape_2d(context, read, read->ne[0], read->ne[1] * read->ne[2] * read->ne[3]);
}

// Input rows [begin, end) of a batch entry as planes.
ggml_tensor* rows_as_planes(const Tensor& x, int64_t entry, int64_t begin, int64_t end) {
    ggml_context* context = context_of(x);
    const int64_t channels = x.size(1), width = x.size(3), rows = end - begin;
    if (ggml_tensor* known = known_planes(x))
        return ggml_cont(context, ggml_view_4d(context, known, width, rows, channels, 1,
                                               known->nb[1], known->nb[2], known->nb[3],
                                               static_cast<size_t>(entry) * known->nb[3] +
                                                   static_cast<size_t>(begin) * known->nb[1]));
    ggml_tensor* raw = x.raw();
    return to_planes(context, ggml_view_4d(context, raw, channels, width, rows, 1, raw->nb[1],
                                           raw->nb[2], raw->nb[3],
                                           static_cast<size_t>(entry) * raw->nb[3] +
                                               static_cast<size_t>(begin) * raw->nb[2]));
}

// What a block of output rows reads.
ggml_tensor* block_columns(const Tensor& x, const kernels::Conv2d& op, const Padding& pad,
                           const Block& block) {
    const int64_t height = x.size(2), first = block.first * op.stride - pad.top;
    const int64_t end = (block.first + block.rows - 1) * op.stride - pad.top + op.kernel_h;
    const int64_t top = std::max<int64_t>(0, -first), bottom = std::max<int64_t>(0, end - height);
    return columns(x.graph(), rows_as_planes(x, block.entry, first + top, end - bottom), op,
                   {pad.left, pad.right, top, bottom});
}

ggml_tensor* sum_of(const Tensor& x, ggml_tensor* weight, const kernels::Conv2d& op,
                    const Padding& pad, const Shape& shape) {
    ggml_context* context = context_of(x);
    const int64_t pixels = shape[0] * shape[2] * shape[3];
    if (op.kernel_h == 1 && op.stride == 1)
        return product(context, weight, ggml_reshape_2d(context, x.raw(), x.size(1), pixels));
    const auto parts =
        blocks(shape[0], shape[2],
               shape[3] * op.weight.row_elements * static_cast<int64_t>(sizeof(float)));
    if (parts.size() == 1) return product(context, weight, columns(x.graph(), planes(x), op, pad));
    Pieces pieces(x.graph(), pixels);
    for (const Block& whole : parts)
        for (int64_t i = 0; i < whole.entries; ++i) {
            const Block one{whole.entry + i, 1, whole.first, whole.rows};
            pieces.add(product(context, weight, block_columns(x, op, pad, one)));
        }
    return pieces.joined();
}

}  // namespace

Tensor conv2d(const kernels::Conv2d& op, const Tensor& input, ggml_tensor* weight,
              ggml_tensor* bias, const Epilogue& epilogue, const Shape& shape) {
    const Tensor x =
        op.upsample2x ? resize_nearest(input, 2 * input.size(2), 2 * input.size(3)) : input;
    Padding pad{op.pad_left, op.pad_right, op.pad_top, op.pad_bottom}, around{};
    if (op.circular_x) {
        around.left = std::exchange(pad.left, 0);
        around.right = std::exchange(pad.right, 0);
    }
    if (op.circular_y) {
        around.top = std::exchange(pad.top, 0);
        around.bottom = std::exchange(pad.bottom, 0);
    }
    const bool wraps = around.left || around.right || around.top || around.bottom;
    ggml_tensor* sum = sum_of(wraps ? wrap_around(x, around) : x, weight, op, pad, shape);
    return finish(
        {x.graph(), ggml_reshape_4d(context_of(x), sum, shape[1], shape[3], shape[2], shape[0]),
         shape},
        bias, epilogue);
}

}  // namespace sde::nn::portable
