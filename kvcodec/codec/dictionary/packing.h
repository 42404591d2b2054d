// How the nonzeros of one sparse code are laid out in bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvcodec/codec/dictionary/omp.h"
#include "kvcodec/codec/dictionary/ones.h"

namespace kvcodec {

enum class CoefficientFormat : uint8_t {
    kSigned4,  ///< sign and one of 8 trained magnitudes, under a per-vector scale
    kFp8,      ///< e4m3fn
};

enum class CodeLayout : uint8_t {
    /// [scale u8][coefficients][low bits of the indices][high bits], indices in ascending order. A set has no order:
    /// what order would cost, log2(s!) bits, is saved but for half a bit an atom (Elias 1974, Fano 1971). Of index i of
    /// rank k the lowest l bits are stored as they are, and the rest as a one at bit (i >> l) + k of the high bits.
    kPacked,
    /// The published layout (Lexico): [count u16][e4m3 x s, no scale][int16 x s] = 3s + 2 bytes.
    kPublished,
};

/// The products of a support's atoms, gram[i * stride + j], as omp_encode() gives them with the stride of its sparsity:
/// rows can be read to the stride, which is at least gram_stride(count).
struct SupportGram {
    const float* gram = nullptr;
    size_t stride = 0;
};

/// Packs and unpacks sparse codes of at most `sparsity` nonzeros over `n_atoms` atoms.
class Packing {
  public:
    static constexpr size_t kLevels = 8;

    /// levels: kLevels ascending magnitudes in (0, 1], relative to the vector's scale; used by kSigned4 only.
    Packing(size_t n_atoms, size_t sparsity, CoefficientFormat format, CodeLayout layout,
            std::span<const float> levels);

    /// Bytes of one code.
    static size_t code_bytes(size_t n_atoms, size_t sparsity, CoefficientFormat format, CodeLayout layout);
    size_t code_bytes() const { return code_bytes_; }
    size_t sparsity() const { return sparsity_; }
    size_t resident_bytes() const { return sizeof(*this) + groups_.size() * sizeof(groups_[0]); }
    /// Nonzeros that unpack() writes per row: sparsity rounded up to a multiple of 8.
    size_t stride() const { return stride_; }

    /// Writes one code; count <= sparsity nonzeros, all finite. support: null, or of these atoms: then 4-bit
    /// coefficients are quantised one after the other, the largest first, and the others fitted anew after each (the
    /// nearest plane of Babai 1986).
    void pack(const uint16_t* index, const float* coefficient, size_t count, std::byte* code,
              SupportGram support = {}) const;

    /// offset[i, stride] = index * scale, coefficient[i, stride] (0 beyond the row's count) for each listed row of
    /// codes. `scale` turns an atom's index into the offset of its row in a table.
    void unpack(const std::byte* codes, std::span<const uint16_t> rows, uint32_t scale, uint32_t* offset,
                float* coefficient) const;

  private:
    friend struct UnpackKernel;

    size_t n_atoms_;
    size_t sparsity_;
    size_t stride_;
    CoefficientFormat format_;
    CodeLayout layout_;
    unsigned index_bits_;  // of an index as such, or its low bits
    size_t code_bytes_;
    size_t coefficient_byte_;  // where the coefficients start
    size_t index_bit_;         // bit of the code at which the indices start
    BitField high_bits_{};
    bool has_vbmi2_;                          // see find_ones()
    std::array<int8_t, 16> signed_levels_{};  // by 4-bit code: sign in bit 3; in units of scale / 127
    // For each group of indices: where its bytes start, how they move into 32-bit lanes, how far these shift.
    struct IndexGroup {
        static constexpr size_t kSize = 8;
        uint32_t byte;
        std::array<uint8_t, 4 * kSize> shuffle;
        std::array<uint32_t, kSize> shift;
    };
    std::vector<IndexGroup> groups_;
};

}  // namespace kvcodec
