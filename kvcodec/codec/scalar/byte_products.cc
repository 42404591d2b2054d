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
constexpr size_t kRows = BlockLayout::kRows;
/// Rows whose weights are rounded together.
constexpr size_t kChunk = 64;
constexpr size_t kSixteens = kChunk / kRows;
constexpr size_t kGroup = 32;
/// Fours of elements in a group.
constexpr size_t kFours = kGroup / 4;
/// Lanes whose products are summed in registers; they come in quads.
constexpr size_t kMaxTile = 8;
constexpr size_t kQuad = 4;
/// Where levels are unsigned bytes, they are so much larger.
constexpr int kOffset = 128;
/// What the largest query element of a lane becomes, and the largest weight: weights are not negative, and half a unit
/// may be carried over to them.
constexpr float kLargestQuery = 127.0F;
constexpr float kLargestWeight = 254.0F;
/// Factors below are as good as zero, and have no inverse unit.
constexpr float kLeast = 1e-30F;

/// Words of the planes of one group of elements, of 16 rows.
struct Planes {
    __m512i path;
    __m512i path_early;           // kHistory bits later, those of the group before first
    __m512i pair_even, pair_odd;  // two bits of the elements in even and odd fours
    __m512i single;
};

/// The codes of up to kRows rows as words: a vector for each word, a row in each 32-bit lane.
class Words {
  public:
    /// The n rows from `row` on. Lanes of those that are missing hold any code.
    KVCODEC_VNNI_INLINE void load(const ScalarFormat& format, const uint8_t* codes, const uint16_t* row, size_t n) {
        const size_t n_words = format.dim * format.bits / 32;
        if (row[0] % kRows == 0 && are_consecutive(row, n)) {
            words_ = codes + row[0] * format.code_bytes;
            const uint8_t* scales = words_ + n_words * sizeof(__m512i);
            scales_ =
                scales_of(format, _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales))));
        } else {
            collect(format, codes, row, n, n_words);
        }
    }
    KVCODEC_VNNI_INLINE __m512i operator[](size_t word) const {
        return _mm512_loadu_si512(words_ + word * sizeof(__m512i));
    }
    /// What a level unit of each row is.
    KVCODEC_VNNI_INLINE __m512 scales() const { return scales_; }

  private:
    static constexpr size_t kMax = ScalarFormat::kMaxDim * 4 / 32;

    /// n: at most kRows.
    KVCODEC_VNNI_INLINE static bool are_consecutive(const uint16_t* row, size_t n) {
        const auto given = static_cast<__mmask16>((1U << n) - 1);
        const __m256i count = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m256i wanted = _mm256_add_epi16(_mm256_set1_epi16(static_cast<int16_t>(row[0])), count);
        return _mm256_mask_cmpneq_epi16_mask(given, _mm256_maskz_loadu_epi16(given, row), wanted) == 0;
    }

    /// Rows that lie apart.
    KVCODEC_VNNI void collect(const ScalarFormat& format, const uint8_t* codes, const uint16_t* row, size_t n,
                              size_t n_words) {
        alignas(64) std::array<int32_t, kRows> at, scale;
        for (size_t lane = 0; lane < kRows; ++lane) {
            const size_t i = row[std::min(BlockLayout::place_of(lane), n - 1)];
            const size_t rows = i / kRows * kRows * format.code_bytes, place = BlockLayout::place_of(i % kRows);
            at[lane] = static_cast<int32_t>(rows + place * BlockLayout::kWordBytes);
            scale[lane] = codes[rows + n_words * sizeof(__m512i) + place];
        }
        const __m512i lanes = _mm512_load_si512(at.data());
        for (size_t word = 0; word < n_words; ++word) {
            collected_[word] = _mm512_i32gather_epi32(lanes, codes + word * sizeof(__m512i), 1);
        }
        words_ = reinterpret_cast<const uint8_t*>(collected_);
        scales_ = scales_of(format, _mm512_load_si512(scale.data()));
    }

    KVCODEC_VNNI_INLINE static __m512 scales_of(const ScalarFormat& format, __m512i byte) {
        constexpr int kStepsPerOctave = ScalarFormat::kStepsPerOctave;
        // byte / kStepsPerOctave
        constexpr int kShift = 11, kInverse = (1 << kShift) / kStepsPerOctave + 1;
        const __m512i octave = _mm512_srli_epi32(_mm512_mullo_epi32(byte, _mm512_set1_epi32(kInverse)), kShift);
        const __m512i step = _mm512_sub_epi32(byte, _mm512_mullo_epi32(octave, _mm512_set1_epi32(kStepsPerOctave)));
        const __m512 of_step = _mm512_permutexvar_ps(step, _mm512_loadu_ps(format.first_octave.data()));
        return _mm512_maskz_scalef_ps(_mm512_test_epi32_mask(byte, byte), of_step, _mm512_cvtepi32_ps(octave));
    }

    const uint8_t* words_;  // [words, kRows] of 32 bits
    __m512 scales_;
    __m512i collected_[kMax];
};

