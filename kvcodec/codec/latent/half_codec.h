// Vectors as they are, in half precision: latents whose only loss is what their rank leaves out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "kvcodec/codec/codec.h"

namespace kvcodec {

/// Code space is the vector itself. Elements beyond the range of half precision become its largest number;
/// what is not a number stays so.
class HalfCodec final : public Codec {
  public:
    /// dim: a multiple of kLaneMultiple.
    explicit HalfCodec(size_t dim) : dim_(dim) {}

    std::string describe() const override { return "f16"; }
    size_t dim() const override { return dim_; }
    size_t code_bytes() const override { return dim_ * sizeof(uint16_t); }
    size_t fixed_bytes() const override { return 0; }
    size_t space() const override { return dim_; }
    size_t nonzeros() const override { return dim_; }

    void encode(const float* x, size_t n, std::byte* codes) const override;
    void decode(const std::byte* codes, size_t first, size_t n, float* x) const override;
    void prepare(const float* q, size_t lanes, size_t begin, size_t end, float* table) const override;
    void score(const float* table, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
               float* s) const override;
    void accumulate(const float* p, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                    float* acc) const override;
    void finish(const float* acc, size_t lanes, size_t begin, size_t end, float* out) const override;

  private:
    size_t dim_;
};

}  // namespace kvcodec
