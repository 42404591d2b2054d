// KIVI's quantisation of keys: per channel over groups of tokens.
#pragma once

#include <cstddef>
#include <string>

#include "kvcodec/codec/baseline/baseline_codec.h"
#include "kvcodec/codec/baseline/rounding.h"

namespace kvcodec {

/// Source: KIVI (Liu et al., ICML 2024, arXiv 2402.02750). Its values are those of TokenCodec.
///
/// Faithful: keys after RoPE; each channel over 32 consecutive tokens, asymmetric, a scale and a zero point (the
/// minimum) in half precision for each channel and group; rate (bits + 1) / 16. A group is coded when all of its tokens
/// are there and old enough, until then they stay in half precision: KIVI's residual.
/// Deviations:
///   - Residual. KIVI's keys are coded 128 at a time, so 0 to 127 are not coded; its values keep the last 128. Here
///     keys and values of a token are coded together, 32 tokens at a time, once the window (128 queries; 0 with
///     mode=strict) has passed. So 128 to 159 tokens stay dense, in strict mode 0 to 31.
///   - KIVI reads a prompt in full precision before it codes it: prefill=exact. By default a prompt is coded while it
///   is
///     read.
///   - In strict mode a query of a prompt may read keys whose range was taken over tokens after it, up to 31 of them.
///   - Groups are 32 aligned cells of the cache. In a cache that several sequences share a group may hold tokens of
///   more
///     than one. Cells that are overwritten stay dense until all of their group is written anew.
///   - Sinks are not KIVI's; a group with a sink in it stays dense as a whole: give sinks=0.
///   - Elements beyond the range of half precision are clamped to it, NaN counts as 0.
/// Verified: arithmetic, against a plain restatement in the test. Results of the paper: unverified.
///
/// The code of one row is its indices, packed, then 1/32 of the group's table: scale and minimum of each channel.
class KiviKeyCodec final : public BaselineCodec {
  public:
    /// bits: 2 or 4; dim: a multiple of 8, so that each row carries whole bytes of the table.
    KiviKeyCodec(size_t dim, unsigned bits);

    std::string describe() const override;
    size_t code_bytes() const override { return packed_bytes(dim(), bits()) + table_bytes(); }
    size_t fixed_bytes() const override { return 0; }
    size_t group_rows() const override { return kRangeGroup; }
    void encode(const float* x, size_t n, std::byte* codes) const override;
    void decode(const std::byte* codes, size_t first, size_t n, float* x) const override;

  private:
    /// Of one row.
    size_t table_bytes() const { return dim() * sizeof(RangeCode) / kRangeGroup; }
};

}  // namespace kvcodec
