// What the host's graph tells about a key or value row before it is stored.
#pragma once

#include <optional>
#include <vector>

#include "ggml.h"
#include "kvcodec/codec/rope.h"

namespace kvcodec::host {

/// How the rows of one SET_ROWS came to be.
struct RowOrigin {
    enum class Rotation : uint8_t {
        kNone,     ///< no ROPE on the way
        kKnown,    ///< rope and positions below
        kUnknown,  ///< rotated in a way that this plug-in cannot undo
    };
    Rotation rotation = Rotation::kNone;
    RopeParams rope;
    const ggml_tensor* positions = nullptr;  ///< I32 [n_tokens] of the ROPE
    std::vector<float> bias;                 ///< [row length], constant added before the rotation; empty = none
};

/// Walks from the rows that a SET_ROWS stores up to their ROPE and to the bias before it. Reads tensor data (frequency
/// factors, bias), so call it while computing.
RowOrigin trace_rows(const ggml_tensor* set_rows);

/// Parameters of a ROPE; nullopt for kinds other than norm and neox.
std::optional<RopeParams> read_rope(const ggml_tensor* rope);

}  // namespace kvcodec::host
