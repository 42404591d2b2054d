#include "ggml-kvcodec/host_cpu.h"

#include <algorithm>

#include "ggml-impl.h"
#include "kvcodec/error.h"

namespace kvcodec::host {

HostCpu::HostCpu() {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (device != nullptr) {
        backend_.reset(ggml_backend_dev_init(device, nullptr));
    }
    if (backend_ == nullptr) {
        throw Error("the host has no CPU backend; load one (libggml-cpu) before kvcodec");
    }
    const ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(device);
    set_n_threads_ = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads"));
    const auto set_callback = reinterpret_cast<ggml_backend_set_abort_callback_t>(
        ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_abort_callback"));
    if (set_n_threads_ == nullptr || set_callback == nullptr) {
        throw Error("the host's CPU backend lacks functions that kvcodec needs; use llama.cpp's own");
    }
    set_callback(backend_.get(), should_stop, this);
}

void HostCpu::set_n_threads(int n_threads) {
    set_n_threads_(backend_.get(), n_threads);
}

void HostCpu::set_abort_callback(ggml_abort_callback callback, void* data) {
    host_callback_ = callback;
    host_data_ = data;
}

ggml_tensor* HostCpu::stand_in(size_t i, ggml_tensor* node) {
    if (i == stand_ins_.size()) {
        constexpr bool kNoMemory = true;
        contexts_.emplace_back(ggml_init({ggml_tensor_overhead(), nullptr, kNoMemory}));
        StandIn& created = stand_ins_.emplace_back(StandIn{this});
        created.op = ggml_custom_4d(contexts_.back().get(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, serve_stand_in,
                                    GGML_N_TASKS_MAX, &created);
        created.op->flags |= GGML_TENSOR_FLAG_COMPUTE;
    }
    stand_ins_[i].node = node;
    return stand_ins_[i].op;
}

// Called by every thread of the host's team, one of which is member 0.
void HostCpu::serve_stand_in(ggml_tensor* /*op*/, int member, int size, void* data) {
    const StandIn& self = *static_cast<StandIn*>(data);
    HostCpu& cpu = *self.cpu;
    if (member != 0) {
        cpu.team_.serve(static_cast<size_t>(member), static_cast<size_t>(size));
        return;
    }
    try {
        cpu.team_.lead(static_cast<size_t>(size), [&] {
            if (!(*cpu.serve_)(self.node, cpu.team_)) {
                cpu.refused_ = self.node;
            }
        });
    } catch (...) {  // the host is C: what happened is told when it has returned
        cpu.error_ = std::current_exception();
    }
}

// Asked by member 0 after every node.
bool HostCpu::should_stop(void* data) {
    const HostCpu& cpu = *static_cast<HostCpu*>(data);
    return cpu.refused_ != nullptr || cpu.error_ != nullptr ||
           (cpu.host_callback_ != nullptr && cpu.host_callback_(cpu.host_data_));
}

ggml_status HostCpu::compute(ggml_cgraph* graph, const IsServed& is_served, const Serve& serve) {
    serve_ = &serve;
    for (int first = 0; first < graph->n_nodes;) {
        nodes_.assign(graph->nodes + first, graph->nodes + graph->n_nodes);
        size_t n_served = 0;
        for (ggml_tensor*& node : nodes_) {
            if ((node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0 && is_served(node)) {
                node = stand_in(n_served++, node);
            }
        }
        ggml_cgraph rest = *graph;  // with its count of uses, by which the host decides what it fuses
        rest.nodes = nodes_.data();
        rest.n_nodes = static_cast<int>(nodes_.size());
        const ggml_tensor* refused_before = refused_;
        refused_ = nullptr;
        error_ = nullptr;
        const ggml_status status = ggml_backend_graph_compute(backend_.get(), &rest);
        if (error_ != nullptr) {
            std::rethrow_exception(error_);
        }
        if (refused_ == nullptr) {
            return status;
        }
        if (refused_ == refused_before) {
            throw Error("a layer is neither compressed nor left to the host");
        }
        first =
            static_cast<int>(std::find(graph->nodes + first, graph->nodes + graph->n_nodes, refused_) - graph->nodes);
    }
    return GGML_STATUS_SUCCESS;
}

}  // namespace kvcodec::host
