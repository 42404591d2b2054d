#include "kvcodec/codec/baseline/token_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kvcodec/codec/baseline/rounding.h"
#include "kvcodec/error.h"
#include "kvcodec/half.h"

namespace kvcodec {

TokenCodec::TokenCodec(size_t dim, unsigned bits)
    : BaselineCodec(dim, bits),
      code_bytes_(packed_bytes(dim, bits) + (dim + kRangeGroup - 1) / kRangeGroup * sizeof(RangeCode)) {
    if (bits != 2 && bits != 4) {
        throw Error(fmt::format("the token codec has 2 or 4 bits an element, not {}", bits));
    }
    if (dim == 0 || dim * bits % 8 != 0) {
        throw Error(
            fmt::format("the token codec needs a head size of whole bytes, not {} elements of {} bits", dim, bits));
    }
}

std::string TokenCodec::describe() const {
    return fmt::format("token {} bits, groups of {}", bits(), kRangeGroup);
}

void TokenCodec::encode(const float* x, size_t n, std::byte* codes) const {
    std::vector<uint8_t> index(dim());
    for (size_t row = 0; row < n; ++row, x += dim(), codes += code_bytes_) {
        std::byte* to = codes + packed_bytes(dim(), bits());
        for (size_t i = 0; i < dim(); i += kRangeGroup, to += sizeof(RangeCode)) {
            const RangeCode range = round_to_nearest(x + i, std::min(kRangeGroup, dim() - i), 1, bits(), &index[i]);
            std::memcpy(to, &range, sizeof range);
        }
        pack_indices(index.data(), dim(), bits(), codes);
    }
}

void TokenCodec::decode(const std::byte* codes, size_t first, size_t n, float* x) const {
    std::vector<uint8_t> index(dim());
    codes += first * code_bytes_;
    for (size_t row = 0; row < n; ++row, x += dim(), codes += code_bytes_) {
        unpack_indices(codes, dim(), bits(), index.data());
        const std::byte* from = codes + packed_bytes(dim(), bits());
        for (size_t i = 0; i < dim(); i += kRangeGroup, from += sizeof(RangeCode)) {
            RangeCode range;
            std::memcpy(&range, from, sizeof range);
            const float scale = half_to_float(range.scale);
            const float minimum = half_to_float(range.minimum);
            for (size_t j = i; j < std::min(i + kRangeGroup, dim()); ++j) {
                x[j] = scale * static_cast<float>(index[j]) + minimum;
            }
        }
    }
}

}  // namespace kvcodec
