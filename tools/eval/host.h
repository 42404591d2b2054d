// One model and the contexts that an evaluation runs it in, each with a cache of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kvcodec/artifact/model_info.h"
#include "tools/eval/cache_spec.h"
#include "tools/host_model.h"

namespace kvcodec {

using Json = nlohmann::json;

/// How large a context is.
struct ContextShape {
    size_t n_ctx = 512;     ///< tokens of one sequence
    size_t n_ubatch = 512;  ///< tokens computed at once
    size_t n_seq = 1;       ///< sequences side by side, each with n_ctx tokens
    bool unified = false;   ///< whether sequences share one pool of cells instead
};

/// A context whose KV cache is the one that a CacheSpec names.
class EvalContext {
  public:
    /// f16_bytes: of one token's K and V in an f16 cache.
    EvalContext(llama_model* model, const CacheSpec& spec, const ContextShape& shape, size_t n_threads,
                size_t f16_bytes, ggml_backend_reg_t plugin);

    llama_context* get() const { return context_.get(); }
    const CacheSpec& spec() const { return spec_; }
    const ContextShape& shape() const { return shape_; }
    void clear() const { llama_memory_clear(llama_get_memory(context_.get()), true); }
    /// Throws Error if llama.cpp fails.
    void decode(const TokenBatch& batch) const;
    /// The plug-in's report on this cache (ggml-kvcodec/report.h), all its parts together; null for a host cache, or if
    /// nothing is compressed.
    Json report() const;
    /// What every result says about its cache: rate, totals at 4k and 32k tokens and resident bytes, as shares of f16
    /// and in bytes, and the share of pairs that were read through codes. Resident bytes are of the cells in use: of
    /// kvcodec measured, of a host cache computed, which also keeps the rest of its cells in memory.
    Json accounting() const;

  private:
    double host_bytes_in_use() const;

    CacheSpec spec_;
    ContextShape shape_;
    size_t f16_bytes_;
    ggml_backend_reg_t plugin_;
    LlamaContext context_;
    int64_t before_id_ = -1;  // of the plug-in's reports: those after this one
    int64_t last_id_ = -1;    // up to this one are on caches of this context
};

class EvalHost {
  public:
    /// plugin: its path; needed only for kvcodec caches.
    EvalHost(const std::string& model_path, const std::string& plugin, size_t n_threads);

    const ModelInfo& info() const { return info_; }
    llama_model* model() const { return model_.get(); }
    const llama_vocab* vocab() const { return llama_model_get_vocab(model_.get()); }
    size_t n_vocab() const { return static_cast<size_t>(llama_vocab_n_tokens(vocab())); }
    size_t n_threads() const { return n_threads_; }
    std::unique_ptr<EvalContext> make_context(const CacheSpec& spec, const ContextShape& shape) const;

  private:
    ModelInfo info_;
    size_t n_threads_;
    ggml_backend_dev_t device_;
    LlamaModel model_;
};

}  // namespace kvcodec
