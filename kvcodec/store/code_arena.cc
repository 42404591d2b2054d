#include "kvcodec/store/code_arena.h"

#include <algorithm>

namespace kvcodec {

std::byte* CodeArena::take(size_t bytes) {
    const size_t size = piece_bytes(bytes);
    if (const auto known = free_.find(size); known != free_.end() && !known->second.empty()) {
        std::byte* piece = known->second.back();
        known->second.pop_back();
        taken_ += size;
        return piece;
    }
    if (runs_.empty() || used_ + size + kSlackBytes > runs_.back().size()) {
        runs_.emplace_back(std::max(size + kSlackBytes, kRunBytes), kHugePageBytes);
        runs_.back().use_small_pages();  // until they are full
        used_ = huge_ = 0;
    }
    Reservation& run = runs_.back();
    // What was handed out before has been written by now.
    if (const size_t full = used_ / kHugePageBytes * kHugePageBytes; full > huge_) {
        run.make_huge(huge_, full - huge_);
        huge_ = full;
    }
    std::byte* piece = run.data() + used_;
    used_ += size;
    taken_ += size;
    return piece;
}

void CodeArena::give_back(std::byte* piece, size_t bytes) {
    const size_t size = piece_bytes(bytes);
    taken_ -= size;
    free_[size].push_back(piece);
    if (taken_ == 0) {
        runs_.clear();
        free_.clear();
    }
}

size_t CodeArena::idle_bytes() const {
    size_t resident = 0;
    for (const Reservation& run : runs_) {
        resident += run.resident_bytes();
    }
    return resident - std::min(resident, taken_);
}

}  // namespace kvcodec
