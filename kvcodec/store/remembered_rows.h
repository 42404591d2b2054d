// What is known of rows that a program has read, for the time when it writes them back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kvcodec/store/reservation.h"

namespace kvcodec {

/// A saved state holds decoded rows and nothing else. Coded anew, they would lose a little each time that the state is
/// restored; but a row that was decoded here before has a code that says it exactly, and a position. Remembers some
/// bytes of each row, by hash of the row's; where there is no room, those go that were read the longest ago.
class RememberedRows {
  public:
    RememberedRows() = default;
    /// known_bytes: of one row. capacity: rows that are remembered at most; 0: none.
    RememberedRows(size_t known_bytes, size_t capacity) : known_bytes_(known_bytes), capacity_(capacity) {}

    bool empty() const { return hash_.empty(); }
    bool has_room() const { return capacity_ != 0; }
    /// known: known_bytes; replaces what was known. Without memory or address space for it, everything is
    /// forgotten, and nothing remembered any more.
    void remember(std::span<const uint16_t> row, std::span<const std::byte> known);
    /// Valid until the next remember(); none where the row is not known.
    std::optional<std::span<const std::byte>> find(std::span<const uint16_t> row) const;
    size_t resident_bytes() const;

  private:
    size_t place_of(uint64_t hash) const;
    std::span<std::byte> known_of(uint32_t slot) const { return {known_.data() + slot * known_bytes_, known_bytes_}; }
    void grow_table();
    void take_from_table(uint64_t hash);
    uint32_t new_slot();
    void link_as_latest(uint32_t slot);
    void unlink(uint32_t slot);

    /// Neighbours in the order in which rows were read last; kNone at the ends.
    struct Links {
        uint32_t earlier;
        uint32_t later;
    };

    size_t known_bytes_ = 0;
    size_t capacity_ = 0;
    std::vector<uint64_t> hash_;   // [slots]
    std::vector<Links> links_;     // [slots]
    std::vector<uint32_t> table_;  // of slots, by hash, linear probing, at most half full; kNone: free
    // [capacity, known_bytes], never moved: programs that save states leave holes in the heap that a vector's old
    // memory would not be reused for.
    Reservation known_;
    uint32_t earliest_ = UINT32_MAX;
    uint32_t latest_ = UINT32_MAX;
};

}  // namespace kvcodec
