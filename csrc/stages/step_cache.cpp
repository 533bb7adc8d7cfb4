#include "stages/step_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "stages/entries.h"

namespace sde {
namespace {

using networks::Part;
using networks::Reuse;

constexpr size_t kPartsOfBlocks = 3, kPartsOfFeatures = 2;  // graphs that take turns
const char* const kFeatures = "features";
const char* const kChange = "change";
const char* const kResidual = "residual";
// The control residual that is added to the only feature map of the way down that a shallow
// evaluation reads; control networks rest then.
const char* const kControl = "control_0";

networks::Options with_part(networks::Options options, Part part) {
    options["part"] = static_cast<int64_t>(part);
    return options;
}

HostArrays rows_of(const HostArrays& arrays, const std::vector<int64_t>& rows) {
    HostArrays found;
    for (const auto& [name, array] : arrays) {
        found[name] = gathered(array, rows);
        found[name].steady = array.steady;
    }
    return found;
}

// |new - old| / |old| of row `row` of `now`, in the L1 norm.
double relative_change(const HostArray& now, int64_t row, const HostArray& old) {
    if (std::ssize(now.floats) != now.shape[0] * std::ssize(old.floats))
        throw Error(ErrorKind::Format, "what a run's cache keeps has another size; it is damaged");
    const float* values = now.floats.data() + row * std::ssize(old.floats);
    double change = 0.0, size = 0.0;
    for (size_t i = 0; i < old.floats.size(); ++i) {
        change += std::abs(static_cast<double>(values[i]) - old.floats[i]);
        size += std::abs(static_cast<double>(old.floats[i]));
    }
    return change == 0.0 ? 0.0 : change / size;
}

// A saved state, written and read front to back.
class Writer {
  public:
    template <class T>
    void number(T value) {
        text_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    }
    void bytes(const void* data, size_t size) {
        number(static_cast<uint64_t>(size));
        text_.append(static_cast<const char*>(data), size);
    }
    void array(const std::string& name, const HostArray& array) {
        bytes(name.data(), name.size());
        number(static_cast<uint8_t>(array.layout == Layout::AsStored));
        bytes(array.shape.dims().data(), array.shape.dims().size() * sizeof(int64_t));
        bytes(array.floats.data(), array.floats.size() * sizeof(float));
    }
    std::string take() { return std::move(text_); }

  private:
    std::string text_;
};

class Reader {
  public:
    explicit Reader(const std::string& text) : text_(text) {}
    static Error damaged() {
        return Error(ErrorKind::Format, "a saved run is damaged, or another run's");
    }
    template <class T>
    T number() {
        T value;
        read(&value, sizeof(value));
        return value;
    }
    template <class T>
    std::vector<T> list() {
        const auto size = number<uint64_t>();
        if (size % sizeof(T) != 0 || size > text_.size() - at_) throw damaged();
        std::vector<T> values(size / sizeof(T));
        read(values.data(), size);
        return values;
    }
    void array(HostArrays& to) {
        const std::vector<char> name = list<char>();
        HostArray& array = to[std::string(name.begin(), name.end())];
        array.layout = number<uint8_t>() ? Layout::AsStored : Layout::Torch;
        std::vector<int64_t> dims = list<int64_t>();
        array.floats = list<float>();
        int64_t elements = 1;
        for (const int64_t dim : dims) {
            if (dim < 1 || dim > std::ssize(array.floats)) throw damaged();
            elements *= dim;
            if (elements > std::ssize(array.floats)) throw damaged();
        }
        if (dims.empty() || dims[0] != 1 || elements != std::ssize(array.floats)) throw damaged();
        array.shape = Shape(std::move(dims));
    }
    bool at_end() const { return at_ == text_.size(); }

  private:
    void read(void* to, size_t size) {
        if (size > text_.size() - at_) throw damaged();
        std::memcpy(to, text_.data() + at_, size);
        at_ += size;
    }

    const std::string& text_;
    size_t at_ = 0;
};

}  // namespace

// One evaluation.
class StepCache::Pass {
  public:
    Runner& denoiser;
    const std::vector<BranchCall>& calls;
    std::span<const float> x;
    const Shape& latents;
    float timestep;
    const CancelCheck& cancel;
    std::vector<Batch> batches;

