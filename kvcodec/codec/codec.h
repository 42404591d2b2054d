// The interface that every codec implements: what attention may ask of compressed vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvcodec/codec/block_layout.h"

namespace kvcodec {

/// Compresses the vectors of one side (K or V) of one layer. One codec serves all KV heads of that layer, or each has
/// one of its own, alike in all but what it learned.
///
/// A codec works on residuals: the RoPE-aware mean of K and the mean of V are removed before encode() and added by the
/// caller afterwards (see mean/rotating_mean.h). A codec is immutable after construction and safe to share by threads,
/// but for what adaptive ones adopt. Where before_rope() is true, the caller also undoes the rotation of keys before
/// encode() and redoes it afterwards.
///
/// Attention happens in code space, so a cached vector is never rebuilt: with lanes = (query heads of one KV head x
/// query tokens) and M = space(),
///     prepare    table[M, lanes] from the queries, once a step
///     score      q.x of every coded row from the table
///     accumulate sum of p * code into acc[M, lanes]
///     finish     expands acc to head_dim once, at the end.
/// `lanes` is always a multiple of kLaneMultiple; callers pad with zero lanes. score(), score_rounded() and
/// accumulate() read codes as layout() has them, whole BlockLayout::kRows where these are interleaved; all others read
/// codes one after another. kCodeSlackBytes readable bytes must follow the last code.
///
/// A codec may have no code space: space() is 0, these four must not be called, and attention decodes block by block.
/// Codes before RoPE have none: a rotation stands between them and the queries.
class Codec {
  public:
    static constexpr size_t kLaneMultiple = 4;
    static constexpr size_t kCodeSlackBytes = 16;

    virtual ~Codec() = default;

    /// One phrase for logs, e.g. "dictionary N=1024 s=8 4-bit coefficients".
    virtual std::string describe() const = 0;
    /// Length of a vector (head_dim).
    virtual size_t dim() const = 0;
    /// Bytes of one code, scales included.
    virtual size_t code_bytes() const = 0;
    /// Whether blocks of codes are interleaved.
    virtual bool is_interleaved() const { return false; }
    BlockLayout layout() const { return {code_bytes(), is_interleaved()}; }
    /// BlockLayout::arrange(), and kCodeSlackBytes.
    std::vector<std::byte> arrange(std::span<const std::byte> codes) const {
        std::vector<std::byte> block = layout().arrange(codes);
        block.resize(block.size() + kCodeSlackBytes);
        return block;
    }
    /// Resident bytes that do not grow with tokens: atoms, tables.
    virtual size_t fixed_bytes() const = 0;
    /// Whether codes have lengths of their own. encode() still writes them code_bytes() apart, but `codes` of all
    /// others is a VariableBlock's data.
    virtual bool is_variable() const { return false; }
    /// Bytes of one code, at most code_bytes().
    virtual size_t length(const std::byte* /*code*/) const { return code_bytes(); }
    /// Elements of code space that one code touches, at most nonzeros().
    virtual size_t nonzeros_of(const std::byte* /*code*/) const { return nonzeros(); }
    /// Adaptive codecs learn from the cache that they serve, one codec for one cache. encode() marks what it could not
    /// code well enough; then, from one thread and while no other method runs, adopt() is called with that row and its
    /// code, which it may replace by one of length(). forget() undoes all of it, when nothing is coded any more.
    virtual bool is_adaptive() const { return false; }
    virtual bool is_marked(const std::byte* /*code*/) const { return false; }
    virtual void adopt(const float* /*x*/, std::byte* /*code*/) const {}
    virtual void forget() const {}
    /// Resident bytes of what was adopted.
    virtual size_t adopted_bytes() const { return 0; }
    /// Rows that only make sense together, consecutive and aligned: a divisor of LayerStore::kBlock.
    virtual size_t group_rows() const { return 1; }
    /// KV heads whose vectors are coded together: a divisor of their number. Each has a codec of its own that reads the
    /// one code which they share; encode() of any of them takes x [n, joint_heads() * dim]. Only codecs of one length,
    /// without adaptive atoms, groups of rows or mixed precision are joint.
    virtual size_t joint_heads() const { return 1; }
    /// Whether codes are of keys as they were before RoPE.
    virtual bool before_rope() const { return false; }
    /// Size M of code space; 0: there is none.
    virtual size_t space() const = 0;
    /// Elements of code space that one coded row touches.
    virtual size_t nonzeros() const = 0;

    /// Whether a call of encode() has a fixed cost, worth many rows: then few large calls are faster.
    virtual bool prepares_batches() const { return false; }

    /// x: [n, dim] row-major, any finite or non-finite values; codes: n * code_bytes(). Whole groups in order: n is a
    /// multiple of group_rows().
    virtual void encode(const float* x, size_t n, std::byte* codes) const = 0;

    /// Codecs of mixed precision give some rows more bits: those that are marked in salient[n]. Others ignore the mark.
    virtual void encode_mixed(const float* x, size_t n, const uint8_t* /*salient*/, std::byte* codes) const {
        encode(x, n, codes);
    }
    virtual bool is_salient(const std::byte* /*code*/) const { return false; }
    /// Bits of one code that are in use, where a code may be shorter than its place.
    virtual size_t row_bits(bool /*salient*/) const { return 8 * code_bytes(); }

    /// Rows [first, first + n) as x [n, dim] row-major. Row 0 of `codes` begins a group; the codes of every group that
    /// is touched must be there in full.
    virtual void decode(const std::byte* codes, size_t first, size_t n, float* x) const = 0;

    /// Rows [begin, end) of table [M, lanes] from q [lanes, dim]; slices may be filled by different threads.
    virtual void prepare(const float* q, size_t lanes, size_t begin, size_t end, float* table) const = 0;
    /// s[i, lanes] = q . x(row[i]) for each listed row.
    virtual void score(const float* table, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                       float* s) const = 0;
    /// Where score() would round the table at every call: bytes that a rounded one takes, else 0.
    virtual size_t rounded_bytes(size_t /*lanes*/) const { return 0; }
    /// A whole table, rounded once for many calls of score_rounded(), which then stands in for score().
    virtual void round(const float* /*table*/, size_t /*lanes*/, std::byte* /*rounded*/) const {}
    virtual void score_rounded(const std::byte* /*rounded*/, size_t /*lanes*/, const std::byte* /*codes*/,
                               std::span<const uint16_t> /*rows*/, float* /*s*/) const {}
    /// acc[M, lanes] += p[i, lanes] * code(row[i]) for each listed row; p is not negative.
    virtual void accumulate(const float* p, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                            float* acc) const = 0;
    /// Elements [begin, end) of out[lanes, dim] += expansion of acc; begin and end are multiples of 16 or dim().
    virtual void finish(const float* acc, size_t lanes, size_t begin, size_t end, float* out) const = 0;
};

}  // namespace kvcodec
