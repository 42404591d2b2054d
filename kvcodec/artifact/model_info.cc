#include "kvcodec/artifact/model_info.h"

#include <fmt/format.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

#include "kvcodec/artifact/gguf_file.h"
#include "kvcodec/error.h"

namespace kvcodec {

namespace {

constexpr uint32_t kMaxLayers = 65536;
constexpr size_t kHashedTensorBytes = 64 * 1024;
// Whatever shapes the rows of the K and V caches: projections, their biases, K norms and RoPE's frequency factors.
constexpr std::array<std::string_view, 12> kHashedTensors = {
    "attn_k.weight",        "attn_k.bias",      "attn_v.weight",      "attn_v.bias",
    "attn_qkv.weight",      "attn_qkv.bias",    "attn_k_norm.weight", "attn_k_norm.bias",
    "attn_kv_a_mqa.weight", "attn_kv_b.weight", "attn_k_b.weight",    "attn_v_b.weight",
};
constexpr std::string_view kRopeFactors = "rope_freqs.weight";

/// Metadata of one model, keyed as llama.cpp does: "{architecture}.{name}".
class ModelMetadata {
  public:
    ModelMetadata(const GgufFile& file, std::string architecture)
        : file_(file), architecture_(std::move(architecture)) {}

    [[noreturn]] void fail(std::string_view key, std::string_view what) const {
        throw Error(fmt::format("{}: not a usable model: {}.{} {}", file_.path(), architecture_, key, what));
    }
    std::string full_key(std::string_view key) const { return fmt::format("{}.{}", architecture_, key); }

    uint32_t require(std::string_view key) const {
        const auto value = get(key);
        if (!value) {
            fail(key, "is missing");
        }
        return *value;
    }
    std::optional<uint32_t> get(std::string_view key) const {
        const auto value = file_.get_uint(full_key(key));
        if (value && *value > std::numeric_limits<uint32_t>::max()) {
            fail(key, fmt::format("is {}", *value));
        }
        return value;
    }
    std::optional<float> get_float(std::string_view key) const { return file_.get_float(full_key(key)); }
    std::string get_string(std::string_view key, std::string_view otherwise) const {
        return std::string(file_.get_string(full_key(key)).value_or(otherwise));
    }
    /// One number for all layers or one for each.
    std::optional<std::vector<uint32_t>> get_per_layer(std::string_view key, uint32_t n_layer) const {
        const GgufValue* value = file_.find_value(full_key(key));
        if (value == nullptr) {
            return std::nullopt;
        }
        if (value->is_array && value->count < n_layer) {
            fail(key, fmt::format("has {} values for {} layers", value->count, n_layer));
        }
        std::vector<uint32_t> numbers(n_layer);
        for (uint32_t layer = 0; layer < n_layer; ++layer) {
            const auto number = value->uint_at(value->is_array ? layer : 0);
            if (!number || *number > std::numeric_limits<uint32_t>::max()) {
                fail(key, "is not a count");
            }
            numbers[layer] = static_cast<uint32_t>(*number);
        }
        return numbers;
    }

  private:
    const GgufFile& file_;
    std::string architecture_;
};

/// 128-bit hash of a sequence of fields; each carries its length, so fields cannot run into one another.
class FieldHash {
  public:
    FieldHash() { XXH3_128bits_reset(&state_); }

    void add_bytes(const void* data, uint64_t size) {
        XXH3_128bits_update(&state_, &size, sizeof(size));
        XXH3_128bits_update(&state_, data, size);
    }
    void add(std::string_view text) { add_bytes(text.data(), text.size()); }
    template <typename T>
    void add(std::span<const T> values) {
        add_bytes(values.data(), values.size_bytes());
    }
    template <typename T>
    requires std::is_arithmetic_v<T>
    void add(T value) { add_bytes(&value, sizeof(value)); }
    std::string hex() const {
        const XXH128_hash_t hash = XXH3_128bits_digest(&state_);
        return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
    }

