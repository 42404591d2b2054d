// The compressed cache behind one host buffer: all layers whose K and V tensors the host put there.
#pragma once

#include <array>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml-kvcodec/codec_choice.h"
#include "ggml-kvcodec/op_chain.h"
#include "ggml-kvcodec/report.h"
#include "ggml.h"
#include "kvcodec/attend/attention.h"
#include "kvcodec/evict/evictor.h"
#include "kvcodec/evict/saliency.h"
#include "kvcodec/options.h"
#include "kvcodec/store/layer_store.h"
#include "kvcodec/store/remembered_rows.h"

namespace kvcodec::host {

using DistortionByRange = std::array<Distortion, std::size(kDistortionRanges)>;

/// One layer: its two host tensors and, while it is compressed, its store.
///
///     fresh -> compressed      codecs chosen at the first attention
///     fresh or compressed -> pass-through      the host's flat f16 layout in the tensors' own memory, for good
struct Layer {
    enum class State : uint8_t { kFresh, kCompressed, kPassThrough };

    int32_t index = -1;
    ggml_tensor* k = nullptr;
    ggml_tensor* v = nullptr;
    State state = State::kFresh;
    std::unique_ptr<LayerStore> store;
    std::unique_ptr<Evictor> evictor;           // of a compressed layer that evicts rows instead of coding them
    std::unique_ptr<SalientRows> salient_rows;  // of one whose codecs give some rows more bits
    std::unique_ptr<RowOrigin> k_origin;
    std::unique_ptr<RowOrigin> v_origin;
    std::vector<uint32_t> ripe;  // cells old enough to be coded
    float expected_error_k = 0;
    float expected_error_v = 0;
    size_t fixed_bytes = 0;   // dictionaries and means
    bool own_mean_k = false;  // what is taken off K is the model's own bias
    bool own_mean_v = false;
    bool trained = false;
    bool checked = false;  // against what the artifact promises
    DistortionByRange distortion_k{};
    DistortionByRange distortion_v{};
};

/// What the summary line at the end reports.
struct CacheCounters {
    uint64_t cells_coded = 0;  ///< one layer's cells coded, summed over layers
    uint64_t pairs = 0;        ///< (query, key) pairs attended to, one layer
    uint64_t pairs_coded = 0;  ///< of these, keys read through codes; where rows are evicted, keys once decided on
    int64_t encode_us = 0;
    int64_t attention_us = 0;
    int64_t code_space_calls = 0;
    int64_t block_calls = 0;
};

class KvCache {
  public:
    /// `memory` is the host buffer that the tensors lie in; it outlives this.
    KvCache(std::shared_ptr<CodecChoice> choice, Reservation& memory);
    ~KvCache();

    /// Takes a tensor named cache_k_l<i> or cache_v_l<i> under management and hides its memory.
    void add_root(ggml_tensor* tensor, int32_t layer, bool is_key);
    /// The managed layer of a tensor (or of the root that it is a view of); null for others.
    Layer* layer_of(const ggml_tensor* tensor);
    /// The same, null as well when that layer passes through.
    Layer* compressed_layer_of(const ggml_tensor* tensor);

    /// Ops on managed tensors. False: not served; the layer has become pass-through and the host must compute the node.
    bool set_rows(ggml_tensor* node);
    bool flash_attn(ggml_tensor* node, Team& team);
    bool shift(ggml_tensor* node);
    /// Writes everything of a layer back to the flat layout that the host expects and leaves it alone from then on.
    void pass_through(Layer& layer, const std::string& reason);

    void get(const ggml_tensor* tensor, void* data, size_t offset, size_t size);
    void set(ggml_tensor* tensor, const void* data, size_t offset, size_t size);
    bool copy(const ggml_tensor* from, ggml_tensor* to);
    void clear();
    /// The host keeps some K or V tensors here in a type other than f16; layers that lack one pass through silently.
    void note_other_type() { has_other_types_ = true; }
    bool manages_any() const { return !layers_.empty(); }
    /// See report.h.
    std::string report_json() const;

