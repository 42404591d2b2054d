// From what the user asked for (KVCODEC) to the codecs of one layer.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "kvcodec/artifact/artifact.h"
#include "kvcodec/options.h"
#include "kvcodec/store/layer_store.h"
#include "ggml-kvcodec/op_chain.h"

namespace kvcodec::host {

/// What is known about a layer when its codecs are chosen: from its first FLASH_ATTN_EXT and SET_ROWS.
struct LayerFacts {
    uint32_t layer = 0;
    LayerGeometry geometry;
    RowOrigin k_origin;
    RowOrigin v_origin;
};

/// Chooses codecs layer by layer. Keeps what layers share (the artifact, RoPE tables).
class CodecChoice {
  public:
    /// Throws Error for a bad option or artifact.
    explicit CodecChoice(const Options& options);

    /// Whether layers pass through by request.
    bool off() const { return options_.codec == Options::CodecChoice::kNone; }
    /// Codecs of this layer, or the reason why it must pass through. heldout: error that the artifact promises for K
    /// and V, 0 when unknown.
    struct Choice {
        std::optional<LayerCodecs> codecs;
        std::string reason;
        float expected_error_k = 0;
        float expected_error_v = 0;
    };
    Choice choose(const LayerFacts& facts);

    /// Dictionaries, bases and shared tables held so far.
    size_t fixed_bytes() const { return fixed_bytes_; }

  private:
    Choice choose_dictionary(const LayerFacts& facts);
    Choice choose_scalar(const LayerFacts& facts);
    std::shared_ptr<const RopeTables> tables(const Rope& rope);

    Options options_;
    std::optional<Artifact> artifact_;
    std::vector<std::shared_ptr<const RopeTables>> tables_;
    size_t fixed_bytes_ = 0;
};

}  // namespace kvcodec::host
