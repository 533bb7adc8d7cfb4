// Where the weights of a network are while it runs: on its device, in host memory, or in the file.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/graph.h"
#include "weights/slots.h"
#include "weights/store.h"

namespace sde {

enum class Policy {
    Resident,  // all weights are on the device
    Offload,   // they are there from the first evaluation until `release`
    Stream,  // some stay; of the others those of one segment are, and the next one's come meanwhile
    Disk,    // as Stream, and host memory holds no more than what is on its way
};
// "resident", "offload", "stream" or "disk"; throws Parameter for another name.
Policy parse_policy(const std::string& name);
const char* policy_name(Policy policy);

// What is asked of a residency.
struct Residence {
    Policy policy = Policy::Resident;
    // What the weights of a segment may take; 0 chooses. An operator with more has a segment of its
    // own.
    size_t slot_bytes = 0;
    // Bytes of weights that stay on the device under Stream and Disk, instead of coming for every
    // segment (staying.h).
    size_t keep = 0;
    bool operator==(const Residence&) const = default;
};

// Bytes that evaluations take: on the device, and in the host's memory for copies to it.
struct Footprint {
    size_t activations = 0, weights = 0, staging = 0;
    size_t kept = 0;     // of the weights: what does not take turns in slots
    size_t scratch = 0;  // at most, besides all that, for the backend's own ends (scratch.h)
};

// What stays on a device for several graphs: the weights of all of them, each once.
class KeptWeights {
  public:
    void add(const HostValues& values, size_t bytes);
    size_t bytes() const;

  private:
    std::map<HostValues, size_t> bytes_;
};

class Residency {
  public:
    // Throws Parameter when the store was made ready for other devices.
    Residency(std::shared_ptr<WeightStore> store, std::vector<std::shared_ptr<Device>> devices);
    ~Residency();
    Residency(const Residency&) = delete;
    Residency& operator=(const Residency&) = delete;

    // From the next evaluation on.
    void set(const Residence& residence);
    Policy policy() const noexcept { return residence_.policy; }

    // One evaluation; inputs are set. Throws OutOfMemory, Cancelled and Device; the next evaluation
    // can be made all the same.
    void run(Graph& graph, const CancelCheck& cancel, Profile* profile);
    // The network will not run for a while: weights leave the devices, unless they are to stay
    // there, and the file's pages leave memory.
    void release();

    // What evaluating `graph` would take of each device. Nothing is taken. What it keeps there is
    // added to `kept`, an entry per device.
    std::vector<Footprint> planned(Graph& graph, const Residence& residence,
                                   std::vector<KeptWeights>& kept) const;

  private:
    using Values = HostValues;
    // A copy of them on a device, as they were when they had this version.
    struct Place {
        std::shared_ptr<Buffer> buffer;
        uint8_t* address = nullptr;
        std::optional<uint64_t> version;
    };
    using Places = std::map<Values, Place>;
    struct OnDevice {
        std::shared_ptr<Device> device;
        Places places;
        std::unique_ptr<Slots> slots;
    };
    class Bound;
    class Exclusive;

    // Whether weights are used where they lie in host memory.
    bool in_place() const { return on_[0].device->runs_custom(); }
    static Values values_of(const ggml_tensor& parameter);
    std::vector<Segment> cut(const Graph& graph, const Residence& residence) const;
    const std::vector<Segment>& segments_of(Graph& graph) const;
    void run_from_file(Graph& graph, const CancelCheck& cancel, Profile* profile);
    void run_on_devices(Graph& graph, const CancelCheck& cancel, Profile* profile);
    void compute(Graph& graph, size_t segment, int slot, Bound& bound, const CancelCheck& cancel,
                 Profile* profile);
    void leave_devices();
    void drop_what_changed();
    void make_room(const std::vector<Segment>& segments, int device);
    void place(OnDevice& on, const std::map<Values, ggml_tensor*>& missing);
    void upload(const ggml_tensor& parameter, Place& place) const;
    void bind(const Segment& segment, int slot, Bound& bound);
    void fetch_pages(const std::vector<Values>& values) const;
    void release_pages(const std::vector<Values>& values) const;

    std::shared_ptr<WeightStore> store_;
    std::vector<OnDevice> on_;
    Residence residence_;
    uint64_t serial_of_residence_ = 1;
    uint64_t known_changes_ = 0;  // of the store
};

}  // namespace sde
