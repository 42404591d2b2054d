#include "tools/harvest.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string_view>
#include <utility>

#include "kvcodec/error.h"
#include "kvcodec/half.h"
#include "kvcodec/learn/principal_components.h"
#include "tools/host_model.h"
#include "tools/text_file.h"

namespace kvcodec {

namespace fs = std::filesystem;

namespace {

// Attention sinks: the first keys of a sequence are unlike all others, and the plug-in keeps them dense.
constexpr llama_pos kSinks = 4;
// Sequences that the model writes side by side.
constexpr size_t kSequences = 32;
// Tokens less likely than this share of the likeliest one are never sampled (min-p).
constexpr float kMinP = 0.02F;
// Tokens of one batch of given text.
constexpr size_t kMaxBatch = 512;
// No tokenizer makes a window of n tokens out of more bytes than n times this in ordinary text.
constexpr size_t kMaxBytesPerToken = 16;

// What sequences begin with: text of many kinds. From random tokens, models write more nonsense than users do, and keys
// and values of nonsense are distributed differently.
constexpr std::string_view kOpenings[] = {
    "The history of the city begins in",
    "In 1912, the government of",
    "She closed the door behind her and",
    "Chapter 1\n\n",
    "The album was released on",
    "Scientists have discovered that",
    "According to the report, the company",
    "The species is found in",
    "\"I don't think so,\" he said.",
    "# Introduction\n\nThis document describes",
    "def parse(text):\n    \"\"\"",
    "#include <stdio.h>\n\nint main(",
    "import React from 'react';\n\nexport",
    "SELECT name, COUNT(*) FROM",
    "Question: If a train travels 60 miles in",
    "Theorem 1. Let f be a continuous function",
    "Dear Sir or Madam,\n\n",
    "Ingredients:\n- 2 cups of",
    "Step 1: Open the",
    "The patient was treated with",
    "The court held that the defendant",
    "Once upon a time, there was a",
    "Yesterday the national team won",
    "The battle took place near",
    "In economics, inflation is",
    "The film tells the story of",
    "Le premier ministre a",
    "Die Stadt liegt im",
    "La historia de",
    "A list of things to do before",
    "User: How do I fix my",
    "Climate change is one of",
};

// ---- what the graph says -------------------------------------------------------------------------------------------

/// One of the host's: side 'k' or 'v' and the layer.
struct CacheTensor {
    char side;
    uint32_t layer;
};

/// The cache tensor that `tensor` is a part of. Cache tensors are named cache_k_l0, cache_v_l0, some with a tag after
/// the first underscore.
std::optional<CacheTensor> cache_tensor(const ggml_tensor* tensor) {
    const ggml_tensor* root = tensor;
    while (root->view_src != nullptr) {
        root = root->view_src;
    }
    const std::string_view name = root->name;
    const size_t mark = name.rfind("_l");
    if (!name.starts_with("cache_") || mark == std::string_view::npos) {
        return std::nullopt;
    }
    const char side = name[mark - 1];
    char* end = nullptr;
    const unsigned long layer = std::strtoul(root->name + mark + 2, &end, 10);
    if ((side != 'k' && side != 'v') || end == root->name + mark + 2 || *end != '\0') {
        return std::nullopt;
    }
    return CacheTensor{side, static_cast<uint32_t>(layer)};
}

/// The cache tensor that a node writes to.
std::optional<CacheTensor> cache_write(const ggml_tensor* node) {
    return node->op == GGML_OP_SET_ROWS ? cache_tensor(node) : std::nullopt;
}

/// The keys that a node reads for attention.
std::optional<CacheTensor> cache_read(const ggml_tensor* node) {
    return node->op == GGML_OP_FLASH_ATTN_EXT ? cache_tensor(node->src[1]) : std::nullopt;
}

bool only_rearranges(ggml_op op) {
    return op == GGML_OP_VIEW || op == GGML_OP_RESHAPE || op == GGML_OP_PERMUTE || op == GGML_OP_TRANSPOSE ||
           op == GGML_OP_CONT || op == GGML_OP_CPY;
}

/// The RoPE that `keys` come out of; null if they are not rotated. Throws Error if something changes them afterwards.
const ggml_tensor* find_rope(const ggml_tensor* keys) {
    bool changed = false;
    const ggml_tensor* node = keys;
    while (node != nullptr && node->op != GGML_OP_NONE && node->op != GGML_OP_MUL_MAT) {
        if (node->op == GGML_OP_ROPE) {
            if (changed) {
                throw Error("its keys are changed after RoPE");
            }
            return node;
        }
        if (node->op == GGML_OP_CONCAT) {
            throw Error("its keys are put together from parts");
        }
        changed = changed || !only_rearranges(node->op);
        node = node->src[0];
    }
    return nullptr;
}

/// Fields of op_params as ggml_rope_ext packs them.
RopeParams rope_params(const ggml_tensor* rope) {
    if (rope == nullptr) {
        return {};
    }
    const auto integer = [&](size_t i) { return rope->op_params[i]; };
    const auto real = [&](size_t i) {
        float value;
        std::memcpy(&value, rope->op_params + i, sizeof(value));
        return value;
    };
    RopeParams params;
    switch (integer(2)) {
        case GGML_ROPE_TYPE_NORMAL:
            params.pairing = RopeParams::Pairing::kAdjacent;
            break;
        case GGML_ROPE_TYPE_NEOX:
            params.pairing = RopeParams::Pairing::kHalves;
            break;
        default:
            throw Error(fmt::format("its RoPE is of an unsupported kind (mode {})", integer(2)));
    }
    params.n_dims = static_cast<uint32_t>(integer(1));
    params.n_ctx_orig = static_cast<uint32_t>(integer(4));
    params.freq_base = real(5);
    params.freq_scale = real(6);
    params.ext_factor = real(7);
    params.attn_factor = real(8);
    params.beta_fast = real(9);
    params.beta_slow = real(10);
    if (rope->src[2] != nullptr) {
        params.freq_factors.resize(params.n_dims / 2);
        ggml_backend_tensor_get(rope->src[2], params.freq_factors.data(), 0,
                                params.freq_factors.size() * sizeof(float));
    }
    return params;
}

/// t [row_size, n_rows] as floats. Throws Error if it is of another shape or type.
std::vector<float> read_rows(const ggml_tensor* t, size_t n_rows, size_t row_size) {
    if (t->type != GGML_TYPE_F32 || t->ne[0] != static_cast<int64_t>(row_size) ||
        ggml_nrows(t) != static_cast<int64_t>(n_rows)) {
        throw Error(fmt::format("its cache rows have {} elements, heads of {} were expected", t->ne[0], row_size));
    }
    std::vector<float> rows(n_rows * row_size);
    for (size_t i = 0; i < n_rows; ++i) {
        ggml_backend_tensor_get(t, rows.data() + i * row_size, i * t->nb[1], row_size * sizeof(float));
    }
    return rows;
}

// Collects what the evaluation callback is shown.
class Collector {
  public:
    Collector(const ModelInfo& model, uint64_t seed) : model_(model), random_(std::mt19937_64::default_seed + seed) {}