/// Planes::path_early
KVCODEC_VNNI_INLINE __m512i path_early_of(const Words& words, size_t group) {
    const __m512i before = group == 0 ? _mm512_setzero_si512() : words[group - 1];
    return _mm512_or_si512(_mm512_slli_epi32(words[group], Trellis::kHistory),
                           _mm512_srli_epi32(before, 32 - Trellis::kHistory));
}

template <unsigned kBits>
KVCODEC_VNNI_INLINE Planes planes_of(const ScalarFormat& format, const Words& words, __m512i path_early, size_t group) {
    const size_t n_groups = format.dim / kGroup;
    Planes planes;
    planes.path = words[group];
    planes.path_early = path_early;
    if constexpr (kBits >= 3) {
        planes.pair_even = words[n_groups + 2 * group];
        planes.pair_odd = words[n_groups + 2 * group + 1];
    }
    if constexpr (kBits != 3) {
        planes.single = words[(kBits - 1) * n_groups + group];
    }
    return planes;
}

/// Keeps vectors in registers. GCC would read what lies in memory again for every use, and vectors of 64 bytes can
/// be read but once a cycle.
KVCODEC_VNNI_INLINE void keep(__m512i& v) {
    asm("" : "+v"(v));
}
template <unsigned kBits>
KVCODEC_VNNI_INLINE void keep(Planes& planes) {
    keep(planes.path);
    keep(planes.path_early);
    if constexpr (kBits >= 3) {
        keep(planes.pair_even);
        keep(planes.pair_odd);
    }
    if constexpr (kBits != 3) {
        keep(planes.single);
    }
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

/// Order of bytes that transposes 4 x 4 of them.
KVCODEC_VNNI_INLINE __m128i transposed_4x4() {
    return _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}

/// Bits of `a` where `mask` has ones, else of b.
KVCODEC_VNNI_INLINE __m512i select(uint8_t mask, __m512i a, __m512i b) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(static_cast<char>(mask)), a, b, 0xCA);
}

/// ScalarFormat::level_of_key, kOffset added or not.
template <unsigned kBits>
class Lookup {
  public:
    KVCODEC_VNNI_INLINE Lookup(const ScalarFormat& format, bool with_offset) {
        const __m512i offset = _mm512_set1_epi8(static_cast<char>(with_offset ? kOffset : 0));
        first_ = _mm512_xor_si512(_mm512_loadu_si512(format.level_of_key.data()), offset);
        second_ = _mm512_xor_si512(_mm512_loadu_si512(format.level_of_key.data() + 64), offset);
    }

    /// Of the four elements from 4 * four on.
    template <int four>
    KVCODEC_VNNI_INLINE __m512i levels(const Planes& planes) const {
        constexpr int kHistory = Trellis::kHistory, kPathBits = kHistory + 1;
        // The last byte's path bits end where path_early was cut off, or before.
        __m512i key;
        if constexpr (four <= 8 - kPathBits) {
            key = shift_right<four>(planes.path_early);
        } else {
            key = shift_right<four - kHistory>(planes.path);
        }
        if constexpr (kBits == 2) {
            key = select(0x0F, key, shift_right<four - kPathBits>(planes.single));
        } else {
            const __m512i pair = four % 2 == 0 ? planes.pair_even : planes.pair_odd;
            key = select(0x0F, key, shift_right<four / 2 * 2 - kPathBits>(pair));
        }
        if constexpr (kBits == 4) {
            key = select(0x3F, key, shift_right<four - kPathBits - 2>(planes.single));
            return _mm512_permutex2var_epi8(first_, key, second_);
        } else {
            return _mm512_permutexvar_epi8(key, first_);  // bits above six are ignored
        }
    }

