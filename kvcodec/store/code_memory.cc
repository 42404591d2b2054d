#include "kvcodec/store/code_memory.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>

namespace kvcodec {

namespace {

uint64_t hash_of(std::span<const uint16_t> row) {
    return XXH3_64bits(row.data(), row.size_bytes());
}

}  // namespace

void CodeMemory::remember(std::span<const uint16_t> row, std::span<const std::byte> codes) {
    const uint64_t hash = hash_of(row);
    if (capacity_ == 0 || slot_of_.contains(hash)) {
        return;
    }
    uint32_t slot = static_cast<uint32_t>(hash_of_slot_.size());
    if (hash_of_slot_.size() < capacity_) {
        hash_of_slot_.push_back(hash);
        codes_.resize(codes_.size() + code_bytes_);
    } else {
        slot = static_cast<uint32_t>(next_);
        next_ = (next_ + 1) % capacity_;
        slot_of_.erase(hash_of_slot_[slot]);
        hash_of_slot_[slot] = hash;
    }
    slot_of_[hash] = slot;
    std::ranges::copy(codes, codes_.begin() + static_cast<std::ptrdiff_t>(slot * code_bytes_));
}

std::optional<std::span<const std::byte>> CodeMemory::find(std::span<const uint16_t> row) const {
    const auto known = slot_of_.find(hash_of(row));
    if (known == slot_of_.end()) {
        return std::nullopt;
    }
    return std::span(codes_).subspan(known->second * code_bytes_, code_bytes_);
}

size_t CodeMemory::resident_bytes() const {
    if (empty()) {
        return 0;
    }
    constexpr size_t kNodeBytes = 2 * sizeof(void*) + sizeof(uint64_t) + sizeof(uint32_t);
    return codes_.capacity() + hash_of_slot_.capacity() * sizeof(uint64_t) + slot_of_.size() * kNodeBytes +
           slot_of_.bucket_count() * sizeof(void*);
}

}  // namespace kvcodec
