#include "tools/bench/host_attention.h"

#include <cmath>

#include "kvcodec/error.h"
#include "tools/host_model.h"

namespace kvcodec {

namespace {

/// Gives all tensors, of one type and shape, these rows.
void set_rows(const std::vector<ggml_tensor*>& tensors, std::span<const float> rows) {
    const ggml_tensor& first = *tensors.front();
    std::vector<std::byte> bytes(ggml_nbytes(&first));
    ggml_quantize_chunk(first.type, rows.data(), bytes.data(), 0, ggml_nrows(&first), first.ne[0], nullptr);
    for (ggml_tensor* tensor : tensors) {
        ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
    }
}

}  // namespace

HostAttention::HostAttention(ggml_type type, const BenchShape& shape, size_t n_cells, size_t n_tokens, size_t n_layers,
                             size_t n_threads, std::span<const float> k, std::span<const float> v,
                             std::span<const float> q, std::span<const uint16_t> mask) {
    load_cpu_backend();
    backend_.reset(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend_.get()));
    const auto set_n_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads"));
    if (set_n_threads == nullptr) {
        throw Error("llama.cpp's CPU backend cannot be told a number of threads");
    }
    set_n_threads(backend_.get(), static_cast<int>(n_threads));

    const auto dim = static_cast<int64_t>(shape.dim), cells = static_cast<int64_t>(n_cells);
    const auto tokens = static_cast<int64_t>(n_tokens);
    const size_t n_tensors = 8 * n_layers + 8;
    context_.reset(
        ggml_init({n_tensors * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_tensors, false), nullptr, true}));
    ggml_context* c = context_.get();
    graph_ = ggml_new_graph_custom(c, n_tensors, false);
    ggml_tensor* queries = ggml_new_tensor_3d(c, GGML_TYPE_F32, dim, tokens, static_cast<int64_t>(shape.n_head()));
    ggml_tensor* masks = ggml_new_tensor_2d(c, GGML_TYPE_F16, cells, tokens);
    std::vector<ggml_tensor*> keys, values;
    const auto cache = [&] { return ggml_new_tensor_2d(c, type, dim * static_cast<int64_t>(shape.n_head_kv), cells); };
    const auto by_head = [&](ggml_tensor* tensor) {
        return ggml_view_3d(c, tensor, dim, cells, static_cast<int64_t>(shape.n_head_kv), tensor->nb[1],
                            ggml_row_size(type, dim), 0);
    };
    for (size_t layer = 0; layer < n_layers; ++layer) {
        keys.push_back(cache());
        values.push_back(cache());
        ggml_tensor* out = ggml_flash_attn_ext(c, queries, by_head(keys.back()), by_head(values.back()), masks,
                                               1.0F / std::sqrt(static_cast<float>(dim)), 0.0F, 0.0F);
        ggml_build_forward_expand(graph_, out);
    }
    buffer_.reset(ggml_backend_alloc_ctx_tensors(c, backend_.get()));
    if (buffer_ == nullptr) {
        throw Error("there is not enough memory for the host's caches; take fewer --layers or a smaller --depth");
    }
    ggml_backend_tensor_set(queries, q.data(), 0, q.size_bytes());
    ggml_backend_tensor_set(masks, mask.data(), 0, mask.size_bytes());
    set_rows(keys, k);
    set_rows(values, v);
}

void HostAttention::run() {
    if (ggml_backend_graph_compute(backend_.get(), graph_) != GGML_STATUS_SUCCESS) {
        throw Error("the host's attention failed");
    }
}

}  // namespace kvcodec