    /// Before each llama_decode of a batch that fits one micro-batch.
    void expect(const llama_batch& batch) {
        positions_.assign(batch.pos, batch.pos + batch.n_tokens);
        positions_are_the_graphs_ = false;
    }

    static bool on_node(ggml_tensor* node, bool ask, void* user_data) {
        auto* collector = static_cast<Collector*>(user_data);
        const auto write = cache_write(node);
        const auto read = cache_read(node);
        if (ask) {
            return write || read;
        }
        if (write) {
            collector->take(*write, node->src[0]);
        } else if (read) {
            collector->take_queries(read->layer, node->src[0]);
        }
        return true;
    }

    /// Moves out what was collected; n_tokens and source are left to the caller.
    Harvest finish() {
        Harvest harvest;
        for (auto& [layer, state] : layers_) {
            if (!state.problem.empty()) {
                harvest.skipped.push_back(fmt::format("layer {} is left out: {}", layer, state.problem));
            } else if (state.rows.k.n_tokens() == 0 || state.rows.v.n_tokens() == 0) {
                harvest.skipped.push_back(fmt::format("layer {} is left out: it has no pair of K and V", layer));
            } else {
                harvest.layers.push_back(std::move(state.rows));
            }
        }
        layers_.clear();
        return harvest;
    }

