// Transform coding of one head: few directions (of keys before RoPE), bits where the variance is.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvcodec/codec/codec.h"
#include "kvcodec/codec/synthesis.h"
#include "kvcodec/codec/trellis/trellis.h"

namespace kvcodec {

/// What a code means: x = sum over j of scale * level_j * row_j of the synthesis. Rows are components of the basis
/// times their deviations, mixed where bits are equal by an orthonormal Walsh-Hadamard matrix in blocks of powers of
/// two, the largest first: what is quantised is then nearer to Gaussian than the components are. A deviation counts as
/// at least 1 / sqrt(kMostSpread) of its block's root mean square. Rows of the synthesis have the gain of their bits.
///
/// Components are in order of variance and share bits in groups of kGroup, never more than the group before. A code is
/// one plane of bits after the other: plane p has bit p of the indices of all groups with more than p bits, component i
/// in bit i % 8 of byte i / 8. Then one byte for the scale. Plane 0 has the path bits of a trellis that meets the
/// components in order, the others what trellis.h calls the rest.
struct TransformFormat {
    static constexpr size_t kGroup = 8;
    static constexpr size_t kMaxDim = 512;
    static constexpr size_t kMaxBits = Trellis::kMaxBits;
    static constexpr float kMostSpread = 16.0F;  ///< of a block's variances, below their mean
    static constexpr float kLeastVariance = 1e-20F;

    size_t dim = 0;
    size_t n_active = 0;  ///< components with any bits
    size_t code_bytes = 0;
    std::array<size_t, kMaxBits> plane_bytes{};
    std::vector<uint8_t> bits;         ///< [dim / kGroup]
    Synthesis synthesis;               ///< [n_active, dim]
    std::vector<int16_t> analysis;     ///< [dim, n_active]: column j turns x into row j's share, in deviations
    std::vector<float> analysis_unit;  ///< [n_active], of its integers
    std::array<float, 256> scales{};   ///< by scale byte; 0 for byte 0

    /// How kLookup components at a time get their levels: their places, counted from where their own tables start,
    /// choose from a few tables of 16. Components without bits get the level 0.
    static constexpr size_t kLookup = 32;
    struct Lookup {
        std::array<uint32_t, kMaxBits> in_plane{};  ///< by plane: components that have a bit there
        size_t n_planes = 0;
        std::array<uint8_t, kLookup> first{};  ///< of a component's levels in the tables
        std::vector<int8_t> tables;            ///< [n, kLookup]: entries 16i + k for component 16b + j at [i, 16b + k]
    };
    std::vector<Lookup> lookups;
    /// The same for kWideLookup at a time, for processors that choose among 128 bytes in one instruction.
    static constexpr size_t kWideLookup = 64;
    struct WideLookup {
        std::array<uint64_t, kMaxBits> in_plane{};
        size_t n_planes = 0;
        std::array<uint8_t, kWideLookup> first{};
        std::array<int8_t, 256> table{};
        bool is_long = false;  ///< whether more than 128 of the table are in use
    };
    std::vector<WideLookup> wide_lookups;
    bool has_byte_instructions = false;  ///< VBMI of AVX-512
};

/// The bits are those that a greedy search finds to lose least of the variance (reverse water-filling, in groups).
///
/// The scale is the one of a logarithmic grid (12 steps an octave around 1) with the least error among a few near the
/// vector's own. Zero vectors, and vectors whose energy is not finite in float, decode to exactly zero. Code space is
/// the levels times the scale, space() == dim() for every head whatever its active components; there is none for keys
/// before RoPE.
class TransformCodec final : public Codec {
  public:
    /// basis: [dim, dim]: a vector is the sum over j of y_j times row j, and what counts is the error of y. Principal
    /// components, for instance, or those of find_weighted_components(). variance: [dim] of y, descending. dim: a
    /// multiple of 16, at most TransformFormat::kMaxDim. code_bytes: 2 to max_code_bytes(dim). unbias: see shrinkage.h;
    /// components without bits stay zero. Throws Error where the basis has no inverse.
    TransformCodec(std::span<const float> basis, std::span<const float> variance, size_t code_bytes, bool before_rope,
                   float unbias = 0.0F);

