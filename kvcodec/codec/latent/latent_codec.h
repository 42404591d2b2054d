// Low-rank coding: the coordinates of vectors along few directions (LoRC, arXiv 2410.03111).
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

namespace kvcodec {

class ScalarCodec;

/// The directions that the vectors of some KV heads, side by side as one, are projected on, and how the coordinates,
/// the latents, are stored. What lies in none of the directions is lost.
///
/// Code space is the latents'. Those of fewer bits than 16 are rotated as the scalar codec does it, and so are the
/// directions, which are then rounded to 8 bits (see Synthesis); latents are found so that the rounded ones rebuild
/// best.
class LatentSpace {
  public:
    static constexpr size_t kRankMultiple = 16;
    static constexpr unsigned kHalfBits = 16;
    static constexpr std::array<uint32_t, 5> kBits = {2, 3, 4, 8, kHalfBits};  ///< of a latent

    /// directions: [rank, n_heads * dim], orthonormal rows in order of weight. rank: a multiple of kRankMultiple, at
    /// most the length of a row. bits: of a latent, kHalfBits (f16) or those of the scalar codec. dim: a multiple of
    /// 16, with f16 of 4. unbias: see shrinkage.h. Throws Error for other shapes.
    LatentSpace(std::span<const float> directions, size_t n_heads, size_t dim, unsigned bits, float unbias = 0.0F);

    size_t n_heads() const { return n_heads_; }
    size_t dim() const { return dim_; }
    size_t rank() const { return latents_->dim(); }
    /// What codes a vector of rank() latents.
    const Codec& latents() const { return *latents_; }
    size_t fixed_bytes() const;
    /// Bytes of a code of this many latents.
    static size_t code_bytes(size_t rank, unsigned bits);

    /// x: [n, n_heads * dim].
    void encode(const float* x, size_t n, std::byte* codes) const;
    // As the functions of Codec with these names, for one head.
    void decode(size_t head, const std::byte* codes, size_t first, size_t n, float* x) const;
    void prepare(size_t head, const float* q, size_t lanes, size_t begin, size_t end, float* table) const;
    void finish(size_t head, const float* acc, size_t lanes, size_t begin, size_t end, float* out) const;

  private:
    void set_analysis(std::span<const float> rows);
    /// [rank, dim]: what turns one head's part of a vector into its share of the elements of code space.
    const float* analysis(size_t head) const { return analysis_.data() + head * rank() * dim_; }

    size_t n_heads_;
    size_t dim_;
    std::shared_ptr<const Codec> latents_;
    const ScalarCodec* scalar_ = nullptr;  // latents_ as a scalar codec; null for f16
    std::vector<float> analysis_;          // [n_heads, rank, dim]; for f16 also what rebuilds vectors
    Synthesis synthesis_;                  // [rank, n_heads * dim]; empty for f16
};

/// One head's view of latents: heads that share a LatentSpace share codes, and encode() takes the vectors of all of
/// them. Table and accumulators cost a product with rank x dim directions once a step; keys before RoPE have no code
/// space, they are rebuilt at a cost of rank x dim multiplications each.
class LatentCodec final : public Codec {
  public:
    LatentCodec(std::shared_ptr<const LatentSpace> space, size_t head, bool before_rope);

    std::string describe() const override;
    size_t dim() const override { return shared_->dim(); }
    size_t code_bytes() const override { return shared_->latents().code_bytes(); }
    bool is_interleaved() const override { return !before_rope_ && shared_->latents().is_interleaved(); }
    size_t fixed_bytes() const override { return shared_->fixed_bytes() / shared_->n_heads(); }
    size_t joint_heads() const override { return shared_->n_heads(); }
    bool before_rope() const override { return before_rope_; }
    size_t space() const override { return before_rope_ ? 0 : shared_->latents().space(); }
    size_t nonzeros() const override { return space(); }

    void encode(const float* x, size_t n, std::byte* codes) const override { shared_->encode(x, n, codes); }
    void decode(const std::byte* codes, size_t first, size_t n, float* x) const override {
        shared_->decode(head_, codes, first, n, x);
    }
    void prepare(const float* q, size_t lanes, size_t begin, size_t end, float* table) const override {
        shared_->prepare(head_, q, lanes, begin, end, table);
    }
    void score(const float* table, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
               float* s) const override {
        shared_->latents().score(table, lanes, codes, rows, s);
    }
    size_t rounded_bytes(size_t lanes) const override {
        return before_rope_ ? 0 : shared_->latents().rounded_bytes(lanes);
    }
    void round(const float* table, size_t lanes, std::byte* rounded) const override {
        shared_->latents().round(table, lanes, rounded);
    }
    void score_rounded(const std::byte* rounded, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                       float* s) const override {
        shared_->latents().score_rounded(rounded, lanes, codes, rows, s);
    }
    void accumulate(const float* p, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                    float* acc) const override {
        shared_->latents().accumulate(p, lanes, codes, rows, acc);
    }
    void finish(const float* acc, size_t lanes, size_t begin, size_t end, float* out) const override {
        shared_->finish(head_, acc, lanes, begin, end, out);
    }

  private:
    std::shared_ptr<const LatentSpace> shared_;
    size_t head_;
    bool before_rope_;
};

}  // namespace kvcodec