  private:
    struct LayerState {
        HarvestedLayer rows;
        Rope rope;
        std::string problem;
    };

    // Must not throw: its caller is C.
    void take(const CacheTensor& write, const ggml_tensor* source) {
        LayerState& state = layers_[write.layer];
        if (!state.problem.empty()) {
            return;
        }
        try {
            const bool is_k = write.side == 'k';
            HarvestedRows& rows = is_k ? state.rows.k : state.rows.v;
            if (rows.dim() == 0) {
                open(write, source, state);
            }
            if (is_k) {
                read_positions(source);
            }
            const size_t row_size = rows.n_head() * rows.dim();
            std::vector<float> x = read_rows(source, positions_.size(), row_size);
            size_t n_kept = 0;
            for (size_t i = 0; i < positions_.size(); ++i) {
                if (positions_[i] >= kSinks) {
                    float* kept = x.data() + n_kept++ * row_size;
                    std::copy_n(x.data() + i * row_size, row_size, kept);
                    for (size_t head = 0; is_k && state.rope.rotates() && head < rows.n_head(); ++head) {
                        state.rope.unrotate(kept + head * rows.dim(), positions_[i]);
                    }
                }
            }
            x.resize(n_kept * row_size);
            rows.add(x);
        } catch (const std::exception& error) {
            state.problem = error.what();
        }
    }

    // Must not throw. q: [head_dim, tokens of a stream, heads, streams], rotated. Layers whose queries are not as
    // expected do without.
    void take_queries(uint32_t layer, const ggml_tensor* q) {
        const auto known = layers_.find(layer);
        if (known == layers_.end() || !known->second.problem.empty()) {
            return;
        }
        LayerState& state = known->second;
        const size_t dim = state.rows.k.dim(), n_head_kv = state.rows.k.n_head();
        const auto n_head = static_cast<size_t>(q->ne[2]);
        if (q->type != GGML_TYPE_F32 || q->ne[0] != static_cast<int64_t>(dim) || n_head_kv == 0 ||
            n_head % n_head_kv != 0 || q->ne[1] * q->ne[3] != static_cast<int64_t>(positions_.size())) {
            return;
        }
        try {
            const size_t group = n_head / n_head_kv;
            std::vector<float> queries(positions_.size() * group * dim);
            state.rows.query_moments.resize(n_head_kv * dim * dim);
            for (size_t head_kv = 0; head_kv < n_head_kv; ++head_kv) {
                size_t n = 0;
                for (size_t i = 0; i < positions_.size() * group; ++i) {
                    const size_t token = i / group, head = head_kv * group + i % group;
                    if (positions_[token] >= kSinks) {
                        float* row = &queries[n++ * dim];
                        const size_t in_stream = token % static_cast<size_t>(q->ne[1]);
                        const size_t stream = token / static_cast<size_t>(q->ne[1]);
                        ggml_backend_tensor_get(q, row, in_stream * q->nb[1] + head * q->nb[2] + stream * q->nb[3],
                                                dim * sizeof(float));
                        turn_to_key(state.rope, row, positions_[token]);
                    }
                }
                const std::vector<double> moments = second_moments(std::span(queries).first(n * dim), dim);
                double* sums = &state.rows.query_moments[head_kv * dim * dim];
                std::transform(moments.begin(), moments.end(), sums, sums, std::plus<>());
            }
        } catch (const std::exception& error) {
            state.problem = error.what();
        }
    }

    // From a query at `position` to what meets a key before RoPE: the key's rotation, transposed.
    void turn_to_key(const Rope& rope, float* q, llama_pos position) {
        if (rope.rotates()) {
            const double octaves = std::log2(static_cast<double>(std::max(model_.n_ctx_train, 2U)));
            const double distance = std::exp2(std::uniform_real_distribution(0.0, octaves)(random_));
            rope.rotate(q, static_cast<int64_t>(distance) - position);
        }
    }

