// How an adapter file changes one parameter: the kinds that people publish, and their arithmetic.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "weights/mapped_file.h"
#include "weights/store.h"

namespace sde {

// A parameter W seen as the matrix [out, rest]; s is the caller's scale, f the change's factor.
enum class ChangeKind {
    LowRank,    // W + s f up (mid down)                   (Hu et al. 2021, arXiv 2106.09685)
    Hadamard,   // W + s f (w1_a w1_b) * (w2_a w2_b)       (LoHa: Hyeon-Woo 2021, arXiv 2108.06098)
    Kronecker,  // W + s f kron(w1, w2)                    (LoKr: Yeh et al. 2023, arXiv 2309.14859)
    Glora,      // W + s f (W a1 a2 + b1 b2)               (Chavan et al. 2023, arXiv 2306.07967)
    Add,        // W + s f value
    Replace,    // W + s (value - W)
    RotateRows,     // W + s (R W - W), f limits R (OFT, BOFT: rotation.h)
    RotateColumns,  // W + s (W R - W), f is the number of terms of R
};

// One parameter's change. The tensors go by their role: the letters above; `t1`, `t2` are the cores
// of kernels that are decomposed along their pixels too (Tucker); `magnitude` are the lengths that
// the changed rows (or input columns) are brought to, before s is applied (DoRA: Liu et al. 2024,
// arXiv 2402.09353).
class Change {
  public:
    using Sources = std::map<std::string, TensorSource>;

    // Checks names and shapes against the parameter's; throws Weights. Nothing is read yet.
    Change(std::string parameter, Shape shape, ChangeKind kind, Sources sources, float factor,
           std::map<std::string, std::shared_ptr<MappedFile>>& files);

    const std::string& parameter() const noexcept { return parameter_; }
    const Shape& shape() const noexcept { return shape_; }
    float factor() const noexcept { return factor_; }

    // Whether it can stay a pair of thin matrices beside the weight, and then their rank.
    bool is_pair() const { return kind_ == ChangeKind::LowRank && !has("magnitude"); }
    int64_t rank() const;
    // The type in which both matrices of a pair can be kept bit for bit.
    ggml_type pair_type() const;
    // Rows of `down` [rank, rest], and `up` with rows `stride` elements apart, in `type`.
    void write_down(ggml_type type, void* out) const;
    void write_up(ggml_type type, void* out, int64_t stride) const;

    // Applies the change to the parameter's values.
    void apply(std::vector<float>& weight, float scale) const;

  private:
    bool has(const std::string& role) const { return tensors_.count(role) != 0; }
    const Shape& shape_of(const std::string& role) const;
    std::vector<float> read(const std::string& role) const;
    const uint8_t* bytes(const std::string& role) const;
    std::vector<float> contracted_down() const;
    std::vector<float> factors(const std::string& a, const std::string& b,
                               const std::string& core) const;
    std::vector<float> kronecker() const;
    std::vector<float> glora(const std::vector<float>& weight) const;
    std::vector<float> delta(const std::vector<float>& weight) const;
    void normalise(std::vector<float>& changed) const;
    std::vector<float> rotated(std::vector<float> weight) const;
    void check() const;
    void check_kronecker() const;
    void check_rotation() const;
    void check_factors(const std::string& a, const std::string& b, const std::string& core) const;
    void require(const std::string& role, const Shape& shape) const;
    [[noreturn]] void fail(const std::string& message) const;

    struct Tensor {
        TensorSource source;
        std::shared_ptr<MappedFile> file;
    };
    std::string parameter_;
    Shape shape_;
    ChangeKind kind_;
    float factor_;
    int64_t out_, rest_;
    std::map<std::string, Tensor> tensors_;
};

}  // namespace sde
