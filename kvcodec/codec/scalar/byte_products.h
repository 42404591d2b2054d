// Scores and sums of the scalar codec by products of bytes: AVX-512 with VNNI and VBMI.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kvcodec/codec/scalar/scalar_codec.h"

namespace kvcodec::byte_products {

/// Whether these functions may be called: on this machine, for codes of this format, which are interleaved.
bool serve(const ScalarFormat& format);

/// As Codec::rounded_bytes(), round(), score_rounded() and accumulate(). Queries are rounded to 8 bits of the largest
/// element of their lane: about a tenth of what codes of 4 bits are off, less with fewer bits. Weights are rounded to 8
/// bits of the largest of their lane in 64 rows. What one is off is added to the weight four rows on, if that is of the
/// same 16 rows; the first four of each 16 get an offset instead, another each, so that sums of many small weights are
/// right on average.
size_t rounded_bytes(const ScalarFormat& format, size_t lanes);
void round(const ScalarFormat& format, const float* table, size_t lanes, std::byte* rounded);
void score(const ScalarFormat& format, const std::byte* rounded, size_t lanes, const uint8_t* codes,
           std::span<const uint16_t> rows, float* s);
void accumulate(const ScalarFormat& format, const float* p, size_t lanes, const uint8_t* codes,
                std::span<const uint16_t> rows, float* acc);

}  // namespace kvcodec::byte_products