  private:
    static constexpr int32_t kUnknownPosition = -1;

    void make_whole(Layer& layer);
    void begin_graph_if_new(const Layer& layer);
    void note_cells(Layer& layer, const ggml_tensor* node);
    void reset_cell(size_t cell);
    std::string choose_codecs(Layer& layer, const ggml_tensor* node);
    bool fits_artifact(Layer& layer, std::span<const uint32_t> cells);
    void measure(Layer& layer, std::span<const uint32_t> cells, const uint8_t* salient);
    void grow_older(const ggml_tensor* node);
    void count_pairs(const Layer& layer, const ggml_tensor* node);
    void encode_ripe(Layer& layer, bool all, std::span<const AttentionCall> calls, Team& team);
    void evict(Layer& layer, const AttentionCall& call, Team& team);
    static void evict_zero_rows(Layer& layer, size_t cell);
    bool is_first(const Layer& layer, Side side) const;
    bool is_sink(size_t cell) const { return positions_[cell] >= 0 && positions_[cell] < static_cast<int32_t>(sinks_); }
    size_t fixed_bytes() const;
    size_t dense_tokens() const;
    static double bytes_per_token(const Layer& layer);
    static std::string describe(const Layer& layer);
    std::string describe_all() const;
    struct Totals {
        size_t resident_bytes = 0;
        size_t f16_bytes = 0;  // of the cells in use
        size_t coded_cells = 0;
        size_t dense_cells = 0;
        size_t compressed_layers = 0;
        uint64_t rows_rebuilt = 0;
        struct Mean {  // over the layers whose codes have lengths of their own
            double sum = 0;
            size_t n = 0;
            void add(double value) {
                sum += value;
                ++n;
            }
            std::string text(const char* of) const;
        };
        Mean nonzeros_k, nonzeros_v;
    };
    static void add_nonzeros(const LayerStore& store, Totals& totals);
    Totals totals() const;
    void report_load();
    void report_end();

    uint64_t id_;
    Options options_;
    std::shared_ptr<CodecChoice> choice_;
    Reservation& memory_;
    std::shared_ptr<CodeArena> arena_ = std::make_shared<CodeArena>();
    uint32_t window_;
    uint32_t sinks_;
    std::map<int32_t, Layer> layers_;
    AttentionTimes times_;
    Attention attention_;
    size_t n_cells_ = 0;
    size_t cells_per_stream_ = 0;

    // Of key rows that the host has read out: a saved state comes back without positions and ages. Kept for the first
    // layer only; the others share its cells. Where sequences begin alike, the last one that was read counts.
    static constexpr size_t kMostRememberedRows = size_t{1} << 18;
    struct CellOfRow {
        int32_t position;
        uint32_t age;
    };
    RememberedRows cell_of_row_{sizeof(CellOfRow), kMostRememberedRows};

    // By cell, the same for all layers.
    std::vector<int32_t> positions_;
    std::vector<uint32_t> age_;
    // Graphs in a row in which queries of its stream saw other cells only; of young ones.
    std::vector<uint16_t> unseen_;
    std::vector<uint8_t> is_young_;

    std::vector<uint32_t> young_;  // cells that wait: below the window in age, and the first tokens
    int32_t last_key_layer_ = INT32_MAX;
    uint64_t graph_ = 0;
    bool cells_reset_ = false;
    bool positions_read_ = false;
    bool aged_ = false;
    bool pairs_counted_ = false;
    int32_t shifted_layer_ = INT32_MAX;
    CacheCounters counters_;
    std::set<std::string> warned_;  // reasons that have been given for some layer
    bool has_other_types_ = false;
    bool reported_load_ = false;
    bool warned_of_positions_ = false;
};

/// Layer and side from a tensor's name; false if it is not a plain key or value cache.
bool parse_cache_name(const char* name, int32_t& layer, bool& is_key);

}  // namespace kvcodec::host
