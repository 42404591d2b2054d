// The scalar codec: a randomised Hadamard rotation, then a fixed quantiser for Gaussian elements. It needs no
// calibration and knows nothing of the model.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvcodec/codec/codec.h"
#include "kvcodec/codec/trellis/trellis.h"

namespace kvcodec {

/// What a scalar code means: x = H^T (scale * level), element by element.
///
/// H = Hadamard * diag(+-1), orthonormal, in blocks of powers of two (80 = 64 + 16). Levels are 8-bit integers in units
/// of the scale. A code is one plane of bits after the other and then one byte for the scale:
///     2 bits  P B1
///     3 bits  P A
///     4 bits  P A B1
///     8 bits  levels themselves, as signed bytes.
/// P and B1 hold one bit of every element: element 4i + k of each 32 lies in byte k (of 4), bit i. A holds two: element
/// 8i + k lies in byte k (of 8), bits 2i and 2i + 1. A last half group of 16 takes half the bytes: the low nibbles of
/// the second half of its bytes become the high nibbles of the first. P has the path bits of a trellis that meets
/// elements in the order of P's bits; A and then B1 are what trellis.h calls the rest.
struct ScalarFormat {
    static constexpr size_t kMaxDim = 1024;
    static constexpr int kStepsPerOctave = 12;

    size_t dim = 0;
    unsigned bits = 0;
    size_t code_bytes = 0;
    std::array<int8_t, 32> levels{};  ///< [2^(bits + 1)] by place, for 2 to 4 bits
    /// For 2 to 4 bits, levels by other keys: the path bits of an element and of the three before, its own highest,
    /// then the rest; repeated where codes have fewer bits than 4.
    std::array<int8_t, 128> level_of_key{};
    std::vector<uint16_t> order;      ///< [dim]: the elements as the trellis meets them
    std::array<float, 256> scales{};  ///< size of one level unit, by scale byte; 0 for byte 0
    /// What scales of the first octave would be, byte 0 with a scale; padded to a vector. Those of octave n are 2^n
    /// times as large, exactly.
    std::array<float, 16> first_octave{};
    float gain = 1.0F;         ///< of the scale that is stored over the one of least squared error
    std::vector<float> signs;  ///< [dim], +-1 / sqrt(block)
};

/// Quantisation with 2, 3, 4 (trellis-coded, see trellis.h) or 8 bits (uniform levels) an element and 8 bits a vector.
///
/// The scale is the one of a logarithmic grid (12 steps an octave, 0.0007 to 1500) that is the gain times the one with
/// the least squared error, among those near the vector's own. Zero vectors, and vectors whose energy is not finite in
/// float, decode to exactly zero. Code space is the rotated vector: space() == dim().
class ScalarCodec final : public Codec {
  public:
    /// dim: a multiple of 16, at most ScalarFormat::kMaxDim. unbias: see shrinkage.h.
    ScalarCodec(size_t dim, unsigned bits, float unbias = 0.0F);

    static constexpr std::array<uint32_t, 4> kBits = {2, 3, 4, 8};
    static size_t bytes_of(size_t dim, unsigned bits) { return dim * bits / 8 + 1; }
    /// Share of a Gaussian's variance that is lost, without gain.
    static double expected_loss(unsigned bits);

    const ScalarFormat& format() const { return format_; }

    std::string describe() const override;
    size_t dim() const override { return format_.dim; }
    size_t code_bytes() const override { return format_.code_bytes; }
    bool is_interleaved() const override { return has_byte_products_; }
    size_t fixed_bytes() const override;
    size_t space() const override { return format_.dim; }
    size_t nonzeros() const override { return format_.dim; }

    void encode(const float* x, size_t n, std::byte* codes) const override;
    void decode(const std::byte* codes, size_t first, size_t n, float* x) const override;
    /// H x = scale * level: levels [n, level_stride()], arbitrary past dim(), and scale [n].
    void unpack(const std::byte* codes, size_t first, size_t n, int8_t* levels, float* scale) const;
    size_t level_stride() const;  ///< a multiple of 32
    void prepare(const float* q, size_t lanes, size_t begin, size_t end, float* table) const override;
    void score(const float* table, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
               float* s) const override;
    size_t rounded_bytes(size_t lanes) const override;
    void round(const float* table, size_t lanes, std::byte* rounded) const override;
    void score_rounded(const std::byte* rounded, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                       float* s) const override;
    void accumulate(const float* p, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                    float* acc) const override;
    void finish(const float* acc, size_t lanes, size_t begin, size_t end, float* out) const override;

  private:
    ScalarFormat format_;
    bool has_byte_products_ = false;
    TrellisEncoder trellis_;  // without elements for 8 bits
};

}  // namespace kvcodec
