// From what the user asked for (KVCODEC) to the codecs of one layer.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "ggml-kvcodec/op_chain.h"
#include "kvcodec/artifact/artifact.h"
#include "kvcodec/evict/evictor.h"
#include "kvcodec/options.h"
#include "kvcodec/plan/budget_plan.h"
#include "kvcodec/store/layer_store.h"

namespace kvcodec::host {

/// What is known about a layer when its codecs are chosen: from its first FLASH_ATTN_EXT and SET_ROWS.
struct LayerFacts {
    uint32_t layer = 0;
    LayerGeometry geometry;
    RowOrigin k_origin;
    RowOrigin v_origin;
    size_t f16_bytes = 0;     ///< of one token in all layers of the cache
    size_t dense_tokens = 0;  ///< most tokens that stay dense
};

/// Chooses codecs layer by layer. Keeps what layers share (the artifact, RoPE tables).
///
/// With an artifact, plan_budget() shares out the budget between layers and sides for the scalar codec and the
/// transform. The dictionary is taken where it is asked for, by name or by one of its options, and where nothing else
/// fits: of the three it is the least faithful at equal rate (docs/results). Means come from the artifact; without one,
/// from the model's own bias.
///
/// The baselines (codec=token|kivi|turboquant|zipcache) stand outside of this: no means, no artifact, and a budget for
/// zipcache only. Layers share them.
class CodecChoice {
  public:
    /// Throws Error for a bad option or artifact.
    explicit CodecChoice(const Options& options);

    const Options& options() const { return options_; }
    /// Whether layers pass through by request.
    bool off() const { return options_.codec == Options::CodecChoice::kNone; }
    /// Codecs of this layer, or the reason why it must pass through. Expected errors are what the artifact promises of
    /// a dictionary at this sparsity or of a transform; 0 when nothing is promised.
    struct Choice {
        std::optional<LayerCodecs> codecs;
        std::string reason;
        float expected_error_k = 0;
        float expected_error_v = 0;
        bool trained = false;                                ///< there is something of an artifact
        bool own_mean_k = false;                             ///< its mean of K is the model's own bias
        bool own_mean_v = false;                             ///< the same of V
        size_t fixed_bytes = 0;                              ///< of codecs and means
        std::optional<double> salient_share = std::nullopt;  ///< of rows, for codecs of mixed precision
    };
    Choice choose(const LayerFacts& facts);
    /// How a layer evicts, for codecs that do: rank `layer` of n_layers. Its store has no codecs then, and nothing of
    /// an artifact is used.
    std::optional<EvictionSettings> eviction(size_t layer, size_t n_layers) const;

    /// Bytes of what layers share: the artifact, RoPE tables, tables of baselines.
    size_t shared_bytes() const;

  private:
    struct SideChoice {
        std::shared_ptr<const Codec> codec;
        std::vector<std::shared_ptr<const Codec>> heads = {};  // empty where codec serves all
        float expected_error = 0;
    };
    struct LayerChoice {
        SideChoice k;
        SideChoice v;
    };
    SideChoice choose_side(Side side, size_t dim, const SideArtifact* trained, std::optional<uint32_t> s,
                           std::optional<uint32_t> bits) const;
    SideChoice latent_side(Side side, const SideArtifact& trained, size_t n_heads, bool before_rope) const;
    SideChoice planned_side(Side side, const SidePlan& plan, const SideArtifact& trained, bool before_rope) const;
    /// before_rope: whether RoPE stands between the codes of keys and the queries.
    LayerChoice choose_layer(const LayerGeometry& geometry, uint32_t layer, bool before_rope, LayerArtifact* trained);
    void plan(const LayerFacts& facts);
    float unbias_of(Side side) const { return side == Side::kK ? options_.unbias_k : options_.unbias_v; }
    float relative_error(Side side) const {
        return side == Side::kK ? options_.relative_error_k : options_.relative_error_v;
    }
    bool may_take_dictionary(Side side, size_t dim, std::optional<uint32_t> s, std::optional<uint32_t> bits) const;
    void drop_unused(Artifact& artifact) const;
    SideChoice dictionary(Side side, const SideArtifact& trained, uint32_t s) const;
    std::shared_ptr<const RopeTables> tables(const Rope& rope);
    Choice choose_baseline(const LayerGeometry& geometry);
    double salient_share(const LayerCodecs& codecs) const;
    std::shared_ptr<const Codec> baseline(Side side, size_t dim, std::optional<uint32_t> bits);

    Options options_;
    double budget_;         // code bytes per f16 byte
    bool planned_ = false;  // budget_, plan_ and latents_ are settled
    std::optional<Artifact> artifact_;
    std::map<uint32_t, LayerPlan> plan_;    // of layers that plan_budget() has decided on
    std::optional<LatentBits> latents_;     // where layers are coded as latents
    std::map<uint32_t, LayerChoice> made_;  // of layers with an artifact, for all contexts
    std::vector<std::shared_ptr<const RopeTables>> tables_;
    std::map<std::tuple<Side, size_t, std::optional<uint32_t>>, std::shared_ptr<const Codec>> baselines_;
    mutable std::mutex mutex_;  // several contexts of one process choose at the same time
};

}  // namespace kvcodec::host
