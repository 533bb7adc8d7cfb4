#include "adapters/change.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "adapters/matrix.h"
#include "adapters/rotation.h"
#include "adapters/shapes.h"
#include "base/error.h"

namespace sde {
namespace {

bool is_finite(ggml_type type, const uint8_t* data, int64_t count) {
    const auto all = [&](auto bits, auto exponent) {
        for (int64_t i = 0; i < count; ++i) {
            std::memcpy(&bits, data + i * sizeof(bits), sizeof(bits));
            if ((bits & exponent) == exponent) return false;
        }
        return true;
    };
    switch (type) {
        case GGML_TYPE_F16:
            return all(uint16_t{}, uint16_t{0x7c00});
        case GGML_TYPE_BF16:
            return all(uint16_t{}, uint16_t{0x7f80});
        default:
            return all(uint32_t{}, uint32_t{0x7f800000});
    }
}

// t [i, j, pixels], a [i, p], b [j, r] -> [p, r, pixels]
std::vector<float> tucker(const std::vector<float>& t, const std::vector<float>& a,
                          const std::vector<float>& b, int64_t i, int64_t j, int64_t pixels,
                          int64_t p, int64_t r) {
    const std::vector<float> left = product(transposed(a, i, p), t, p, i, j * pixels);
    std::vector<float> out(static_cast<size_t>(p * r * pixels));
    const std::vector<float> turned = transposed(b, j, r);
    for (int64_t row = 0; row < p; ++row) {
        const auto begin = left.begin() + row * j * pixels;
        const auto part = product(turned, {begin, begin + j * pixels}, r, j, pixels);
        std::copy(part.begin(), part.end(), out.begin() + row * r * pixels);
    }
    return out;
}

}  // namespace

Change::Change(std::string parameter, Shape shape, ChangeKind kind, Sources sources, float factor,
               std::map<std::string, std::shared_ptr<MappedFile>>& files)
    : parameter_(std::move(parameter)),
      shape_(std::move(shape)),
      kind_(kind),
      factor_(factor),
      out_(shape_.rank() > 0 ? shape_[0] : 1),
      rest_(rest(shape_)) {
    if (!std::isfinite(factor_)) fail("its factor alpha / rank is not a number");
    for (auto& [role, source] : sources) {
        if (source.shape.elements() == 0)
            fail("'" + role + "' is " + source.shape.text() + ": its rank is 0");
        source.validate(role + " of " + parameter_);
        auto& file = files[source.path];
        if (!file) file = std::make_shared<MappedFile>(std::filesystem::path(source.path));
        file->bytes(source.offset, source.nbytes);  // throws when the range is outside of the file
        tensors_.emplace(role, Tensor{std::move(source), file});
    }
    check();
}

void Change::fail(const std::string& message) const {
    throw Error(ErrorKind::Weights,
                "the adapter does not fit '" + parameter_ + "' " + shape_.text() + ": " + message);
}

const Shape& Change::shape_of(const std::string& role) const {
    auto it = tensors_.find(role);
    if (it == tensors_.end()) fail("it has no '" + role + "'");
    return it->second.source.shape;
}

int64_t Change::rank() const {
    const Shape& up = shape_of("up");
    return up.rank() > 1 ? up[1] : 0;
}

ggml_type Change::pair_type() const {
    const auto type_of = [&](const std::string& role) {
        const TensorSource& source = tensors_.at(role).source;
        const bool plain = source.strides.empty() && source.dtype.foreign == DType::Foreign::None;
        return plain ? source.dtype.type : GGML_TYPE_F32;
    };
    const ggml_type type = type_of("down");
    const bool thin = type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
    return thin && type == type_of("up") && !has("mid") ? type : GGML_TYPE_F32;
}

const uint8_t* Change::bytes(const std::string& role) const {
    const Tensor& tensor = tensors_.at(role);
    tensor.file->check_length();
    return tensor.file->bytes(tensor.source.offset, tensor.source.nbytes);
}

std::vector<float> Change::read(const std::string& role) const {
    std::vector<float> values = tensors_.at(role).source.read(bytes(role));
    if (!is_finite(GGML_TYPE_F32, reinterpret_cast<const uint8_t*>(values.data()),
                   static_cast<int64_t>(values.size())))
        fail("'" + role + "' holds NaN or infinity; the file is damaged, download it again");
    return values;
}

std::vector<float> Change::contracted_down() const {
    std::vector<float> down = read("down");
    if (!has("mid")) return down;
    // mid [rank, q, pixels] and down [q, in] -> [rank, in, pixels]
    const Shape& mid = shape_of("mid");
    const int64_t q = mid[1], in = shape_[1], n = pixels(shape_);
    const std::vector<float> core = read("mid");
    std::vector<float> out(static_cast<size_t>(rank() * rest_));
    const std::vector<float> turned = transposed(down, q, in);
    for (int64_t row = 0; row < rank(); ++row) {
        const auto begin = core.begin() + row * q * n;
        const auto part = product(turned, {begin, begin + q * n}, in, q, n);
        std::copy(part.begin(), part.end(), out.begin() + row * rest_);
    }
    return out;
}

void Change::write_down(ggml_type type, void* out) const {
    if (type == pair_type() && type != GGML_TYPE_F32) {
        const uint8_t* source = bytes("down");
        if (!is_finite(type, source, rank() * rest_)) read("down");  // throws
        std::memcpy(out, source, ggml_row_size(type, rank() * rest_));
        return;
    }
    const std::vector<float> down = contracted_down();
    from_float(type, down.data(), out, rank(), rest_);
}

void Change::write_up(ggml_type type, void* out, int64_t stride) const {
    const size_t size = ggml_type_size(type), row = size * static_cast<size_t>(rank());
    std::vector<float> values;
    const uint8_t* source = nullptr;
    if (type == pair_type() && type != GGML_TYPE_F32) {
        source = bytes("up");
        if (!is_finite(type, source, out_ * rank())) read("up");  // throws
    } else {
        values = read("up");
        source = reinterpret_cast<const uint8_t*>(values.data());
    }
    for (int64_t i = 0; i < out_; ++i)
        std::memcpy(static_cast<uint8_t*>(out) + static_cast<size_t>(i * stride) * size,
                    source + static_cast<size_t>(i) * row, row);
}

std::vector<float> Change::factors(const std::string& a, const std::string& b,
                                   const std::string& core) const {
    if (has(core)) {
        const Shape& t = shape_of(core);
        return tucker(read(core), read(a), read(b), t[0], t[1], t[2] * t[3], rest(shape_of(a)),
                      rest(shape_of(b)));
    }
    const Shape &left = shape_of(a), &right = shape_of(b);
    return product(read(a), read(b), left[0], right[0], rest(right));
}

std::vector<float> Change::kronecker() const {
    const bool whole = has("w2");
    const std::vector<float> one = has("w1") ? read("w1") : factors("w1_a", "w1_b", "");
    const std::vector<float> two = whole ? read("w2") : factors("w2_a", "w2_b", "t2");
    const Shape& first = shape_of(has("w1") ? "w1" : "w1_a");
    const int64_t rows1 = first[0], columns1 = static_cast<int64_t>(one.size()) / rows1;
    const int64_t rows2 = out_ / rows1, in2 = rest_ / pixels(shape_) / columns1;
    const int64_t n = static_cast<int64_t>(two.size()) / rows2 / in2;
    std::vector<float> out(static_cast<size_t>(out_ * rest_));
    for (int64_t i = 0; i < rows1; ++i)
        for (int64_t k = 0; k < rows2; ++k)
            for (int64_t j = 0; j < columns1; ++j) {
                const float factor = one[i * columns1 + j];
                const float* from = two.data() + k * in2 * n;
                float* to = out.data() + (i * rows2 + k) * rest_ + j * in2 * n;
                for (int64_t e = 0; e < in2 * n; ++e) to[e] = factor * from[e];
            }
    return out;
}

std::vector<float> Change::glora(const std::vector<float>& weight) const {
    const int64_t n = pixels(shape_), in = rest_ / n;
    const int64_t r = rest(shape_of("a1")), q = rest(shape_of("b1"));
    std::vector<float> out = product(read("b1"), read("b2"), out_, q, rest_);
    const std::vector<float> mix = product(read("a1"), read("a2"), in, r, in);
    // W [out, in, pixels] times mix over `in`, pixel by pixel.
    std::vector<float> plane(static_cast<size_t>(out_ * in));
    for (int64_t pixel = 0; pixel < n; ++pixel) {
        for (int64_t i = 0; i < out_ * in; ++i) plane[i] = weight[i * n + pixel];
        const std::vector<float> mixed = product(plane, mix, out_, in, in);
        for (int64_t i = 0; i < out_ * in; ++i) out[i * n + pixel] += mixed[i];
    }
    return out;
}

std::vector<float> Change::delta(const std::vector<float>& weight) const {
    switch (kind_) {
        case ChangeKind::LowRank:
            return product(read("up"), contracted_down(), out_, rank(), rest_);
        case ChangeKind::Hadamard: {
            std::vector<float> out = factors("w1_a", "w1_b", "t1");
            const std::vector<float> other = factors("w2_a", "w2_b", "t2");
            for (size_t i = 0; i < out.size(); ++i) out[i] *= other[i];
            return out;
        }
        case ChangeKind::Kronecker:
            return kronecker();
        case ChangeKind::Glora:
            return glora(weight);
        default:
            return read("value");
    }
}

void Change::normalise(std::vector<float>& changed) const {
    const std::vector<float> magnitude = read("magnitude");
    const Shape& shape = shape_of("magnitude");
    const int64_t n = pixels(shape_), in = rest_ / n;
    // One length per row of W; older files: per input column, told by the leading axis.
    const bool rows = shape.elements() == out_ && (shape.rank() < 2 || shape[0] == out_);
    std::vector<double> squares(static_cast<size_t>(rows ? out_ : in), 0.0);
    const auto index = [&](int64_t row, int64_t column) { return rows ? row : column / n; };
    for (int64_t i = 0; i < out_; ++i)
        for (int64_t j = 0; j < rest_; ++j) {
            const double value = changed[i * rest_ + j];
            squares[index(i, j)] += value * value;
        }
    for (int64_t i = 0; i < out_; ++i)
        for (int64_t j = 0; j < rest_; ++j) {
            const double length = std::sqrt(squares[index(i, j)]);
            if (length > 0)
                changed[i * rest_ + j] *= static_cast<float>(magnitude[index(i, j)] / length);
        }
}

std::vector<float> Change::rotated(std::vector<float> weight) const {
    if (kind_ == ChangeKind::RotateColumns) {
        const Shape& skew = shape_of("skew");
        rotate_columns(weight, out_, read("skew"), skew[0], triangle_side(skew[1]),
                       static_cast<int>(factor_));
        return weight;
    }
    const Shape& blocks = shape_of("blocks");
    const bool butterfly = blocks.rank() == 4;
    const int64_t size = blocks[blocks.rank() - 1];
    rotate_rows(weight, out_, read("blocks"), butterfly ? blocks[0] : 1, out_ / size, size,
                factor_);
    if (has("rescale")) {
        const std::vector<float> lengths = read("rescale");
        for (size_t i = 0; i < weight.size(); ++i) weight[i] *= lengths[i / rest_];
    }
    return weight;
}

void Change::apply(std::vector<float>& weight, float scale) const {
    if (is_pair()) {
        std::vector<float> up = read("up");
        for (float& value : up) value *= scale * factor_;
        weight = product(up, contracted_down(), out_, rank(), rest_, weight.data());
        return;
    }
    const bool turns = kind_ == ChangeKind::RotateRows || kind_ == ChangeKind::RotateColumns;
    std::vector<float> change = turns ? rotated(weight) : delta(weight);
    if (turns || kind_ == ChangeKind::Replace) {
        for (size_t i = 0; i < change.size(); ++i) weight[i] += scale * (change[i] - weight[i]);
        return;
    }
    if (!has("magnitude")) {
        for (size_t i = 0; i < change.size(); ++i) weight[i] += scale * factor_ * change[i];
        return;
    }
    for (size_t i = 0; i < change.size(); ++i) change[i] = weight[i] + factor_ * change[i];
    normalise(change);
    for (size_t i = 0; i < change.size(); ++i) weight[i] += scale * (change[i] - weight[i]);
}

}  // namespace sde
