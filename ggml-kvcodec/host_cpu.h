// The host's own CPU backend, for everything that is no codec's business: what it computes is bit-equal to the host.
#pragma once

#include <cstddef>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"

namespace kvcodec::host {

class HostCpu {
  public:
    HostCpu();
    ~HostCpu();
    HostCpu(const HostCpu&) = delete;
    HostCpu& operator=(const HostCpu&) = delete;

    void set_n_threads(int n_threads);
    /// Collects a node; its sources must lie in memory that the CPU can read.
    void add(ggml_tensor* node);
    /// Computes the collected nodes in order.
    ggml_status flush();

  private:
    ggml_backend_t backend_ = nullptr;
    ggml_backend_set_n_threads_t set_n_threads_ = nullptr;
    ggml_context* context_ = nullptr;
    ggml_cgraph* graph_ = nullptr;
    size_t capacity_ = 0;
    std::vector<ggml_tensor*> nodes_;
};

}  // namespace kvcodec::host
