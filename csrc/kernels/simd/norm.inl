// Normalizations and the gated activation. They are bound by memory, so each reads its input as few times as it can.

// Count, mean and sum of squared deviations of some values.
struct Moments {
    double count, mean, squares;

    // Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    void add(const Moments& other) {
        const double total = count + other.count;
        if (other.count == 0) return;
        const double delta = other.mean - mean;
        mean += delta * other.count / total;
        squares += other.squares + delta * delta * count * other.count / total;
        count = total;
    }
};

// A double as the sum of two floats, so that subtracting a large mean costs no precision.
struct SplitMean {
    float high, low;
    explicit SplitMean(double mean) : high(static_cast<float>(mean)), low(static_cast<float>(mean - static_cast<double>(high))) {}
};

// A group norm is done in two steps: moments of fixed parts of each image, then, from their sum, the output.
constexpr int64_t kNormParts = 64;          // of an image, at most
constexpr int64_t kNormBlockBytes = 16384;  // read twice while in the L1 cache
constexpr int64_t kItemFloats = 16384;      // of an element-wise work item

struct GroupNormPlan {
    int64_t block;  // pixels
    int64_t part;   // pixels, a multiple of block
    int64_t parts;

    explicit GroupNormPlan(const GroupNorm& op) {
        block = max_of<int64_t>(1, kNormBlockBytes / 4 / op.channels);
        part = round_up(ceil_div(op.pixels, kNormParts), block);
        parts = ceil_div(op.pixels, part);
    }
};

struct GroupNormScratch {
    const GroupNorm& op;
    const GroupNormPlan& plan;
    float* channel;        // [channels]: sums of a block
    float* centre;         // [channels]: mean of the channel's group
    Moments* shared;       // [batch][parts][groups], used from the first member's scratch
    float *high, *low, *factor;  // [channels]: output = (x - high - low) * factor + beta

    void lay_out(Layout& layout) {
        shared = layout.take<Moments>(op.batch * plan.parts * op.groups);
        channel = layout.take<float>(op.channels);
        centre = layout.take<float>(op.channels);
        high = layout.take<float>(op.channels);
        low = layout.take<float>(op.channels);
        factor = layout.take<float>(op.channels);
    }
};

// Adds, channel by channel over `pixels` pixels, the values (centre null) or their squared distances from centre.
void sum_channels(const float* x, int64_t pixels, int64_t channels, const float* centre, float* sums) {
    for (int64_t c = 0; c < channels; c += kLanes) {
        const int64_t n = min_of<int64_t>(kLanes, channels - c);
        const auto read = [n](const float* p) { return n == kLanes ? load(p) : load_part(p, n); };
        const Vec middle = centre ? read(centre + c) : Vec{};
        Vec sum = {};
        for (int64_t i = 0; i < pixels; ++i) {
            const Vec v = read(x + i * channels + c);
            if (centre) {
                const Vec d = v - middle;
                sum += d * d;
            } else {
                sum += v;
            }
        }
        store_part(sums + c, sum, n);
    }
}

void add_block(const GroupNorm& op, const GroupNormScratch& s, const float* x, int64_t pixels, Moments* moments) {
    const int64_t width = op.channels / op.groups;
    const double count = static_cast<double>(pixels * width);
    const auto group_sum = [&](int64_t g) {
        double sum = 0;
        for (int64_t c = g * width; c < (g + 1) * width; ++c) sum += static_cast<double>(s.channel[c]);
        return sum;
    };
    sum_channels(x, pixels, op.channels, nullptr, s.channel);
    for (int64_t g = 0; g < op.groups; ++g) {
        const float mean = static_cast<float>(group_sum(g) / count);
        // The true mean of the block goes to high; centre is its rounding, from which the distances are taken.
        s.high[g] = static_cast<float>(group_sum(g) / count - static_cast<double>(mean));
        for (int64_t c = g * width; c < (g + 1) * width; ++c) s.centre[c] = mean;
    }
    sum_channels(x, pixels, op.channels, s.centre, s.channel);
    for (int64_t g = 0; g < op.groups; ++g) {
        const double rest = static_cast<double>(s.high[g]);
        moments[g].add({count, static_cast<double>(s.centre[g * width]) + rest, group_sum(g) - count * rest * rest});
    }
}

void collect_moments(const GroupNorm& op, const GroupNormPlan& plan, const GroupNormScratch& s, Moments* shared, Team& team) {
    for (int64_t item; (item = team.claim(op.batch * plan.parts)) >= 0;) {
        const int64_t batch = item / plan.parts, first = item % plan.parts * plan.part;
        const int64_t last = min_of(first + plan.part, op.pixels);
        Moments* moments = shared + item * op.groups;
        for (int64_t g = 0; g < op.groups; ++g) moments[g] = {0, 0, 0};
        for (int64_t pixel = first; pixel < last; pixel += plan.block)
            add_block(op, s, op.input + (batch * op.pixels + pixel) * op.channels, min_of(plan.block, last - pixel), moments);
    }
}