    static size_t max_code_bytes(size_t dim) { return dim / TransformFormat::kGroup * TransformFormat::kMaxBits + 1; }
    /// Share of the variance that codes of this size lose where components are Gaussian, without gain.
    static double expected_loss(std::span<const float> variance, size_t code_bytes);
    /// Mean energy of vectors whose y has this variance, and what codes lose of it.
    struct Expected {
        double energy = 0;
        double lost = 0;
    };
    Expected expected() const { return expected_; }

    const TransformFormat& format() const { return format_; }

    std::string describe() const override;
    size_t dim() const override { return format_.dim; }
    size_t code_bytes() const override { return format_.code_bytes; }
    size_t fixed_bytes() const override;
    bool before_rope() const override { return before_rope_; }
    size_t space() const override { return before_rope_ ? 0 : format_.dim; }
    size_t nonzeros() const override { return space(); }

    void encode(const float* x, size_t n, std::byte* codes) const override;
    void decode(const std::byte* codes, size_t first, size_t n, float* x) const override {
        decode_part(codes, first, n, {0, dim()}, x);
    }
    void prepare(const float* q, size_t lanes, size_t begin, size_t end, float* table) const override {
        prepare_part(q, lanes, begin, end, {0, dim()}, table);
    }
    void score(const float* table, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
               float* s) const override;
    void accumulate(const float* p, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                    float* acc) const override;
    void finish(const float* acc, size_t lanes, size_t begin, size_t end, float* out) const override {
        finish_part(acc, lanes, begin, end, {0, dim()}, out);
    }

    using Part = Synthesis::Part;
    void decode_part(const std::byte* codes, size_t first, size_t n, Part part, float* x) const;
    void prepare_part(const float* q, size_t lanes, size_t begin, size_t end, Part part, float* table) const;
    /// begin and end: within the part.
    void finish_part(const float* acc, size_t lanes, size_t begin, size_t end, Part part, float* out) const {
        format_.synthesis.expand(acc, lanes, begin, end, part, out);
    }

  private:
    TransformFormat format_;
    std::vector<float> energy_;  // [n_active]: of a component's share, mean of its block
    TrellisEncoder trellis_;
    Expected expected_;
    bool before_rope_;
};

/// One head's view of a transform of several heads, whose vectors are coded side by side as one: what heads have in
/// common is stored once.
class TransformHead final : public Codec {
  public:
    /// all: of vectors of all n_heads heads, of a multiple of 16 each; else Error.
    TransformHead(std::shared_ptr<const TransformCodec> all, size_t head, size_t n_heads);

    std::string describe() const override;
    size_t dim() const override { return part_.size; }
    size_t code_bytes() const override { return all_->code_bytes(); }
    size_t fixed_bytes() const override { return all_->fixed_bytes() / n_heads_; }
    size_t joint_heads() const override { return n_heads_; }
    bool before_rope() const override { return all_->before_rope(); }
    size_t space() const override { return all_->space(); }
    size_t nonzeros() const override { return all_->nonzeros(); }

    void encode(const float* x, size_t n, std::byte* codes) const override { all_->encode(x, n, codes); }
    void decode(const std::byte* codes, size_t first, size_t n, float* x) const override {
        all_->decode_part(codes, first, n, part_, x);
    }
    void prepare(const float* q, size_t lanes, size_t begin, size_t end, float* table) const override {
        all_->prepare_part(q, lanes, begin, end, part_, table);
    }
    void score(const float* table, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
               float* s) const override {
        all_->score(table, lanes, codes, rows, s);
    }
    void accumulate(const float* p, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                    float* acc) const override {
        all_->accumulate(p, lanes, codes, rows, acc);
    }
    void finish(const float* acc, size_t lanes, size_t begin, size_t end, float* out) const override {
        all_->finish_part(acc, lanes, begin, end, part_, out);
    }

  private:
    std::shared_ptr<const TransformCodec> all_;
    TransformCodec::Part part_;
    size_t n_heads_;
};

}  // namespace kvcodec
