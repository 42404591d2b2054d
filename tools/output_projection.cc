#include "tools/output_projection.h"

#include <fmt/format.h>
#include <ggml.h>

#include <algorithm>
#include <cstring>
#include <span>

#include "kvcodec/learn/principal_components.h"

namespace kvcodec {

namespace {

/// One row of a tensor as floats. Returns whether ggml can read its type.
bool read_row(const GgufTensor& tensor, size_t row, std::vector<float>& x) {
    const auto type = static_cast<ggml_type>(tensor.type);
    const size_t row_bytes = ggml_row_size(type, static_cast<int64_t>(x.size()));
    const std::byte* data = tensor.bytes->data() + row * row_bytes;
    if (type == GGML_TYPE_F32) {
        std::memcpy(x.data(), data, row_bytes);
        return true;
    }
    const ggml_to_float_t to_float = ggml_get_type_traits(type)->to_float;
    if (to_float == nullptr) {
        return false;
    }
    to_float(data, x.data(), static_cast<int64_t>(x.size()));
    return true;
}

}  // namespace

std::vector<double> projection_moments(const GgufFile& file, const ModelInfo& model, uint32_t layer) {
    const GgufTensor* tensor = file.find_tensor(fmt::format("blk.{}.attn_output.weight", layer));
    const size_t dim = model.head_dim_v, n_head = model.n_head[layer], n_head_kv = model.n_head_kv[layer];
    if (tensor == nullptr || !tensor->bytes || n_head_kv == 0 || n_head % n_head_kv != 0 || tensor->n_dims != 2 ||
        tensor->dims[0] != n_head * dim || tensor->type >= GGML_TYPE_COUNT) {
        return {};
    }
    const auto n_rows = static_cast<size_t>(tensor->dims[1]), group = n_head / n_head_kv;
    std::vector<double> moments(n_head_kv * dim * dim);
    std::vector<std::vector<float>> of_head(n_head_kv);
    std::vector<float> row(n_head * dim);
    for (size_t i = 0; i < n_rows; ++i) {
        if (!read_row(*tensor, i, row)) {
            return {};
        }
        for (size_t head = 0; head < n_head_kv; ++head) {
            const auto begin = row.begin() + static_cast<std::ptrdiff_t>(head * group * dim);
            of_head[head].insert(of_head[head].end(), begin, begin + static_cast<std::ptrdiff_t>(group * dim));
        }
    }
    for (size_t head = 0; head < n_head_kv; ++head) {
        const std::vector<double> sum = second_moments(of_head[head], dim);
        std::ranges::transform(sum, moments.begin() + static_cast<std::ptrdiff_t>(head * dim * dim),
                               [&](double value) { return value / static_cast<double>(n_rows * group); });
    }
    return moments;
}

}  // namespace kvcodec
