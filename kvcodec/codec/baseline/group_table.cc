#include "kvcodec/codec/baseline/group_table.h"

#include <cstring>

namespace kvcodec {

void write_slices(std::span<const std::byte> table, size_t n_rows, size_t stride, std::byte* to) {
    const size_t slice = table.size() / n_rows;
    for (size_t row = 0; row < n_rows; ++row) {
        std::memcpy(to + row * stride, &table[row * slice], slice);
    }
}

void read_slices(const std::byte* from, size_t n_rows, size_t stride, std::span<std::byte> table) {
    const size_t slice = table.size() / n_rows;
    for (size_t row = 0; row < n_rows; ++row) {
        std::memcpy(&table[row * slice], from + row * stride, slice);
    }
}

}  // namespace kvcodec
