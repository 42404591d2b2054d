#include "kvcodec/codec/scalar/byte_products.h"

#include <hwy/targets.h>

#if HWY_ARCH_X86
// GCC 12 takes its own intrinsics' undefined operands for mistakes of their callers (its bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "kvcodec/target.h"

// The target of these functions is no target of the Highway that Debian 12 has, so they are not compiled by it.
#define KVCODEC_VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")))
#define KVCODEC_VNNI_INLINE KVCODEC_VNNI inline __attribute__((always_inline))
#define KVCODEC_VNNI_LAMBDA KVCODEC_VNNI __attribute__((always_inline))

namespace kvcodec::byte_products {

namespace {

// Sixteen rows are read at a time, each in a 32-bit lane of a vector: four elements of it, a byte each. The planes of
// bits are laid out so that a shift brings four elements' bits to where they are wanted (scalar_codec.h).
constexpr size_t kRows = 16;
/// Rows whose weights are rounded together.
constexpr size_t kChunk = 64;
constexpr size_t kGroup = 32;
/// Fours of elements in a group.
constexpr size_t kFours = kGroup / 4;
/// Lanes whose products are summed in registers; they come in quads.
constexpr size_t kMaxTile = 8;
constexpr size_t kQuad = 4;
/// Levels are stored as unsigned bytes, so much larger.
constexpr int kOffset = 128;
/// 16-bit factors are split in two bytes, high * kHigh + low.
constexpr int kHigh = 256;
constexpr float kLargest = 127.0F * kHigh;
/// Factors below are as good as zero, and have no inverse unit.
constexpr float kLeast = 1e-30F;

float scale_of(const ScalarFormat& format, const uint8_t* codes, size_t row) {
    return format.scales[codes[(row + 1) * format.code_bytes - 1]];
}

/// Words of the planes of one group of elements, of 16 rows.
struct Planes {
    __m512i low, high;            // bits 0 and 1 of the places
    __m512i pair_even, pair_odd;  // two bits of the elements in even and odd fours
    __m512i single;
};

/// The codes of up to kRows rows as words: a vector for each word, a row in each 32-bit lane.
class Words {
  public:
    static constexpr size_t kMax = ScalarFormat::kMaxDim * 4 / 32;

    /// The n rows from `row` on; the last stands in for those that are missing.
    KVCODEC_VNNI_INLINE void load(const ScalarFormat& format, const uint8_t* codes, const uint16_t* row, size_t n) {
        const size_t n_words = format.dim * format.bits / 32;
        for (size_t word = 0; word < n_words; word += kAtOnce) {
            const auto wanted = static_cast<__mmask8>((1U << std::min(kAtOnce, n_words - word)) - 1);
            // Two rows in a vector, eight apart, whose words are then transposed in squares of eight.
            __m512i v[kAtOnce];
            for (size_t i = 0; i < kAtOnce; ++i) {
                const auto load_row = [&](size_t r) KVCODEC_VNNI_LAMBDA {
                    const size_t at = row[std::min(r, n - 1)] * format.code_bytes + 4 * word;
                    return _mm256_maskz_loadu_epi32(wanted, codes + at);
                };
                v[i] = _mm512_inserti64x4(_mm512_castsi256_si512(load_row(i)), load_row(i + kAtOnce), 1);
            }
            transpose(v, words_ + word);
        }
    }
    KVCODEC_VNNI_INLINE __m512i operator[](size_t word) const { return words_[word]; }

  private:
    static constexpr size_t kAtOnce = 8;

    /// v: [8 rows][2 parts of 8 words] -> to [8 words][2 parts of 8 rows].
    KVCODEC_VNNI_INLINE static void transpose(const __m512i* v, __m512i* to) {
        __m512i pairs[kAtOnce], fours[kAtOnce];
        for (size_t i = 0; i < kAtOnce; i += 2) {
            pairs[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);      // words 0 and 1 of rows i, i + 1; 4 and 5
            pairs[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);  // words 2 and 3; 6 and 7
        }
        for (size_t i = 0; i < kAtOnce; i += 4) {
            fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);  // word 0 of rows i .. i + 3; word 4
            fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
            fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
            fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
        }
        const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
        const __m512i second = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
        for (size_t i = 0; i < 4; ++i) {
            to[i] = _mm512_permutex2var_epi64(fours[i], first, fours[i + 4]);
            to[i + 4] = _mm512_permutex2var_epi64(fours[i], second, fours[i + 4]);
        }
    }

