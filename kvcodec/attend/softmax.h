// Running softmax over blocks of scores, lanes contiguous (online softmax, arXiv 2205.14135).
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcodec {

/// s[m, lanes] <- s * scale, soft-capped when softcap != 0, plus bias [m, lanes] when it is not null (-inf hides).
void scale_and_mask(float* s, size_t m, size_t lanes, float scale, float softcap, const float* bias);

/// s[m, lanes] <- exp(s - max) with the running maximum of each lane updated first; sum[lanes] is rescaled and
/// extended; correction[lanes] = what the caller must multiply earlier accumulations by. Returns whether any
/// correction differs from 1. Lanes whose every score so far is -inf keep weight 0.
bool softmax_step(float* s, size_t m, size_t lanes, float* max, float* sum, float* correction);

/// x[rows, lanes] *= factor[lanes].
void scale_lanes(float* x, size_t rows, size_t lanes, const float* factor);

/// Whether all, none or some of n half-precision mask values let a query see the cell unchanged (0) or not at all
/// (-inf).
enum class MaskKind : uint8_t { kHidden, kOpen, kMixed };
MaskKind classify_mask(const uint16_t* mask, size_t n);

/// Whether each of n_rows masks, `stride` values apart, is kOpen.
bool all_open(const uint16_t* masks, size_t stride, size_t n_rows, size_t n);

/// How many of n half-precision mask values are not -inf.
size_t count_visible(const uint16_t* mask, size_t n);
/// The same, of those values alone whose byte in `chosen` is not 0.
size_t count_visible(const uint16_t* mask, const uint8_t* chosen, size_t n);

}  // namespace kvcodec