  private:
    __m512i first_, second_;
};

/// Eight lanes of two rows.
KVCODEC_VNNI_INLINE __m512 load_two(const float* x, size_t stride) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(x)), _mm256_loadu_ps(x + stride), 1);
}

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

/// What four lanes of factors are rounded to: integers in units of `unit`.
struct Units {
    __m128 unit;
    __m512 inverse;   // [4 times, 4]; 0 for a lane of zeros
    size_t n_active;  // up to the last lane that is not all zeros (or as good as)
};

/// most: [4 parts, 4 lanes], their largest magnitudes.
KVCODEC_VNNI_INLINE Units units_of(__m512 most, float largest_integer) {
    const __m256 halves = _mm256_max_ps(_mm512_castps512_ps256(most), _mm512_extractf32x8_ps(most, 1));
    const __m128 largest = _mm_max_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
    const __mmask8 active = _mm_cmp_ps_mask(largest, _mm_set1_ps(kLeast), _CMP_NLE_UQ);  // NaN is
    Units units;
    units.unit = _mm_mul_ps(largest, _mm_set1_ps(1.0F / largest_integer));
    units.inverse = _mm512_broadcast_f32x4(_mm_maskz_div_ps(active, _mm_set1_ps(largest_integer), largest));
    units.n_active = static_cast<size_t>(std::bit_width(unsigned{active}));
    return units;
}

/// Four rows of a tile's lanes: of one quad a vector with a row in each 128-bit part, of two quads two with two rows.
struct FourRows {
    __m512 v[kMaxTile / kQuad];
};

/// The first n rows, `stride` floats apart.
KVCODEC_VNNI_INLINE void store_rows(const FourRows& rows, float* to, size_t stride, size_t n_quads, size_t n) {
    const size_t n_rows = std::min(n, kQuad);
    if (n_quads == 1 && stride == kQuad && n_rows == kQuad) {
        _mm512_storeu_ps(to, rows.v[0]);
    } else if (n_quads == 1 && stride == kQuad) {
        _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1U << (kQuad * n_rows)) - 1), rows.v[0]);
    } else if (n_quads == 1) {
        const __m128 parts[4] = {_mm512_castps512_ps128(rows.v[0]), _mm512_extractf32x4_ps(rows.v[0], 1),
                                 _mm512_extractf32x4_ps(rows.v[0], 2), _mm512_extractf32x4_ps(rows.v[0], 3)};
        for (size_t i = 0; i < n_rows; ++i) {
            _mm_storeu_ps(to + i * stride, parts[i]);
        }
    } else {
        const __m256 halves[4] = {_mm512_castps512_ps256(rows.v[0]), _mm512_extractf32x8_ps(rows.v[0], 1),
                                  _mm512_castps512_ps256(rows.v[1]), _mm512_extractf32x8_ps(rows.v[1], 1)};
        for (size_t i = 0; i < n_rows; ++i) {
            _mm256_storeu_ps(to + i * stride, halves[i]);
        }
    }
}

// --- score

/// Queries of a tile, in front of their elements: [dim / 4, kMaxTile] of four bytes.
struct Queries {
    std::array<float, kMaxTile> unit;
    std::array<int32_t, kMaxTile> offset;  // what kOffset makes of sums, negated
    size_t n_quads;
    size_t n_active;  // lanes, up to the last that is not all zeros

    static size_t bytes(size_t dim) { return sizeof(Queries) + dim * kMaxTile; }
    int32_t* fours() { return reinterpret_cast<int32_t*>(this + 1); }
    const int32_t* fours() const { return reinterpret_cast<const int32_t*>(this + 1); }
};