    __m512i words_[kMax];
};

template <unsigned kBits>
KVCODEC_VNNI_INLINE Planes planes_of(const ScalarFormat& format, const Words& words, size_t group) {
    const size_t n_groups = format.dim / kGroup;
    const __m512i path = words[group];
    const __m512i before = group == 0 ? _mm512_setzero_si512() : words[group - 1];
    const __m512i history = _mm512_srli_epi32(before, 32 - Trellis::kHistory);
    // Trellis::low() and high(), in every lane.
    Planes planes;
    planes.low = _mm512_or_si512(_mm512_slli_epi32(path, 2), _mm512_srli_epi32(history, 1));
    const __m512i second = _mm512_or_si512(_mm512_slli_epi32(path, 1), _mm512_srli_epi32(history, 2));
    const __m512i fourth = _mm512_or_si512(_mm512_slli_epi32(path, 3), history);
    planes.high = _mm512_xor_si512(path, _mm512_xor_si512(second, fourth));
    if constexpr (kBits >= 3) {
        planes.pair_even = words[n_groups + 2 * group];
        planes.pair_odd = words[n_groups + 2 * group + 1];
    }
    if constexpr (kBits != 3) {
        planes.single = words[(kBits - 1) * n_groups + group];
    }
    return planes;
}

template <int kRight>
KVCODEC_VNNI_INLINE __m512i shift_right(__m512i v) {
    if constexpr (kRight > 0) {
        return _mm512_srli_epi32(v, kRight);
    } else if constexpr (kRight < 0) {
        return _mm512_slli_epi32(v, -kRight);
    } else {
        return v;
    }
}

/// Bits of `a` where `mask` has ones, else of b.
KVCODEC_VNNI_INLINE __m512i select(uint8_t mask, __m512i a, __m512i b) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(static_cast<char>(mask)), a, b, 0xCA);
}

/// Levels of the four elements from 4 * four on, with kOffset.
template <unsigned kBits, int four>
KVCODEC_VNNI_INLINE __m512i levels_of(const Planes& planes, __m512i lookup) {
    const __m512i low_two = select(1, shift_right<four>(planes.low), shift_right<four - 1>(planes.high));
    __m512i place = low_two;
    if constexpr (kBits == 2) {
        place = select(3, low_two, shift_right<four - 2>(planes.single));
    } else {
        const __m512i pair = four % 2 == 0 ? planes.pair_even : planes.pair_odd;
        place = select(3, low_two, shift_right<four / 2 * 2 - 2>(pair));
    }
    if constexpr (kBits == 4) {
        place = select(15, place, shift_right<four - 4>(planes.single));
    }
    return _mm512_permutexvar_epi8(place, lookup);  // bits above 64 places are ignored
}

/// Levels by place, with kOffset, repeated.
struct Lookup {
    explicit Lookup(const ScalarFormat& format) {
        const size_t n = size_t{2} << format.bits;
        for (size_t i = 0; i < levels.size(); ++i) {
            levels[i] = static_cast<uint8_t>(format.levels[i % n] + kOffset);
        }
    }
    KVCODEC_VNNI_INLINE __m512i load() const { return _mm512_load_si512(levels.data()); }

    alignas(64) std::array<uint8_t, 64> levels;
};

/// Factors of four lanes as pairs of bytes: 16-bit integers in units of `unit`.
struct Quad {
    __m512 unit;       // [4 times, 4]
    __m512 inverse;    // of unit; 0 for a lane of zeros
    __m512i sum;       // of the integers
    __m512i sum_high;  // of their high bytes
    size_t n_active;   // up to the last lane that is not all zeros (or as good as)
};

/// Four lanes of four rows.
KVCODEC_VNNI_INLINE __m512 load_four(const float* x, size_t stride) {
    if (stride == kQuad) {
        return _mm512_loadu_ps(x);
    }
    __m512 rows = _mm512_castps128_ps512(_mm_loadu_ps(x));
    rows = _mm512_insertf32x4(rows, _mm_loadu_ps(x + stride), 1);
    rows = _mm512_insertf32x4(rows, _mm_loadu_ps(x + 2 * stride), 2);
    return _mm512_insertf32x4(rows, _mm_loadu_ps(x + 3 * stride), 3);
}

