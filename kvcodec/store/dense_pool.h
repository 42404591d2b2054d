// Rows that are not coded: the recent window, sinks, and whatever a codec cannot serve.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <queue>
#include <vector>

#include "kvcodec/store/reservation.h"

namespace kvcodec {

/// A pool of equal rows. Free slots are reused lowest first, so live rows stay together and the pages that empty go
/// back to the system.
class DensePool {
  public:
    /// release_memory = false keeps emptied pages; only a test that proves their release wants that.
    DensePool(size_t row_bytes, size_t max_rows, bool release_memory);

    uint32_t acquire();
    void release(uint32_t slot);
    std::byte* row(uint32_t slot) const { return memory_.data() + slot * row_bytes_; }
    size_t row_bytes() const { return row_bytes_; }
    /// Rows in use.
    size_t size() const { return next_ - free_.size(); }
    /// Gives emptied pages back; call between steps.
    void trim();
    void clear();
    size_t resident_bytes() const { return memory_.resident_bytes(); }

  private:
    void count_pages(uint32_t slot, int change);

    size_t row_bytes_;
    bool release_memory_;
    Reservation memory_;
    uint32_t next_ = 0;  // slots from here on were never used
    std::priority_queue<uint32_t, std::vector<uint32_t>, std::greater<>> free_;
    std::vector<uint16_t> rows_in_page_;
    std::vector<uint32_t> emptied_pages_;
};

}  // namespace kvcodec
