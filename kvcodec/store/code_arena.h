// Memory for the codes of all layers of a cache.
#pragma once

#include <cstddef>
#include <map>
#include <vector>

#include "kvcodec/store/reservation.h"

namespace kvcodec {

/// Hands out pieces one behind the other, whatever layer they are for: what is coded together lies together. So memory
/// fills up from the start, and every 2 MiB that are full become a huge page. Attention reads codes of all layers at
/// every step; with small pages it waits for the translation of their addresses, most of all in virtual machines.
/// Not for several threads at a time.
class CodeArena {
  public:
    static constexpr size_t kHugePageBytes = size_t{2} << 20;
    /// Address space that is reserved at a time.
    static constexpr size_t kRunBytes = 32 * kHugePageBytes;
    static constexpr size_t kPieceMultiple = 64;
    /// Readable behind every piece.
    static constexpr size_t kSlackBytes = 64;

    CodeArena() = default;
    CodeArena(const CodeArena&) = delete;
    CodeArena& operator=(const CodeArena&) = delete;

    /// `bytes` of any content, at a multiple of kPieceMultiple. Throws Error when the system refuses address space.
    std::byte* take(size_t bytes);
    /// Takes a piece back for others of its size. When none is left, all memory goes back to the system: a layer that
    /// gives up its codes before the others leaves its memory to them.
    void give_back(std::byte* piece, size_t bytes);

    /// Bytes of pieces that were taken and not given back.
    size_t taken_bytes() const { return taken_; }
    /// Bytes in memory that no piece has now.
    size_t idle_bytes() const;

  private:
    static size_t piece_bytes(size_t bytes) { return (bytes + kPieceMultiple - 1) / kPieceMultiple * kPieceMultiple; }

    std::vector<Reservation> runs_;
    size_t used_ = 0;  // of the last run
    size_t huge_ = 0;  // of the last run, from its start
    size_t taken_ = 0;
    std::map<size_t, std::vector<std::byte*>> free_;  // by size
};

}  // namespace kvcodec
