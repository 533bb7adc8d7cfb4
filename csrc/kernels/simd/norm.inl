// Normalizations and the gated activation. They are bound by memory, so each reads its input as few
// times as it can.

// Count, mean and sum of squared deviations of some values.
struct Moments {
    double count, mean, squares;

    // Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    // variances" (1979).
    void add(const Moments& other) {
        const double total = count + other.count;
        if (other.count == 0) return;
        const double delta = other.mean - mean;
        mean += delta * other.count / total;
        squares += other.squares + delta * delta * count * other.count / total;
        count = total;
    }
};

// A group norm is done in two steps: moments of fixed parts of each image, then, from their sum,
// the output.
constexpr int64_t kNormParts = 64;          // of an image, at most
constexpr int64_t kNormBlockBytes = 65536;  // read twice, the second time from the cache
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
    Moments* moments = nullptr;  // [batch][parts][groups]; the first member's serve all
    // [channels] of a block
    float *sums = nullptr, *squares = nullptr;
    // [channels]: output = (x - high - low) * factor + beta
    float *high = nullptr, *low = nullptr, *factor = nullptr;

    void lay_out(Layout& layout) {
        moments = layout.take<Moments>(op.batch * plan.parts * op.groups);
        sums = layout.take<float>(op.channels);
        squares = layout.take<float>(op.channels);
        high = layout.take<float>(op.channels);
        low = layout.take<float>(op.channels);
        factor = layout.take<float>(op.channels);
    }
};

double sum_of(const float* values, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(values[i]);
    return sum;
}

// Adds the moments of `pixels` pixels. The first pass finds each group's mean only roughly; the
// second sums the distances from it, and their squares, from which mean and squares follow without
// loss.
void add_block(const GroupNorm& op, const GroupNormScratch& s, const float* x, int64_t pixels,
               Moments* moments) {
    const int64_t width = op.channels / op.groups;
    const double count = static_cast<double>(pixels * width);
    // In the order of memory, for the values come from afar; the second pass finds them in the
    // cache.
    std::memset(s.sums, 0, static_cast<size_t>(op.channels) * 4);
    for (int64_t i = 0; i < pixels; ++i)
        for_vectors(op.channels, [&](int64_t c, int64_t n) {
            write_lanes(s.sums + c,
                        read_lanes(s.sums + c, n) + read_lanes(x + i * op.channels + c, n), n);
        });
    for (int64_t g = 0; g < op.groups; ++g) {
        const float rough = static_cast<float>(sum_of(s.sums + g * width, width) / count);
        for (int64_t c = g * width; c < (g + 1) * width; ++c) s.high[c] = rough;
    }
    for_vectors(op.channels, [&](int64_t c, int64_t n) {
        const Vec rough = read_lanes(s.high + c, n);
        Vec sum = {}, squares = {};
        for (int64_t i = 0; i < pixels; ++i) {
            const Vec distance = read_lanes(x + i * op.channels + c, n) - rough;
            sum += distance;
            squares += distance * distance;
        }
        write_lanes(s.sums + c, sum, n);
        write_lanes(s.squares + c, squares, n);
    });
    for (int64_t g = 0; g < op.groups; ++g) {
        const double sum = sum_of(s.sums + g * width, width),
                     squares = sum_of(s.squares + g * width, width);
        const double rough = static_cast<double>(s.high[g * width]);
        moments[g].add({count, rough + sum / count, max_of(0.0, squares - sum * sum / count)});
    }
}

void collect_moments(const GroupNorm& op, const GroupNormPlan& plan, const GroupNormScratch& s,
                     Moments* shared, Team& team) {
    for (int64_t item; (item = team.claim(op.batch * plan.parts)) >= 0;) {
        const int64_t batch = item / plan.parts, first = item % plan.parts * plan.part;
        const int64_t last = min_of(first + plan.part, op.pixels);
        Moments* moments = shared + item * op.groups;
        for (int64_t g = 0; g < op.groups; ++g) moments[g] = {0, 0, 0};
        for (int64_t pixel = first; pixel < last; pixel += plan.block)
            add_block(op, s, op.input + (batch * op.pixels + pixel) * op.channels,
                      min_of(plan.block, last - pixel), moments);
    }
}

