// Tiny models of many architectures with random weights, which llama.cpp makes itself from metadata.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tools/host_model.h"

struct gguf_context;

namespace kvcodec {

/// Writes metadata; keys are those of a GGUF file without the architecture in front.
class ModelMetadata {
  public:
    ModelMetadata(gguf_context* context, std::string architecture)
        : context_(context), architecture_(std::move(architecture)) {}
    void set(const std::string& key, uint32_t value) const;
    void set(const std::string& key, float value) const;
    void set(const std::string& key, bool value) const;
    void set(const std::string& key, const std::vector<uint32_t>& values) const;

  private:
    gguf_context* context_;
    std::string architecture_;
};

struct ZooModel {
    std::string name;          ///< of the models that are built so
    std::string architecture;  ///< llama.cpp's name
    std::string special;       ///< what is special about its cache
    uint32_t n_layer = 2;
    uint32_t n_head = 4;
    uint32_t n_head_kv = 2;
    uint32_t dim = 64;
    uint32_t rotated = 0;                                ///< elements of a head that RoPE turns; 0: all
    std::function<void(const ModelMetadata&)> add = {};  ///< more metadata, which may replace what all models have
};

const std::vector<ZooModel>& model_zoo();

/// KV caches go to `device`. Throws Error with llama.cpp's reason.
LlamaModel make_zoo_model(const ZooModel& model, ggml_backend_dev_t device);

}  // namespace kvcodec
