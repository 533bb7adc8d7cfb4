// The kernels' checks as a program, for what Python cannot run: sanitizers (address, undefined,
// thread) and emulators of other processors. Every kernel of every variant that the processor has,
// on odd and tiny shapes, batches, every epilogue and weight type, with 1 to 4 threads and memory
// one float (weights: one byte) behind any boundary, against the plain one in double precision.
// Results must be the same bits for every number of threads. The units of arithmetic="fast" are
// held against their plain one as well, which rounds operands in the same way. pytest checks more
// shapes, against other libraries.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/fast/fast.h"

namespace {

using namespace sde::kernels;

// Relative L2 errors from the double precision; the same as in the tests in Python.
constexpr double kDirect = 1e-6, kWinograd = 2e-6, kAttention = 1.5e-6;
// Of 8 bits and of bfloat16, and between one unit and another: sums in another order, for attention
// also weights that another sum rounds to their other neighbour.
constexpr double kInt8 = 2e-2, kBf16 = 5e-3, kBetween = 2e-6, kBetweenAttention = 1e-3;

std::mt19937 generator(7);

// Floats that begin 4 bytes behind a boundary and end where the memory ends.
class Floats {
  public:
    explicit Floats(int64_t count, float scale = 1) : memory_(count + 1) {
        std::normal_distribution<float> normal(0, scale);
        for (float& x : memory_) x = normal(generator);
    }
    float* data() { return memory_.data() + 1; }
    const float* data() const { return memory_.data() + 1; }
    int64_t size() const { return static_cast<int64_t>(memory_.size()) - 1; }

  private:
    std::vector<float> memory_;
};

// A weight of some type, one byte behind a boundary.
class Packed {
  public:
    Packed(ggml_type type, int64_t rows, int64_t row_elements) {
        const Floats values(rows * row_elements, 0.1f);
        const std::vector<float> importance(row_elements, 1);
        const int64_t count = rows * row_elements;
        // Aligned, because ggml wants that; the kernels do not.
        std::vector<char> aligned(ggml_row_size(type, count));
        const bool whole_rows = row_elements % ggml_blck_size(type) == 0;
        ggml_quantize_chunk(type, values.data(), aligned.data(), 0, whole_rows ? rows : 1,
                            whole_rows ? row_elements : count, importance.data());
        memory_.resize(aligned.size() + 1);
        std::memcpy(memory_.data() + 1, aligned.data(), aligned.size());
        weight = {memory_.data() + 1, type, rows, row_elements};
    }
    Weight weight;

  private:
    std::vector<char> memory_;
};

int checks = 0, failures = 0;

void run(const std::function<void(Team&)>& kernel, int threads) {
    TeamState state;
    const auto work = [&](int rank) {
        Team team(rank, threads, state);
        // Twice: one state serves an operator after another.
        kernel(team);
        kernel(team);
    };
    std::vector<std::thread> others;
    for (int rank = 1; rank < threads; ++rank) others.emplace_back(work, rank);
    work(0);
    for (std::thread& thread : others) thread.join();
}

double relative_error(const Floats& found, const Floats& expected) {
    double difference = 0, size = 0;
    for (int64_t i = 0; i < found.size(); ++i) {
        const double x = expected.data()[i], d = found.data()[i] - x;
        difference += d * d;
        size += x * x;
    }
    return std::sqrt(difference) / std::max(std::sqrt(size), 1e-30);
}

// Runs `op`, which writes `outputs` floats, on the reference and on every variant.
template <class Op>
void check(const std::string& name, Op op, int64_t outputs,
           void (*KernelTable::*kernel)(const Op&, Team&), double bound) {
    Floats expected(outputs);
    op.output = expected.data();
    run([&](Team& team) { (kernel_table(Isa::Reference).*kernel)(op, team); }, 1);
    for (const Isa isa : kIsas) {
        if (isa == Isa::Reference || !available(isa)) continue;
        Floats first(outputs);
        for (const int threads : {1, 2, 3, 4}) {
            Floats found(outputs);
            op.output = found.data();
            run([&](Team& team) { (kernel_table(isa).*kernel)(op, team); }, threads);
            if (threads == 1) first = found;
            const double error = relative_error(found, expected);
            const bool same = !std::memcmp(found.data(), first.data(), outputs * sizeof(float));
            ++checks;
            if (error <= bound && same) continue;
            ++failures;
            std::printf("%s, %s, %d threads: error %.2g (at most %.2g)%s\n", name.c_str(),
                        name_of(isa), threads, error, bound, same ? "" : ", depends on threads");
        }
    }
}

// The kernel of one unit with 1 to 4 threads.
template <class Op>
void check_unit(const std::string& name, Op op, const Floats& reference, const Floats& plain,
                void (*kernel)(const Op&, Team&), double bound, double between) {
    Floats first(reference.size());
    for (const int threads : {1, 2, 3, 4}) {
        Floats found(reference.size());
        op.output = found.data();
        run([&](Team& team) { kernel(op, team); }, threads);
        if (threads == 1) first = found;
        const double error = relative_error(found, reference);
        const double difference = relative_error(found, plain);
        const bool same = !std::memcmp(found.data(), first.data(), found.size() * sizeof(float));
        ++checks;
        if (error <= bound && difference <= between && same) continue;
        ++failures;
        std::printf("%s, %d threads: error %.2g (at most %.2g), from plain %.2g (%.2g)%s\n",
                    name.c_str(), threads, error, bound, difference, between,
                    same ? "" : ", depends on threads");
    }
}

// Runs `op` on the reference and on every unit.
template <class Op>
void check_units(const std::string& name, Op op, int64_t outputs,
                 void (*KernelTable::*kernel)(const Op&, Team&),
                 void (*UnitTable::*unit_kernel)(const Op&, Team&)) {
    Floats reference(outputs), plain(outputs);
    op.output = reference.data();
    run([&](Team& team) { (kernel_table(Isa::Reference).*kernel)(op, team); }, 1);
    for (const Unit unit : kUnits) {
        const auto run_unit = available(unit) ? unit_table(unit).*unit_kernel : nullptr;
        if (!run_unit) continue;
        const bool is_int8 = std::string(name_of(unit)).rfind("int8", 0) == 0;
        op.output = plain.data();
        run(
            [&](Team& team) {
                (unit_table(is_int8 ? Unit::Int8Plain : Unit::Bf16Plain).*unit_kernel)(op, team);
            },
            1);
        check_unit(name + ", " + name_of(unit), op, reference, plain, run_unit,
                   is_int8 ? kInt8 : kBf16,
                   std::is_same_v<Op, Attention> ? kBetweenAttention : kBetween);
    }
}

// The terms of an epilogue for a product of [batch * rows, channels].
struct Terms {
    Floats bias, batch_bias, residual, gate;

