// Codes of rows that a program has read, for the time when it writes them back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

namespace kvcodec {

/// A saved state holds decoded rows. Coded anew, they would lose a little each time that the state is restored; but a
/// row that was decoded here before has a code that says it exactly. Remembers the latest rows, by hash of their bytes.
class CodeMemory {
  public:
    CodeMemory() = default;
    /// code_bytes: of one row. capacity: rows that are remembered at most.
    CodeMemory(size_t code_bytes, size_t capacity) : code_bytes_(code_bytes), capacity_(capacity) {}

    bool empty() const { return slot_of_.empty(); }
    /// codes: code_bytes.
    void remember(std::span<const uint16_t> row, std::span<const std::byte> codes);
    /// Valid until the next remember(); none where the row is not known.
    std::optional<std::span<const std::byte>> find(std::span<const uint16_t> row) const;
    size_t resident_bytes() const;

  private:
    size_t code_bytes_ = 0;
    size_t capacity_ = 0;
    std::unordered_map<uint64_t, uint32_t> slot_of_;  // by hash
    std::vector<uint64_t> hash_of_slot_;
    std::vector<std::byte> codes_;  // [slots, code_bytes]
    size_t next_ = 0;               // the slot that is given away when all are taken
};

}  // namespace kvcodec