/// x: n rows, a multiple of 4, of `stride`; four lanes of each.
KVCODEC_VNNI_INLINE Quad quad_of(const float* x, size_t n, size_t stride) {
    __m512 most = _mm512_setzero_ps(), most_too = most;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        most = _mm512_max_ps(most, _mm512_abs_ps(load_four(x + i * stride, stride)));
        most_too = _mm512_max_ps(most_too, _mm512_abs_ps(load_four(x + (i + 4) * stride, stride)));
    }
    if (i < n) {
        most = _mm512_max_ps(most, _mm512_abs_ps(load_four(x + i * stride, stride)));
    }
    most = _mm512_max_ps(most, most_too);
    const __m256 halves = _mm256_max_ps(_mm512_castps512_ps256(most), _mm512_extractf32x8_ps(most, 1));
    const __m128 largest = _mm_max_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
    const __mmask8 active = _mm_cmp_ps_mask(largest, _mm_set1_ps(kLeast), _CMP_GT_OQ);
    Quad quad;
    quad.unit = _mm512_broadcast_f32x4(_mm_mul_ps(largest, _mm_set1_ps(1.0F / kLargest)));
    quad.inverse = _mm512_broadcast_f32x4(_mm_maskz_div_ps(active, _mm_set1_ps(kLargest), largest));
    quad.sum = _mm512_setzero_si512();
    quad.sum_high = _mm512_setzero_si512();
    quad.n_active = static_cast<size_t>(std::bit_width(unsigned{active}));
    return quad;
}

/// The integers of four rows of x: for each lane, a dword of four high and one of four low bytes.
struct QuadBytes {
    __m128i high, low;
};

KVCODEC_VNNI_INLINE QuadBytes round_four(Quad& quad, __m512 x) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(x, quad.inverse));
    quad.sum = _mm512_add_epi32(quad.sum, whole);
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(kHigh / 2)), 8);
    quad.sum_high = _mm512_add_epi32(quad.sum_high, high);
    const __m128i by_lane = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return {_mm_shuffle_epi8(_mm512_cvtepi32_epi8(high), by_lane),
            _mm_shuffle_epi8(_mm512_cvtepi32_epi8(whole), by_lane)};  // modulo 256: low
}

/// Sums of the four 128-bit parts of each of four vectors, one after the other.
KVCODEC_VNNI_INLINE __m512i sums_of_parts(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
    const __m512i cd = _mm512_add_epi32(_mm512_shuffle_i32x4(c, d, 0x88), _mm512_shuffle_i32x4(c, d, 0xDD));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xDD));
}

/// [4 parts, 4] to its transpose.
KVCODEC_VNNI_INLINE __m512 transpose(__m512 v) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_ps(order, v);
}

/// Stores the 128-bit parts `stride` floats apart, the first n of them.
KVCODEC_VNNI_INLINE void store_parts(__m512 v, float* to, size_t stride, size_t n) {
    const __m128 parts[4] = {_mm512_castps512_ps128(v), _mm512_extractf32x4_ps(v, 1), _mm512_extractf32x4_ps(v, 2),
                             _mm512_extractf32x4_ps(v, 3)};
    for (size_t i = 0; i < std::min<size_t>(n, 4); ++i) {
        _mm_storeu_ps(to + i * stride, parts[i]);
    }
}

// --- score

/// Queries [dim / 4, lanes] of a tile: dwords of four elements.
struct Queries {
    alignas(64) std::array<int32_t, ScalarFormat::kMaxDim / 4 * kMaxTile> high;
    alignas(64) std::array<int32_t, ScalarFormat::kMaxDim / 4 * kMaxTile> low;
    std::array<std::array<float, kQuad>, kMaxTile / kQuad> unit;
    std::array<int32_t, kMaxTile> offset_high;  // what kOffset makes of the sums of all high bytes, negated
    std::array<int32_t, kMaxTile> offset_low;
};