    void open(const CacheTensor& write, const ggml_tensor* source, LayerState& state) const {
        const size_t n_head = write.layer < model_.n_head_kv.size() ? model_.n_head_kv[write.layer] : 0;
        const size_t dim = write.side == 'k' ? model_.head_dim_k : model_.head_dim_v;
        if (n_head == 0 || dim == 0) {
            throw Error("the model file names no KV heads for it");
        }
        state.rows.layer = write.layer;
        if (write.side == 'k') {
            state.rows.rope = rope_params(find_rope(source));
            state.rope = Rope(state.rows.rope, dim);
            state.rows.k = HarvestedRows(n_head, dim);
        } else {
            state.rows.v = HarvestedRows(n_head, dim);
        }
    }

    // The host may reorder the tokens of a batch, so the graph's own positions count; they are read at the first
    // layer, because the tensor's memory may serve another purpose after the last RoPE.
    void read_positions(const ggml_tensor* keys) {
        if (positions_are_the_graphs_) {
            return;
        }
        const ggml_tensor* rope = find_rope(keys);
        if (rope != nullptr && rope->src[1]->type == GGML_TYPE_I32 &&
            ggml_nelements(rope->src[1]) == static_cast<int64_t>(positions_.size())) {
            ggml_backend_tensor_get(rope->src[1], positions_.data(), 0, positions_.size() * sizeof(llama_pos));
            positions_are_the_graphs_ = true;
        }
    }

    const ModelInfo& model_;
    std::map<uint32_t, LayerState> layers_;
    std::vector<llama_pos> positions_;  // of the current batch
    bool positions_are_the_graphs_ = false;
    std::mt19937_64 random_;
};

// ---- text ----------------------------------------------------------------------------------------------------------

/// Windows of at most ctx_size tokens, evenly spread over all files with a random start in each stretch.
std::vector<std::vector<llama_token>> text_windows(const llama_vocab* vocab, const HarvestOptions& options) {
    std::string text;
    for (const std::string& path : options.text_files) {
        text += read_text(path);
        text += '\n';
    }
    const size_t kept_per_window = options.ctx_size - static_cast<size_t>(kSinks);
    const size_t n_windows = (options.n_tokens + kept_per_window - 1) / kept_per_window;
    const size_t stretch = text.size() / n_windows;
    std::mt19937_64 random(options.seed);
    std::vector<std::vector<llama_token>> windows;
    for (size_t w = 0; w < n_windows; ++w) {
        // A window is taken for 8 bytes a token here; where text is scarce, all of the stretch is used.
        const size_t slack = stretch - std::min(stretch, 8 * options.ctx_size);
        size_t begin = w * stretch + (slack == 0 ? 0 : random() % slack);
        while (begin < text.size() && (static_cast<unsigned char>(text[begin]) & 0xC0U) == 0x80U) {
            ++begin;  // not inside a UTF-8 sequence
        }
        const size_t length =
            std::min((w + 1) * stretch - std::min(begin, (w + 1) * stretch), kMaxBytesPerToken * options.ctx_size);
        std::vector<llama_token> tokens = tokenize(vocab, std::string_view(text).substr(begin, length), true, false);
        tokens.resize(std::min(tokens.size(), options.ctx_size));
        windows.push_back(std::move(tokens));
    }
    return windows;
}

size_t kept_tokens(const std::vector<std::vector<llama_token>>& windows) {
    size_t n = 0;
    for (const auto& window : windows) {
        n += window.size() - std::min(window.size(), static_cast<size_t>(kSinks));
    }
    return n;
}

std::vector<std::vector<llama_token>> longest_sequences(std::vector<std::vector<llama_token>> sequences) {
    constexpr size_t kSamples = 4;
    std::ranges::stable_sort(sequences, std::ranges::greater(), &std::vector<llama_token>::size);
    sequences.resize(std::min(sequences.size(), kSamples));
    return sequences;
}

/// Temperature 1 with min-p.
llama_token sample(const float* logits, size_t n_vocab, std::mt19937_64& random) {
    const float largest = *std::max_element(logits, logits + n_vocab);
    const float least = largest + std::log(kMinP);
    std::vector<double> weights;
    std::vector<llama_token> tokens;
    for (size_t i = 0; i < n_vocab; ++i) {
        if (logits[i] >= least) {
            weights.push_back(std::exp(static_cast<double>(logits[i] - largest)));
            tokens.push_back(static_cast<llama_token>(i));
        }
    }
    return tokens[std::discrete_distribution<size_t>(weights.begin(), weights.end())(random)];
}

}  // namespace

// ---- HarvestedRows -------------------------------------------------------------------------------------------------

void HarvestedRows::add(const std::vector<float>& x) {
    const size_t row_size = n_head_ * dim_, n = x.size() / row_size;
    if (base_.empty() && n > 0) {
        std::vector<double> sum(row_size, 0.0);
        for (size_t i = 0; i < x.size(); ++i) {
            sum[i % row_size] += x[i];
        }
        base_.resize(row_size);
        std::transform(sum.begin(), sum.end(), base_.begin(),
                       [n](double s) { return static_cast<float>(s / static_cast<double>(n)); });
    }
    for (size_t i = 0; i < x.size(); ++i) {
        values_.push_back(float_to_half(x[i] - base_[i % row_size]));
    }
}

std::vector<float> HarvestedRows::mean() const {
    const size_t row_size = n_head_ * dim_;
    std::vector<double> sum(row_size, 0.0);
    for (size_t i = 0; i < values_.size(); ++i) {
        sum[i % row_size] += half_to_float(values_[i]);
    }
    std::vector<float> mean(base_);
    for (size_t i = 0; i < row_size; ++i) {
        mean[i] += static_cast<float>(sum[i] / static_cast<double>(n_tokens()));
    }
    return mean;
}

std::vector<float> HarvestedRows::residuals() const {
    const size_t row_size = n_head_ * dim_;
    const std::vector<float> mean = this->mean();
    std::vector<float> residuals(values_.size());
    for (size_t i = 0; i < values_.size(); ++i) {
        residuals[i] = half_to_float(values_[i]) + (base_[i % row_size] - mean[i % row_size]);
    }
    return residuals;
}

// ---- Harvester -----------------------------------------------------------------------------------------------------

class Harvester::Implementation {
  public:
    Implementation(const ModelInfo& info, const HarvestOptions& options)
        : options_(options), model_(load_llama_model(info.path)), collector_(info, options.seed) {
        options_.ctx_size = std::min(options.ctx_size, static_cast<size_t>(llama_model_n_ctx_train(model_.get())));
        if (!options_.text_files.empty()) {
            windows_ = text_windows(vocab(), options_);
        }
    }

