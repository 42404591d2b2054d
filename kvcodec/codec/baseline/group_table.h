// A table that the rows of a group share, cut into slices: there is no room beside the codes of the rows.
#pragma once

#include <cstddef>
#include <span>

namespace kvcodec {

/// Writes the i-th of n_rows equal slices of the table to `to` + i * stride.
void write_slices(std::span<const std::byte> table, size_t n_rows, size_t stride, std::byte* to);
/// The inverse.
void read_slices(const std::byte* from, size_t n_rows, size_t stride, std::span<std::byte> table);

}  // namespace kvcodec