/// Returns how many of the lanes are active.
KVCODEC_VNNI_INLINE size_t round_queries(const float* table, size_t dim, size_t lanes, size_t n_quads, Queries& q) {
    size_t n_active = 0;
    for (size_t quad = 0; quad < n_quads; ++quad) {
        const float* x = table + quad * kQuad;
        Quad factors = quad_of(x, dim, lanes);
        for (size_t i = 0; i < dim; i += 4) {
            const QuadBytes bytes = round_four(factors, load_four(x + i * lanes, lanes));
            const size_t at = i / 4 * kMaxTile + quad * kQuad;
            _mm_store_si128(reinterpret_cast<__m128i*>(&q.high[at]), bytes.high);
            _mm_store_si128(reinterpret_cast<__m128i*>(&q.low[at]), bytes.low);
        }
        const __m512i zero = _mm512_setzero_si512();
        const __m512i sums = sums_of_parts(factors.sum, factors.sum_high, zero, zero);
        alignas(64) std::array<int32_t, 16> sum;
        _mm512_store_si512(sum.data(), sums);
        for (size_t i = 0; i < kQuad; ++i) {
            q.offset_high[quad * kQuad + i] = -kOffset * sum[kQuad + i];
            q.offset_low[quad * kQuad + i] = -kOffset * (sum[i] - kHigh * sum[kQuad + i]);
        }
        _mm_storeu_ps(q.unit[quad].data(), _mm512_castps512_ps128(factors.unit));
        if (factors.n_active > 0) {
            n_active = quad * kQuad + factors.n_active;
        }
    }
    return n_active;
}

template <unsigned kBits, size_t kLanes, int four>
KVCODEC_VNNI_INLINE void score_four(const Planes& planes, __m512i lookup, const int32_t* high, const int32_t* low,
                                    __m512i* sum_high, __m512i* sum_low) {
    const __m512i levels = levels_of<kBits, four>(planes, lookup);
    for (size_t lane = 0; lane < kLanes; ++lane) {
        sum_high[lane] = _mm512_dpbusd_epi32(sum_high[lane], levels, _mm512_set1_epi32(high[four * kMaxTile + lane]));
        sum_low[lane] = _mm512_dpbusd_epi32(sum_low[lane], levels, _mm512_set1_epi32(low[four * kMaxTile + lane]));
    }
}

/// Rows from `row` on, at most 16, times kLanes lanes of a tile of n_quads.
template <unsigned kBits, size_t kLanes>
KVCODEC_VNNI void score_rows(const ScalarFormat& format, const Lookup& lookup_bytes, const Queries& q, size_t n_quads,
                             const uint8_t* codes, const uint16_t* row, size_t n, size_t lanes, float* s) {
    Words words;
    words.load(format, codes, row, n);
    const __m512i lookup = lookup_bytes.load();
    __m512i sum_high[kMaxTile], sum_low[kMaxTile];
    for (size_t lane = 0; lane < kLanes; ++lane) {
        sum_high[lane] = _mm512_set1_epi32(q.offset_high[lane]);
        sum_low[lane] = _mm512_set1_epi32(q.offset_low[lane]);
    }
    for (size_t group = 0; group < format.dim / kGroup; ++group) {
        const Planes planes = planes_of<kBits>(format, words, group);
        const int32_t* high = q.high.data() + group * kFours * kMaxTile;
        const int32_t* low = q.low.data() + group * kFours * kMaxTile;
        score_four<kBits, kLanes, 0>(planes, lookup, high, low, sum_high, sum_low);
        score_four<kBits, kLanes, 1>(planes, lookup, high, low, sum_high, sum_low);
        score_four<kBits, kLanes, 2>(planes, lookup, high, low, sum_high, sum_low);
        score_four<kBits, kLanes, 3>(planes, lookup, high, low, sum_high, sum_low);
        score_four<kBits, kLanes, 4>(planes, lookup, high, low, sum_high, sum_low);
        score_four<kBits, kLanes, 5>(planes, lookup, high, low, sum_high, sum_low);
        score_four<kBits, kLanes, 6>(planes, lookup, high, low, sum_high, sum_low);
        score_four<kBits, kLanes, 7>(planes, lookup, high, low, sum_high, sum_low);
    }
    alignas(64) std::array<float, kRows> scale;
    for (size_t i = 0; i < kRows; ++i) {
        scale[i] = scale_of(format, codes, row[std::min(i, n - 1)]);
    }
    const __m512 scales = _mm512_load_ps(scale.data());
    __m512 products[kMaxTile];
    for (size_t lane = 0; lane < kMaxTile; ++lane) {
        products[lane] = _mm512_setzero_ps();
        if (lane < kLanes) {
            const __m512 whole = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum_high[lane]), _mm512_set1_ps(kHigh),
                                                 _mm512_cvtepi32_ps(sum_low[lane]));
            const __m512 unit = _mm512_set1_ps(q.unit[lane / kQuad][lane % kQuad]);
            products[lane] = _mm512_mul_ps(whole, _mm512_mul_ps(scales, unit));
        }
    }
    for (size_t quad = 0; quad < n_quads; ++quad) {
        const __m512* v = products + quad * kQuad;
        const __m512 low01 = _mm512_unpacklo_ps(v[0], v[1]), high01 = _mm512_unpackhi_ps(v[0], v[1]);
        const __m512 low23 = _mm512_unpacklo_ps(v[2], v[3]), high23 = _mm512_unpackhi_ps(v[2], v[3]);
        const __m512 every_fourth[4] = {_mm512_shuffle_ps(low01, low23, 0x44), _mm512_shuffle_ps(low01, low23, 0xEE),
                                        _mm512_shuffle_ps(high01, high23, 0x44),
                                        _mm512_shuffle_ps(high01, high23, 0xEE)};
        for (size_t i = 0; i < 4 && i < n; ++i) {  // rows i, i + 4, i + 8, i + 12
            store_parts(every_fourth[i], s + i * lanes + quad * kQuad, 4 * lanes, (n - i + 3) / 4);
        }
    }
}

