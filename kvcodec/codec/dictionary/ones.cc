#include "kvcodec/codec/dictionary/ones.h"

#include <hwy/targets.h>

#if HWY_ARCH_X86
// GCC 12 takes its own intrinsics' undefined operands for mistakes of their callers (its bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

// The target of these functions is no target of the Highway that Debian 12 has, so they are not compiled by it.
#define KVCODEC_VBMI2 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,bmi,bmi2,popcnt")))
#endif

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace kvcodec {
namespace {

constexpr size_t kWord = 64;  // bits looked at together
// A word's ones are counted before they are limited.
static_assert(kOnesStride >= kMaxOnes + kWord);

// `n` <= kWord bits, the others are zero. Always inlined, so that it is compiled for the instruction set of the caller.
inline __attribute__((always_inline)) uint64_t word_at(const uint8_t* code, size_t bit, size_t n) {
    const uint8_t* from = code + bit / 8;
    const unsigned shift = bit % 8;
    uint64_t word = 0;
    std::memcpy(&word, from, sizeof(word));
    word >>= shift;
    if (n > kWord - shift) {
        word |= uint64_t{from[8]} << (kWord - shift);
    }
    return word & (~uint64_t{0} >> (kWord - n));
}

// By byte: which bits are ones, the lowest first, each in a byte of its own.
const std::array<uint64_t, 256>& ones_of_byte() {
    static const std::array<uint64_t, 256> table = [] {
        std::array<uint64_t, 256> all{};
        for (size_t byte = 0; byte < 256; ++byte) {
            unsigned count = 0;
            for (size_t bit = 0; bit < 8; ++bit) {
                if ((byte >> bit & 1) != 0) {
                    all[byte] |= uint64_t{bit} << (8 * count++);
                }
            }
        }
        return all;
    }();
    return table;
}

void find_by_table(const uint8_t* const* codes, size_t n, BitField field, size_t most, uint8_t* __restrict position,
                   size_t* __restrict count) {
    const std::array<uint64_t, 256>& ones = ones_of_byte();
    for (size_t i = 0; i < n; ++i, position += kOnesStride) {
        const uint8_t* code = codes[i];
        size_t found = 0;
        for (size_t done = 0; done < field.n; done += kWord) {
            const size_t n_bits = std::min(kWord, field.n - done);
            uint64_t word = word_at(code, field.first + done, n_bits);
            uint64_t base = done * 0x0101010101010101U;
            for (size_t bit = 0; bit < n_bits; bit += 8, word >>= 8, base += 0x0808080808080808U) {
                const uint64_t of_byte = ones[word & 0xff] + base;
                std::memcpy(position + found, &of_byte, sizeof(of_byte));
                found += static_cast<size_t>(std::popcount(word & 0xff));
            }
            found = std::min(found, most);
        }
        count[i] = found;
    }
}

#if HWY_ARCH_X86
KVCODEC_VBMI2 void find_by_compressing(const uint8_t* const* codes, size_t n, BitField field, size_t most,
                                       uint8_t* __restrict position, size_t* __restrict count) {
    alignas(64) std::array<uint8_t, kWord> numbers;
    for (size_t i = 0; i < kWord; ++i) {
        numbers[i] = static_cast<uint8_t>(i);
    }
    const __m512i first = _mm512_load_si512(numbers.data());
    if (field.n <= kWord / 2) {
        const __m256i number = _mm512_castsi512_si256(first);
        for (size_t i = 0; i < n; ++i, position += kOnesStride) {
            const uint64_t word = word_at(codes[i], field.first, field.n);
            const __m256i found = _mm256_maskz_compress_epi8(static_cast<__mmask32>(word), number);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(position), found);
            count[i] = std::min(static_cast<size_t>(std::popcount(word)), most);
        }
        return;
    }
    for (size_t i = 0; i < n; ++i, position += kOnesStride) {
        const uint8_t* code = codes[i];
        size_t n_found = 0;
        for (size_t done = 0; done < field.n; done += kWord) {
            const uint64_t word = word_at(code, field.first + done, std::min(kWord, field.n - done));
            const __m512i number = _mm512_add_epi8(first, _mm512_set1_epi8(static_cast<char>(done)));
            _mm512_storeu_si512(position + n_found, _mm512_maskz_compress_epi8(word, number));
            n_found = std::min(n_found + static_cast<size_t>(std::popcount(word)), most);
        }
        count[i] = n_found;
    }
}
#endif

}  // namespace

void find_ones(const uint8_t* const* codes, size_t n, BitField field, size_t most, [[maybe_unused]] bool vbmi2,
               uint8_t* position, size_t* count) {
#if HWY_ARCH_X86
    if (vbmi2) {
        find_by_compressing(codes, n, field, most, position, count);
        return;
    }
#endif
    find_by_table(codes, n, field, most, position, count);
}

}  // namespace kvcodec
