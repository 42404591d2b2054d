// What the published rivals have in common: they are here to be measured against, not to be fast.
#pragma once

#include <cstddef>
#include <span>

#include "kvcodec/codec/codec.h"

namespace kvcodec {

/// A codec without a code space: attention decodes its rows block by block, so its speed says nothing about the method.
class BaselineCodec : public Codec {
  public:
    size_t dim() const final { return dim_; }
    size_t space() const final { return 0; }
    size_t nonzeros() const final { return 0; }

    /// Throw Error.
    void prepare(const float* q, size_t lanes, size_t begin, size_t end, float* table) const final;
    void score(const float* table, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
               float* s) const final;
    void accumulate(const float* p, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                    float* acc) const final;
    void finish(const float* acc, size_t lanes, size_t begin, size_t end, float* out) const final;

  protected:
    BaselineCodec(size_t dim, unsigned bits) : dim_(dim), bits_(bits) {}
    unsigned bits() const { return bits_; }

  private:
    size_t dim_;
    unsigned bits_;  // an element
};

}  // namespace kvcodec