template <unsigned kBits, size_t... kLanes>
KVCODEC_VNNI void score_all(const ScalarFormat& format, const float* table, size_t lanes, const uint8_t* codes,
                            std::span<const uint16_t> rows, float* s, std::index_sequence<kLanes...>) {
    using Function = void (*)(const ScalarFormat&, const Lookup&, const Queries&, size_t, const uint8_t*,
                              const uint16_t*, size_t, size_t, float*);
    static constexpr Function kFunctions[] = {score_rows<kBits, kLanes>...};
    const Lookup lookup(format);
    Queries queries;
    for (size_t first = 0; first < lanes; first += kMaxTile) {
        const size_t n_quads = std::min(lanes - first, kMaxTile) / kQuad;
        const size_t n_active = round_queries(table + first, format.dim, lanes, n_quads, queries);
        for (size_t i = 0; i < rows.size(); i += kRows) {
            kFunctions[n_active](format, lookup, queries, n_quads, codes, rows.data() + i,
                                 std::min(kRows, rows.size() - i), lanes, s + i * lanes + first);
        }
    }
}

// --- accumulate

/// Weights of a tile's lanes for up to kChunk rows: for each 16 rows and lane a vector, a dword of four rows' bytes in
/// all of a 128-bit part.
struct Weights {
    __m512i high[kChunk / kRows * kMaxTile];
    __m512i low[kChunk / kRows * kMaxTile];
    __m512 unit[kMaxTile / kQuad];  // a lane in each 128-bit part
    __m512i sum[kMaxTile / kQuad];  // of all rows' integers, times kOffset, laid out alike
};

/// Stores dword i of a quad in all of part `part` of vector i.
KVCODEC_VNNI_INLINE void spread(__m128i dwords, __m512i* vectors, size_t part) {
    auto* to = reinterpret_cast<__m128i*>(vectors) + part;
    _mm_store_si128(to, _mm_shuffle_epi32(dwords, 0x00));
    _mm_store_si128(to + 4, _mm_shuffle_epi32(dwords, 0x55));
    _mm_store_si128(to + 8, _mm_shuffle_epi32(dwords, 0xAA));
    _mm_store_si128(to + 12, _mm_shuffle_epi32(dwords, 0xFF));
}

