#include "adapters/stack.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "adapters/matrix.h"
#include "base/error.h"
#include "runtime/device.h"
#include "weights/parallel.h"

namespace sde {
namespace {

constexpr size_t kAlignment = 64;  // a cache line

// A pair adds rank (in + out) multiplications to the in * out of its layer. Above this share it is
// merged instead: these are the narrow layers, which see the most tokens and hold the fewest
// values. Measured with two LoRAs of rank 64 on Stable Diffusion 1.5 (bench/lora.py): at 0.41 a
// sixth of the changed values is merged, the step loses what it may, and a switch stays short.
constexpr double kMostExtraWork = 0.41;

size_t aligned(size_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

std::vector<float> values_of(const ggml_tensor& tensor) {
    std::vector<float> values(static_cast<size_t>(ggml_nelements(&tensor)));
    to_float(DType{tensor.type}, tensor.data, values.data(), ggml_nelements(&tensor));
    return values;
}

}  // namespace

void Adapter::apply(const std::string& parameter, std::vector<float>& values, float scale) const {
    for (const Change& change : changes_)
        if (change.parameter() == parameter) change.apply(values, scale);
}

AdapterStack::Slot::~Slot() {
    if (headers) ggml_free(headers);
}

AdapterStack::Changes AdapterStack::by_parameter(const std::vector<AdapterUse>& uses) {
    Changes changes;
    for (const AdapterUse& use : uses)
        for (const Change& change : use.adapter->changes())
            changes[change.parameter()].push_back({&change, use.scale});
    return changes;
}

// The kind of slot that the changes of one parameter need, without memory.
std::unique_ptr<AdapterStack::Slot> AdapterStack::planned(const std::string& name,
                                                          const std::vector<Scaled>& of) const {
    const ggml_tensor& original = store_->original(name);
    const int64_t out = original.ne[1], rest = original.ne[0];
    auto slot = std::make_unique<Slot>();
    slot->pair = store_->takes_beside(name);
    for (const auto& [change, scale] : of) {
        if (change->shape().elements() != out * rest)
            throw Error(ErrorKind::Weights, "the adapter was made for another shape of '" + name +
                                                "': " + change->shape().text());
        slot->pair = slot->pair && change->is_pair();
        if (!slot->pair) break;
        const ggml_type type = change->pair_type();
        slot->type = slot->rank == 0 || type == slot->type ? type : GGML_TYPE_F32;
        slot->rank += change->rank();
    }
    const double extra = static_cast<double>(slot->rank) * static_cast<double>(out + rest);
    slot->pair = slot->pair && extra <= kMostExtraWork * static_cast<double>(out * rest);
    if (slot->pair) return slot;
    slot->rank = 0;
    // Weights that are not kept exactly anyway get half of the memory; vectors are always float32.
    slot->type = original.type == GGML_TYPE_F32 ? GGML_TYPE_F32 : GGML_TYPE_F16;
    return slot;
}

void AdapterStack::allocate(const std::string& name, Slot& slot) {
    const ggml_tensor& original = store_->original(name);
    const int64_t out = original.ne[1], rest = original.ne[0];
    const size_t down = aligned(ggml_row_size(slot.type, slot.rank * rest));
    const size_t up = aligned(ggml_row_size(slot.type, slot.rank * out));
    const size_t gains = aligned(static_cast<size_t>(slot.rank) * sizeof(float));
    slot.bytes = slot.pair ? down + up + gains : ggml_row_size(slot.type, rest * out);
    // Not initialised: zeroing as much memory takes as long as filling it.
    slot.memory.reset(new uint8_t[slot.bytes + kAlignment]);
    uint8_t* data =
        reinterpret_cast<uint8_t*>(aligned(reinterpret_cast<uintptr_t>(slot.memory.get())));
    if (!slot.pair) {
        store_->replace(name, slot.type, data);
        return;
    }
    slot.headers = ggml_init({3 * ggml_tensor_overhead(), nullptr, true});
    if (!slot.headers) throw Error(ErrorKind::OutOfMemory, "no memory for tensor headers");
    const auto make = [&](ggml_type type, int64_t columns, int64_t rows, size_t size) {
        ggml_tensor* tensor = ggml_new_tensor_2d(slot.headers, type, columns, rows);
        tensor->data = data;
        data += size;
        return tensor;
    };
    slot.beside.down = make(slot.type, rest, slot.rank, down);
    slot.beside.up = make(slot.type, slot.rank, out, up);
    slot.beside.gains = make(GGML_TYPE_F32, slot.rank, 1, gains);
    store_->set_beside(name, slot.beside);
}

void AdapterStack::remove(const std::string& name, const Slot& slot) {
    for (const void* values : slot.values()) store_->values_gone(values);
    if (slot.pair)
        store_->set_beside(name, {});
    else
        store_->restore(name);
}

std::vector<const void*> AdapterStack::Slot::values() const {
    if (!pair) return {reinterpret_cast<void*>(aligned(reinterpret_cast<uintptr_t>(memory.get())))};
    if (!beside.down) return {};
    return {beside.gains->data, beside.down->data, beside.up->data};
}

// Gives every changed parameter a slot of the right kind; true if any of them is new or gone.
bool AdapterStack::lay_out(const Changes& changes) {
    bool changed = false;
    for (auto it = slots_.begin(); it != slots_.end();) {
        if (changes.count(it->first)) {
            ++it;
            continue;
        }
        remove(it->first, *it->second);
        it = slots_.erase(it);
        changed = true;
    }
    for (const auto& [name, of] : changes) {
        std::unique_ptr<Slot> wanted = planned(name, of);
        std::unique_ptr<Slot>& slot = slots_[name];
        if (slot && slot->pair == wanted->pair && slot->rank == wanted->rank &&
            slot->type == wanted->type)
            continue;
        if (slot) remove(name, *slot);
        slot = std::move(wanted);
        allocate(name, *slot);
        changed = true;
    }
    return changed;
}

// The values of a parameter with all its changes.
std::vector<float> AdapterStack::merged(const ggml_tensor& original,
                                        const std::vector<Scaled>& of) {
    std::vector<float> values = values_of(original);
    const bool pairs = std::all_of(of.begin(), of.end(),
                                   [](const Scaled& scaled) { return scaled.change->is_pair(); });
    if (!pairs) {
        for (const auto& [change, scale] : of) change->apply(values, scale);
        return values;
    }
    // One product for all of them.
    const int64_t out = original.ne[1], rest = original.ne[0];
    int64_t rank = 0, row = 0;
    for (const auto& [change, scale] : of) rank += change->rank();
    std::vector<float> up(static_cast<size_t>(out * rank)), down(static_cast<size_t>(rank * rest));
    for (const auto& [change, scale] : of) {
        change->write_down(GGML_TYPE_F32, down.data() + row * rest);
        change->write_up(GGML_TYPE_F32, up.data() + row, rank);
        const float gain = scale * change->factor();
        const int64_t end = row + change->rank();
        for (int64_t i = 0; i < out; ++i)
            for (int64_t r = row; r < end; ++r) up[i * rank + r] *= gain;
        row = end;
    }
    return product(up, down, out, rank, rest, values.data());
}

void AdapterStack::fill(const std::string& name, Slot& slot, const std::vector<Scaled>& of,
                        bool gains_only) const {
    const ggml_tensor& original = store_->original(name);
    const int64_t rest = original.ne[0];
    if (!slot.pair) {
        const std::vector<float> values = merged(original, of);
        uint8_t* data =
            reinterpret_cast<uint8_t*>(aligned(reinterpret_cast<uintptr_t>(slot.memory.get())));
        from_float(slot.type, values.data(), data, original.ne[1], rest);
        if (holds_infinity(slot.type, data, ggml_nelements(&original)))
            throw Error(ErrorKind::Weights,
                        "with the adapter '" + name +
                            "' goes beyond the range of f16 (65504); use a smaller scale");
        return;
    }
    int64_t row = 0;
    auto* gains = static_cast<float*>(slot.beside.gains->data);
    for (const auto& [change, scale] : of) {
        const int64_t rank = change->rank();
        std::fill_n(gains + row, rank, scale * change->factor());
        if (!gains_only) {
            change->write_down(slot.type, static_cast<uint8_t*>(slot.beside.down->data) +
                                              ggml_row_size(slot.type, row * rest));
            change->write_up(
                slot.type,
                static_cast<uint8_t*>(slot.beside.up->data) + ggml_row_size(slot.type, row),
                slot.rank);
        }
        row += rank;
    }
}

bool AdapterStack::apply(const std::vector<AdapterUse>& uses) {
    if (uses == uses_) return false;
    const bool same_files =
        std::equal(uses.begin(), uses.end(), uses_.begin(), uses_.end(),
                   [](const auto& a, const auto& b) { return a.adapter == b.adapter; });
    const Changes changes = by_parameter(uses);
    bool changed = false;
    try {
        changed = lay_out(changes);
        std::vector<const Changes::value_type*> work;
        for (const auto& entry : changes) work.push_back(&entry);
        std::atomic<size_t> next{0};
        const int threads = physical_cores();
        in_parallel(threads, 1, threads, [&](int64_t, int64_t) {
            for (size_t i; (i = next++) < work.size();)
                fill(work[i]->first, *slots_.at(work[i]->first), work[i]->second, same_files);
        });
        for (const auto& [name, slot] : slots_)
            for (const void* values : slot->values()) {
                store_->values_changed(values);
                if (same_files && slot->pair) break;  // the gains, which come first
            }
    } catch (...) {
        clear();
        throw;
    }
    uses_ = uses;
    return changed;
}

void AdapterStack::clear() {
    for (const auto& [name, slot] : slots_)
        if (slot) remove(name, *slot);
    slots_.clear();
    uses_.clear();
}

size_t AdapterStack::bytes() const {
    size_t bytes = 0;
    for (const auto& [name, slot] : slots_) bytes += slot->bytes;
    return bytes;
}

}  // namespace sde
