// Runs a model through libllama and collects the K and V rows that its cache would be given, and how queries read them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kvcodec/artifact/model_info.h"
#include "kvcodec/codec/rope.h"

namespace kvcodec {

/// One side (K or V) of one layer. Rows are kept in half precision relative to a base close to their mean: where a
/// constant outweighs the rest a hundredfold (K bias), half precision alone would lose the rest.
class HarvestedRows {
  public:
    HarvestedRows() = default;
    HarvestedRows(size_t n_head, size_t dim) : n_head_(n_head), dim_(dim) {}

    size_t n_head() const { return n_head_; }
    size_t dim() const { return dim_; }
    size_t n_tokens() const { return dim_ == 0 ? 0 : values_.size() / (n_head_ * dim_); }

    /// x: [n_tokens, n_head, dim]. The mean of the first call's rows becomes the base.
    void add(const std::vector<float>& x);
    /// Mean of each head [n_head, dim].
    std::vector<float> mean() const;
    /// Rows without the mean [n_tokens * n_head, dim].
    std::vector<float> residuals() const;
    /// Frees the rows.
    void clear() { values_ = {}; }

  private:
    size_t n_head_ = 0, dim_ = 0;
    std::vector<float> base_;       // [n_head, dim]
    std::vector<uint16_t> values_;  // f16 [n_tokens, n_head, dim]
};

struct HarvestedLayer {
    uint32_t layer = 0;
    RopeParams rope;
    HarvestedRows k;  ///< before RoPE
    HarvestedRows v;
    /// [n_head_kv, dim, dim] sums of q q^T over the queries that read each KV head, turned to where a key before RoPE
    /// would meet them, at distances from 1 to the model's context, alike in all octaves (sliding
    /// windows are not known here). Empty if none were seen.
    std::vector<double> query_moments;
};

struct Harvest {
    std::vector<HarvestedLayer> layers;         ///< ascending
    std::vector<std::string> skipped;           ///< one line for each layer that cannot be coded, and why
    uint64_t n_tokens = 0;                      ///< tokens whose rows were kept
    std::string source;                         ///< what the text was, for people
    std::vector<std::vector<int32_t>> samples;  ///< some of its longest sequences of tokens
};

struct HarvestOptions {
    std::vector<std::string> text_files;  ///< empty: the model writes the text itself
    size_t n_tokens = 16384;              ///< kept tokens to aim for
    size_t ctx_size = 512;                ///< tokens of a sequence
    size_t n_threads = 1;
    uint64_t seed = 0;
    const std::atomic<bool>* stop = nullptr;  ///< checked between batches; once true, harvest() throws Error
    std::function<void(size_t done, size_t total)> progress;
};

/// The model, on the CPU. Throws Error if it, or a text file, cannot be loaded.
class Harvester {
  public:
    /// model must outlive it.
    Harvester(const ModelInfo& model, const HarvestOptions& options);
    Harvester(ModelInfo&& model, const HarvestOptions& options) = delete;
    ~Harvester();
    Harvester(const Harvester&) = delete;
    Harvester& operator=(const Harvester&) = delete;

    /// Tokens that the text files give, at most options.n_tokens and a few more; without files: options.n_tokens.
    size_t available_tokens() const;
    Harvest harvest();

  private:
    class Implementation;
    std::unique_ptr<Implementation> implementation_;
};

}  // namespace kvcodec