/// p: [n, lanes], n at most kChunk; scale: [n]. Returns how many of the lanes are active.
KVCODEC_VNNI_INLINE size_t round_weights(const float* p, const float* scale, size_t n, size_t lanes, size_t n_quads,
                                         Weights& w) {
    const __m512i parts = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const size_t n_padded = (n + kRows - 1) / kRows * kRows;
    size_t n_active = 0;
    for (size_t quad = 0; quad < n_quads; ++quad) {
        alignas(64) std::array<float, kChunk * kQuad> scaled;
        const float* from = p + quad * kQuad;
        size_t i = 0;
        for (; i + 4 <= n; i += 4) {
            const __m512 of_row = _mm512_permutexvar_ps(parts, _mm512_castps128_ps512(_mm_load_ps(scale + i)));
            _mm512_store_ps(&scaled[i * kQuad], _mm512_mul_ps(load_four(from + i * lanes, lanes), of_row));
        }
        for (; i < n; ++i) {
            _mm_store_ps(&scaled[i * kQuad], _mm_mul_ps(_mm_loadu_ps(from + i * lanes), _mm_set1_ps(scale[i])));
        }
        std::fill(scaled.begin() + static_cast<std::ptrdiff_t>(n * kQuad),
                  scaled.begin() + static_cast<std::ptrdiff_t>(n_padded * kQuad), 0.0F);
        Quad factors = quad_of(scaled.data(), n_padded, kQuad);
        for (i = 0; i < n_padded; i += 4) {
            const QuadBytes bytes = round_four(factors, _mm512_load_ps(&scaled[i * kQuad]));
            const size_t at = i / kRows * kMaxTile + quad * kQuad;
            spread(bytes.high, &w.high[at], i % kRows / 4);
            spread(bytes.low, &w.low[at], i % kRows / 4);
        }
        const __m512i zero = _mm512_setzero_si512();
        const __m512i sum = _mm512_slli_epi32(sums_of_parts(factors.sum, zero, zero, zero), 7);
        w.sum[quad] = _mm512_permutexvar_epi32(parts, sum);
        w.unit[quad] = _mm512_permutexvar_ps(parts, factors.unit);
        if (factors.n_active > 0) {
            n_active = quad * kQuad + factors.n_active;
        }
    }
    return n_active;
}

template <unsigned kBits, size_t kLanes, int four>
KVCODEC_VNNI_INLINE void accumulate_four(const Planes* planes, size_t n_sixteens, __m512i lookup, const Weights& w,
                                         size_t lanes, float* acc) {
    // Bytes of four rows together, for each of the four elements.
    const __m512i by_element =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m512i high[kMaxTile], low[kMaxTile];
    for (size_t lane = 0; lane < kMaxTile; ++lane) {
        high[lane] = _mm512_setzero_si512();
        low[lane] = _mm512_setzero_si512();
    }
    for (size_t sixteen = 0; sixteen < n_sixteens; ++sixteen) {
        const __m512i levels = _mm512_shuffle_epi8(levels_of<kBits, four>(planes[sixteen], lookup), by_element);
        for (size_t lane = 0; lane < kLanes; ++lane) {
            high[lane] = _mm512_dpbusd_epi32(high[lane], levels, w.high[sixteen * kMaxTile + lane]);
            low[lane] = _mm512_dpbusd_epi32(low[lane], levels, w.low[sixteen * kMaxTile + lane]);
        }
    }
    for (size_t quad = 0; quad < (kLanes + kQuad - 1) / kQuad; ++quad) {
        __m512i whole[kQuad];
        for (size_t i = 0; i < kQuad; ++i) {
            const size_t lane = quad * kQuad + i;
            whole[i] = _mm512_add_epi32(_mm512_slli_epi32(high[lane], 8), low[lane]);
        }
        const __m512i sums = _mm512_sub_epi32(sums_of_parts(whole[0], whole[1], whole[2], whole[3]), w.sum[quad]);
        const __m512 products = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), w.unit[quad]);
        const __m512 by_row = transpose(products);
        float* to = acc + four * 4 * lanes + quad * kQuad;
        const __m128 rows[4] = {_mm512_castps512_ps128(by_row), _mm512_extractf32x4_ps(by_row, 1),
                                _mm512_extractf32x4_ps(by_row, 2), _mm512_extractf32x4_ps(by_row, 3)};
        for (size_t i = 0; i < 4; ++i) {
            _mm_storeu_ps(to + i * lanes, _mm_add_ps(_mm_loadu_ps(to + i * lanes), rows[i]));
        }
    }
}

