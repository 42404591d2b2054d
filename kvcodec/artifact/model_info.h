// What kvcodec must know about a model: its attention shapes, its RoPE and a fingerprint of its K and V projections.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvcodec {

struct ModelInfo {
    std::string path;
    std::string architecture;  ///< general.architecture, e.g. "llama"
    std::string name;          ///< general.name, or the file name
    uint32_t n_layer = 0;
    uint32_t n_embd = 0;
    uint32_t n_ctx_train = 0;
    std::vector<uint32_t> n_head;     ///< [n_layer]; 0: the layer has no attention (recurrent)
    std::vector<uint32_t> n_head_kv;  ///< [n_layer]
    uint32_t head_dim_k = 0;
    uint32_t head_dim_v = 0;
    uint32_t n_rot = 0;  ///< leading dimensions of a K head that RoPE rotates
    float rope_freq_base = 10000.0F;
    std::string rope_scaling = "none";  ///< none, linear, yarn, ...
    float rope_scaling_factor = 1.0F;
    uint32_t n_ctx_orig = 0;  ///< context length before RoPE scaling, as YaRN needs it
    /// 32 hex digits over architecture, shapes, RoPE and the K and V projections of every layer (type, dims and the
    /// first 64 KiB of each): two models that share it can share an artifact.
    std::string fingerprint;
};

/// Reads a GGUF model in milliseconds whatever its size. Of a split model, give the first file: the fingerprint covers
/// the tensors it holds. Throws Error if the file is no GGUF model.
ModelInfo read_model_info(const std::string& path);

}  // namespace kvcodec