void prepare_image(const GroupNorm& op, const GroupNormPlan& plan, const GroupNormScratch& s,
                   const Moments* shared, int64_t batch) {
    const int64_t width = op.channels / op.groups;
    for (int64_t g = 0; g < op.groups; ++g) {
        Moments sum{0, 0, 0};
        for (int64_t part = 0; part < plan.parts; ++part)
            sum.add(shared[(batch * plan.parts + part) * op.groups + g]);
        // In two parts, so that subtracting a large mean costs no precision.
        const float high = static_cast<float>(sum.mean);
        const float low = static_cast<float>(sum.mean - static_cast<double>(high));
        const double inverse =
            1 / __builtin_sqrt(sum.squares / sum.count + static_cast<double>(op.eps));
        for (int64_t c = g * width; c < (g + 1) * width; ++c) {
            s.high[c] = high;
            s.low[c] = low;
            s.factor[c] = static_cast<float>(inverse * static_cast<double>(op.gamma[c]));
        }
    }
}

void normalize_pixels(const GroupNorm& op, const GroupNormScratch& s, int64_t at, int64_t pixels) {
    for (int64_t i = 0; i < pixels; ++i) {
        const float* x = op.input + at + i * op.channels;
        float* y = op.output + at + i * op.channels;
        for_vectors(op.channels, [&](int64_t c, int64_t n) {
            const Vec centred =
                (read_lanes(x + c, n) - read_lanes(s.high + c, n)) - read_lanes(s.low + c, n);
            const Vec v = centred * read_lanes(s.factor + c, n) + read_lanes(op.beta + c, n);
            write_lanes(y + c, op.silu ? silu_of(v) : v, n);
        });
    }
}

void group_norm_kernel(const GroupNorm& op, Team& team) {
    const GroupNormPlan plan(op);
    GroupNormScratch scratch{op, plan};
    allocate(scratch);
    Moments* shared = static_cast<Moments*>(team.share(scratch.moments));
    collect_moments(op, plan, scratch, shared, team);
    team.barrier();
    const int64_t block = max_of<int64_t>(1, kItemFloats / op.channels);
    const int64_t blocks = ceil_div(op.pixels, block);
    int64_t prepared = -1;
    for (int64_t item; (item = team.claim(op.batch * blocks)) >= 0;) {
        const int64_t batch = item / blocks, pixel = item % blocks * block;
        if (batch != prepared) prepare_image(op, plan, scratch, shared, batch);
        prepared = batch;
        normalize_pixels(op, scratch, (batch * op.pixels + pixel) * op.channels,
                         min_of(block, op.pixels - pixel));
    }
    team.barrier();
}

void normalize_row(const LayerNorm& op, const float* x, float* y) {
    const double count = static_cast<double>(op.width);
    Vec total = {};
    for_vectors(op.width, [&](int64_t c, int64_t n) { total += read_lanes(x + c, n); });
    const float rough = static_cast<float>(sum_lanes(total) / count);
    Vec sums = {}, squares = {};
    for_vectors(op.width, [&](int64_t c, int64_t n) {
        Vec distance = read_lanes(x + c, n) - rough;
        if (n < kLanes) distance = load_part(&distance, n);
        sums += distance;
        squares += distance * distance;
    });
    const double rest = sum_lanes(sums) / count;
    const double variance = max_of(0.0, sum_lanes(squares) / count - rest * rest);
    const float low = static_cast<float>(rest);
    const float factor =
        static_cast<float>(1 / __builtin_sqrt(variance + static_cast<double>(op.eps)));
    for_vectors(op.width, [&](int64_t c, int64_t n) {
        Vec v = ((read_lanes(x + c, n) - rough) - low) * factor;
        if (op.gamma) v *= read_lanes(op.gamma + c, n) + op.gamma_offset;
        if (op.beta) v += read_lanes(op.beta + c, n);
        write_lanes(y + c, v, n);
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
            for_vectors(op.inner, [&](int64_t c, int64_t n) {
                write_lanes(to + c, read_lanes(value + c, n) * gelu_of(read_lanes(gate + c, n)), n);
            });
        }
    }
    team.barrier();
}
