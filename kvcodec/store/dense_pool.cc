#include "kvcodec/store/dense_pool.h"

#include <algorithm>

namespace kvcodec {
namespace {

// Pages that come and go every step are not worth a system call.
constexpr size_t kTrimPages = 16;

}  // namespace

DensePool::DensePool(size_t row_bytes, size_t max_rows, bool release_memory)
    : row_bytes_(row_bytes), release_memory_(release_memory), memory_(row_bytes * max_rows) {
    memory_.use_small_pages();
}

void DensePool::count_pages(uint32_t slot, int change) {
    const size_t first = slot * row_bytes_ / Reservation::kPageBytes;
    const size_t last = (slot * row_bytes_ + row_bytes_ - 1) / Reservation::kPageBytes;
    if (rows_in_page_.size() <= last) {
        rows_in_page_.resize(last + 1);
    }
    for (size_t page = first; page <= last; ++page) {
        rows_in_page_[page] = static_cast<uint16_t>(rows_in_page_[page] + change);
        if (rows_in_page_[page] == 0) {
            emptied_pages_.push_back(static_cast<uint32_t>(page));
        }
    }
}

uint32_t DensePool::acquire() {
    uint32_t slot = next_;
    if (free_.empty()) {
        ++next_;
    } else {
        slot = free_.top();
        free_.pop();
    }
    count_pages(slot, +1);
    return slot;
}

void DensePool::release(uint32_t slot) {
    free_.push(slot);
    count_pages(slot, -1);
}

void DensePool::trim() {
    if (!release_memory_) {
        emptied_pages_.clear();
        return;
    }
    if (emptied_pages_.size() < kTrimPages) {
        return;
    }
    std::sort(emptied_pages_.begin(), emptied_pages_.end());
    for (size_t i = 0; i < emptied_pages_.size();) {
        const uint32_t first = emptied_pages_[i];
        uint32_t end = first;
        while (i < emptied_pages_.size() && emptied_pages_[i] <= end && rows_in_page_[emptied_pages_[i]] == 0) {
            end = emptied_pages_[i] + 1;
            ++i;
        }
        if (end == first) {
            ++i;  // in use again
        } else {
            memory_.release(first * Reservation::kPageBytes, (end - first) * Reservation::kPageBytes);
        }
    }
    emptied_pages_.clear();
}

void DensePool::clear() {
    next_ = 0;
    free_ = {};
    rows_in_page_.clear();
    emptied_pages_.clear();
    memory_.release(0, memory_.size());
}

}  // namespace kvcodec
