#include "tests/integration/model_zoo.h"

#include <fmt/format.h>
#include <ggml.h>
#include <gguf.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string_view>

#include "kvcodec/error.h"

namespace kvcodec {

namespace {

constexpr uint32_t kVocabulary = 256;
constexpr uint32_t kContext = 1024;
constexpr uint32_t kSlidingWindow = 64;

struct GgufDeleter {
    void operator()(gguf_context* context) const { gguf_free(context); }
};

/// A few experts.
void add_experts(const ModelMetadata& metadata) {
    metadata.set("expert_count", 4U);
    metadata.set("expert_used_count", 2U);
    metadata.set("expert_shared_count", 1U);
    metadata.set("expert_feed_forward_length", 64U);
    metadata.set("expert_shared_feed_forward_length", 64U);
    metadata.set("expert_weights_scale", 1.0F);
    metadata.set("expert_gating_func", 1U);
    metadata.set("leading_dense_block_count", 1U);
    metadata.set("interleave_moe_layer_step", 1U);
}

void add_sliding_window(const ModelMetadata& metadata) {
    metadata.set("attention.sliding_window", kSlidingWindow);
}

/// Layers with a recurrent state. inner: the size of the state's input.
void add_state(const ModelMetadata& metadata, uint32_t inner, uint32_t n_groups, uint32_t rank) {
    metadata.set("ssm.conv_kernel", 4U);
    metadata.set("ssm.inner_size", inner);
    metadata.set("ssm.state_size", 32U);
    metadata.set("ssm.time_step_rank", rank);
    metadata.set("ssm.group_count", n_groups);
}

/// Of a tensor with this name and so many inputs.
float random_weight(std::string_view name, int64_t n_inputs, std::mt19937& rng) {
    const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
    std::normal_distribution<float> normal;
    const float x = normal(rng);
    if (has("norm") && has("weight")) {
        return 1.0F + 0.1F * x;
    }
    if (has("ssm_a")) {
        return -std::abs(x);  // a state decays
    }
    if (has("rope_freqs") || has("rope_factors")) {
        return 1.0F + std::abs(x);
    }
    if (has("bias")) {
        return 0.1F * x;
    }
    return 1.5F * x / std::sqrt(static_cast<float>(n_inputs));
}

void set_random(ggml_tensor* tensor, void*) {
    std::mt19937 rng(static_cast<uint32_t>(std::hash<std::string>()(tensor->name)));
    std::vector<float> x(static_cast<size_t>(ggml_nelements(tensor)));
    for (float& element : x) {
        element = random_weight(tensor->name, tensor->ne[0], rng);
    }
    if (tensor->type == GGML_TYPE_F32) {
        ggml_backend_tensor_set(tensor, x.data(), 0, ggml_nbytes(tensor));
        return;
    }
    std::vector<uint8_t> data(ggml_nbytes(tensor));
    ggml_quantize_chunk(tensor->type, x.data(), data.data(), 0, ggml_nrows(tensor), tensor->ne[0], nullptr);
    ggml_backend_tensor_set(tensor, data.data(), 0, data.size());
}

void add_common(const ModelMetadata& metadata, const ZooModel& model) {
    const uint32_t n_embd = model.n_head * model.dim;
    metadata.set("vocab_size", kVocabulary);
    metadata.set("context_length", kContext);
    metadata.set("embedding_length", n_embd);
    metadata.set("block_count", model.n_layer);
    metadata.set("feed_forward_length", n_embd * 3 / 2);
    metadata.set("attention.head_count", model.n_head);
    metadata.set("attention.head_count_kv", model.n_head_kv);
    metadata.set("attention.key_length", model.dim);
    metadata.set("attention.value_length", model.dim);
    metadata.set("attention.layer_norm_epsilon", 1e-5F);
    metadata.set("attention.layer_norm_rms_epsilon", 1e-5F);
    metadata.set("rope.dimension_count", model.rotated == 0 ? model.dim : model.rotated);
    metadata.set("rope.freq_base", 10000.0F);
}

}  // namespace

void ModelMetadata::set(const std::string& key, uint32_t value) const {
    gguf_set_val_u32(context_, fmt::format("{}.{}", architecture_, key).c_str(), value);
}
void ModelMetadata::set(const std::string& key, float value) const {
    gguf_set_val_f32(context_, fmt::format("{}.{}", architecture_, key).c_str(), value);
}
void ModelMetadata::set(const std::string& key, bool value) const {
    gguf_set_val_bool(context_, fmt::format("{}.{}", architecture_, key).c_str(), value);
}
void ModelMetadata::set(const std::string& key, const std::vector<uint32_t>& values) const {
    gguf_set_arr_data(context_, fmt::format("{}.{}", architecture_, key).c_str(), GGUF_TYPE_UINT32, values.data(),
                      values.size());
}

const std::vector<ZooModel>& model_zoo() {
    using Metadata = ModelMetadata;
    static const std::vector<ZooModel> models = {
        {"Llama 2", "llama", "every head has its own keys", 2, 4, 4, 128},
        {"Llama 3, SmolLM2", "llama", "frequency factors where the model has them", 2, 6, 2, 64},
        {"Mistral", "llama", "YaRN", 2, 4, 1, 128, 0,
         [](const Metadata& m) { m.set("rope.scaling.original_context_length", 256U); }},
        {"Qwen 2.5", "qwen2", "biases", 2, 6, 1, 128},
        {"Qwen 3", "qwen3", "keys are normed", 2, 4, 2, 128},
        {"Qwen 3 MoE", "qwen3moe", "experts", 2, 4, 2, 64, 0, add_experts},
        {"Phi-2", "phi2", "a part of each head is rotated", 2, 4, 4, 80, 32},
        {"Phi-3", "phi3", "heads of 96", 2, 4, 4, 96},
        {"Gemma", "gemma", "heads of 256", 2, 2, 1, 256},
        {"Gemma 2", "gemma2", "soft-cap, every second layer has a sliding window", 4, 4, 2, 256, 0,
         [](const Metadata& m) {
             add_sliding_window(m);
             m.set("attn_logit_softcapping", 50.0F);
             m.set("final_logit_softcapping", 30.0F);
         }},
        {"Gemma 3", "gemma3", "five of six layers have a sliding window", 6, 4, 2, 256, 0, add_sliding_window},
        {"Gemma 3n", "gemma3n", "the last layers share the keys of others", 22, 2, 1, 64, 0, add_sliding_window},
        {"gpt-oss", "gpt-oss", "sink logits, experts, every second layer has a sliding window", 4, 8, 2, 64, 0,
         [](const Metadata& m) {
             add_experts(m);
             add_sliding_window(m);
         }},
        {"GPT-2", "gpt2", "no RoPE", 2, 4, 4, 64},
        {"GPT-NeoX", "gptneox", "a part of each head is rotated", 2, 4, 4, 64, 16,
         [](const Metadata& m) { m.set("use_parallel_residual", true); }},
        {"Bloom", "bloom", "ALiBi", 2, 4, 4, 64},
        {"MPT", "mpt", "ALiBi", 2, 4, 4, 64, 0, [](const Metadata& m) { m.set("attention.max_alibi_bias", 8.0F); }},
        {"Falcon", "falcon", "one KV head", 2, 4, 1, 64},
        {"StarCoder 2", "starcoder2", "biases", 2, 4, 2, 128},
        {"StableLM", "stablelm", "a part of each head is rotated", 2, 4, 4, 64, 16},
        {"OLMo 2", "olmo2", "keys are normed", 2, 4, 4, 128},
        {"Command R7B", "cohere2", "layers with a sliding window and RoPE, others with neither", 4, 4, 2, 128, 0,
         [](const Metadata& m) {
             add_sliding_window(m);
             m.set("logit_scale", 0.25F);
         }},
        {"GLM 4", "glm4", "half of each head is rotated", 2, 4, 2, 128, 64},
        {"Llama 4", "llama4", "layers that see chunks, others without RoPE; experts", 4, 4, 2, 128, 0, add_experts},
        {"Granite", "granite", "scales", 2, 4, 2, 64, 0,
         [](const Metadata& m) {
             m.set("logit_scale", 8.0F);
             m.set("residual_scale", 0.22F);
             m.set("embedding_scale", 12.0F);
             m.set("attention.scale", 0.015625F);
         }},
        {"Falcon-H1", "falcon-h1", "every layer has attention and a recurrent state", 2, 4, 2, 64, 0,
         [](const Metadata& m) { add_state(m, 256, 2, 4); }},
        {"Jamba", "jamba", "some layers have a recurrent state instead", 4, 4, 2, 64, 0,
         [](const Metadata& m) {
             add_state(m, 512, 1, 16);
             m.set("attention.head_count_kv", std::vector<uint32_t>{0, 2, 0, 2});
         }},
        {"Qwen 3.5", "qwen35", "three of four layers have a recurrent state instead", 4, 4, 2, 64, 0,
         [](const Metadata& m) {
             add_state(m, 128, 2, 4);
             m.set("rope.dimension_sections", std::vector<uint32_t>{8, 8, 8, 8});
             m.set("full_attention_interval", 4U);
         }},
        {"DeepSeek V2", "deepseek2", "keys and values share one latent (MLA)", 2, 4, 1, 64, 32,
         [](const Metadata& m) {
             add_experts(m);
             m.set("attention.q_lora_rank", 64U);
             m.set("attention.kv_lora_rank", 64U);
             m.set("attention.key_length", 96U);
             m.set("attention.value_length", 64U);
             m.set("attention.key_length_mla", 96U);
             m.set("attention.value_length_mla", 64U);
         }},
        {"Mamba", "mamba", "no attention at all", 2, 4, 0, 64, 0, [](const Metadata& m) { add_state(m, 512, 1, 16); }},
    };
    return models;
}

LlamaModel make_zoo_model(const ZooModel& model, ggml_backend_dev_t device) {
    const std::unique_ptr<gguf_context, GgufDeleter> metadata(gguf_init_empty());
    gguf_set_val_str(metadata.get(), "general.architecture", model.architecture.c_str());
    gguf_set_val_str(metadata.get(), "tokenizer.ggml.model", "no_vocab");
    const ModelMetadata writer(metadata.get(), model.architecture);
    add_common(writer, model);
    if (model.add) {
        model.add(writer);
    }
    ggml_backend_dev_t devices[] = {device, nullptr};
    llama_model_params params = llama_model_default_params();
    params.devices = devices;
    params.n_gpu_layers = -1;
    LlamaModel made(llama_model_init_from_user(metadata.get(), set_random, nullptr, params));
    if (made == nullptr) {
        throw Error(fmt::format("llama.cpp cannot make the model: {}", last_host_error()));
    }
    return made;
}

}  // namespace kvcodec
