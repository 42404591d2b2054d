// The host's own CPU backend, for everything that is no codec's business: what it computes is bit-equal to the host.
#pragma once

#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"
#include "kvcodec/threads.h"

namespace kvcodec::host {

class ThreadPool;

/// Computes whole graphs on the host's threads. Nodes that a codec serves are served in the midst of it, by the same
/// threads: a graph is one piece of work for them, however many layers are compressed.
class HostCpu {
  public:
    /// With as many threads as were asked for last in this process, at first: some hosts (vision encoders) never ask.
    HostCpu();
    ~HostCpu();
    HostCpu(const HostCpu&) = delete;
    HostCpu& operator=(const HostCpu&) = delete;

    void set_n_threads(int n_threads);
    void set_abort_callback(ggml_abort_callback callback, void* data);

    /// Whether a codec serves this node. Asked for all nodes, in order, before anything is computed; again from a
    /// refused node on.
    using IsServed = std::function<bool(ggml_tensor* node)>;
    /// Serves it; called by one thread of the team. False: it cannot, and is_served says no from now on, so that the
    /// host computes the node.
    using Serve = std::function<bool(ggml_tensor* node, Team& team)>;
    /// Throws what `serve` throws.
    ggml_status compute(ggml_cgraph* graph, const IsServed& is_served, const Serve& serve);

  private:
    struct FreeBackend {
        void operator()(ggml_backend_t backend) const { ggml_backend_free(backend); }
    };
    struct FreeContext {
        void operator()(ggml_context* context) const { ggml_free(context); }
    };
    // Takes a served node's place in the graph that the host computes.
    struct StandIn {
        HostCpu* cpu = nullptr;
        ggml_tensor* node = nullptr;
        ggml_tensor* op = nullptr;
        std::unique_ptr<ggml_context, FreeContext> memory;  // of op
    };

    ggml_tensor* stand_in(size_t i, ggml_tensor* node);
    static void serve_stand_in(ggml_tensor* op, int member, int size, void* data);
    static bool should_stop(void* data);

    std::unique_ptr<ggml_backend, FreeBackend> backend_;
    ggml_backend_set_n_threads_t set_n_threads_ = nullptr;
    std::unique_ptr<ThreadPool> pool_;
    ggml_abort_callback host_callback_ = nullptr;
    void* host_data_ = nullptr;

    BorrowedTeam team_;
    std::deque<StandIn> stand_ins_;
    std::vector<ggml_tensor*> nodes_;
    const Serve* serve_ = nullptr;
    const ggml_tensor* refused_ = nullptr;
    std::exception_ptr error_;
};

}  // namespace kvcodec::host
