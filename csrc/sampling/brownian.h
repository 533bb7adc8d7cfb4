// Noise for stochastic samplers that does not depend on how the way from sigma_max to 0 is cut into
// steps: increments of one Brownian path per picture.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace sde::sampling {

// A Brownian path over [start, end], equal bit for bit to torchsde.BrownianTree (Li et al. 2020,
// "Scalable Gradients for Stochastic Differential Equations") with entropy = seed. The path is
// halved until the ends of a query are reached, times are rounded to 1e-6, and every halving has
// its own seed. So the path is a function of the seed alone, and there is no state to save.
class BrownianTree {
  public:
    // 0 < end - start <= 1e6, both finite. `size` numbers per increment. `kind` names the
    // generator, as for NormalSource: torchsde takes that of the device that the path lies on.
    BrownianTree(uint64_t seed, double start, double end, size_t size,
                 const std::string& kind = "torch-cpu");

    // W(to) - W(from) for from < to; times outside the path are moved to its ends.
    void increment(double from, double to, std::span<float> out);

    size_t size() const { return total_.size(); }

  private:
    using Values = std::vector<float>;
    struct Node {
        double start, end;
        uint64_t key;  // the turns that lead here, as binary digits: 0 left, 1 right
        uint32_t depth;
    };
    using NodeName = std::pair<uint32_t, uint64_t>;  // depth, key

    void collect(const Node& node, const Values& values, double from, double to, Values& sum);
    const Values& left_half(const Node& node, double middle, const Values& values);

    Values seeded_normal(uint32_t seed, size_t size) const;

    uint64_t seed_;
    std::string kind_;
    Node root_;
    Values total_;
    // Left halves of the nodes that the last and the current query passed. Queries of a sampler
    // share an end with the query before, and so half of the way down.
    std::map<NodeName, Values> before_, now_;
};

// One tree per picture, scaled to standard deviation 1 for every step.
class BrownianNoise {
  public:
    // sigma_min: the smallest positive sigma of the run; `size` numbers per picture.
    BrownianNoise(const std::vector<uint64_t>& seeds, double sigma_min, double sigma_max,
                  size_t size, const std::string& kind = "torch-cpu");

    // [N, size] noise for the step sigma -> next, both positive and different. The sign is that of
    // k-diffusion's BrownianTreeNoiseSampler: the path is run through from high to low sigma.
    void fill(float sigma, float next, std::span<float> out);

  private:
    std::vector<BrownianTree> trees_;
};

// The first of the 32-bit words that numpy.random.SeedSequence(entropy, spawn_key=spawn_key,
// pool_size=24) generates (O'Neill 2015, "Developing a seed_seq Alternative").
uint32_t seed_sequence_word(uint64_t entropy, const std::vector<uint64_t>& spawn_key);

}  // namespace sde::sampling
