#include "tools/weights.h"

#include <fmt/format.h>
#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kvcodec/learn/low_rank.h"
#include "kvcodec/learn/principal_components.h"

namespace kvcodec {

std::optional<std::vector<float>> read_rows(const GgufTensor& matrix, size_t first, size_t n) {
    const auto columns = static_cast<size_t>(matrix.dims[0]);
    if (!matrix.bytes || matrix.n_dims != 2 || first + n > matrix.dims[1] || matrix.type >= GGML_TYPE_COUNT) {
        return std::nullopt;
    }
    const auto type = static_cast<ggml_type>(matrix.type);
    const ggml_to_float_t to_float = ggml_get_type_traits(type)->to_float;
    if (type != GGML_TYPE_F32 && to_float == nullptr) {
        return std::nullopt;
    }
    const size_t row_bytes = ggml_row_size(type, static_cast<int64_t>(columns));
    const std::byte* data = matrix.bytes->data() + first * row_bytes;
    std::vector<float> x(n * columns);
    if (type == GGML_TYPE_F32) {
        std::memcpy(x.data(), data, n * row_bytes);
    } else {
        to_float(data, x.data(), static_cast<int64_t>(x.size()));
    }
    return x;
}

Projection find_projection(const GgufFile& file, const ModelInfo& model, uint32_t layer, bool is_k) {
    Projection found;
    const size_t keys = size_t{model.n_head_kv[layer]} * model.head_dim_k;
    const size_t values = size_t{model.n_head_kv[layer]} * model.head_dim_v;
    found.n_rows = is_k ? keys : values;
    found.tensor = file.find_tensor(fmt::format("blk.{}.attn_{}.weight", layer, is_k ? 'k' : 'v'));
    size_t all_rows = found.n_rows;
    if (found.tensor == nullptr) {
        const size_t queries = size_t{model.n_head[layer]} * model.head_dim_k;
        found.tensor = file.find_tensor(fmt::format("blk.{}.attn_qkv.weight", layer));
        found.first_row = queries + (is_k ? 0 : keys);
        all_rows = queries + keys + values;
    }
    if (found.tensor == nullptr || found.n_rows == 0 || found.tensor->n_dims != 2 ||
        found.tensor->dims[1] != all_rows) {
        return {};
    }
    found.n_columns = static_cast<size_t>(found.tensor->dims[0]);
    return found;
}

std::optional<double> log_condition(const Projection& projection) {
    if (projection.tensor == nullptr) {
        return std::nullopt;
    }
    const auto weights = read_rows(*projection.tensor, projection.first_row, projection.n_rows);
    if (!weights) {
        return std::nullopt;
    }
    return std::log(left_singular(*weights, projection.n_rows, projection.n_columns).condition());
}

std::vector<double> output_moments(const GgufFile& file, const ModelInfo& model, uint32_t layer) {
    if (layer >= model.n_head.size() || layer >= model.n_head_kv.size()) {
        return {};
    }
    const GgufTensor* tensor = file.find_tensor(fmt::format("blk.{}.attn_output.weight", layer));
    const size_t dim = model.head_dim_v, n_head = model.n_head[layer], n_head_kv = model.n_head_kv[layer];
    if (tensor == nullptr || n_head_kv == 0 || n_head % n_head_kv != 0 || tensor->dims[0] != n_head * dim) {
        return {};
    }
    const auto n_rows = static_cast<size_t>(tensor->dims[1]);
    const size_t group = n_head / n_head_kv;
    const auto weights = read_rows(*tensor, 0, n_rows);
    if (!weights) {
        return {};
    }
    std::vector<double> moments;
    std::vector<float> of_head(n_rows * group * dim);
    for (size_t head = 0; head < n_head_kv; ++head) {
        for (size_t row = 0; row < n_rows; ++row) {
            std::copy_n(&(*weights)[row * n_head * dim + head * group * dim], group * dim, &of_head[row * group * dim]);
        }
        for (const double sum : second_moments(of_head, dim)) {
            moments.push_back(sum / static_cast<double>(n_rows * group));
        }
    }
    return moments;
}

}  // namespace kvcodec
