#include "kvcodec/artifact/model_info.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "kvcodec/artifact/gguf_file.h"
#include "kvcodec/error.h"

namespace kvcodec {
namespace {

namespace fs = std::filesystem;

/// What a tiny model consists of; each test changes one thing.
struct TinyModel {
    std::string architecture = "tiny";
    uint32_t n_layer = 2;
    std::vector<uint32_t> n_head_kv = {1, 0};
    float freq_base = 500000.0F;
    float k_weight = 1.0F;
    float ffn_weight = 1.0F;
};

class ModelInfoTest : public testing::Test {
  protected:
    void SetUp() override { path_ = testing::TempDir() + "/kvcodec_model_" + std::to_string(::getpid()) + ".gguf"; }
    void TearDown() override { fs::remove(path_); }

    ModelInfo info_of(const TinyModel& model) {
        const std::vector<float> k(8 * 4, model.k_weight);
        const std::vector<float> ffn(8, model.ffn_weight);
        GgufWriter writer;
        writer.set_string("general.architecture", model.architecture);
        writer.set_u32("tiny.block_count", model.n_layer);
        writer.set_u32("tiny.embedding_length", 8);
        writer.set_u32("tiny.context_length", 2048);
        writer.set_u32("tiny.attention.head_count", 2);
        writer.set_u32_array("tiny.attention.head_count_kv", model.n_head_kv);
        writer.set_u32("tiny.attention.value_length", 6);
        writer.set_f32("tiny.rope.freq_base", model.freq_base);
        writer.add_f32_tensor("blk.0.attn_k.weight", std::array<uint64_t, 2>{8, 4}, k);
        writer.add_f32_tensor("blk.0.ffn_up.weight", std::array<uint64_t, 1>{8}, ffn);
        writer.write(path_);
        return read_model_info(path_);
    }

    std::string path_;
};

TEST_F(ModelInfoTest, ReadsShapesWithLlamaCppsDefaults) {
    const ModelInfo info = info_of({});
    EXPECT_EQ(info.architecture, "tiny");
    EXPECT_EQ(info.name, fs::path(path_).filename());
    EXPECT_EQ(info.n_layer, 2U);
    EXPECT_EQ(info.n_embd, 8U);
    EXPECT_EQ(info.n_ctx_train, 2048U);
    EXPECT_EQ(info.n_head, (std::vector<uint32_t>{2, 2}));
    EXPECT_EQ(info.n_head_kv, (std::vector<uint32_t>{1, 0}));
    EXPECT_EQ(info.head_dim_k, 4U);
    EXPECT_EQ(info.head_dim_v, 6U);
    EXPECT_EQ(info.n_rot, 4U);
    EXPECT_EQ(info.rope_freq_base, 500000.0F);
    EXPECT_EQ(info.n_ctx_orig, 2048U);
    EXPECT_EQ(info.fingerprint.size(), 32U);
}

TEST_F(ModelInfoTest, FingerprintFollowsWhatShapesTheCache) {
    const std::string original = info_of({}).fingerprint;
    EXPECT_EQ(info_of({}).fingerprint, original);
    EXPECT_NE(info_of({.n_head_kv = {1, 1}}).fingerprint, original);
    EXPECT_NE(info_of({.freq_base = 10000.0F}).fingerprint, original);
    EXPECT_NE(info_of({.k_weight = 1.001F}).fingerprint, original);
    EXPECT_EQ(info_of({.ffn_weight = 2.0F}).fingerprint, original);
}

TEST_F(ModelInfoTest, RefusesWhatIsNoModel) {
    EXPECT_THROW(info_of({.architecture = "other"}), Error);
    EXPECT_THROW(info_of({.n_layer = 4000000000U}), Error);
    EXPECT_THROW(info_of({.n_head_kv = {1}}), Error);
    GgufWriter().write(path_);
    EXPECT_THROW(read_model_info(path_), Error);
    EXPECT_THROW(read_model_info(path_ + ".absent"), Error);
}

TEST(RealModelInfoTest, ReadsSmolLm2) {
    const char* cache = std::getenv("XDG_CACHE_HOME");
    const char* home = std::getenv("HOME");
    const fs::path folder = cache != nullptr ? fs::path(cache) : fs::path(home != nullptr ? home : "") / ".cache";
    const std::string path = folder / "kvcodec/models/SmolLM2-135M-Instruct.Q4_1.gguf";
    if (!fs::exists(path)) {
        GTEST_SKIP() << path << " is missing; scripts/get-model.sh brings it";
    }
    const auto begin = std::chrono::steady_clock::now();
    const ModelInfo info = read_model_info(path);
    const auto elapsed = std::chrono::steady_clock::now() - begin;
    EXPECT_EQ(info.architecture, "llama");
    EXPECT_EQ(info.n_layer, 30U);
    EXPECT_EQ(info.n_embd, 576U);
    EXPECT_EQ(info.n_head, std::vector<uint32_t>(30, 9));
    EXPECT_EQ(info.n_head_kv, std::vector<uint32_t>(30, 3));
    EXPECT_EQ(info.head_dim_k, 64U);
    EXPECT_EQ(info.head_dim_v, 64U);
    EXPECT_EQ(info.n_rot, 64U);
    EXPECT_EQ(info.n_ctx_train, 8192U);
    EXPECT_EQ(info.rope_freq_base, 100000.0F);
    EXPECT_LT(elapsed, std::chrono::seconds(1));

    const GgufFile file(path);
    for (const GgufTensor& tensor : file.tensors()) {
        EXPECT_TRUE(tensor.bytes.has_value()) << tensor.name;
    }
}

}  // namespace
}  // namespace kvcodec
