#include "sampling/random.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "sampling/box_muller.h"

namespace sde::sampling {

// ---------------------------------------------------------------------------------------------------------- MT19937

Mt19937::Mt19937(uint64_t seed) {
    words_[0] = static_cast<uint32_t>(seed);
    for (uint32_t i = 1; i < kWords; ++i)
        words_[i] = 1812433253u * (words_[i - 1] ^ (words_[i - 1] >> 30)) + i;
}

void Mt19937::refill() {
    constexpr size_t kShift = 397;
    for (size_t i = 0; i < kWords; ++i) {
        const uint32_t joined =
            (words_[i] & 0x80000000u) | (words_[(i + 1) % kWords] & 0x7fffffffu);
        words_[i] =
            words_[(i + kShift) % kWords] ^ (joined >> 1) ^ (joined & 1 ? 0x9908b0dfu : 0u);
    }
    used_ = 0;
}

uint32_t Mt19937::next() {
    if (used_ == kWords) refill();
    uint32_t y = words_[used_++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

void Mt19937::save(StateWriter& writer) const {
    writer.put(words_);
    writer.put<uint64_t>(used_);
}

void Mt19937::load(StateReader& reader) {
    words_ = reader.get<std::array<uint32_t, kWords>>();
    used_ = reader.get<uint64_t>();
    if (used_ > kWords) StateReader::fail("is damaged");
}

// -------------------------------------------------------------------------------------------------- torch on the CPU

float TorchCpuGenerator::uniform() {
    return static_cast<float>(engine_.next() & 0xffffffu) * 0x1p-24f;
}

double TorchCpuGenerator::uniform_double() {
    const uint64_t high = engine_.next();
    const uint64_t bits = (high << 32) | engine_.next();
    return static_cast<double>(bits & ((uint64_t{1} << 53) - 1)) * 0x1p-53;
}

float TorchCpuGenerator::normal_double() {
    if (spare_) {
        const double value = *spare_;
        spare_.reset();
        return static_cast<float>(value);
    }
    const double angle = 2.0 * std::numbers::pi * uniform_double();
    const double radius = std::sqrt(-2.0 * std::log1p(-uniform_double()));
    spare_ = radius * std::sin(angle);
    return static_cast<float>(radius * std::cos(angle));
}

void TorchCpuGenerator::normal(std::span<float> out) {
    constexpr size_t kBlock = kBoxMullerBlock;
    if (out.size() < kBlock) {
        for (float& value : out) value = normal_double();
        return;
    }
    for (float& value : out) value = uniform();
    for (size_t i = 0; i + kBlock <= out.size(); i += kBlock)
        box_muller_block(out.subspan(i).first<kBlock>());
    if (out.size() % kBlock != 0) {  // torch draws the last whole block anew
        const auto tail = out.last<kBlock>();
        for (float& value : tail) value = uniform();
        box_muller_block(tail);
    }
}

std::unique_ptr<NormalGenerator> TorchCpuGenerator::clone() const {
    return std::make_unique<TorchCpuGenerator>(*this);
}

void TorchCpuGenerator::save(StateWriter& writer) const {
    engine_.save(writer);
    writer.put<uint8_t>(spare_.has_value());
    writer.put<double>(spare_.value_or(0.0));
}

void TorchCpuGenerator::load(StateReader& reader) {
    engine_.load(reader);
    const bool has_spare = reader.get<uint8_t>() != 0;
    const double spare = reader.get<double>();
    spare_ = has_spare ? std::optional<double>(spare) : std::nullopt;
}

// ------------------------------------------------------------------------------------------------------ torch on CUDA

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xd2511f53u} * counter[0];
        const uint64_t b = uint64_t{0xcd9e8d57u} * counter[2];
        counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
                   static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
        key = {key[0] + 0x9e3779b9u, key[1] + 0xbb67ae85u};
    }
    return counter;
}

namespace {

constexpr uint64_t kThreadsPerBlock = 256;  // of torch's distribution kernels
constexpr uint64_t kNumbersPerCounter = 4;

// cuRAND's transform of two 32-bit words into two normals (curand_normal.h): the sine comes first.
std::array<float, 2> curand_box_muller(uint32_t x, uint32_t y) {
    constexpr float kScale = 0x1p-32f;
    constexpr float kAngleScale = kScale * 6.2831855f;
    const float u = static_cast<float>(x) * kScale + kScale / 2;
    const float v = static_cast<float>(y) * kAngleScale + kAngleScale / 2;
    const float radius = std::sqrt(-2.0f * std::log(u));
    return {radius * std::sin(v), radius * std::cos(v)};
}

}  // namespace

