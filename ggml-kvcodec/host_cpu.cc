#include "ggml-kvcodec/host_cpu.h"

#include "kvcodec/error.h"

namespace kvcodec::host {

HostCpu::HostCpu() {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (device != nullptr) {
        backend_ = ggml_backend_dev_init(device, nullptr);
    }
    if (backend_ == nullptr) {
        throw Error("the host has no CPU backend; load one (libggml-cpu) before kvcodec");
    }
    set_n_threads_ = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads"));
}

HostCpu::~HostCpu() {
    ggml_free(context_);
    ggml_backend_free(backend_);
}

void HostCpu::set_n_threads(int n_threads) {
    if (set_n_threads_ != nullptr) {
        set_n_threads_(backend_, n_threads);
    }
}

void HostCpu::add(ggml_tensor* node) {
    nodes_.push_back(node);
}

ggml_status HostCpu::flush() {
    if (nodes_.empty()) {
        return GGML_STATUS_SUCCESS;
    }
    if (nodes_.size() > capacity_) {
        capacity_ = 2 * nodes_.size();
        ggml_free(context_);
        context_ = ggml_init({ggml_graph_overhead_custom(capacity_, false), nullptr, true});
        graph_ = ggml_new_graph_custom(context_, capacity_, false);
    }
    ggml_graph_clear(graph_);
    for (ggml_tensor* node : nodes_) {
        ggml_graph_add_node(graph_, node);
    }
    nodes_.clear();
    return ggml_backend_graph_compute(backend_, graph_);
}

}  // namespace kvcodec::host