/// table: of a tile, in rows of `lanes`.
KVCODEC_VNNI void round_queries(const float* table, size_t dim, size_t lanes, size_t n_quads, Queries& q) {
    q.n_quads = n_quads;
    q.n_active = 0;
    for (size_t quad = 0; quad < n_quads; ++quad) {
        const float* x = table + quad * kQuad;
        __m512 most = _mm512_setzero_ps(), most_too = most;
        for (size_t i = 0; i < dim; i += 8) {
            most = _mm512_max_ps(most, _mm512_abs_ps(load_four(x + i * lanes, lanes)));
            most_too = _mm512_max_ps(most_too, _mm512_abs_ps(load_four(x + (i + 4) * lanes, lanes)));
        }
        const Units units = units_of(_mm512_max_ps(most, most_too), kLargestQuery);
        __m128i sum = _mm_setzero_si128();
        for (size_t i = 0; i < dim; i += 4) {
            const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load_four(x + i * lanes, lanes), units.inverse));
            const __m128i bytes = _mm_shuffle_epi8(_mm512_cvtepi32_epi8(whole), transposed_4x4());
            sum = _mm_dpbusd_epi32(sum, _mm_set1_epi8(1), bytes);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(q.fours() + i / 4 * kMaxTile + quad * kQuad), bytes);
        }
        const __m128i offset = _mm_mullo_epi32(sum, _mm_set1_epi32(-kOffset));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(&q.offset[quad * kQuad]), offset);
        _mm_storeu_ps(&q.unit[quad * kQuad], units.unit);
        if (units.n_active > 0) {
            q.n_active = quad * kQuad + units.n_active;
        }
    }
}

/// kN times 16 rows.
template <unsigned kBits, size_t kLanes, size_t kN, int four>
KVCODEC_VNNI_INLINE void score_four(const Planes* planes, const Lookup<kBits>& lookup, const int32_t* queries,
                                    __m512i (*sum)[kMaxTile]) {
    __m512i levels[kN];
    for (size_t i = 0; i < kN; ++i) {
        levels[i] = lookup.template levels<four>(planes[i]);
    }
    for (size_t lane = 0; lane < kLanes; ++lane) {
        const __m512i query = _mm512_set1_epi32(queries[four * kMaxTile + lane]);
        for (size_t i = 0; i < kN; ++i) {
            sum[i][lane] = _mm512_dpbusd_epi32(sum[i][lane], levels[i], query);
        }
    }
}

/// Scores of the first n of 16 rows from their sums.
template <size_t kLanes>
KVCODEC_VNNI_INLINE void store_scores(const __m512i* sum, __m512 scales, const Queries& q, size_t n, size_t lanes,
                                      float* s) {
    const size_t n_quads = q.n_quads;
    const __m512 zero = _mm512_setzero_ps();
    __m512 fours[kMaxTile / kQuad][4];  // [quad][four rows]
    for (size_t quad = 0; quad < n_quads; ++quad) {
        __m512 v[kQuad];
        for (size_t i = 0; i < kQuad; ++i) {
            const size_t lane = quad * kQuad + i;
            v[i] = lane < kLanes ? _mm512_mul_ps(_mm512_cvtepi32_ps(sum[lane]),
                                                 _mm512_mul_ps(scales, _mm512_set1_ps(q.unit[lane])))
                                 : zero;
        }
        const __m512 low01 = _mm512_unpacklo_ps(v[0], v[1]), high01 = _mm512_unpackhi_ps(v[0], v[1]);
        const __m512 low23 = _mm512_unpacklo_ps(v[2], v[3]), high23 = _mm512_unpackhi_ps(v[2], v[3]);
        fours[quad][0] = _mm512_shuffle_ps(low01, low23, 0x44);
        fours[quad][1] = _mm512_shuffle_ps(low01, low23, 0xEE);
        fours[quad][2] = _mm512_shuffle_ps(high01, high23, 0x44);
        fours[quad][3] = _mm512_shuffle_ps(high01, high23, 0xEE);
    }
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for (size_t i = 0; i < 4 && 4 * i < n; ++i) {
        FourRows rows{{fours[0][i], zero}};
        if (n_quads == 2) {
            const __m512d a = _mm512_castps_pd(fours[0][i]), b = _mm512_castps_pd(fours[1][i]);
            rows = {{_mm512_castpd_ps(_mm512_permutex2var_pd(a, first, b)),
                     _mm512_castpd_ps(_mm512_permutex2var_pd(a, second, b))}};
        }
        store_rows(rows, s + 4 * i * lanes, lanes, n_quads, n - 4 * i);
    }
}

