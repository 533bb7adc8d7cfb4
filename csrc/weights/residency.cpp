#include "weights/residency.h"

#include <algorithm>
#include <atomic>
#include <set>
#include <unordered_map>

#include "base/error.h"
#include "runtime/pages.h"
#include "weights/reading.h"
#include "weights/staying.h"

namespace sde {
namespace {

const std::pair<const char*, Policy> kPolicies[] = {
    {"resident", Policy::Resident},
    {"offload", Policy::Offload},
    {"stream", Policy::Stream},
    {"disk", Policy::Disk},
};

// A slot holds a fortieth of the weights unless it is told otherwise: less than a block of every
// transformer here, and enough that a segment's operators take longer than the meeting of both
// queues at its end.
constexpr size_t kSegments = 40;

uint64_t next_serial() {
    static std::atomic<uint64_t> serial{0};
    return ++serial;
}

bool streams(Policy policy) {
    return policy == Policy::Stream || policy == Policy::Disk;
}

bool is_vector(const ggml_tensor& tensor) {
    return ggml_nrows(&tensor) == 1;
}

// The slot of each segment; -1 where it needs none.
std::vector<int> slots_of(const std::vector<Segment>& segments) {
    std::map<int, int> turns;
    std::vector<int> slots;
    for (const Segment& segment : segments)
        slots.push_back(segment.streamed.empty() ? -1 : turns[segment.device]++ % Slots::kCount);
    return slots;
}

// Segments before it hold operators that this evaluation does not need.
size_t first_segment(const Graph& graph) {
    const std::vector<Segment>& segments = graph.cut.segments;
    size_t first = 0;
    while (first < segments.size() && segments[first].end <= graph.first_operator()) ++first;
    return first;
}

// Two slots that all the segments of one device fit in turn; the first of them goes into slot 0.
Slots::Sizes slot_sizes(const std::vector<Segment>& segments, int device) {
    Slots::Sizes sizes{};
    const std::vector<int> slots = slots_of(segments);
    for (size_t i = 0; i < segments.size(); ++i)
        if (segments[i].device == device && slots[i] >= 0)
            sizes[slots[i]] = std::max(sizes[slots[i]], segments[i].bytes);
    return sizes;
}

}  // namespace

Policy parse_policy(const std::string& name) {
    for (const auto& [known, policy] : kPolicies)
        if (name == known) return policy;
    throw Error(ErrorKind::Parameter, "there is no residency '" + name +
                                          "'; known are resident, offload, stream and disk");
}

const char* policy_name(Policy policy) {
    return kPolicies[static_cast<size_t>(policy)].first;
}

// Headers that point at devices. They point back at the host's values when the devices have come to
// rest, also after an error: until then backends look at headers of operators that they have begun.
class Residency::Bound {
  public:
    explicit Bound(const std::vector<OnDevice>& on) : on_(on) {}
    Bound(const Bound&) = delete;
    Bound& operator=(const Bound&) = delete;
    ~Bound() {
        for (const OnDevice& each : on_) each.device->wait();
        for (const auto& [header, before] : before_) {
            header->buffer = before.first;
            header->data = before.second;
        }
    }
    void set(ggml_tensor* header, ggml_backend_buffer_t buffer, void* data) {
        before_.try_emplace(header, header->buffer, header->data);
        header->buffer = buffer;
        header->data = data;
    }
    void set_view(ggml_tensor* view) {
        const ggml_tensor* of = view->view_src;
        set(view, of->buffer, static_cast<uint8_t*>(of->data) + view->view_offs);
    }
    // Where the host has the values of a parameter.
    Values values_of(ggml_tensor* parameter) const {
        auto it = before_.find(parameter);
        return {it == before_.end() ? parameter->data : it->second.second, ggml_nbytes(parameter)};
    }
    std::vector<Values> values_of(const std::vector<ggml_tensor*>& parameters) const {
        std::vector<Values> all;
        for (ggml_tensor* parameter : parameters) all.push_back(values_of(parameter));
        return all;
    }

