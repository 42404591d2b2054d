#include "kvcodec/codec/baseline/kivi_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <vector>

#include "kvcodec/codec/baseline/group_table.h"
#include "kvcodec/error.h"
#include "kvcodec/half.h"

namespace kvcodec {

KiviKeyCodec::KiviKeyCodec(size_t dim, unsigned bits) : BaselineCodec(dim, bits) {
    if (bits != 2 && bits != 4) {
        throw Error(fmt::format("the kivi codec has 2 or 4 bits an element, not {}", bits));
    }
    if (dim == 0 || dim % 8 != 0) {
        throw Error(fmt::format("the kivi codec needs a head size that is a multiple of 8, not {}", dim));
    }
}

std::string KiviKeyCodec::describe() const {
    return fmt::format("KIVI {} bits, per channel, groups of {}", bits(), kRangeGroup);
}

void KiviKeyCodec::encode(const float* x, size_t n, std::byte* codes) const {
    std::vector<uint8_t> index(kRangeGroup * dim());
    std::vector<RangeCode> table(dim());
    for (size_t first = 0; first < n; first += kRangeGroup, x += kRangeGroup * dim()) {
        for (size_t i = 0; i < dim(); ++i) {
            table[i] = round_to_nearest(x + i, kRangeGroup, dim(), bits(), &index[i]);
        }
        write_slices(std::as_bytes(std::span(table)), kRangeGroup, code_bytes(), codes + packed_bytes(dim(), bits()));
        for (size_t row = 0; row < kRangeGroup; ++row, codes += code_bytes()) {
            pack_indices(&index[row * dim()], dim(), bits(), codes);
        }
    }
}

void KiviKeyCodec::decode(const std::byte* codes, size_t first, size_t n, float* x) const {
    std::vector<uint8_t> index(dim());
    std::vector<RangeCode> table(dim());
    std::vector<float> scale(dim());
    std::vector<float> minimum(dim());
    for (size_t row = first; row < first + n; ++row, x += dim()) {
        if (row == first || row % kRangeGroup == 0) {
            const std::byte* group = codes + row / kRangeGroup * kRangeGroup * code_bytes();
            read_slices(group + packed_bytes(dim(), bits()), kRangeGroup, code_bytes(),
                        std::as_writable_bytes(std::span(table)));
            std::transform(table.begin(), table.end(), scale.begin(),
                           [](const RangeCode& range) { return half_to_float(range.scale); });
            std::transform(table.begin(), table.end(), minimum.begin(),
                           [](const RangeCode& range) { return half_to_float(range.minimum); });
        }
        unpack_indices(codes + row * code_bytes(), dim(), bits(), index.data());
        for (size_t i = 0; i < dim(); ++i) {
            x[i] = scale[i] * static_cast<float>(index[i]) + minimum[i];
        }
    }
}

}  // namespace kvcodec