    HostArrays run(const Batch& batch, const HostArrays& inputs, Part part) const {
        return denoiser.run(inputs, with_part(batch.front().call->options, part), cancel);
    }
};

void CacheSettings::check() const {
    if (interval < 1)
        throw Error(ErrorKind::Parameter,
                    "a cache's interval is 1 evaluation or more, not " + std::to_string(interval));
    if (!std::isfinite(threshold) || threshold < 0.0f)
        throw Error(ErrorKind::Parameter,
                    "a cache's threshold is 0 or more, not " + std::to_string(threshold));
}

StepCache::StepCache(const CacheSettings& settings, const Runner& denoiser, int64_t pictures,
                     std::vector<bool> fresh)
    : settings_(settings),
      method_(denoiser.reuse()),
      fresh_(std::move(fresh)),
      kept_(static_cast<size_t>(pictures)) {
    settings.check();
    if (method_ == Reuse::None)
        throw Error(ErrorKind::Parameter, "step caching has no method for this '" +
                                              denoiser.kind() + "' network; leave the cache off");
    for (const int step : settings.fresh)
        if (step >= 0 && step < std::ssize(fresh_)) fresh_[static_cast<size_t>(step)] = true;
}

int64_t StepCache::evaluate(int step, Runner& denoiser, const std::vector<BranchCall>& calls,
                            std::span<const float> x, const Shape& latents, float timestep,
                            int64_t together, const CancelCheck& cancel) {
    for (int s = step_ + 1; s <= step; ++s)
        if (fresh_[static_cast<size_t>(s)]) drop();
    step_ = step;
    const Pass pass{
        denoiser, calls, x, latents, timestep, cancel, batched(calls, latents[0], together)};
    const size_t graphs = method_ == Reuse::Features ? kPartsOfFeatures : kPartsOfBlocks;
    keep_graphs(denoiser, calls, pass.batches.size(), graphs * pass.batches.size());
    if (method_ == Reuse::Features)
        evaluate_features(pass);
    else
        evaluate_blocks(pass);
    return static_cast<int64_t>(calls.size());
}

bool StepCache::is_usable(const std::vector<BranchCall>& calls, int64_t picture) const {
    const Kept& kept = kept_[static_cast<size_t>(picture)];
    return kept.step < step_ && step_ - kept.step < settings_.interval &&
           std::all_of(
               calls.begin(), calls.end(),
               [&](const BranchCall& call) { return kept.parts.count(call.slot) > 0; });
}

void StepCache::evaluate_features(const Pass& pass) {
    const bool reuse = is_usable(pass.calls, 0);  // of all pictures: they are as old as each other
    if (!reuse) kept_.assign(kept_.size(), {step_, {}});
    for (const Batch& batch : pass.batches) {
        HostArrays inputs = inputs_of(batch, pass.x, pass.latents, pass.timestep);
        if (reuse) {
            add_kept(batch, inputs);
            reused_ += std::ssize(batch);
        } else {
            add_control(batch, pass.x, pass.latents, inputs, pass.cancel);
        }
        HostArrays outputs = pass.run(batch, inputs, reuse ? Part::Shallow : Part::Keeping);
        take_predictions(pass.denoiser, batch, outputs, pass.latents);
        if (reuse) continue;
        if (const auto control = inputs.find(kControl); control != inputs.end())
            outputs.insert(*control);
        keep(batch, outputs, {kFeatures, kControl});
    }
}

void StepCache::evaluate_blocks(const Pass& pass) {
    std::vector<bool> reuse;
    for (int64_t picture = 0; picture < pass.latents[0]; ++picture)
        reuse.push_back(is_usable(pass.calls, picture));
    std::vector<HostArrays> given;
    for (const Batch& batch : pass.batches) {
        HostArrays inputs = inputs_of(batch, pass.x, pass.latents, pass.timestep);
        inputs.merge(pass.run(batch, inputs, Part::First));
        for (size_t row = 0; row < batch.size(); ++row) {
            const auto [call, picture] = batch[row];
            if (!reuse[picture]) continue;
            const HostArrays& old = *kept_[picture].parts.at(call->slot);
            const double change = relative_change(inputs.at(kChange), row, old.at(kChange));
            reuse[picture] = change < settings_.threshold;
        }
        given.push_back(std::move(inputs));
    }
    for (size_t picture = 0; picture < kept_.size(); ++picture)
        if (!reuse[picture]) kept_[picture] = {step_, {}};
    for (size_t i = 0; i < given.size(); ++i)
        for (const bool reused : {false, true}) {
            std::vector<int64_t> rows;
            for (size_t row = 0; row < pass.batches[i].size(); ++row)
                if (reuse[pass.batches[i][row].picture] == reused)
                    rows.push_back(static_cast<int64_t>(row));
            if (!rows.empty()) finish_blocks(pass, pass.batches[i], given[i], rows, reused);
        }
}

// The rest of a batch's `rows` behind the first block.
void StepCache::finish_blocks(const Pass& pass, const Batch& whole, const HostArrays& all,
                              const std::vector<int64_t>& rows, bool reuse) {
    Batch batch;
    for (const int64_t row : rows) batch.push_back(whole[static_cast<size_t>(row)]);
    HostArrays inputs = rows_of(all, rows);
    auto change = inputs.extract(kChange);
    if (reuse) {
        add_kept(batch, inputs);
        inputs.erase(kChange);
        reused_ += std::ssize(batch);
        return take_predictions(pass.denoiser, batch, pass.run(batch, inputs, Part::Last),
                                pass.latents);
    }
    add_control(batch, pass.x, pass.latents, inputs, pass.cancel);
    HostArrays outputs = pass.run(batch, inputs, Part::Rest);
    take_predictions(pass.denoiser, batch, outputs, pass.latents);
    outputs.insert(std::move(change));
    keep(batch, outputs, {kChange, kResidual});
}

void StepCache::keep(const Batch& batch, const HostArrays& outputs,
                     const std::vector<std::string>& names) {
    for (int64_t row = 0; row < std::ssize(batch); ++row) {
        HostArrays arrays;
        for (const std::string& name : names)
            if (const auto found = outputs.find(name); found != outputs.end())
                arrays[name] = gathered(found->second, {row});
        const auto [call, picture] = batch[static_cast<size_t>(row)];
        kept_[static_cast<size_t>(picture)].parts[call->slot] =
            std::make_shared<const HostArrays>(std::move(arrays));
    }
}

void StepCache::add_kept(const Batch& batch, HostArrays& inputs) const {
    for (const auto& [call, picture] : batch)
        for (const auto& [name, array] :
             *kept_[static_cast<size_t>(picture)].parts.at(call->slot)) {
            append_entry(inputs[name], array, 0);
            inputs[name].layout = array.layout;
        }
}

void StepCache::drop() {
    for (Kept& kept : kept_) kept = {};
}

std::string StepCache::save() const {
    Writer to;
    to.number(step_);
    to.number(reused_);
    for (const Kept& kept : kept_) {
        to.number(kept.step);
        to.number(static_cast<uint64_t>(kept.parts.size()));
        for (const auto& [slot, arrays] : kept.parts) {
            to.number(slot);
            to.number(static_cast<uint64_t>(arrays->size()));
            for (const auto& [name, array] : *arrays) to.array(name, array);
        }
    }
    return to.take();
}

void StepCache::restore(const std::string& state) {
    Reader from(state);
    const auto step = from.number<int>();
    const auto reused = from.number<int64_t>();
    if (step < -1 || step >= std::ssize(fresh_)) throw Reader::damaged();
    std::vector<Kept> all(kept_.size());
    for (Kept& kept : all) {
        kept.step = from.number<int>();
        if (kept.step < -1 || kept.step > step) throw Reader::damaged();
        for (auto parts = from.number<uint64_t>(); parts > 0; --parts) {
            const auto slot = from.number<int>();
            HostArrays arrays;
            for (auto count = from.number<uint64_t>(); count > 0; --count) from.array(arrays);
            if (!arrays.count(method_ == Reuse::Features ? kFeatures : kResidual))
                throw Reader::damaged();
            if (method_ == Reuse::FirstBlock && !arrays.count(kChange)) throw Reader::damaged();
            kept.parts[slot] = std::make_shared<const HostArrays>(std::move(arrays));
        }
    }
    if (!from.at_end()) throw Reader::damaged();
    step_ = step;
    reused_ = reused;
    kept_ = std::move(all);
}

}  // namespace sde
