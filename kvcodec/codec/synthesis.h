// Vectors from integers: sums of rows that are rounded to 8 bits, times levels of 8 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvcodec {

/// x = sum over j of scale * level_j * row_j. Element i of all rows is a multiple of one unit, a 127th of the largest.
///
/// A codec whose codes are scaled levels has one: it rebuilds vectors, and leads into and out of code space.
class Synthesis {
  public:
    static constexpr size_t kMaxRows = 1024;
    static constexpr size_t kStrideMultiple = 32;
    static constexpr size_t kQuad = 4;  ///< rows side by side

    Synthesis() = default;
    /// rows: [n_rows, width]. n_rows: a multiple of 4, at most kMaxRows. width: a multiple of 16.
    Synthesis(std::span<const float> rows, size_t n_rows, size_t width);

    size_t n_rows() const { return n_rows_; }
    size_t width() const { return width_; }
    size_t bytes() const { return elements_.size() + width_ * (sizeof(float) + sizeof(int32_t)); }
    /// Element i of row j, as rounded.
    float at(size_t j, size_t i) const { return unit_[i] * static_cast<float>(elements_[place(j, i)]); }

    /// Some elements of the vectors, a multiple of 16. x, q and out below hold no others: [.., size].
    struct Part {
        size_t begin;
        size_t size;
    };
    /// x [n, part.size] from levels [n, stride], of which n_rows() count, and scale [n]. stride: a multiple of
    /// kStrideMultiple, at most kMaxRows.
    void rebuild(const int8_t* levels, size_t stride, const float* scale, size_t n, Part part, float* x) const;
    /// table [begin to end, lanes] = rows times q [lanes, part.size].
    void prepare(const float* q, size_t lanes, size_t begin, size_t end, Part part, float* table) const;
    /// out [lanes, part.size] += acc [n_rows, lanes] times rows, of elements [begin, end) of the part, multiples of 16.
    void expand(const float* acc, size_t lanes, size_t begin, size_t end, Part part, float* out) const;

    /// What kernels need of it.
    struct View {
        const int8_t* elements;
        const float* unit;
        const int32_t* column_sum;
        size_t n_rows;
        size_t width;
        bool has_byte_products;
    };

  private:
    View view() const {
        return {elements_.data(), unit_.data(), column_sum_.data(), n_rows_, width_, has_byte_products_};
    }
    size_t place(size_t j, size_t i) const { return (j / kQuad * width_ + i) * kQuad + j % kQuad; }

    size_t n_rows_ = 0;
    size_t width_ = 0;
    std::vector<int8_t> elements_;     // [n_rows / kQuad, width, kQuad]
    std::vector<float> unit_;          // [width]
    std::vector<int32_t> column_sum_;  // [width], of the integers over all rows
    bool has_byte_products_ = false;   // VNNI of AVX-512
};

}  // namespace kvcodec