    Terms(int64_t batch, int64_t rows, int64_t channels)
        : bias(channels),
          batch_bias(batch * channels),
          residual(batch * rows * channels),
          gate(batch * channels) {}

    // Number `n` of the combinations, with one activation after another.
    Epilogue choose(int n, int64_t channels) const {
        Epilogue e;
        if (n & 1) e.bias = bias.data();
        if (n & 2) e.batch_bias = batch_bias.data();
        if (n & 4) e.residual = residual.data();
        if (n & 8) e.gate = gate.data(), e.gate_stride = channels;
        e.residual_inside = n & 16;
        e.activation = static_cast<Activation>(n % 7);
        return e;
    }
};

struct ConvShape {
    int64_t batch, height, width, in, out;
    int kernel = 3, stride = 1;
    bool upsample = false, circular = false;
};

void check_conv(const ConvShape& s, ggml_type type, int terms_number) {
    const Floats input(s.batch * s.height * s.width * s.in);
    const Packed weight(type, s.out, s.in * s.kernel * s.kernel);
    Conv2d op{};
    op.input = input.data();
    op.batch = s.batch, op.height = s.height, op.width = s.width, op.in_channels = s.in;
    op.weight = weight.weight;
    op.kernel_h = op.kernel_w = s.kernel, op.stride = s.stride;
    op.pad_top = op.pad_left = op.pad_bottom = op.pad_right = s.kernel / 2;
    op.upsample2x = s.upsample, op.circular_x = op.circular_y = s.circular;
    const int64_t grown = s.upsample ? 2 : 1, around = 2 * (s.kernel / 2) - s.kernel;
    const int64_t pixels =
        ((grown * s.height + around) / s.stride + 1) * ((grown * s.width + around) / s.stride + 1);
    const Terms terms(s.batch, pixels, s.out);
    op.epilogue = terms.choose(terms_number, s.out);
    for (const ConvMethod method : {ConvMethod::Auto, ConvMethod::Direct, ConvMethod::Winograd}) {
        op.method = method;
        check("conv2d " + std::to_string(s.height) + "x" + std::to_string(s.width) + " " +
                  std::to_string(s.in) + "->" + std::to_string(s.out) + " kernel " +
                  std::to_string(s.kernel) + " " + ggml_type_name(type),
              op, s.batch * pixels * s.out, &KernelTable::conv2d,
              method == ConvMethod::Direct ? kDirect : kWinograd);
    }
    if (is_product(op))
        check_units("conv2d " + std::to_string(s.height) + "x" + std::to_string(s.width) + " " +
                        std::to_string(s.in) + "->" + std::to_string(s.out) + " kernel " +
                        std::to_string(s.kernel) + " " + ggml_type_name(type),
                    op, s.batch * pixels * s.out, &KernelTable::conv2d, &UnitTable::conv2d);
}

void check_convs() {
    const ConvShape shapes[] = {
        {1, 1, 1, 1, 1},
        {1, 1, 1, 37, 70},
        {1, 9, 11, 3, 33},
        {2, 12, 5, 40, 3},
        {1, 19, 51, 43, 4},
        {3, 13, 11, 70, 45},
        {4, 6, 6, 5, 5},
        {2, 9, 10, 33, 20, 3, 2},
        {2, 4, 3, 19, 21, 3, 1, true},
        {1, 5, 6, 32, 10, 3, 1, false, true},
        {2, 7, 9, 33, 47, 1},
        {1, 7, 9, 32, 2, 1, 2},
        {1, 8, 8, 24, 24, 5, 2},
    };
    int number = 0;
    for (const ConvShape& shape : shapes) {
        check_conv(shape, GGML_TYPE_F32, 0);
        check_conv(shape, GGML_TYPE_F16, number += 5);
    }
    for (int n = 0; n < 32; ++n) check_conv({2, 5, 4, 20, 37}, GGML_TYPE_F32, n);
    for (int n = 0; n < 32; ++n) check_conv({2, 5, 4, 20, 2}, GGML_TYPE_F32, n);
}

constexpr ggml_type kTypes[] = {GGML_TYPE_F32,  GGML_TYPE_F16,    GGML_TYPE_BF16,  GGML_TYPE_Q8_0,
                                GGML_TYPE_Q4_0, GGML_TYPE_Q4_1,   GGML_TYPE_Q5_0,  GGML_TYPE_Q5_1,
                                GGML_TYPE_Q2_K, GGML_TYPE_Q3_K,   GGML_TYPE_Q4_K,  GGML_TYPE_Q5_K,
                                GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS};

void check_linear(int64_t batch, int64_t rows, int64_t in, int64_t out, ggml_type type,
                  int terms_number) {
    const Floats input(batch * rows * in);
    const Packed weight(type, out, in);
    const Terms terms(batch, rows, out);
    Linear op{};
    op.input = input.data();
    op.rows = batch * rows, op.in_features = in, op.rows_per_batch = rows;
    op.weight = weight.weight;
    op.epilogue = terms.choose(terms_number, out);
    const std::string name = "linear " + std::to_string(batch * rows) + " " + std::to_string(in) +
                             "->" + std::to_string(out) + " " + ggml_type_name(type);
    check(name, op, op.rows * out, &KernelTable::linear, kDirect);
    check_units(name, op, op.rows * out, &KernelTable::linear, &UnitTable::linear);
}

void check_linears() {
    const int64_t shapes[][3] = {{1, 1, 1},      {1, 320, 130},  {2, 1280, 64}, {3, 5, 3},
                                 {7, 1500, 9},   {13, 100, 70},  {77, 768, 33}, {300, 40, 16},
                                 {8, 1100, 3},   {260, 64, 200}, {5, 8, 17},    {150, 1500, 53},
                                 {1030, 600, 40}};
    int number = 0;
    for (const auto& [rows, in, out] : shapes)
        for (const int64_t batch : {1, 3})
            for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16})
                check_linear(batch, rows, in, out, type, number = (number + 3) % 32);
    for (const ggml_type type : kTypes) {
        check_linear(1, 3, 512, 21, type, 0);
        check_linear(1, 20, 512, 21, type, 0);
        check_conv({1, 6, 5, 256, 20}, type, 0);
        check_conv({1, 6, 5, 256, 3}, type, 0);
    }
    for (int n = 0; n < 32; ++n) {
        check_linear(2, 3, 33, 21, GGML_TYPE_F32, n);
        check_linear(2, 6, 33, 21, GGML_TYPE_F32, n);
    }
}

