#include "weights/transcode.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "runtime/device.h"
#include "runtime/library.h"
#include "weights/parallel.h"

namespace sde {
namespace {

void write(const std::string& path, uint64_t offset, const void* data, size_t bytes) {
    std::fstream file(from_utf8(path), std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(offset));
    file.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
    file.flush();
    if (!file)
        throw Error(ErrorKind::Output, path + ": " + std::to_string(bytes) +
                                           " bytes could not be written (" + std::strerror(errno) +
                                           "); is the disk full?");
}

}  // namespace

uint64_t transcode(const TensorSource& source, const std::string& path, uint64_t offset,
                   const DType& dtype, int threads, const Edit& edit) {
    source.validate("the tensor");
    const int64_t elements = source.shape.elements();
    const int64_t row = source.shape.rank() > 1 ? elements / source.shape[0] : elements;
    dtype.writable();
    if (row % dtype.block_elements() != 0)
        throw Error(ErrorKind::Weights, "rows of " + std::to_string(row) +
                                            " values do not fit into blocks of " +
                                            std::to_string(dtype.block_elements()));
    const MappedFile file{from_utf8(source.path)};
    const uint8_t* bytes = file.bytes(source.offset, source.nbytes);
    const size_t out_bytes = dtype.bytes(elements);
    const bool plain = source.plain() && !edit;
    if (plain && source.dtype.foreign == DType::Foreign::None && source.dtype.type == dtype.type) {
        write(path, offset, bytes, out_bytes);
        return out_bytes;
    }

    const int team = threads > 0 ? threads : physical_cores();
    std::vector<uint8_t> out(out_bytes);
    ggml_quantize_init(
        dtype.type);  // the tables are made once, not by the threads at the same time
    if (plain) {
        // Rows are read and written by the same thread; parts start where a block of either type
        // starts.
        const int64_t in_block = source.dtype.block_elements();
        int64_t rows_per_step = 1;
        while (rows_per_step * row % in_block != 0) ++rows_per_step;
        in_parallel(elements / row, rows_per_step, team, [&](int64_t begin, int64_t end) {
            std::vector<float> values(static_cast<size_t>(rows_per_step * row));
            for (int64_t r = begin; r < end; r += rows_per_step) {
                const int64_t rows = std::min(rows_per_step, end - r);
                to_float(source.dtype, bytes + source.dtype.bytes(r * row), values.data(),
                         rows * row);
                from_float(dtype.type, values.data(), out.data() + dtype.bytes(r * row), rows, row);
            }
        });
    } else {
        std::vector<float> values = source.read(bytes);
        if (edit) edit(values);
        in_parallel(elements / row, 1, team, [&](int64_t begin, int64_t end) {
            from_float(dtype.type, values.data() + begin * row,
                       out.data() + dtype.bytes(begin * row), end - begin, row);
        });
    }
    if (holds_infinity(dtype.type, out.data(), elements))
        throw Error(ErrorKind::Weights,
                    "it holds a value beyond the range of f16 (65504); choose bf16 or f32 for it");
    write(path, offset, out.data(), out_bytes);
    return out_bytes;
}

}  // namespace sde
