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
    Stream,    // those of one segment are, and the next one's come while it runs
    Disk,      // as Stream, and host memory holds no more than what is on its way
};
// "resident", "offload", "stream" or "disk"; throws Parameter for another name.
Policy parse_policy(const std::string& name);
const char* policy_name(Policy policy);

// Bytes that evaluations take: on the device, and in the host's memory for copies to it.
struct Footprint {
    size_t activations = 0, weights = 0, staging = 0;
};

class Residency {
  public:
    // Throws Parameter when the store was made ready for other devices.
    Residency(std::shared_ptr<WeightStore> store, std::vector<std::shared_ptr<Device>> devices);

    // From the next evaluation on. `slot_bytes` is what the weights of a segment may take; 0
    // chooses. An operator with more has a segment of its own.
    void set_policy(Policy policy, size_t slot_bytes);
    Policy policy() const noexcept { return policy_; }

    // One evaluation; inputs are set. Throws OutOfMemory, Cancelled and Device; the next evaluation
    // can be made all the same.
    void run(Graph& graph, const CancelCheck& cancel, Profile* profile);
    // The network will not run for a while: weights leave the devices, unless they are to stay
    // there, and the file's pages leave memory.
    void release();

    // What evaluating `graph` takes of each device under a policy. Nothing is taken.
    std::vector<Footprint> planned(Graph& graph, Policy policy, size_t slot_bytes) const;

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
    std::vector<Segment> cut(const Graph& graph, Policy policy, size_t slot_bytes) const;
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
    Policy policy_ = Policy::Resident;
    size_t slot_bytes_ = 0;
    uint64_t serial_of_policy_ = 1;
    uint64_t known_changes_ = 0;  // of the store
};

}  // namespace sde
