// Trellis-coded quantisation (Marcellin and Fischer, IEEE Trans. Commun. 1990) of Gaussian elements.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvcodec {

/// The code. An element has b bits but 2^(b + 1) levels. Two bits of the level's place among all, its subset, come from
/// a convolution of the elements' path bits, so that neighbours share the doubled alphabet; the other bits say which
/// level of the subset it is. At equal size the squared error is 15 % (1 bit) to 30 % (3 bits) below that of the best
/// quantiser of single elements. A row starts with three path bits of 0 before its first element.
///
/// With path bits u and convolution of 8 states (Ungerboeck 1982, parity checks 13 and 04 octal), element t has
///     place = u[t-2] | (u[t] ^ u[t-1] ^ u[t-3]) << 1 | rest[t] << 2.
struct Trellis {
    static constexpr size_t kStates = 8;
    static constexpr size_t kHistory = 3;  ///< path bits that a state holds
    static constexpr unsigned kMaxBits = 6;

    /// Bits of `path` are path bits of consecutive elements, the lowest first; `history` those of the kHistory elements
    /// before, the last one highest. low and high: bits 0 and 1 of the places.
    template <typename Word>
    static Word low(Word path, unsigned history) {
        return static_cast<Word>(path << 2 | history >> 1);
    }
    template <typename Word>
    static Word high(Word path, unsigned history) {
        return static_cast<Word>(path ^ (path << 1 | history >> 2) ^ (path << 3 | history));
    }
    template <typename Word>
    static unsigned history_after(Word path) {
        return static_cast<unsigned>(path >> (8 * sizeof(Word) - kHistory));
    }

    /// Levels for a unit Gaussian, rounded to 8-bit integers.
    struct Levels {
        float unit = 0.0F;                ///< deviations a level unit
        double loss = 1.0;                ///< share of the variance that is lost, the scale chosen for each vector
        std::array<int8_t, 128> level{};  ///< [2^(bits + 1)], ascending
    };
    /// bits: 0 to kMaxBits; without bits there is nothing but the loss.
    static const Levels& levels(unsigned bits);
};

/// Finds codes of least squared error (Viterbi's algorithm), each row with the best of a few scales.
class TrellisEncoder {
  public:
    static constexpr size_t kScales = 4;
    static constexpr size_t kMaxElements = 1024;

    /// bits: of each element, 1 to Trellis::kMaxBits; weight: of its squared error. At most
    /// kMaxElements.
    TrellisEncoder(std::vector<uint8_t> bits, std::vector<float> weight);

    size_t n_elements() const { return bits_.size(); }

    struct Choice {
        size_t scale = 0;    ///< which of the kScales
        float error = 0.0F;  ///< weighted squared error
    };
    /// y: [n, n_elements] finite; scales: [n, kScales] > 0, what a deviation is; index: [n, n_elements], the path bit
    /// lowest and the rest above; choice: [n].
    void encode(const float* y, size_t n, const float* scales, uint8_t* index, Choice* choice) const;

  private:
    std::vector<uint8_t> bits_;
    std::vector<float> weight_;
};

}  // namespace kvcodec
