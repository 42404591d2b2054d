#include "kvcodec/store/remembered_rows.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <exception>

namespace kvcodec {

namespace {

constexpr uint32_t kNone = UINT32_MAX;

uint64_t hash_of(std::span<const uint16_t> row) {
    return XXH3_64bits(row.data(), row.size_bytes());
}

}  // namespace

// Where the table has this hash, or would have it.
size_t RememberedRows::place_of(uint64_t hash) const {
    size_t place = hash & (table_.size() - 1);
    while (table_[place] != kNone && hash_[table_[place]] != hash) {
        place = (place + 1) & (table_.size() - 1);
    }
    return place;
}

void RememberedRows::grow_table() {
    constexpr size_t kLeast = 64;
    table_.assign(std::max(kLeast, 2 * table_.size()), kNone);
    for (uint32_t slot = 0; slot < hash_.size(); ++slot) {
        table_[place_of(hash_[slot])] = slot;
    }
}

// Entries behind the gap move up where they are looked for from before it.
void RememberedRows::take_from_table(uint64_t hash) {
    const size_t mask = table_.size() - 1;
    size_t gap = place_of(hash);
    for (size_t place = (gap + 1) & mask; table_[place] != kNone; place = (place + 1) & mask) {
        const size_t home = hash_[table_[place]] & mask;
        if (((place - home) & mask) >= ((place - gap) & mask)) {
            table_[gap] = table_[place];
            gap = place;
        }
    }
    table_[gap] = kNone;
}

void RememberedRows::link_as_latest(uint32_t slot) {
    links_[slot] = {latest_, kNone};
    (latest_ == kNone ? earliest_ : links_[latest_].later) = slot;
    latest_ = slot;
}

void RememberedRows::unlink(uint32_t slot) {
    const Links links = links_[slot];
    (links.earlier == kNone ? earliest_ : links_[links.earlier].later) = links.later;
    (links.later == kNone ? latest_ : links_[links.later].earlier) = links.earlier;
}

// One that is in neither table nor order: the earliest row's, when all are taken.
uint32_t RememberedRows::new_slot() {
    if (hash_.size() == capacity_) {
        const uint32_t slot = earliest_;
        take_from_table(hash_[slot]);
        unlink(slot);
        return slot;
    }
    const size_t n = hash_.size() + 1;
    if (known_.size() == 0) {
        known_ = Reservation(capacity_ * known_bytes_);
        known_.use_small_pages();
    }
    if (2 * n > table_.size()) {
        grow_table();
    }
    links_.resize(n);
    hash_.push_back(0);
    return static_cast<uint32_t>(n - 1);
}

void RememberedRows::remember(std::span<const uint16_t> row, std::span<const std::byte> known) {
    if (!has_room()) {
        return;
    }
    const uint64_t hash = hash_of(row);
    try {
        uint32_t slot = empty() ? kNone : table_[place_of(hash)];
        if (slot == kNone) {
            slot = new_slot();
            table_[place_of(hash)] = slot;  // before the slot has the hash, or it would be taken for known
            hash_[slot] = hash;
        } else {
            unlink(slot);
        }
        link_as_latest(slot);
        std::ranges::copy(known, known_of(slot).begin());
    } catch (const std::exception&) {
        *this = RememberedRows();
    }
}

std::optional<std::span<const std::byte>> RememberedRows::find(std::span<const uint16_t> row) const {
    if (empty()) {
        return std::nullopt;
    }
    const uint32_t slot = table_[place_of(hash_of(row))];
    if (slot == kNone) {
        return std::nullopt;
    }
    return known_of(slot);
}

size_t RememberedRows::resident_bytes() const {
    return hash_.size() * known_bytes_ + hash_.capacity() * sizeof(uint64_t) + links_.capacity() * sizeof(Links) +
           table_.capacity() * sizeof(uint32_t);
}

}  // namespace kvcodec
