// The host's own attention over a dense or quantised cache: what a codec is compared with.
#pragma once

#include <ggml-backend.h>
#include <ggml.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "bench/bench_layers.h"

namespace kvcodec {

/// FLASH_ATTN_EXT of ggml's CPU backend over caches of several layers, laid out as llama.cpp does.
class HostAttention {
  public:
    /// k, v: [n_cells, n_head_kv, dim], every layer gets the same. q: [n_head, n_tokens, dim]. mask: half precision
    /// [n_tokens, n_cells]. Throws Error where ggml lacks memory.
    HostAttention(ggml_type type, const BenchShape& shape, size_t n_cells, size_t n_tokens, size_t n_layers,
                  size_t n_threads, std::span<const float> k, std::span<const float> v, std::span<const float> q,
                  std::span<const uint16_t> mask);

    /// Attention of all layers, one after the other.
    void run();

  private:
    struct FreeContext {
        void operator()(ggml_context* context) const { ggml_free(context); }
    };
    struct FreeBackend {
        void operator()(ggml_backend_t backend) const { ggml_backend_free(backend); }
    };
    struct FreeBuffer {
        void operator()(ggml_backend_buffer_t buffer) const { ggml_backend_buffer_free(buffer); }
    };

    std::unique_ptr<ggml_backend, FreeBackend> backend_;
    std::unique_ptr<ggml_context, FreeContext> context_;
    std::unique_ptr<ggml_backend_buffer, FreeBuffer> buffer_;
    ggml_cgraph* graph_ = nullptr;
};

}  // namespace kvcodec