void check_attention(int64_t batch, int64_t q, int64_t kv, int64_t heads, int64_t kv_heads,
                     int64_t head_dim, int variant) {
    const int64_t width = heads * head_dim, kv_width = kv_heads * head_dim;
    const Floats queries(batch * q * width), keys(batch * kv * kv_width),
        values(batch * kv * kv_width), mask(batch * heads * q * kv), bias(heads * (q + kv - 1));
    Attention op{};
    op.q = queries.data(), op.k = keys.data(), op.v = values.data();
    op.batch = batch, op.heads = heads, op.kv_heads = kv_heads, op.head_dim = head_dim;
    op.q_len = q, op.kv_len = kv;
    op.q_token_stride = op.output_token_stride = width;
    op.k_token_stride = op.v_token_stride = kv_width;
    op.q_batch_stride = op.output_batch_stride = q * width;
    op.k_batch_stride = op.v_batch_stride = kv * kv_width;
    op.scale = 1 / std::sqrt(static_cast<float>(head_dim));
    op.causal = variant & 1;
    if (variant & 2) op.mask = mask.data(), op.mask_batch = batch, op.mask_heads = heads;
    if (variant & 4) op.distance_bias = bias.data();
    if (variant & 8) op.softcap = 5;
    const std::string name = "attention " + std::to_string(q) + "x" + std::to_string(kv) + " " +
                             std::to_string(heads) + "x" + std::to_string(head_dim) + " variant " +
                             std::to_string(variant);
    check(name, op, batch * q * width, &KernelTable::attention, kAttention);
    if (!variant)
        check_units(name, op, batch * q * width, &KernelTable::attention, &UnitTable::attention);
}

