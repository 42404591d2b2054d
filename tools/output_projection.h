// What values are multiplied with: the output projection of a model's attention.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvcodec/artifact/gguf_file.h"
#include "kvcodec/artifact/model_info.h"

namespace kvcodec {

/// Means of w w^T over the rows w of the output projection, for the values of each KV head that they meet:
/// [n_head_kv, head_dim_v, head_dim_v]. Empty if the model has no such tensor in the usual place, shape and a type that
/// ggml can read.
std::vector<double> projection_moments(const GgufFile& file, const ModelInfo& model, uint32_t layer);

}  // namespace kvcodec