  private:
    XXH3_state_t state_;
};

bool is_hashed(std::string_view tensor_name) {
    if (tensor_name == kRopeFactors) {
        return true;
    }
    if (!tensor_name.starts_with("blk.")) {
        return false;
    }
    tensor_name.remove_prefix(std::string_view("blk.").size());
    const size_t dot = tensor_name.find('.');
    return dot != std::string_view::npos && std::ranges::count(kHashedTensors, tensor_name.substr(dot + 1)) != 0;
}

std::string fingerprint(const ModelInfo& model, const GgufFile& file) {
    FieldHash hash;
    hash.add(model.architecture);
    for (const uint32_t number :
         {model.n_layer, model.n_embd, model.head_dim_k, model.head_dim_v, model.n_rot, model.n_ctx_orig}) {
        hash.add(number);
    }
    hash.add(std::span(model.n_head));
    hash.add(std::span(model.n_head_kv));
    hash.add(model.rope_freq_base);
    hash.add(model.rope_scaling);
    hash.add(model.rope_scaling_factor);

    std::vector<const GgufTensor*> tensors;
    for (const GgufTensor& tensor : file.tensors()) {
        if (is_hashed(tensor.name)) {
            tensors.push_back(&tensor);
        }
    }
    std::ranges::sort(tensors, {}, &GgufTensor::name);
    for (const GgufTensor* tensor : tensors) {
        hash.add(tensor->name);
        hash.add(tensor->type);
        hash.add(std::span<const uint64_t>(tensor->dims));
        if (tensor->bytes) {
            hash.add(tensor->bytes->first(std::min(tensor->bytes->size(), kHashedTensorBytes)));
        }
    }
    return hash.hex();
}

}  // namespace

ModelInfo read_model_info(const std::string& path) {
    const GgufFile file(path);
    const auto architecture = file.get_string("general.architecture");
    if (!architecture) {
        throw Error(fmt::format("{}: not a model: it names no general.architecture; give the model's GGUF file", path));
    }
    ModelInfo model;
    model.path = path;
    model.architecture = *architecture;
    model.name = file.get_string("general.name").value_or(std::filesystem::path(path).filename().native());

    const ModelMetadata metadata(file, model.architecture);
    model.n_layer = metadata.require("block_count");
    if (model.n_layer > kMaxLayers) {
        metadata.fail("block_count", fmt::format("is {}", model.n_layer));
    }
    model.n_embd = metadata.require("embedding_length");
    model.n_ctx_train = metadata.get("context_length").value_or(0);
    model.n_head =
        metadata.get_per_layer("attention.head_count", model.n_layer).value_or(std::vector<uint32_t>(model.n_layer));
    model.n_head_kv = metadata.get_per_layer("attention.head_count_kv", model.n_layer).value_or(model.n_head);

    const auto attends = std::ranges::find_if(model.n_head, [](uint32_t n) { return n > 0; });
    const uint32_t head_dim = attends != model.n_head.end() ? model.n_embd / *attends : 0;
    model.head_dim_k = metadata.get("attention.key_length").value_or(head_dim);
    model.head_dim_v = metadata.get("attention.value_length").value_or(head_dim);

    model.n_rot = metadata.get("rope.dimension_count").value_or(model.head_dim_k);
    model.rope_freq_base = metadata.get_float("rope.freq_base").value_or(model.rope_freq_base);
    model.rope_scaling = metadata.get_string("rope.scaling.type", model.rope_scaling);
    model.rope_scaling_factor =
        metadata.get_float("rope.scaling.factor").value_or(metadata.get_float("rope.scale_linear").value_or(1.0F));
    model.n_ctx_orig = metadata.get("rope.scaling.original_context_length").value_or(model.n_ctx_train);
    model.fingerprint = fingerprint(model, file);
    return model;
}

}  // namespace kvcodec