/// The first n of the rows of kN words, times kLanes lanes of a tile.
template <unsigned kBits, size_t kLanes, size_t kN>
KVCODEC_VNNI void score_rows(const ScalarFormat& format, const Queries& q, const Words* words, size_t n, size_t lanes,
                             float* s) {
    const Lookup<kBits> lookup(format, true);
    __m512i sum[kN][kMaxTile];
    for (size_t lane = 0; lane < kLanes; ++lane) {
        for (size_t i = 0; i < kN; ++i) {
            sum[i][lane] = _mm512_set1_epi32(q.offset[lane]);
        }
    }
    const int32_t* queries = q.fours();
    for (size_t group = 0; group < format.dim / kGroup; ++group, queries += kFours * kMaxTile) {
        Planes planes[kN];
        for (size_t i = 0; i < kN; ++i) {
            planes[i] = planes_of<kBits>(format, words[i], path_early_of(words[i], group), group);
            keep<kBits>(planes[i]);
        }
        score_four<kBits, kLanes, kN, 0>(planes, lookup, queries, sum);
        score_four<kBits, kLanes, kN, 1>(planes, lookup, queries, sum);
        score_four<kBits, kLanes, kN, 2>(planes, lookup, queries, sum);
        score_four<kBits, kLanes, kN, 3>(planes, lookup, queries, sum);
        score_four<kBits, kLanes, kN, 4>(planes, lookup, queries, sum);
        score_four<kBits, kLanes, kN, 5>(planes, lookup, queries, sum);
        score_four<kBits, kLanes, kN, 6>(planes, lookup, queries, sum);
        score_four<kBits, kLanes, kN, 7>(planes, lookup, queries, sum);
    }
    for (size_t i = 0; i < kN; ++i) {
        store_scores<kLanes>(sum[i], words[i].scales(), q, std::min(kRows, n - i * kRows), lanes,
                             s + i * kRows * lanes);
    }
}

template <unsigned kBits, size_t... kLanes>
KVCODEC_VNNI void score_all(const ScalarFormat& format, const std::byte* rounded, size_t lanes, const uint8_t* codes,
                            std::span<const uint16_t> rows, float* s, std::index_sequence<kLanes...>) {
    using Function = void (*)(const ScalarFormat&, const Queries&, const Words*, size_t, size_t, float*);
    static constexpr Function kOfOne[] = {score_rows<kBits, kLanes, 1>...};
    static constexpr Function kOfTwo[] = {score_rows<kBits, kLanes, 2>...};
    Words words[2];
    for (size_t i = 0; i < rows.size(); i += 2 * kRows) {
        const size_t n = std::min(2 * kRows, rows.size() - i);
        words[0].load(format, codes, &rows[i], std::min(n, kRows));
        if (n > kRows) {
            words[1].load(format, codes, &rows[i + kRows], n - kRows);
        }
        const Function* functions = n > kRows ? kOfTwo : kOfOne;
        const std::byte* tile = rounded;
        for (size_t first = 0; first < lanes; first += kMaxTile, tile += Queries::bytes(format.dim)) {
            const auto& queries = *reinterpret_cast<const Queries*>(tile);
            functions[queries.n_active](format, queries, words, n, lanes, s + i * lanes + first);
        }
    }
}

// --- accumulate

/// Weights of a tile's lanes for up to kChunk rows: for each 16 rows and lane a vector, four rows' bytes
/// (BlockLayout::place_of()) in every 32 bits of a 128-bit part.
struct Weights {
    __m512i of_rows[kSixteens * kMaxTile];
    alignas(32) std::array<float, kMaxTile> unit;
};

