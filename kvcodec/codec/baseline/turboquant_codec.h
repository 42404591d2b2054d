// TurboQuant's quantiser for least squared error: a random rotation, then the best scalar quantiser of a coordinate.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kvcodec/codec/baseline/baseline_codec.h"
#include "kvcodec/codec/baseline/rounding.h"

namespace kvcodec {

/// Levels of the Lloyd-Max quantiser, ascending, for a coordinate of a random unit vector: density
/// f(x) ~ (1 - x^2)^((dim - 3) / 2). By Lloyd's iterations on that density. dim: at least 3; bits: 1 to 8.
std::vector<float> sphere_levels(size_t dim, unsigned bits);

/// Source: TurboQuant-mse (Zandieh et al. 2025, arXiv 2504.19874, algorithm 1).
///
/// Faithful: the norm in half precision; the unit vector turned by one random orthogonal matrix (QR of a Gaussian one),
/// the same for all vectors; each coordinate quantised by the Lloyd-Max quantiser of its exact density. Rate
/// bits / 16 + 1 / dim.
/// Deviations:
///   - Only the quantiser for squared error. Keys with the quantiser for inner products (one bit less, and one bit of
///     QJL on the residual) are not here.
///   - All channels have the same bits. The paper's runs with 2.5 and 3.5 bits split off outlier channels, which get
///   one
///     bit more.
///   - A norm beyond half precision is clamped to it, as are elements; NaN counts as 0.
/// Verified: squared error of unit vectors as in the paper, 0.36, 0.117, 0.03 and 0.009 with 1 to 4 bits (test).
/// Results on models: unverified.
///
/// A code is the norm, then the indices of the levels, packed.
class TurboQuantCodec final : public BaselineCodec {
  public:
    /// bits: 1 to 4; dim: at least 3.
    TurboQuantCodec(size_t dim, unsigned bits);

    const std::vector<float>& rotation() const { return rotation_; }
    const std::vector<float>& levels() const { return levels_; }

    std::string describe() const override;
    size_t code_bytes() const override { return sizeof(uint16_t) + packed_bytes(dim(), bits()); }
    size_t fixed_bytes() const override;
    void encode(const float* x, size_t n, std::byte* codes) const override;
    void decode(const std::byte* codes, size_t first, size_t n, float* x) const override;

  private:
    std::vector<float> rotation_;    // [dim, dim], orthonormal rows
    std::vector<float> transposed_;  // the same transposed: both products then run along rows
    std::vector<float> levels_;      // [2^bits], ascending
    std::vector<float> thresholds_;  // [2^bits - 1], between them
};

}  // namespace kvcodec