    size_t available_tokens() const { return windows_.empty() ? options_.n_tokens : kept_tokens(windows_); }

    Harvest harvest() {
        const size_t n_tokens = windows_.empty() ? write_text() : read_text();
        Harvest result = collector_.finish();
        result.samples = longest_sequences(windows_.empty() ? std::move(written_) : windows_);
        result.n_tokens = n_tokens;
        if (windows_.empty()) {
            result.source = fmt::format("{} sequences sampled from the model", kSequences);
        } else {
            for (const std::string& path : options_.text_files) {
                result.source += (result.source.empty() ? "" : ", ") + fs::path(path).filename().string();
            }
        }
        return result;
    }

  private:
    const llama_vocab* vocab() const { return llama_model_get_vocab(model_.get()); }

    LlamaContext make_context(size_t n_sequences, size_t batch_size) {
        llama_context_params params = llama_context_default_params();
        params.n_seq_max = static_cast<uint32_t>(n_sequences);
        params.n_ctx = static_cast<uint32_t>(n_sequences * options_.ctx_size);
        params.n_batch = params.n_ubatch = static_cast<uint32_t>(batch_size);
        params.n_threads = params.n_threads_batch = static_cast<int32_t>(options_.n_threads);
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        params.type_k = params.type_v = GGML_TYPE_F16;
        params.offload_kqv = false;
        params.op_offload = false;
        params.kv_unified = false;
        params.cb_eval = Collector::on_node;
        params.cb_eval_user_data = &collector_;
        return make_llama_context(model_.get(), params);
    }

    void decode(llama_context* context, const TokenBatch& batch) {
        if (options_.stop != nullptr && options_.stop->load()) {
            throw Error("interrupted before learning began; nothing was written");
        }
        collector_.expect(batch.get());
        if (llama_decode(context, batch.get()) != 0) {
            throw Error(fmt::format("llama.cpp failed to run the model: {}", last_host_error()));
        }
    }