/// p: [n, lanes], n at most kChunk; words: of these rows. Returns how many of the lanes are active.
KVCODEC_VNNI_INLINE size_t round_weights(const float* p, const Words* words, size_t n, size_t lanes, size_t n_quads,
                                         Weights& w) {
    const size_t n_sixteens = (n + kRows - 1) / kRows;
    size_t n_active = 0;
    for (size_t quad = 0; quad < n_quads; ++quad) {
        __m512 scaled[kSixteens * 4];  // of four rows each
        __m512 most = _mm512_setzero_ps();
        for (size_t sixteen = 0; sixteen < n_sixteens; ++sixteen) {
            const __m512 scales = words[sixteen].scales();
            for (size_t four = 0; four < 4; ++four) {
                __m512& x = scaled[sixteen * 4 + four];
                const size_t row = sixteen * kRows + four * 4;
                if (row + 4 <= n) {
                    x = load_four(p + row * lanes + quad * kQuad, lanes);
                } else {
                    alignas(64) std::array<float, 16> few{};
                    for (size_t i = row; i < n; ++i) {
                        std::copy_n(p + i * lanes + quad * kQuad, kQuad, &few[(i - row) * kQuad]);
                    }
                    x = _mm512_load_ps(few.data());
                }
                // Row 4 four + j is lane `four` of part j.
                const __m512i of_part = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
                const __m512i from = _mm512_add_epi32(of_part, _mm512_set1_epi32(static_cast<int>(four)));
                x = _mm512_mul_ps(x, _mm512_permutexvar_ps(from, scales));
                most = _mm512_max_ps(most, x);
            }
        }
        const Units units = units_of(most, kLargestWeight);
        // What rounding a weight leaves is added to the next one, so that the sum of many small ones is not lost. Each
        // part of each 16 rows is a chain of its own: long ones would be waited for. They begin in equal steps from
        // -1/2 to 1/2.
        for (size_t sixteen = 0; sixteen < n_sixteens; ++sixteen) {
            const auto step = _mm512_setr_ps(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            constexpr float kChains = kSixteens * kQuad;
            __m512 carry =
                _mm512_fmadd_ps(step, _mm512_set1_ps(1.0F / kChains),
                                _mm512_set1_ps((static_cast<float>(sixteen * kQuad) + 0.5F) / kChains - 0.5F));
            const auto round = [&](__m512 x) KVCODEC_VNNI_LAMBDA {
                const __m512 wanted = _mm512_fmadd_ps(x, units.inverse, carry);
                const __m512i whole = _mm512_cvtps_epi32(wanted);
                carry = _mm512_sub_ps(wanted, _mm512_cvtepi32_ps(whole));
                return whole;
            };
            const __m512* x = scaled + sixteen * 4;
            __m512i bytes = round(x[0]);
            bytes = _mm512_or_si512(bytes, _mm512_slli_epi32(round(x[1]), 8));
            bytes = _mm512_or_si512(bytes, _mm512_slli_epi32(round(x[2]), 16));
            bytes = _mm512_or_si512(bytes, _mm512_slli_epi32(round(x[3]), 24));
            __m512i* to = w.of_rows + sixteen * kMaxTile + quad * kQuad;
            to[0] = _mm512_shuffle_epi32(bytes, _MM_PERM_AAAA);
            to[1] = _mm512_shuffle_epi32(bytes, _MM_PERM_BBBB);
            to[2] = _mm512_shuffle_epi32(bytes, _MM_PERM_CCCC);
            to[3] = _mm512_shuffle_epi32(bytes, _MM_PERM_DDDD);
        }
        for (size_t sixteen = n_sixteens; sixteen < kSixteens; ++sixteen) {
            std::fill_n(w.of_rows + sixteen * kMaxTile + quad * kQuad, kQuad, _mm512_setzero_si512());
        }
        _mm_store_ps(&w.unit[quad * kQuad], units.unit);
        if (units.n_active > 0) {
            n_active = quad * kQuad + units.n_active;
        }
    }
    return n_active;
}

/// Sums of the four 128-bit parts of each of four vectors, one after the other.
KVCODEC_VNNI_INLINE __m512i sums_of_parts(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
    const __m512i cd = _mm512_add_epi32(_mm512_shuffle_i32x4(c, d, 0x88), _mm512_shuffle_i32x4(c, d, 0xDD));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xDD));
}