  private:
    const std::vector<OnDevice>& on_;
    std::unordered_map<ggml_tensor*, std::pair<ggml_backend_buffer_t, void*>> before_;
};

// The store and the devices for one evaluation, in an order that is the same for all. Devices have
// come to an end with what was begun on them when they are let go, however that happens: another
// thread may free what graphs read.
class Residency::Exclusive {
  public:
    Exclusive(WeightStore& store, const std::vector<OnDevice>& on) : store_(store.in_use()) {
        std::set<Device*> devices;
        for (const OnDevice& each : on) devices.insert(each.device.get());
        for (Device* device : devices) locks_.emplace_back(device->in_use());
        devices_.assign(devices.begin(), devices.end());
    }
    ~Exclusive() {
        for (Device* device : devices_) device->settle();
    }
    Exclusive(const Exclusive&) = delete;
    Exclusive& operator=(const Exclusive&) = delete;

  private:
    std::vector<Device*> devices_;
    std::lock_guard<std::mutex> store_;
    std::vector<std::unique_lock<std::mutex>> locks_;
};

void KeptWeights::add(const HostValues& values, size_t bytes) {
    size_t& most = bytes_[values];  // graphs read more or fewer rows of a table
    most = std::max(most, bytes);
}

size_t KeptWeights::bytes() const {
    size_t sum = 0;
    for (const auto& [values, bytes] : bytes_) sum += bytes;
    return sum;
}

Residency::Residency(std::shared_ptr<WeightStore> store,
                     std::vector<std::shared_ptr<Device>> devices)
    : store_(std::move(store)) {
    store_->use_on(devices);
    for (auto& device : devices) on_.push_back({std::move(device), {}, {}});
}

void Residency::set(const Residence& residence) {
    if (residence == residence_) return;
    residence_ = residence;
    serial_of_residence_ = next_serial();
    leave_devices();
}

Residency::~Residency() {
    leave_devices();
}

void Residency::leave_devices() {
    if (in_place()) return;
    // Another network may be running there.
    const Exclusive exclusive(*store_, on_);
    for (OnDevice& on : on_) {
        on.slots.reset();
        on.places.clear();
    }
}

void Residency::release() {
    if (in_place()) return store_->release_pages();
    if (policy() != Policy::Resident) leave_devices();
    if (policy() == Policy::Disk) store_->release_pages();
}

Residency::Values Residency::values_of(const ggml_tensor& parameter) {
    return {parameter.data, ggml_nbytes(&parameter)};
}

std::vector<Segment> Residency::cut(const Graph& graph, const Residence& residence) const {
    if (!streams(residence.policy))
        return cut_into_segments(graph, 0, [](const ggml_tensor&) { return size_t{0}; });
    const StreamedBytes streamable = [&](const ggml_tensor& parameter) -> size_t {
        if (in_place()) return store_->is_mapped(parameter.data) ? ggml_nbytes(&parameter) : 0;
        // Norms and biases stay: they are small, and many.
        return is_vector(parameter) ? 0 : placed_bytes(on_[0].device->buffer_type(), parameter);
    };
    const std::vector<ggml_tensor*>& parameters = store_->parameters();
    const Staying staying(parameters, streamable, residence.keep);
    const StreamedBytes streamed = [&](const ggml_tensor& parameter) {
        return staying.has(&parameter) ? 0 : streamable(parameter);
    };
    size_t total = 0;
    for (const ggml_tensor* parameter : parameters) total += streamed(*parameter);
    const size_t budget = residence.slot_bytes ? residence.slot_bytes : total / kSegments;
    return cut_into_segments(graph, budget, streamed);
}

const std::vector<Segment>& Residency::segments_of(Graph& graph) const {
    if (graph.cut.residence != serial_of_residence_)
        graph.cut = {next_serial(), serial_of_residence_, cut(graph, residence_)};
    return graph.cut.segments;
}

void Residency::run(Graph& graph, const CancelCheck& cancel, Profile* profile) {
    if (!in_place()) return run_on_devices(graph, cancel, profile);
    if (streams(policy())) return run_from_file(graph, cancel, profile);
    graph.compute(cancel, profile);
}

void Residency::run_from_file(Graph& graph, const CancelCheck& cancel, Profile* profile) {
    const std::vector<Segment>& segments = segments_of(graph);
    const Bound bound(on_);
    for (size_t i = first_segment(graph); i < segments.size(); ++i) {
        if (i + 1 < segments.size()) fetch_pages(bound.values_of(segments[i + 1].streamed));
        graph.compute_part(segments[i].begin, segments[i].end, cancel, profile);
        release_pages(bound.values_of(segments[i].streamed));
    }
    graph.computed();
}

void Residency::run_on_devices(Graph& graph, const CancelCheck& cancel, Profile* profile) {
    // One evaluation at a time points headers at a device and fills its slots.
    const Exclusive exclusive(*store_, on_);
    const std::vector<Segment>& segments = segments_of(graph);
    const std::vector<int> turns = slots_of(segments);
    drop_what_changed();
    for (size_t device = 0; device < on_.size(); ++device)
        make_room(segments, static_cast<int>(device));

    Bound bound(on_);
    const auto load = [&](size_t i) {
        if (i >= segments.size() || turns[i] < 0) return;
        const std::vector<Values> values = bound.values_of(segments[i].streamed);
        if (policy() == Policy::Disk && i + 1 < segments.size())
            fetch_pages(bound.values_of(segments[i + 1].streamed));
        on_[segments[i].device].slots->load(turns[i], {graph.cut.serial, i, store_->changes()},
                                            segments[i].streamed, values);
        if (policy() == Policy::Disk) release_pages(values);
    };
    const size_t first = first_segment(graph);
    load(first);
    for (size_t i = first; i < segments.size(); ++i) {
        compute(graph, i, turns[i], bound, cancel, profile);
        load(i + 1);
    }
    for (const OnDevice& on : on_) on.device->wait();
    graph.computed();
}

void Residency::compute(Graph& graph, size_t index, int slot, Bound& bound,
                        const CancelCheck& cancel, Profile* profile) {
    const Segment& segment = graph.cut.segments[index];
    if (segment.is_copy) return graph.copy_part(segment.begin, segment.end);
    Slots* slots = slot < 0 ? nullptr : on_[segment.device].slots.get();
    bind(segment, slot, bound);
    if (slots) slots->before_compute(slot);
    graph.compute_part(segment.begin, segment.end, cancel, profile);
    if (slots) slots->after_compute(slot);
}

void Residency::drop_what_changed() {
    if (known_changes_ == store_->changes()) return;
    for (OnDevice& on : on_)
        std::erase_if(on.places, [&](const auto& entry) {
            return !store_->version(entry.first.first).has_value();
        });
    known_changes_ = store_->changes();
}

void Residency::make_room(const std::vector<Segment>& segments, int device) {
    OnDevice& on = on_[device];
    const Slots::Sizes sizes = slot_sizes(segments, device);
    if (sizes[0] && !(on.slots && on.slots->hold(sizes))) {
        on.slots.reset();  // before the new ones: their memory is needed
        on.slots = std::make_unique<Slots>(on.device, sizes);
    }
    std::map<Values, ggml_tensor*> missing;
    for (const Segment& segment : segments) {
        if (segment.device != device) continue;
        for (ggml_tensor* parameter : segment.kept) {
            auto place = on.places.find(values_of(*parameter));
            if (place == on.places.end())
                missing.emplace(values_of(*parameter), parameter);
            else if (place->second.version != store_->version(parameter->data))
                upload(*parameter, place->second);
        }
    }
    place(on, missing);
}

void Residency::place(OnDevice& on, const std::map<Values, ggml_tensor*>& missing) {
    const ggml_backend_buffer_type_t type = on.device->buffer_type();
    const size_t most = ggml_backend_buft_get_max_size(type);
    Places fresh;  // kept only if there is memory for all
    for (auto it = missing.begin(); it != missing.end();) {
        size_t bytes = 0;
        auto end = it;
        for (; end != missing.end(); ++end) {
            const size_t more = placed_bytes(type, *end->second);
            if (bytes && bytes + more > most) break;
            bytes += more;
        }
        const auto buffer =
            std::make_shared<Buffer>(type, bytes, on.device->tally(), "a network's weights");
        ggml_backend_buffer_set_usage(buffer->raw(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        for (uint8_t* address = buffer->base(); it != end; ++it) {
            fresh[it->first] = {buffer, address, {}};
            address += placed_bytes(type, *it->second);
        }
    }
    for (const auto& [values, parameter] : missing) {
        Place& place = fresh.at(values);
        upload(*parameter, place);
        if (policy() != Policy::Offload && policy() != Policy::Stream) release_pages({values});
    }
    on.places.merge(fresh);
}

void Residency::upload(const ggml_tensor& parameter, Place& place) const {
    ggml_tensor placed = placed_at(parameter, *place.buffer, place.address);
    ggml_backend_tensor_set(&placed, parameter.data, 0, ggml_nbytes(&parameter));
    place.version = store_->version(parameter.data);
}

void Residency::bind(const Segment& segment, int slot, Bound& bound) {
    OnDevice& on = on_[segment.device];
    for (ggml_tensor* parameter : segment.kept) {
        const Place& place = on.places.at(bound.values_of(parameter));
        bound.set(parameter, place.buffer->raw(), place.address);
    }
    if (slot >= 0) {
        const Buffer& buffer = on.slots->buffer(slot);
        uint8_t* address = buffer.base();
        for (ggml_tensor* parameter : segment.streamed) {
            bound.set(parameter, buffer.raw(), address);
            address += placed_bytes(on.device->buffer_type(), *parameter);
        }
    }
    for (ggml_tensor* view : segment.views) bound.set_view(view);
}

void Residency::fetch_pages(const std::vector<Values>& values) const {
    for (const auto& [data, bytes] : values)
        if (store_->is_mapped(data)) fetch_file_pages(data, bytes);
}

void Residency::release_pages(const std::vector<Values>& values) const {
    for (const auto& [data, bytes] : values)
        if (store_->is_mapped(data)) release_file_pages(data, bytes);
}

std::vector<Footprint> Residency::planned(Graph& graph, const Residence& residence,
                                          std::vector<KeptWeights>& together) const {
    const std::vector<size_t> activations = graph.planned_by_device();  // completes the graph
    const std::vector<size_t> scratch = graph.scratch_by_device();
    const std::vector<Segment> segments = cut(graph, residence);
    const ReadInFile read(graph);
    std::vector<Footprint> footprints(on_.size());
    together.resize(on_.size());
    for (size_t device = 0; device < on_.size(); ++device) {
        Footprint& footprint = footprints[device];
        footprint.activations = activations[device];
        footprint.scratch = scratch[device];
        const Slots::Sizes sizes = slot_sizes(segments, static_cast<int>(device));
        KeptWeights kept;
        size_t most = 0;  // of a segment that is read in the file
        for (const Segment& segment : segments) {
            if (segment.device != static_cast<int>(device)) continue;
            for (const ggml_tensor* parameter : segment.kept) {
                const size_t bytes =
                    in_place() ? read.of(*parameter)
                               : placed_bytes(on_[device].device->buffer_type(), *parameter);
                kept.add(values_of(*parameter), bytes);
                together[device].add(values_of(*parameter), bytes);
            }
            size_t bytes = 0;
            for (const ggml_tensor* parameter : segment.streamed) bytes += read.of(*parameter);
            most = std::max(most, bytes);
        }
        footprint.weights = footprint.kept = kept.bytes();
        // What is read ahead in the file is in the system's cache and not yet the process's: it has
        // the pages of one segment at a time.
        footprint.weights += in_place() ? most : sizes[0] + sizes[1];
        if (!in_place()) footprint.staging += Slots::staging_bytes(*on_[device].device, sizes);
    }
    return footprints;
}

}  // namespace sde
