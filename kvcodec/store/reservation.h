// Address space that becomes memory only where it is touched, and can be given back page by page.
#pragma once

#include <cstddef>

namespace kvcodec {

/// An anonymous mapping of `bytes` zero bytes. Throws Error when the system refuses the address space.
class Reservation {
  public:
    static constexpr size_t kPageBytes = 4096;

    Reservation() = default;
    /// alignment: of the first byte, a multiple of kPageBytes.
    explicit Reservation(size_t bytes, size_t alignment = kPageBytes);
    ~Reservation();
    Reservation(Reservation&& other) noexcept;
    Reservation& operator=(Reservation&& other) noexcept;
    Reservation(const Reservation&) = delete;
    Reservation& operator=(const Reservation&) = delete;

    std::byte* data() const { return data_; }
    size_t size() const { return bytes_; }
    /// Gives whole pages inside [offset, offset + bytes) back to the system; they read as zero afterwards.
    void release(size_t offset, size_t bytes);
    /// Gives whole pages inside [offset, offset + bytes) back and makes them inaccessible: a stray read faults instead
    /// of seeing zeros.
    void protect(size_t offset, size_t bytes);
    /// Keeps the system from making huge pages of it: they would make memory that is touched here and there resident
    /// as a whole.
    void use_small_pages();
    /// Makes huge pages of [offset, offset + bytes) now, whatever was touched, where the system can.
    void make_huge(size_t offset, size_t bytes);
    /// Undoes protect() of the same range.
    void unprotect(size_t offset, size_t bytes);
    /// Bytes of pages in memory now.
    size_t resident_bytes() const;

  private:
    void change_access(size_t offset, size_t bytes, int access);

    std::byte* data_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace kvcodec