/// What accumulate_four() reads: kN times 16 rows.
template <unsigned kBits, size_t kLanes, size_t kN>
struct Accumulated {
    const ScalarFormat& format;
    const Words* words[kN];
    const Weights& weights;
    Lookup<kBits> lookup;
    __m512i kept[kN][kLanes];  // weights, where registers hold them
};

template <unsigned kBits, size_t kLanes, size_t kN, int four>
KVCODEC_VNNI_INLINE void accumulate_four(const Accumulated<kBits, kLanes, kN>& from, const __m512i* path_early,
                                         size_t group, size_t lanes, float* acc) {
    const Weights& w = from.weights;
    const __m512i transposed = _mm512_broadcast_i32x4(transposed_4x4());
    constexpr size_t kPadded = (kLanes + kQuad - 1) / kQuad * kQuad;
    __m512i sum[kPadded];  // [4 parts, 4 elements]
    for (size_t lane = 0; lane < kPadded; ++lane) {
        sum[lane] = _mm512_setzero_si512();
    }
    for (size_t i = 0; i < kN; ++i) {
        const Planes planes = planes_of<kBits>(from.format, *from.words[i], path_early[i], group);
        const __m512i levels = _mm512_shuffle_epi8(from.lookup.template levels<four>(planes), transposed);
        for (size_t lane = 0; lane < kLanes; ++lane) {
            const __m512i weight = kLanes <= kQuad ? from.kept[i][lane] : w.of_rows[i * kMaxTile + lane];
            sum[lane] = _mm512_dpbusd_epi32(sum[lane], weight, levels);
        }
    }
    // Sums are [lane, element].
    float* to = acc + four * 4 * lanes;
    if constexpr (kLanes <= kQuad) {
        const __m512i by_element = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        const __m512i sums = _mm512_permutexvar_epi32(by_element, sums_of_parts(sum[0], sum[1], sum[2], sum[3]));
        const __m512 unit = _mm512_broadcast_f32x4(_mm_load_ps(w.unit.data()));
        const __m512 rows = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), unit, load_four(to, lanes));
        store_rows({{rows, _mm512_setzero_ps()}}, to, lanes, 1, 4);
    } else {
        const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
        const __m512i second = _mm512_setr_epi32(2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
        const __m512i low = sums_of_parts(sum[0], sum[1], sum[2], sum[3]);
        const __m512i high = sums_of_parts(sum[4], sum[5], sum[6], sum[7]);
        const __m512 unit = _mm512_broadcast_f32x8(_mm256_load_ps(w.unit.data()));
        const __m512 sums[2] = {_mm512_cvtepi32_ps(_mm512_permutex2var_epi32(low, first, high)),
                                _mm512_cvtepi32_ps(_mm512_permutex2var_epi32(low, second, high))};
        const FourRows rows{{_mm512_fmadd_ps(sums[0], unit, load_two(to, lanes)),
                             _mm512_fmadd_ps(sums[1], unit, load_two(to + 2 * lanes, lanes))}};
        store_rows(rows, to, lanes, 2, 4);
    }
}

