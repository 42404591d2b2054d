#include "kvcodec/codec/baseline/zipcache_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "kvcodec/codec/baseline/group_table.h"
#include "kvcodec/error.h"
#include "kvcodec/half.h"

namespace kvcodec {
namespace {

void check_dim(size_t dim, size_t divisor) {
    if (dim == 0 || dim % divisor != 0) {
        throw Error(fmt::format("the zipcache codec needs a head size that is a multiple of {}, not {}", divisor, dim));
    }
}

}  // namespace

void ZipCacheCodec::encode(const float* x, size_t n, std::byte* codes) const {
    encode_mixed(x, n, std::vector<uint8_t>(n).data(), codes);
}

void ZipCacheCodec::write_indices(const uint8_t* index, bool salient, std::byte* code) const {
    std::fill_n(code, extra_offset(), std::byte{0});
    *code = std::byte{salient};
    pack_indices(index, dim(), bits_of(salient), code + 1);
}

void ZipCacheCodec::read_indices(const std::byte* code, uint8_t* index) const {
    unpack_indices(code + 1, dim(), bits_of(is_salient(code)), index);
}

ZipCacheKeyCodec::ZipCacheKeyCodec(size_t dim) : ZipCacheCodec(dim, dim * sizeof(RangeCode) / kRangeGroup) {
    check_dim(dim, kRangeGroup / sizeof(RangeCode));
}

std::string ZipCacheKeyCodec::describe() const {
    return fmt::format("ZipCache {} or {} bits, per channel, groups of {}", kSalientBits, kOtherBits, kRangeGroup);
}

// Levels of 2 bits are every fifth one of 4 bits.
constexpr uint8_t kStep = 5;

void ZipCacheKeyCodec::encode_mixed(const float* x, size_t n, const uint8_t* salient, std::byte* codes) const {
    std::vector<uint8_t> index(kRangeGroup * dim());
    std::vector<RangeCode> table(dim());
    for (size_t first = 0; first < n; first += kRangeGroup, x += kRangeGroup * dim()) {
        for (size_t i = 0; i < dim(); ++i) {
            table[i] = round_to_nearest(x + i, kRangeGroup, dim(), kSalientBits, &index[i]);
        }
        write_slices(std::as_bytes(std::span(table)), kRangeGroup, code_bytes(), codes + extra_offset());
        for (size_t row = 0; row < kRangeGroup; ++row, codes += code_bytes()) {
            uint8_t* levels = &index[row * dim()];
            if (salient[first + row] == 0) {
                // Where two levels of 2 bits meet, so do two of 4 bits: rounding twice is rounding once.
                std::transform(levels, levels + dim(), levels,
                               [](uint8_t level) { return static_cast<uint8_t>((level + kStep / 2) / kStep); });
            }
            write_indices(levels, salient[first + row] != 0, codes);
        }
    }
}

void ZipCacheKeyCodec::decode(const std::byte* codes, size_t first, size_t n, float* x) const {
    std::vector<uint8_t> index(dim());
    std::vector<RangeCode> table(dim());
    std::vector<float> scale(dim());
    std::vector<float> minimum(dim());
    for (size_t row = first; row < first + n; ++row, x += dim()) {
        if (row == first || row % kRangeGroup == 0) {
            const std::byte* group = codes + row / kRangeGroup * kRangeGroup * code_bytes();
            read_slices(group + extra_offset(), kRangeGroup, code_bytes(), std::as_writable_bytes(std::span(table)));
            std::transform(table.begin(), table.end(), scale.begin(),
                           [](const RangeCode& range) { return half_to_float(range.scale); });
            std::transform(table.begin(), table.end(), minimum.begin(),
                           [](const RangeCode& range) { return half_to_float(range.minimum); });
        }
        const std::byte* code = codes + row * code_bytes();
        const float step = is_salient(code) ? 1.0F : float{kStep};
        read_indices(code, index.data());
        for (size_t i = 0; i < dim(); ++i) {
            x[i] = scale[i] * (step * static_cast<float>(index[i])) + minimum[i];
        }
    }
}

ZipCacheValueCodec::ZipCacheValueCodec(size_t dim)
    : ZipCacheCodec(dim, sizeof(RangeCode) + dim * sizeof(uint16_t) / kRangeGroup) {
    check_dim(dim, kRangeGroup / sizeof(uint16_t));
}

std::string ZipCacheValueCodec::describe() const {
    return fmt::format("ZipCache {} or {} bits, per token, channels normalised over {}", kSalientBits, kOtherBits,
                       kRangeGroup);
}

void ZipCacheValueCodec::encode_mixed(const float* x, size_t n, const uint8_t* salient, std::byte* codes) const {
    std::vector<uint8_t> index(dim());
    std::vector<float> row_of(dim());
    std::vector<uint16_t> table(dim());
    std::vector<float> inverse(dim());
    for (size_t first = 0; first < n; first += kRangeGroup) {
        for (size_t i = 0; i < dim(); ++i) {
            float largest = 0;
            for (size_t row = 0; row < kRangeGroup; ++row) {
                largest = std::max(largest, std::abs(to_finite_half_range(x[row * dim() + i])));
            }
            table[i] = float_to_half(std::sqrt(largest));
            const float normaliser = half_to_float(table[i]);
            inverse[i] = normaliser == 0.0F ? 0.0F : 1.0F / normaliser;
        }
        write_slices(std::as_bytes(std::span(table)), kRangeGroup, code_bytes(),
                     codes + extra_offset() + sizeof(RangeCode));
        for (size_t row = 0; row < kRangeGroup; ++row, x += dim(), codes += code_bytes()) {
            const bool is_salient = salient[first + row] != 0;
            for (size_t i = 0; i < dim(); ++i) {
                row_of[i] = to_finite_half_range(x[i]) * inverse[i];
            }
            const RangeCode range = round_to_nearest(row_of.data(), dim(), 1, bits_of(is_salient), index.data());
            write_indices(index.data(), is_salient, codes);
            std::memcpy(codes + extra_offset(), &range, sizeof range);
        }
    }
}

void ZipCacheValueCodec::decode(const std::byte* codes, size_t first, size_t n, float* x) const {
    std::vector<uint8_t> index(dim());
    std::vector<uint16_t> table(dim());
    std::vector<float> normaliser(dim());
    for (size_t row = first; row < first + n; ++row, x += dim()) {
        if (row == first || row % kRangeGroup == 0) {
            const std::byte* group = codes + row / kRangeGroup * kRangeGroup * code_bytes();
            read_slices(group + extra_offset() + sizeof(RangeCode), kRangeGroup, code_bytes(),
                        std::as_writable_bytes(std::span(table)));
            std::transform(table.begin(), table.end(), normaliser.begin(), half_to_float);
        }
        const std::byte* code = codes + row * code_bytes();
        RangeCode range;
        std::memcpy(&range, code + extra_offset(), sizeof range);
        const float scale = half_to_float(range.scale);
        const float minimum = half_to_float(range.minimum);
        read_indices(code, index.data());
        for (size_t i = 0; i < dim(); ++i) {
            x[i] = (scale * static_cast<float>(index[i]) + minimum) * normaliser[i];
        }
    }
}

}  // namespace kvcodec
