#include "kvcodec/store/reservation.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "kvcodec/error.h"

namespace kvcodec {

namespace {

/// Begin and end of the whole pages inside [offset, offset + bytes) of `size` bytes.
std::pair<size_t, size_t> whole_pages(size_t offset, size_t bytes, size_t size) {
    constexpr size_t kPage = Reservation::kPageBytes;
    return {(offset + kPage - 1) / kPage * kPage, std::min((offset + bytes) / kPage * kPage, size)};
}

}  // namespace

Reservation::Reservation(size_t bytes, size_t alignment) : bytes_((bytes + kPageBytes - 1) / kPageBytes * kPageBytes) {
    if (bytes_ == 0) {
        return;
    }
    const size_t all = bytes_ + alignment - kPageBytes;
    void* mapped = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) {
        throw Error(fmt::format("cannot reserve {} MiB of address space ({}); lower the context size", bytes_ >> 20,
                                std::strerror(errno)));
    }
    // What lies before and behind the aligned part goes back.
    auto* begin = static_cast<std::byte*>(mapped);
    const size_t before = (alignment - reinterpret_cast<uintptr_t>(begin) % alignment) % alignment;
    data_ = begin + before;
    if (before != 0) {
        munmap(begin, before);
    }
    if (const size_t behind = all - before - bytes_; behind != 0) {
        munmap(data_ + bytes_, behind);
    }
}

Reservation::~Reservation() {
    if (data_ != nullptr) {
        munmap(data_, bytes_);
    }
}

Reservation::Reservation(Reservation&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

void Reservation::release(size_t offset, size_t bytes) {
    if (const auto [begin, end] = whole_pages(offset, bytes, bytes_); begin < end) {
        madvise(data_ + begin, end - begin, MADV_DONTNEED);
    }
}

void Reservation::change_access(size_t offset, size_t bytes, int access) {
    if (const auto [begin, end] = whole_pages(offset, bytes, bytes_); begin < end) {
        mprotect(data_ + begin, end - begin, access);
    }
}

void Reservation::protect(size_t offset, size_t bytes) {
    release(offset, bytes);
    change_access(offset, bytes, PROT_NONE);
}

void Reservation::use_small_pages() {
    madvise(data_, bytes_, MADV_NOHUGEPAGE);
}

void Reservation::make_huge(size_t offset, size_t bytes) {
#ifndef MADV_COLLAPSE
    constexpr int MADV_COLLAPSE = 25;  // Linux 6.1
#endif
    madvise(data_ + offset, bytes, MADV_HUGEPAGE);
    madvise(data_ + offset, bytes, MADV_COLLAPSE);
}

void Reservation::unprotect(size_t offset, size_t bytes) {
    change_access(offset, bytes, PROT_READ | PROT_WRITE);
}

size_t Reservation::resident_bytes() const {
    constexpr size_t kPagesAtOnce = 16384;
    std::vector<unsigned char> present(kPagesAtOnce);
    size_t pages = 0;
    for (size_t offset = 0; offset < bytes_; offset += kPagesAtOnce * kPageBytes) {
        const size_t part = std::min(kPagesAtOnce * kPageBytes, bytes_ - offset);
        if (mincore(data_ + offset, part, present.data()) == 0) {
            pages += std::count_if(present.begin(), present.begin() + static_cast<std::ptrdiff_t>(part / kPageBytes),
                                   [](unsigned char flags) { return (flags & 1) != 0; });
        }
    }
    return pages * kPageBytes;
}

}  // namespace kvcodec
