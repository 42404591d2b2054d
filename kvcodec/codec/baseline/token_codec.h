// Per-token asymmetric round-to-nearest quantisation: the plain method that KIVI uses for values.
#pragma once

#include <cstddef>
#include <string>

#include "kvcodec/codec/baseline/baseline_codec.h"

namespace kvcodec {

/// Source: the values of KIVI (Liu et al., ICML 2024, arXiv 2402.02750). With 4 bits also ggml's q4_1 cache.
///
/// Faithful: groups of 32 channels within a vector, asymmetric, a scale and a zero point (the minimum) in half
/// precision for each group. Rate (bits + 1) / 16 where dim is a multiple of 32. Deviations: a last group is shorter
/// where dim is no multiple of 32; elements beyond the range of half precision are clamped to it, NaN counts as 0.
/// Verified: with 4 bits, against the arithmetic of q4_1 restated in the test, and against the host's own q4_1 cache
/// (docs/baselines.md). Results of the paper: unverified.
///
/// A code is the indices, packed, then scale and minimum of each group.
class TokenCodec final : public BaselineCodec {
  public:
    /// bits: 2 or 4; dim * bits: whole bytes.
    TokenCodec(size_t dim, unsigned bits);

    std::string describe() const override;
    size_t code_bytes() const override { return code_bytes_; }
    size_t fixed_bytes() const override { return 0; }
    void encode(const float* x, size_t n, std::byte* codes) const override;
    void decode(const std::byte* codes, size_t first, size_t n, float* x) const override;

  private:
    size_t code_bytes_;
};

}  // namespace kvcodec
