#include "tools/host_program.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "kvcodec/error.h"

namespace kvcodec {
namespace {

namespace fs = std::filesystem;

class HostProgramTest : public testing::Test {
  protected:
    void SetUp() override {
        folder_ = testing::TempDir() + "/kvcodec_host_" + std::to_string(::getpid());
        fs::create_directories(folder_);
    }
    void TearDown() override {
        for (const std::string& name : variables_) {
            ::unsetenv(name.c_str());
        }
        fs::remove_all(folder_);
    }

    void set_variable(const std::string& name, const std::string& value) {
        ::setenv(name.c_str(), value.c_str(), 1);
        variables_.push_back(name);
    }
    std::string make_file(const std::string& name) {
        const fs::path path = fs::path(folder_) / name;
        fs::create_directories(path.parent_path());
        std::ofstream(path) << "x";
        return path;
    }
    /// Why the program would not use the plug-in; empty if it would.
    static std::string refusal(std::vector<std::string> arguments, const std::string& program = "llama-server") {
        arguments.insert(arguments.begin(), program);
        try {
            HostProgram(arguments).check_layers_reach("KVCODEC");
        } catch (const Error& error) {
            return error.what();
        }
        return {};
    }

    std::string folder_;
    std::vector<std::string> variables_;
};

TEST_F(HostProgramTest, FindsTheModelFile) {
    const std::string model = make_file("model.gguf");
    const std::string other = make_file("other.gguf");
    EXPECT_EQ(HostProgram({"p", "-m", model}).find_model(), model);
    EXPECT_EQ(HostProgram({"p", "--model", model}).find_model(), model);
    EXPECT_EQ(HostProgram({"p", "--model=" + model}).find_model(), model);
    EXPECT_EQ(HostProgram({"p", "-m", other, "-m", model}).find_model(), model);
    EXPECT_EQ(HostProgram({"p", "-m"}).find_model(), std::nullopt);
    EXPECT_EQ(HostProgram({"p", "-m", folder_ + "/absent"}).find_model(), std::nullopt);
    EXPECT_EQ(HostProgram({"p"}).find_model(), std::nullopt);
    set_variable("LLAMA_ARG_MODEL", model);
    EXPECT_EQ(HostProgram({"p"}).find_model(), model);
    EXPECT_EQ(HostProgram({"p", "-m", other}).find_model(), other);
}

TEST_F(HostProgramTest, FindsDownloads) {
    set_variable("LLAMA_CACHE", folder_);
    const std::string snapshot = "models--user--model-GGUF/snapshots/0123/";
    make_file(snapshot + "mmproj-Q8_0.gguf");
    make_file(snapshot + "model-Q4_K_M-00002-of-00002.gguf");
    const std::string q4 = make_file(snapshot + "model-Q4_K_M-00001-of-00002.gguf");
    const std::string q8 = make_file(snapshot + "model-Q8_0.gguf");
    EXPECT_EQ(HostProgram({"p", "-hf", "user/model-GGUF"}).find_model(), q4);
    EXPECT_EQ(HostProgram({"p", "--hf-repo", "user/model-GGUF:q8_0"}).find_model(), q8);
    EXPECT_EQ(HostProgram({"p", "-hf", "user/model-GGUF", "-hff", "model-Q8_0.gguf"}).find_model(), q8);
    EXPECT_EQ(HostProgram({"p", "-hf", "user/model-GGUF:IQ1_S"}).find_model(), std::nullopt);
    EXPECT_EQ(HostProgram({"p", "-hf", "user/absent"}).find_model(), std::nullopt);
    const std::string flat = make_file("user_old-GGUF_old.Q8_0.gguf");
    EXPECT_EQ(HostProgram({"p", "-hf", "user/old-GGUF"}).find_model(), flat);
}

TEST_F(HostProgramTest, AcceptsWhatReachesTheDevice) {
    EXPECT_EQ(refusal({}), "");
    EXPECT_EQ(refusal({"-ngl", "99", "-fa", "on", "-ctk", "f16", "--cache-type-v", "f16", "-dev", "CUDA0,KVCODEC"}),
              "");
    EXPECT_EQ(refusal({"-ngl", "0", "-ngl", "all"}), "");
    EXPECT_EQ(refusal({"-nkvo", "-kvo"}), "");
    EXPECT_EQ(refusal({"-ngl", "0,99", "-fa", "0,1", "-nkvo", "0", "-ctk", "q8_0,f16", "-dev", "KVCODEC/CPU"},
                      "/opt/llama-bench"),
              "");
}

TEST_F(HostProgramTest, RefusesWhatKeepsLayersOffNamingTheFlag) {
    const std::vector<std::vector<std::string>> refused = {
        {"-ngl", "0"},   {"--n-gpu-layers", "0"}, {"--n_gpu_layers", "0"},    {"--gpu-layers=0"},
        {"-nkvo"},       {"-kvo", "-nkvo"},       {"--no-kv-offload"},        {"-fa", "off"},
        {"-fa", "0"},    {"-ctk", "q8_0"},        {"--cache-type-v", "bf16"}, {"-dev", "none"},
        {"-dev", "CPU"}, {"--device", "KVCODEC2"}};
    for (const auto& arguments : refused) {
        const std::string message = refusal(arguments);
        EXPECT_NE(message.find(arguments.back()), std::string::npos) << arguments.front() << ": " << message;
    }
    EXPECT_NE(refusal({"-nkvo", "1"}, "llama-bench"), "");
}

TEST_F(HostProgramTest, ReadsTheEnvironmentAsLlamaCppDoes) {
    for (const auto& [name, value] :
         std::vector<std::pair<std::string, std::string>>{{"LLAMA_ARG_N_GPU_LAYERS", "0"},
                                                          {"LLAMA_ARG_FLASH_ATTN", "off"},
                                                          {"LLAMA_ARG_CACHE_TYPE_K", "q4_0"},
                                                          {"LLAMA_ARG_DEVICE", "none"},
                                                          {"LLAMA_ARG_KV_OFFLOAD", "0"},
                                                          {"LLAMA_ARG_NO_KV_OFFLOAD", "1"}}) {
        set_variable(name, value);
        EXPECT_NE(refusal({}).find(name), std::string::npos) << name;
        EXPECT_EQ(refusal({}, "llama-bench"), "") << name;
        ::unsetenv(name.c_str());
    }
    set_variable("LLAMA_ARG_N_GPU_LAYERS", "0");
    EXPECT_EQ(refusal({"-ngl", "99"}), "");
}

}  // namespace
}  // namespace kvcodec