/// acc [dim, lanes] of a tile of lanes += the rows of n_words words, of which there are at most kN.
template <unsigned kBits, size_t kLanes, size_t kN>
KVCODEC_VNNI void accumulate_rows(const ScalarFormat& format, const Weights& w, const Words* words, size_t n_words,
                                  size_t lanes, float* acc) {
    if constexpr (kLanes > 0) {
        Accumulated<kBits, kLanes, kN> from{format, {}, w, Lookup<kBits>(format, false), {}};
        for (size_t i = 0; i < kN; ++i) {
            from.words[i] = &words[std::min(i, n_words - 1)];
            for (size_t lane = 0; lane < kLanes && kLanes <= kQuad; ++lane) {
                from.kept[i][lane] = w.of_rows[i * kMaxTile + lane];
                keep(from.kept[i][lane]);
            }
        }
        for (size_t group = 0; group < format.dim / kGroup; ++group, acc += kGroup * lanes) {
            __m512i path_early[kN];
            for (size_t i = 0; i < kN; ++i) {
                path_early[i] = path_early_of(*from.words[i], group);
            }
            accumulate_four<kBits, kLanes, kN, 0>(from, path_early, group, lanes, acc);
            accumulate_four<kBits, kLanes, kN, 1>(from, path_early, group, lanes, acc);
            accumulate_four<kBits, kLanes, kN, 2>(from, path_early, group, lanes, acc);
            accumulate_four<kBits, kLanes, kN, 3>(from, path_early, group, lanes, acc);
            accumulate_four<kBits, kLanes, kN, 4>(from, path_early, group, lanes, acc);
            accumulate_four<kBits, kLanes, kN, 5>(from, path_early, group, lanes, acc);
            accumulate_four<kBits, kLanes, kN, 6>(from, path_early, group, lanes, acc);
            accumulate_four<kBits, kLanes, kN, 7>(from, path_early, group, lanes, acc);
        }
    }
}

template <unsigned kBits, size_t... kLanes>
KVCODEC_VNNI void accumulate_all(const ScalarFormat& format, const float* p, size_t lanes, const uint8_t* codes,
                                 std::span<const uint16_t> rows, float* acc, std::index_sequence<kLanes...>) {
    using Function = void (*)(const ScalarFormat&, const Weights&, const Words*, size_t, size_t, float*);
    static constexpr Function kOfOne[] = {accumulate_rows<kBits, kLanes, 1>...};
    static constexpr Function kOfAll[] = {accumulate_rows<kBits, kLanes, kSixteens>...};
    Weights weights;
    Words words[kSixteens];
    for (size_t begin = 0; begin < rows.size(); begin += kChunk, p += kChunk * lanes) {
        const size_t n = std::min(kChunk, rows.size() - begin);
        const size_t n_words = (n + kRows - 1) / kRows;
        for (size_t i = 0; i < n_words; ++i) {
            words[i].load(format, codes, &rows[begin + i * kRows], std::min(kRows, n - i * kRows));
        }
        const Function* functions = n_words == 1 ? kOfOne : kOfAll;
        for (size_t first = 0; first < lanes; first += kMaxTile) {
            const size_t n_quads = std::min(lanes - first, kMaxTile) / kQuad;
            const size_t n_active = round_weights(p + first, words, n, lanes, n_quads, weights);
            functions[n_active](format, weights, words, n_words, lanes, acc + first);
        }
    }
}

}  // namespace

bool serve(const ScalarFormat& format) {
    return format.bits <= 4 && format.dim % kGroup == 0 && has_avx512_vnni();
}

size_t rounded_bytes(const ScalarFormat& format, size_t lanes) {
    return (lanes + kMaxTile - 1) / kMaxTile * Queries::bytes(format.dim);
}

void round(const ScalarFormat& format, const float* table, size_t lanes, std::byte* rounded) {
    for (size_t first = 0; first < lanes; first += kMaxTile, rounded += Queries::bytes(format.dim)) {
        const size_t n_quads = std::min(lanes - first, kMaxTile) / kQuad;
        round_queries(table + first, format.dim, lanes, n_quads, *reinterpret_cast<Queries*>(rounded));
    }
}

void score(const ScalarFormat& format, const std::byte* rounded, size_t lanes, const uint8_t* codes,
           std::span<const uint16_t> rows, float* s) {
    const auto tiles = std::make_index_sequence<kMaxTile + 1>();
    switch (format.bits) {
        case 2:
            return score_all<2>(format, rounded, lanes, codes, rows, s, tiles);
        case 3:
            return score_all<3>(format, rounded, lanes, codes, rows, s, tiles);
        default:
            return score_all<4>(format, rounded, lanes, codes, rows, s, tiles);
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