void prepare_image(const GroupNorm& op, const GroupNormPlan& plan, const GroupNormScratch& s, const Moments* shared, int64_t batch) {
    const int64_t width = op.channels / op.groups;
    for (int64_t g = 0; g < op.groups; ++g) {
        Moments sum{0, 0, 0};
        for (int64_t part = 0; part < plan.parts; ++part) sum.add(shared[(batch * plan.parts + part) * op.groups + g]);
        const SplitMean mean(sum.mean);
        const double inverse = 1 / __builtin_sqrt(sum.squares / sum.count + static_cast<double>(op.eps));
        for (int64_t c = g * width; c < (g + 1) * width; ++c) {
            s.high[c] = mean.high;
            s.low[c] = mean.low;
            s.factor[c] = static_cast<float>(inverse * static_cast<double>(op.gamma[c]));
        }
    }
}

void normalize_pixels(const GroupNorm& op, const GroupNormScratch& s, int64_t at, int64_t pixels) {
    for (int64_t i = 0; i < pixels; ++i) {
        for (int64_t c = 0; c < op.channels; c += kLanes) {
            const int64_t n = min_of<int64_t>(kLanes, op.channels - c);
            const auto read = [n](const float* p) { return n == kLanes ? load(p) : load_part(p, n); };
            const int64_t here = at + i * op.channels + c;
            Vec y = ((read(op.input + here) - read(s.high + c)) - read(s.low + c)) * read(s.factor + c) + read(op.beta + c);
            if (op.silu) y = silu_of(y);
            if (n == kLanes)
                store(op.output + here, y);
            else
                store_part(op.output + here, y, n);
        }
    }
}

void group_norm_kernel(const GroupNorm& op, Team& team) {
    const GroupNormPlan plan(op);
    GroupNormScratch scratch{op, plan, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
    allocate(scratch);
    Moments* shared = static_cast<Moments*>(team.share(scratch.shared));
    collect_moments(op, plan, scratch, shared, team);
    team.barrier();
    const int64_t block = max_of<int64_t>(1, kItemFloats / op.channels);
    const int64_t blocks = ceil_div(op.pixels, block);
    int64_t prepared = -1;
    for (int64_t item; (item = team.claim(op.batch * blocks)) >= 0;) {
        const int64_t batch = item / blocks, pixel = item % blocks * block;
        if (batch != prepared) prepare_image(op, plan, scratch, shared, batch);
        prepared = batch;
        normalize_pixels(op, scratch, (batch * op.pixels + pixel) * op.channels, min_of(block, op.pixels - pixel));
    }
    team.barrier();
}

void normalize_row(const LayerNorm& op, const float* x, float* y) {
    const auto each = [&](auto&& use) {
        for (int64_t c = 0; c < op.width; c += kLanes) use(c, min_of<int64_t>(kLanes, op.width - c));
    };
    const auto read = [](const float* p, int64_t n) { return n == kLanes ? load(p) : load_part(p, n); };
    const double count = static_cast<double>(op.width);
    Vec sum = {};
    each([&](int64_t c, int64_t n) { sum += read(x + c, n); });
    const SplitMean mean(sum_lanes(sum) / count);
    Vec squares = {};
    each([&](int64_t c, int64_t n) {
        Vec d = (read(x + c, n) - mean.high) - mean.low;
        if (n < kLanes) d = load_part(&d, n);
        squares += d * d;
    });
    const float factor = static_cast<float>(1 / __builtin_sqrt(sum_lanes(squares) / count + static_cast<double>(op.eps)));
    each([&](int64_t c, int64_t n) {
        Vec v = ((read(x + c, n) - mean.high) - mean.low) * factor;
        if (op.gamma) v *= read(op.gamma + c, n);
        if (op.beta) v += read(op.beta + c, n);
        if (n == kLanes)
            store(y + c, v);
        else
            store_part(y + c, v, n);
    });
}

void layer_norm_kernel(const LayerNorm& op, Team& team) {
    const int64_t block = max_of<int64_t>(1, kItemFloats / op.width);
    for (int64_t item; (item = team.claim(ceil_div(op.rows, block))) >= 0;)
        for (int64_t row = item * block; row < min_of(op.rows, (item + 1) * block); ++row)
            normalize_row(op, op.input + row * op.width, op.output + row * op.width);
    team.barrier();
}

void geglu_kernel(const Geglu& op, Team& team) {
    const int64_t block = max_of<int64_t>(1, kItemFloats / (2 * op.inner));
    for (int64_t item; (item = team.claim(ceil_div(op.rows, block))) >= 0;) {
        for (int64_t row = item * block; row < min_of(op.rows, (item + 1) * block); ++row) {
            const float* value = op.input + row * 2 * op.inner;
            const float* gate = value + op.inner;
            float* to = op.output + row * op.inner;
            int64_t c = 0;
            for (; c + kLanes <= op.inner; c += kLanes) store(to + c, load(value + c) * gelu_of(load(gate + c)));
            if (const int64_t n = op.inner - c; n > 0)
                store_part(to + c, load_part(value + c, n) * gelu_of(load_part(gate + c, n)), n);
        }
    }
    team.barrier();
}
