// Packing: rows of a matrix (weights, keys) become a panel [depth][width], width a multiple of
// kLanes, so that the inner loop reads it straight through.

// Registers: tile rows x panel vectors accumulators, the panel's vectors of one step and one
// broadcast value.
#if SDE_LANES == 16
constexpr int kTileRows = 12, kPanelVectors = 2;  // 24 + 2 + 1 of 32
#elif SDE_LANES == 8
constexpr int kTileRows = 6, kPanelVectors = 2;  // 12 + 2 + 1 of 16
#elif defined(__aarch64__)
// 20 + 4 + 5 of 32: the compiler fetches all broadcast values of a step at once.
constexpr int kTileRows = 5, kPanelVectors = 4;
#else
constexpr int kTileRows = 6, kPanelVectors = 2;  // 12 + 2 + 1 and a product, of 16
#endif
constexpr int kPanelWidth = kPanelVectors * kLanes;

// Which panel row an element of a weight row goes to. Torch orders a convolution's row (channel,
// tap); the panel's order is (tap, channel), in which the input's channels are contiguous.
struct PanelOrder {
    int64_t taps;
    int64_t channels;  // in this panel
};

// Writes kLanes matrix rows into the columns [column, column + kLanes) of a panel `width` floats
// wide. `rows(r, k, n)` reads; of the rows `valid` exist, the others count as 0. An element
// (channel, tap) is number channel * taps + tap.
template <class Rows>
void pack_columns(const Rows& rows, int64_t valid, PanelOrder order, int64_t width, float* panel) {
    const int64_t count = order.taps * order.channels;
    int64_t channel = 0, tap = 0;
    for (int64_t k = 0; k < count; k += kLanes) {
        const int64_t n = min_of<int64_t>(kLanes, count - k);
        Vec m[kLanes];
        if (valid == kLanes && n == kLanes) {
#pragma GCC unroll 16
            for (int64_t r = 0; r < kLanes; ++r) m[r] = rows(r, k, kLanes);
        } else {
            for (int64_t r = 0; r < kLanes; ++r) m[r] = r < valid ? rows(r, k, n) : Vec{};
        }
        transpose(m);
        if (order.taps == 1) {
            for (int64_t j = 0; j < n; ++j) store(panel + (k + j) * width, m[j]);
            continue;
        }
        for (int64_t j = 0; j < n; ++j) {
            store(panel + (tap * order.channels + channel) * width, m[j]);
            if (++tap == order.taps) {
                tap = 0;
                ++channel;
            }
        }
    }
}

// Elements of a weight row that are dequantized before they are packed: whole blocks of every type,
// and few, so that those of kLanes rows stay in the L1 cache meanwhile.
constexpr int64_t kDequantizedElements = 256;

// Floats for one dequantized row part, and for all that pack_weight needs.
int64_t row_part_size(const Weight& weight, int64_t count) {
    return round_up(count + 2 * ggml_blck_size(weight.type), kLanes);
}
int64_t row_buffer_size(const Weight& weight, int64_t count) {
    const bool read_directly = weight.type == GGML_TYPE_F32 || weight.type == GGML_TYPE_F16 ||
                               weight.type == GGML_TYPE_BF16;
    return read_directly ? 0 : kLanes * row_part_size(weight, count);
}

// Brings nearer what pack_weight() will read: elements [begin, begin + count) of some rows.
void prefetch_weight(const Weight& weight, int64_t row, int64_t valid, int64_t begin,
                     int64_t count) {
    const int64_t block = ggml_blck_size(weight.type);
    const auto block_bytes = static_cast<int64_t>(ggml_type_size(weight.type));
    const char* data = static_cast<const char*>(weight.data);
    for (int64_t r = row; r < row + valid; ++r) {
        const int64_t first = r * weight.row_elements + begin;
        const char* end = data + ceil_div(first + count, block) * block_bytes;
        for (const char* at = data + first / block * block_bytes; at < end; at += kLine * 4)
            __builtin_prefetch(at, 0, 2);
    }
}

// Rows of a type that is dequantized first, as pack_columns() packs them: kLanes rows from `row`
// on, of which `valid` exist, elements [begin, begin + taps * channels) of each.
void pack_dequantized(const Weight& weight, int64_t row, int64_t valid, int64_t begin,
                      PanelOrder order, int64_t width, float* row_buffer, float* panel) {
    const int64_t end = begin + order.taps * order.channels;
    for (int64_t k = begin; k < end;) {
        // Several taps go to places that a part does not know.
        const int64_t part_end =
            order.taps == 1 ? min_of(end, round_up(k + 1, kDequantizedElements)) : end;
        const int64_t count = part_end - k, stride = row_part_size(weight, count);
        const float* part[kLanes];
        for (int64_t r = 0; r < valid; ++r)
            part[r] = dequantize(weight, row + r, k, count, row_buffer + r * stride);
        const auto read = [&](int64_t r, int64_t i, int64_t n) {
            return read_lanes(part[r] + i, n);
        };
        pack_columns(read, valid, {order.taps, count / order.taps}, width,
                     panel + (k - begin) * width);
        k = part_end;
    }
}

// The rows [row, row + valid) of a weight, elements [begin, begin + taps * channels) of each, as a
// panel of `width` columns. `row_buffer` has row_buffer_size() floats.
void pack_weight(const Weight& weight, int64_t row, int64_t valid, int64_t begin, PanelOrder order,
                 int64_t width, float* row_buffer, float* panel) {
    const int64_t count = order.taps * order.channels;
    const char* data = static_cast<const char*>(weight.data);
    for (int64_t column = 0; column < width; column += kLanes) {
        const int64_t first = row + column;
        const int64_t rows = min_of<int64_t>(kLanes, valid - column);
        const int64_t offset = first * weight.row_elements + begin;
        if (weight.type == GGML_TYPE_F32) {
            pack_columns(FloatRows{data + offset * 4, weight.row_elements * 4}, rows, order, width,
                         panel + column);
        } else if (weight.type == GGML_TYPE_F16) {
            pack_columns(HalfRows{{data + offset * 2, weight.row_elements * 2}}, rows, order, width,
                         panel + column);
        } else if (weight.type == GGML_TYPE_BF16) {
            pack_columns(Bf16Rows{{data + offset * 2, weight.row_elements * 2}}, rows, order, width,
                         panel + column);
        } else {
            pack_dequantized(weight, first, rows, begin, order, width, row_buffer, panel + column);
        }
    }
}