void check_attentions() {
    check_attention(1, 1, 1, 1, 1, 1, 0);
    check_attention(2, 70, 77, 4, 2, 40, 0);
    check_attention(1, 130, 700, 2, 2, 64, 0);
    check_attention(4, 9, 5, 3, 1, 17, 0);
    check_attention(1, 50, 50, 1, 1, 160, 0);
    for (int variant = 0; variant < 16; ++variant) check_attention(2, 33, 45, 2, 1, 24, variant);
}

// A number that is none makes its own row of the output so, and tiny ones are nothing worse than 0.
void check_special_numbers() {
    constexpr int64_t rows = 21, in = 64, out = 11, odd = 3, tiny = 4;
    for (const ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_F16})
        for (const float value : {std::nanf(""), HUGE_VALF, -HUGE_VALF})
            for (const Unit unit : kUnits) {
                if (!available(unit)) continue;
                Floats input(rows * in), found(rows * out);
                input.data()[odd * in + 40] = value;
                std::fill_n(input.data() + tiny * in, in, 1e-42f);
                const Packed weight(type, out, in);
                Linear op{};
                op.input = input.data(), op.output = found.data();
                op.rows = rows, op.in_features = in, op.weight = weight.weight;
                run([&](Team& team) { unit_table(unit).linear(op, team); }, 1);
                bool right = true;
                for (int64_t i = 0; i < found.size(); ++i) {
                    const float x = found.data()[i];
                    right = right && std::isfinite(x) == (i / out != odd) &&
                            (i / out != tiny || std::fabs(x) < 1e-39f);
                }
                ++checks;
                if (right) continue;
                ++failures;
                std::printf("%g in an input, %s, %s\n", value, ggml_type_name(type), name_of(unit));
            }
}

void check_norms() {
    const int64_t shapes[][3] = {{1, 1, 32}, {2, 35, 64}, {3, 7, 320}, {1, 700, 96}, {4, 1, 33}};
    for (const auto& [batch, pixels, channels] : shapes) {
        const Floats input(batch * pixels * channels, 3), gamma(channels), beta(channels);
        const int64_t count = batch * pixels * channels;
        const std::string shape = std::to_string(pixels) + " " + std::to_string(channels);
        for (const int64_t groups : {channels, channels == 33 ? int64_t{11} : int64_t{32}})
            for (const bool silu : {false, true}) {
                GroupNorm op{input.data(), nullptr, batch,        pixels,      channels,
                             groups,       1e-5f,   gamma.data(), beta.data(), silu};
                // One value alone is its own mean: all that is left is rounding.
                if (pixels * channels / groups > 1)
                    check("group_norm " + shape, op, count, &KernelTable::group_norm, kDirect);
            }
        LayerNorm op{input.data(), nullptr,      batch * pixels, channels,
                     1e-5f,        gamma.data(), beta.data(),    0.5f};
        check("layer_norm " + shape, op, count, &KernelTable::layer_norm, kDirect);
        op.gamma = op.beta = nullptr;
        check("layer_norm " + shape, op, count, &KernelTable::layer_norm, kDirect);
        if (channels % 2 == 0)
            check("geglu " + shape, Geglu{input.data(), nullptr, batch * pixels, channels / 2},
                  count / 2, &KernelTable::geglu, kDirect);
    }
}

}  // namespace

int main() {
    for (const Isa isa : kIsas)
        if (available(isa)) std::printf("%s ", name_of(isa));
    for (const Unit unit : kUnits)
        if (available(unit)) std::printf("%s ", name_of(unit));
    std::printf("\n");
    for (const ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_F16}) {
        Linear op{};
        op.rows = 100, op.weight.type = type;
        const std::optional<Unit> unit = fast_unit(op);
        std::printf("fast with %s: %s\n", ggml_type_name(type), unit ? name_of(*unit) : "none");
    }
    check_convs();
    check_linears();
    check_attentions();
    check_special_numbers();
    check_norms();
    std::printf("%d checks, %d failures\n", checks, failures);
    return failures == 0 ? 0 : 1;
}
