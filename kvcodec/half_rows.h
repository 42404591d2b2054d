// Whole rows between half and single precision, with the vector instructions of the machine.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcodec {

/// wide[i] = half[i] for i < n.
void widen(const uint16_t* half, size_t n, float* wide);
/// half[i] = wide[i], rounded as float_to_half() does, for i < n.
void narrow(const float* wide, size_t n, uint16_t* half);

}  // namespace kvcodec