void TorchCudaGenerator::normal(std::span<float> out) {
    if (out.empty()) return;
    // torch launches ceil(n / 256) blocks at most; each thread then makes four numbers at a time, one for each of four
    // stretches of the array that are a grid apart.
    uint64_t threads = (out.size() + kThreadsPerBlock - 1) / kThreadsPerBlock * kThreadsPerBlock;
    if (max_threads_ != 0) threads = std::min(threads, max_threads_);
    const uint64_t rounds = (out.size() - 1) / (threads * kNumbersPerCounter) + 1;
    const std::array<uint32_t, 2> key{static_cast<uint32_t>(seed_),
                                      static_cast<uint32_t>(seed_ >> 32)};
    for (uint64_t round = 0; round < rounds; ++round) {
        const uint64_t offset = offset_ + round;
        const uint64_t first = round * threads * kNumbersPerCounter;
        for (uint64_t thread = 0; thread < threads && first + thread < out.size(); ++thread) {
            const auto words =
                philox4x32({static_cast<uint32_t>(offset), static_cast<uint32_t>(offset >> 32),
                            static_cast<uint32_t>(thread), static_cast<uint32_t>(thread >> 32)},
                           key);
            for (uint64_t i = 0; i < kNumbersPerCounter; i += 2) {
                const uint64_t at = first + thread + i * threads;
                if (at >= out.size()) break;
                const auto pair = curand_box_muller(words[i], words[i + 1]);
                out[at] = pair[0];
                if (at + threads < out.size()) out[at + threads] = pair[1];
            }
        }
    }
    offset_ += rounds;
}

std::unique_ptr<NormalGenerator> TorchCudaGenerator::clone() const {
    return std::make_unique<TorchCudaGenerator>(*this);
}

void TorchCudaGenerator::save(StateWriter& writer) const {
    writer.put(seed_);
    writer.put(max_threads_);
    writer.put(offset_);
}

void TorchCudaGenerator::load(StateReader& reader) {
    seed_ = reader.get<uint64_t>();
    max_threads_ = reader.get<uint64_t>();
    offset_ = reader.get<uint64_t>();
}

// ------------------------------------------------------------------------------------------------------- NormalSource

namespace {

std::unique_ptr<NormalGenerator> make_generator(RandomKind kind, uint64_t seed,
                                                uint64_t max_threads) {
    if (kind == RandomKind::TorchCpu) return std::make_unique<TorchCpuGenerator>(seed);
    return std::make_unique<TorchCudaGenerator>(seed, max_threads);
}

}  // namespace

RandomKind random_kind(std::string_view name) {
    if (name == "torch-cpu") return RandomKind::TorchCpu;
    if (name == "torch-cuda") return RandomKind::TorchCuda;
    throw Error(ErrorKind::Parameter, "unknown kind of random numbers \"" + std::string(name) +
                                          "\"; expected \"torch-cpu\" or \"torch-cuda\"");
}

NormalSource::NormalSource(RandomKind kind, const std::vector<uint64_t>& seeds,
                           uint64_t max_threads)
    : kind_(kind), max_threads_(max_threads), seeds_(seeds) {
    if (max_threads % kThreadsPerBlock != 0)
        throw Error(ErrorKind::Parameter, "max_threads is " + std::to_string(max_threads) +
                                              "; expected a multiple of 256, or 0 for no limit");
    for (const uint64_t seed : seeds) generators_.push_back(make_generator(kind, seed, max_threads));
}

NormalSource::NormalSource(const NormalSource& other)
    : kind_(other.kind_), max_threads_(other.max_threads_), seeds_(other.seeds_) {
    for (const auto& generator : other.generators_) generators_.push_back(generator->clone());
}

NormalSource& NormalSource::operator=(const NormalSource& other) {
    NormalSource copy(other);
    return *this = std::move(copy);
}

void NormalSource::normal(std::span<float> out) {
    if (generators_.empty())
        throw Error(ErrorKind::Parameter,
                    "this sampler draws noise but was given no seeds; pass one seed per image");
    if (out.size() % generators_.size() != 0)
        throw Error(ErrorKind::Parameter,
                    "cannot draw " + std::to_string(out.size()) + " numbers for " +
                        std::to_string(generators_.size()) + " seeds; expected one seed per image");
    const size_t each = out.size() / generators_.size();
    for (size_t i = 0; i < generators_.size(); ++i)
        generators_[i]->normal(out.subspan(i * each, each));
}

std::vector<float> NormalSource::normal(size_t count) {
    std::vector<float> values(count);
    normal(std::span<float>(values));
    return values;
}

void NormalSource::save(StateWriter& writer) const {
    writer.put(kind_);
    writer.put(max_threads_);
    writer.put_all(seeds_);
    for (const auto& generator : generators_) generator->save(writer);
}

NormalSource NormalSource::load(StateReader& reader) {
    const auto kind = reader.get<RandomKind>();
    if (kind > RandomKind::TorchCuda) StateReader::fail("is damaged");
    const auto max_threads = reader.get<uint64_t>();
    const auto seeds = reader.get_all<uint64_t>();
    NormalSource source(kind, seeds, max_threads);
    for (const auto& generator : source.generators_) generator->load(reader);
    return source;
}

}  // namespace sde::sampling