    void report(size_t done, size_t total) const {
        if (options_.progress) {
            options_.progress(std::min(done, total), total);
        }
    }

    // Returns the number of tokens kept.
    size_t read_text() {
        const size_t batch_size = std::min(options_.ctx_size, kMaxBatch), total = kept_tokens(windows_);
        const LlamaContext context = make_context(1, batch_size);
        TokenBatch batch(batch_size);
        size_t done = 0;
        for (const auto& window : windows_) {
            llama_memory_clear(llama_get_memory(context.get()), false);
            for (size_t begin = 0; begin < window.size(); begin += batch_size) {
                batch.clear();
                for (size_t i = begin; i < std::min(begin + batch_size, window.size()); ++i) {
                    batch.add(window[i], static_cast<llama_pos>(i), 0, false);
                    done += static_cast<llama_pos>(i) >= kSinks;
                }
                decode(context.get(), batch);
                report(done, total);
            }
        }
        return done;
    }

    // The model continues the openings (LLM-QAT, arXiv 2305.17888, section 3.1, has it continue random tokens). A
    // sequence that has ended or is full makes room for a new one. Returns the number of tokens kept.
    size_t write_text() {
        const LlamaContext context = make_context(kSequences, kSequences);
        const size_t n_vocab = static_cast<size_t>(llama_vocab_n_tokens(vocab()));
        struct Sequence {
            std::mt19937_64 random;
            std::vector<llama_token> tokens;   // so far
            std::vector<llama_token> pending;  // given, not sampled
            llama_pos position = 0;
            llama_token next = 0;
        };
        std::vector<Sequence> sequences(kSequences);
        size_t n_begun = 0;
        const auto restart = [&](size_t s) {
            Sequence& sequence = sequences[s];
            llama_memory_seq_rm(llama_get_memory(context.get()), static_cast<llama_seq_id>(s), -1, -1);
            written_.push_back(std::exchange(sequence.tokens, {}));
            sequence.position = 0;
            // Last token first.
            sequence.pending = tokenize(vocab(), kOpenings[n_begun++ % std::size(kOpenings)], true, false);
            std::ranges::reverse(sequence.pending);
            sequence.next = sequence.pending.back();
            sequence.pending.pop_back();
        };
        for (size_t s = 0; s < kSequences; ++s) {
            sequences[s].random.seed(options_.seed * kSequences + s);
            restart(s);
        }
        TokenBatch batch(kSequences);
        size_t done = 0;
        while (done < options_.n_tokens) {
            batch.clear();
            for (size_t s = 0; s < kSequences; ++s) {
                batch.add(sequences[s].next, sequences[s].position, s, true);
                sequences[s].tokens.push_back(sequences[s].next);
                done += sequences[s].position >= kSinks;
            }
            decode(context.get(), batch);
            for (size_t s = 0; s < kSequences; ++s) {
                Sequence& sequence = sequences[s];
                ++sequence.position;
                if (!sequence.pending.empty()) {
                    sequence.next = sequence.pending.back();
                    sequence.pending.pop_back();
                    continue;
                }
                const float* logits = llama_get_logits_ith(context.get(), static_cast<int32_t>(s));
                sequence.next = sample(logits, n_vocab, sequence.random);
                if (llama_vocab_is_eog(vocab(), sequence.next) ||
                    sequence.position >= static_cast<llama_pos>(options_.ctx_size)) {
                    restart(s);
                }
            }
            report(done, options_.n_tokens);
        }
        for (Sequence& sequence : sequences) {
            written_.push_back(std::move(sequence.tokens));
        }
        return done;
    }

    HarvestOptions options_;
    LlamaModel model_;
    Collector collector_;
    std::vector<std::vector<llama_token>> windows_;  // of the text that is given
    std::vector<std::vector<llama_token>> written_;  // by the model
};

Harvester::Harvester(const ModelInfo& model, const HarvestOptions& options)
    : implementation_(std::make_unique<Implementation>(model, options)) {}
Harvester::~Harvester() = default;

size_t Harvester::available_tokens() const {
    return implementation_->available_tokens();
}
Harvest Harvester::harvest() {
    return implementation_->harvest();
}

}  // namespace kvcodec