/// acc [dim, lanes] of a tile of lanes += n rows from `row` on, at most kChunk.
template <unsigned kBits, size_t kLanes>
KVCODEC_VNNI void accumulate_rows(const ScalarFormat& format, const Lookup& lookup_bytes, const Weights& w,
                                  const uint8_t* codes, const uint16_t* row, size_t n, size_t lanes, float* acc) {
    if constexpr (kLanes > 0) {
        const size_t n_sixteens = (n + kRows - 1) / kRows;
        const __m512i lookup = lookup_bytes.load();
        Words words[kChunk / kRows];
        for (size_t i = 0; i < n_sixteens; ++i) {
            words[i].load(format, codes, row + i * kRows, std::min(kRows, n - i * kRows));
        }
        Planes planes[kChunk / kRows];
        for (size_t group = 0; group < format.dim / kGroup; ++group, acc += kGroup * lanes) {
            for (size_t i = 0; i < n_sixteens; ++i) {
                planes[i] = planes_of<kBits>(format, words[i], group);
            }
            accumulate_four<kBits, kLanes, 0>(planes, n_sixteens, lookup, w, lanes, acc);
            accumulate_four<kBits, kLanes, 1>(planes, n_sixteens, lookup, w, lanes, acc);
            accumulate_four<kBits, kLanes, 2>(planes, n_sixteens, lookup, w, lanes, acc);
            accumulate_four<kBits, kLanes, 3>(planes, n_sixteens, lookup, w, lanes, acc);
            accumulate_four<kBits, kLanes, 4>(planes, n_sixteens, lookup, w, lanes, acc);
            accumulate_four<kBits, kLanes, 5>(planes, n_sixteens, lookup, w, lanes, acc);
            accumulate_four<kBits, kLanes, 6>(planes, n_sixteens, lookup, w, lanes, acc);
            accumulate_four<kBits, kLanes, 7>(planes, n_sixteens, lookup, w, lanes, acc);
        }
    }
}

template <unsigned kBits, size_t... kLanes>
KVCODEC_VNNI void accumulate_all(const ScalarFormat& format, const float* p, size_t lanes, const uint8_t* codes,
                                 std::span<const uint16_t> rows, float* acc, std::index_sequence<kLanes...>) {
    using Function = void (*)(const ScalarFormat&, const Lookup&, const Weights&, const uint8_t*, const uint16_t*,
                              size_t, size_t, float*);
    static constexpr Function kFunctions[] = {accumulate_rows<kBits, kLanes>...};
    const Lookup lookup(format);
    Weights weights;
    for (size_t begin = 0; begin < rows.size(); begin += kChunk, p += kChunk * lanes) {
        const size_t n = std::min(kChunk, rows.size() - begin);
        const uint16_t* row = rows.data() + begin;
        alignas(64) std::array<float, kChunk> scale;
        for (size_t i = 0; i < n; ++i) {
            scale[i] = scale_of(format, codes, row[i]);
        }
        for (size_t first = 0; first < lanes; first += kMaxTile) {
            const size_t n_quads = std::min(lanes - first, kMaxTile) / kQuad;
            const size_t n_active = round_weights(p + first, scale.data(), n, lanes, n_quads, weights);
            kFunctions[n_active](format, lookup, weights, codes, row, n, lanes, acc + first);
        }
    }
}

}  // namespace

bool serve(const ScalarFormat& format) {
    return format.bits <= 4 && format.dim % kGroup == 0 && has_avx512_vnni();
}

void score(const ScalarFormat& format, const float* table, size_t lanes, const uint8_t* codes,
           std::span<const uint16_t> rows, float* s) {
    const auto tiles = std::make_index_sequence<kMaxTile + 1>();
    switch (format.bits) {
        case 2:
            return score_all<2>(format, table, lanes, codes, rows, s, tiles);
        case 3:
            return score_all<3>(format, table, lanes, codes, rows, s, tiles);
        default:
            return score_all<4>(format, table, lanes, codes, rows, s, tiles);
    }
}

void accumulate(const ScalarFormat& format, const float* p, size_t lanes, const uint8_t* codes,
                std::span<const uint16_t> rows, float* acc) {
    const auto tiles = std::make_index_sequence<kMaxTile + 1>();
    switch (format.bits) {
        case 2:
            return accumulate_all<2>(format, p, lanes, codes, rows, acc, tiles);
        case 3:
            return accumulate_all<3>(format, p, lanes, codes, rows, acc, tiles);
        default:
            return accumulate_all<4>(format, p, lanes, codes, rows, acc, tiles);
    }
}

}  // namespace kvcodec::byte_products

#endif
