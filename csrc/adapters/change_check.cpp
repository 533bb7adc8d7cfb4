// Whether the tensors of a change fit the parameter, before anything is read.
#include <set>

#include "adapters/change.h"
#include "adapters/shapes.h"

namespace sde {

void Change::require(const std::string& role, const Shape& shape) const {
    const Shape& found = shape_of(role);
    // Kernels of one pixel and matrices are the same.
    if (found.elements() != shape.elements() || found.rank() < 1 || found[0] != shape[0])
        fail("'" + role + "' is " + found.text() + ", expected " + shape.text());
}

void Change::check_factors(const std::string& a, const std::string& b,
                           const std::string& core) const {
    if (has(core)) {
        const Shape& t = shape_of(core);
        if (t.rank() != 4 || shape_.rank() != 4 || t[2] != shape_[2] || t[3] != shape_[3])
            fail("'" + core + "' " + t.text() + " is no core of such a kernel");
        require(a, Shape{t[0], shape_[0]});
        require(b, Shape{t[1], shape_[1]});
        return;
    }
    const Shape& second = shape_of(b);
    if (second.rank() < 1) fail("'" + b + "' has rank 0");
    require(a, Shape{out_, second[0]});
    require(b, Shape{second[0], rest_});
}

void Change::check() const {
    static const std::map<ChangeKind, std::set<std::string>> roles = {
        {ChangeKind::LowRank, {"up", "down", "mid", "magnitude"}},
        {ChangeKind::Hadamard, {"w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2", "magnitude"}},
        {ChangeKind::Kronecker, {"w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2", "magnitude"}},
        {ChangeKind::Glora, {"a1", "a2", "b1", "b2", "magnitude"}},
        {ChangeKind::Add, {"value"}},
        {ChangeKind::Replace, {"value"}},
        {ChangeKind::RotateRows, {"blocks", "rescale"}},
        {ChangeKind::RotateColumns, {"skew"}},
    };
    for (const auto& [role, tensor] : tensors_)
        if (!roles.at(kind_).count(role)) fail("'" + role + "' has no place in this kind");
    const bool whole = kind_ == ChangeKind::Add || kind_ == ChangeKind::Replace;
    if (!whole && shape_.rank() < 2) fail("only matrices and kernels have factors");
    switch (kind_) {
        case ChangeKind::LowRank:
            if (rank() < 1) fail("its rank is 0");
            require("up", Shape{out_, rank()});
            if (has("mid")) {
                const Shape& mid = shape_of("mid");
                if (mid.rank() != 4 || shape_.rank() != 4 || mid[2] != shape_[2] ||
                    mid[3] != shape_[3] || mid[0] != rank())
                    fail("'mid' " + mid.text() + " is no core of such a kernel");
                require("down", Shape{mid[1], shape_[1]});
            } else {
                require("down", Shape{rank(), rest_});
            }
            break;
        case ChangeKind::Hadamard:
            check_factors("w1_a", "w1_b", "t1");
            check_factors("w2_a", "w2_b", "t2");
            break;
        case ChangeKind::Kronecker:
            check_kronecker();
            break;
        case ChangeKind::Glora: {
            // LyCORIS has a1 [in, r], a2 [r, in], b1 [out, r], b2 [r, in].
            const int64_t in = rest_ / pixels(shape_);
            const int64_t r = rest(shape_of("a1"));
            require("a1", Shape{in, r});
            require("a2", Shape{r, in});
            const int64_t q = rest(shape_of("b1"));
            require("b1", Shape{out_, q});
            require("b2", Shape{q, rest_});
            break;
        }
        case ChangeKind::Add:
        case ChangeKind::Replace:
            if (shape_of("value").elements() != shape_.elements())
                fail("its values are " + shape_of("value").text());
            break;
        case ChangeKind::RotateRows:
        case ChangeKind::RotateColumns:
            check_rotation();
    }
    if (has("magnitude")) {
        const int64_t count = shape_of("magnitude").elements();
        const int64_t in = rest_ / pixels(shape_);
        if (count != out_ && count != in)
            fail("its magnitude has " + std::to_string(count) + " values, expected " +
                 std::to_string(out_) + " or " + std::to_string(in));
    }
}

void Change::check_kronecker() const {
    // Each side whole, or as two factors; the second one perhaps with a core.
    const auto side = [&](const std::string& name) -> Shape {
        if (has(name)) return shape_of(name);
        const Shape &a = shape_of(name + "_a"), &b = shape_of(name + "_b");
        if (name == "w2" && has("t2")) {
            const Shape& t = shape_of("t2");
            if (t.rank() != 4 || a.rank() != 2 || b.rank() != 2 || a[0] != t[0] || b[0] != t[1])
                fail("'t2' " + t.text() + " does not fit its factors");
            return Shape{a[1], b[1], t[2], t[3]};
        }
        if (a.rank() != 2 || b.rank() < 2 || a[1] != b[0])
            fail("'" + name + "_a' " + a.text() + " and '" + name + "_b' " + b.text() +
                 " cannot be multiplied");
        std::vector<int64_t> dims = b.dims();
        dims[0] = a[0];
        return Shape(dims);
    };
    const Shape one = side("w1"), two = side("w2");
    if (one.rank() < 2 || two.rank() < 2 || pixels(one) != 1)
        fail("'w1' " + one.text() + " and 'w2' " + two.text() + " are no Kronecker factors");
    if (one[0] * two[0] != out_ || rest(one) * rest(two) != rest_ ||
        (pixels(two) != 1 && pixels(two) != pixels(shape_)) ||
        rest_ / pixels(shape_) % rest(one) != 0)
        fail("the product of 'w1' " + one.text() + " and 'w2' " + two.text() +
             " has another shape");
}

void Change::check_rotation() const {
    if (kind_ == ChangeKind::RotateColumns) {
        const Shape& skew = shape_of("skew");
        const int64_t size = skew.rank() == 2 ? triangle_side(skew[1]) : 0;
        if (size < 2 || rest_ % size != 0 || (skew[0] != 1 && skew[0] * size != rest_))
            fail("'skew' " + skew.text() + " are no rotations of " + std::to_string(rest_) +
                 " columns");
        return;
    }
    const Shape& blocks = shape_of("blocks");
    const int axes = blocks.rank();
    if (axes < 3 || blocks[axes - 1] != blocks[axes - 2] ||
        blocks[axes - 1] * blocks[axes - 3] != out_)
        fail("'blocks' " + blocks.text() + " are no rotations of " + std::to_string(out_) +
             " rows");
    // The last stage of a butterfly puts rows side by side that are half of all rows apart.
    if (axes == 4 && (blocks[0] > 32 || blocks[2] % 2 != 0 ||
                      out_ % ((int64_t{1} << (blocks[0] - 1)) * blocks[2]) != 0))
        fail("'blocks' " + blocks.text() + " are no butterfly over " + std::to_string(out_) +
             " rows");
    if (has("rescale") && shape_of("rescale").elements() != out_)
        fail("'rescale' is " + shape_of("rescale").text());
}

}  // namespace sde
