// ZipCache's quantisation: 4 bits for salient tokens and 2 for the others; keys per channel, values per token.
#pragma once

#include <cstddef>
#include <string>

#include "kvcodec/codec/baseline/baseline_codec.h"
#include "kvcodec/codec/baseline/rounding.h"

namespace kvcodec {

/// Source: ZipCache (He et al., NeurIPS 2024, arXiv 2405.14256). What is salient is decided elsewhere:
/// evict/saliency.h.
///
/// Deviations of both sides:
///   - Ranges and normalisers of channels are taken over aligned groups of 32 cells, and counted. ZipCache takes them
///   over a whole prompt, later over 100 tokens, where they cost next to nothing.
///   - A code has the size of its form with 4 bits, so memory is that of 4 bits for every row. row_bits() tells what is
///   in use, which is what rates are computed from.
///   - Elements beyond the range of half precision are clamped to it, NaN counts as 0.
/// Verified: arithmetic, against a plain restatement in the test. Results of the paper: unverified.
///
/// A code is one byte that tells whether the row is salient (one bit of it counts), room for 4-bit indices, packed, and
/// what the two sides store beside them.
class ZipCacheCodec : public BaselineCodec {
  public:
    size_t code_bytes() const final { return 1 + packed_bytes(dim(), kSalientBits) + extra_bytes_; }
    size_t fixed_bytes() const final { return 0; }
    size_t group_rows() const final { return kRangeGroup; }
    size_t row_bits(bool salient) const final {
        return 1 + dim() * (salient ? kSalientBits : kOtherBits) + 8 * extra_bytes_;
    }
    bool is_salient(const std::byte* code) const final { return *code != std::byte{0}; }
    /// No row is salient.
    void encode(const float* x, size_t n, std::byte* codes) const final;

  protected:
    static constexpr unsigned kSalientBits = 4;
    static constexpr unsigned kOtherBits = 2;

    /// extra_bytes: of one code, beside the indices.
    ZipCacheCodec(size_t dim, size_t extra_bytes) : BaselineCodec(dim, kSalientBits), extra_bytes_(extra_bytes) {}
    static unsigned bits_of(bool salient) { return salient ? kSalientBits : kOtherBits; }
    size_t extra_offset() const { return code_bytes() - extra_bytes_; }
    void write_indices(const uint8_t* index, bool salient, std::byte* code) const;
    void read_indices(const std::byte* code, uint8_t* index) const;

  private:
    size_t extra_bytes_;
};

/// Faithful: keys after RoPE, each channel over a group of tokens, asymmetric, scale and zero point (the minimum) in
/// half precision. Deviation: salient and other tokens of a group share the ranges of channels, which the released code
/// takes apart; over 32 tokens a second table would cost one bit an element.
///
/// Beside the indices: 1/32 of the group's table, scale (of 4 bits) and minimum of each channel.
class ZipCacheKeyCodec final : public ZipCacheCodec {
  public:
    /// dim: a multiple of 8, so that each row carries whole bytes of the table.
    explicit ZipCacheKeyCodec(size_t dim);

    std::string describe() const override;
    void encode_mixed(const float* x, size_t n, const uint8_t* salient, std::byte* codes) const override;
    void decode(const std::byte* codes, size_t first, size_t n, float* x) const override;
};

/// Faithful: each channel is divided by the root of its largest magnitude, then each token rounded over the range of
/// all its channels, asymmetric, scale and zero point (the minimum) in half precision. Deviation: each KV head of a
/// token has a range of its own; the released code takes one over all of them.
///
/// Beside the indices: scale and minimum of the row, 1/32 of the group's normalisers in half precision.
class ZipCacheValueCodec final : public ZipCacheCodec {
  public:
    /// dim: a multiple of 16, so that each row carries whole bytes of the normalisers.
    explicit ZipCacheValueCodec(size_t dim);

    std::string describe() const override;
    void encode_mixed(const float* x, size_t n, const uint8_t* salient, std::byte* codes) const override;
    void decode(const std::byte* codes, size_t first, size_t n, float* x) const override;
};

}  // namespace kvcodec
