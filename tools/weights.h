// Weights of a model file as floats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvcodec/artifact/gguf_file.h"
#include "kvcodec/artifact/model_info.h"

namespace kvcodec {

/// Rows [first, first + n) of a matrix, [n, columns]; nothing if it is no such matrix or of a type that ggml cannot
/// read.
std::optional<std::vector<float>> read_rows(const GgufTensor& matrix, size_t first, size_t n);

/// The rows of a tensor that make keys or values of a layer's inputs.
struct Projection {
    const GgufTensor* tensor = nullptr;  ///< null: the model has none in a usual place
    size_t first_row = 0;                ///< of all of the tensor's, where it makes queries, too
    size_t n_rows = 0;                   ///< n_head_kv * head_dim
    size_t n_columns = 0;
};

/// blk.N.attn_k or attn_v, or their part of attn_qkv.
Projection find_projection(const GgufFile& file, const ModelInfo& model, uint32_t layer, bool is_k);

/// Natural logarithm of a projection's condition number, the largest over the smallest singular value; nothing if its
/// weights cannot be read.
std::optional<double> log_condition(const Projection& projection);

/// Means of w w^T over the rows w of the output projection, for the values of each KV head that they meet:
/// [n_head_kv, head_dim_v, head_dim_v]. Empty if the model has no such tensor in the usual place, shape and a type that
/// ggml can read.
std::vector<double> output_moments(const GgufFile& file, const ModelInfo& model, uint32_t layer);

}  // namespace kvcodec
