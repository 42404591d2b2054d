#include "kvcodec/codec/variable_block.h"

#include <cstring>
#include <utility>

namespace kvcodec {

namespace {

constexpr size_t kTableBytes = VariableBlock::kRows * sizeof(uint16_t);
/// Memory is taken in such steps: a few codes.
constexpr size_t kStep = 128;

uint16_t place_of(const std::vector<std::byte>& bytes, size_t row) {
    uint16_t place = 0;
    std::memcpy(&place, bytes.data() + row * sizeof(place), sizeof(place));
    return place;
}

void set_place(std::vector<std::byte>& bytes, size_t row, size_t place) {
    const auto value = static_cast<uint16_t>(place);
    std::memcpy(bytes.data() + row * sizeof(value), &value, sizeof(value));
}

}  // namespace

std::span<const std::byte> VariableBlock::code(size_t row) const {
    return length_[row] == 0 ? std::span<const std::byte>()
                             : std::span(bytes_).subspan(place_of(bytes_, row), length_[row]);
}

// Leaves out the codes that were replaced, and has n bytes of room then.
void VariableBlock::make_room(size_t n) {
    size_t live = kTableBytes;
    for (const uint8_t length : length_) {
        live += length;
    }
    std::vector<std::byte> bytes;
    bytes.reserve((live + n + Codec::kCodeSlackBytes + kStep - 1) / kStep * kStep);
    bytes.resize(bytes.capacity());
    size_t used = kTableBytes;
    for (size_t row = 0; row < kRows; ++row) {
        if (length_[row] != 0) {
            std::memcpy(bytes.data() + used, bytes_.data() + place_of(bytes_, row), length_[row]);
            set_place(bytes, row, used);
            used += length_[row];
        }
    }
    bytes_ = std::move(bytes);
    used_ = used;
}

void VariableBlock::put(size_t row, std::span<const std::byte> code) {
    const std::vector<std::byte> copy(code.begin(), code.end());  // it may be of this very block
    length_[row] = 0;
    if (bytes_.size() < used_ + copy.size() + Codec::kCodeSlackBytes || bytes_.empty()) {
        make_room(copy.size());
    }
    std::memcpy(bytes_.data() + used_, copy.data(), copy.size());
    set_place(bytes_, row, used_);
    length_[row] = static_cast<uint8_t>(copy.size());
    used_ += copy.size();
}

}  // namespace kvcodec
