// Runs the built `kvcodec` (its path: KVCODEC_TOOL) with programs that show what they were given.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "kvcodec/artifact/artifact.h"
#include "kvcodec/artifact/gguf_file.h"
#include "kvcodec/artifact/model_info.h"

namespace kvcodec {
namespace {

namespace fs = std::filesystem;

struct Result {
    int code = 0;
    std::string output;  // standard output and error

    bool has(const std::string& text) const { return output.find(text) != std::string::npos; }
};

class RunTest : public testing::Test {
  protected:
    void SetUp() override {
        folder_ = fs::path(testing::TempDir()) / ("kvcodec_run_" + std::to_string(::getpid()));
        fs::create_directories(folder_);
        plugin_ = folder_ + "/plugin.so";
        std::ofstream(plugin_) << "x";
        model_ = folder_ + "/my model.gguf";
        GgufWriter writer;
        writer.set_string("general.architecture", "tiny");
        writer.set_string("general.name", "Tiny");
        writer.set_u32("tiny.block_count", 1);
        writer.set_u32("tiny.embedding_length", 8);
        writer.write(model_);
    }
    void TearDown() override { fs::remove_all(folder_); }

    /// Runs `kvcodec ARGUMENTS` in a shell, with no environment but `variables`.
    Result run(const std::string& arguments, const std::string& variables = "") const {
        const std::string command = "env -i PATH=\"$PATH\" XDG_CACHE_HOME='" + folder_ + "' KVCODEC_PLUGIN='" +
                                    plugin_ + "' " + variables + " '" KVCODEC_TOOL "' " + arguments + " 2>&1";
        Result result;
        FILE* pipe = ::popen(command.c_str(), "r");
        std::array<char, 4096> buffer{};
        while (const size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
            result.output.append(buffer.data(), n);
        }
        const int status = ::pclose(pipe);
        result.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
        return result;
    }

    static Artifact make_artifact(const std::string& fingerprint) {
        SideArtifact side;
        side.dim = 2;
        side.n_atoms = 2;
        side.atoms = {0x3C00, 0, 0, 0x3C00};
        side.mean = {0.0F, 0.0F};
        side.levels = {0.1F, 0.2F, 0.3F, 0.4F, 0.5F, 0.6F, 0.7F, 1.0F};
        return {.model_name = "Tiny",
                .model_fingerprint = fingerprint,
                .architecture = "tiny",
                .training_source = "text",
                .training_sparsity = 8,
                .training_tokens = 1000,
                .layers = {{.layer = 0, .n_head_kv = 1, .rope = {}, .k = side, .v = side}}};
    }

    std::string folder_;
    std::string plugin_;
    std::string model_;
};

TEST_F(RunTest, SetsTheEnvironmentAndPrintsIt) {
    const Result result = run("run --budget 20% --window 64 -- env");
    EXPECT_EQ(result.code, 0);
    for (const std::string line :
         {"KVCODEC=budget=0.2,window=64\n", "LLAMA_ARG_DEVICE=KVCODEC\n", "LLAMA_ARG_FLASH_ATTN=on\n",
          "LLAMA_ARG_CACHE_RAM=0\n", "LLAMA_ARG_MMPROJ_OFFLOAD=0\n"}) {
        EXPECT_TRUE(result.has("\n" + line)) << line << result.output;
    }
    EXPECT_TRUE(result.has("\nGGML_BACKEND_PATH=" + plugin_ + "\n")) << result.output;
    EXPECT_TRUE(result.has("kvcodec: KVCODEC=budget=0.2,window=64 GGML_BACKEND_PATH=")) << result.output;
}

TEST_F(RunTest, KeepsWhatTheUserSet) {
    const Result result = run("run --window 64 -- env",
                              "LLAMA_ARG_FLASH_ATTN=auto LLAMA_ARG_CACHE_RAM=100 GGML_BACKEND_PATH=/x.so "
                              "KVCODEC=window=8,sinks=2,log=quiet,codec=none");
    EXPECT_TRUE(result.has("LLAMA_ARG_FLASH_ATTN=auto\n")) << result.output;
    EXPECT_TRUE(result.has("LLAMA_ARG_CACHE_RAM=100\n")) << result.output;
    EXPECT_TRUE(result.has("GGML_BACKEND_PATH=/x.so\n")) << result.output;
    EXPECT_TRUE(result.has("KVCODEC=codec=none,window=64,sinks=2,log=quiet\n")) << result.output;
    EXPECT_FALSE(result.has("kvcodec:")) << result.output;
}

TEST_F(RunTest, BudgetReplacesSizesFromTheEnvironment) {
    const Result result = run("run --budget 30% -- env", "KVCODEC=bits=8,s=4");
    EXPECT_TRUE(result.has("\nKVCODEC=budget=0.3\n")) << result.output;
}

TEST_F(RunTest, PassesArgumentsUntouched) {
    const Result result = run("run -- printf '%s|' '[a,b]' -- '' '{\"x\": [1]}' -h");
    EXPECT_EQ(result.code, 0);
    EXPECT_TRUE(result.has("[a,b]|--||{\"x\": [1]}|-h|")) << result.output;
}

TEST_F(RunTest, ReturnsTheProgramsExitCode) {
    EXPECT_EQ(run("run -- sh -c 'exit 42'").code, 42);
}

TEST_F(RunTest, FindsTheArtifactOfTheModel) {
    const std::string fingerprint = read_model_info(model_).fingerprint;
    const std::string cached = folder_ + "/kvcodec/artifacts/" + fingerprint + ".kvc.gguf";
    Result result = run("run -- env -m '" + model_ + "'");
    EXPECT_TRUE(result.has("no artifact for Tiny")) << result.output;
    EXPECT_TRUE(result.has("kvcodec train -m '" + model_ + "'")) << result.output;

    write_artifact(make_artifact(fingerprint), cached);
    result = run("run --budget 10% -- sh -c 'echo $KVCODEC' -m '" + model_ + "'");
    EXPECT_EQ(result.code, 0);
    EXPECT_TRUE(result.has("\nartifact=" + cached + ",budget=0.1\n")) << result.output;
    result = run("run --artifact '" + cached + "' -- sh -c 'echo $KVCODEC' --model='" + model_ + "'");
    EXPECT_TRUE(result.has("\nartifact=" + cached + "\n")) << result.output;
}

TEST_F(RunTest, RefusesTheArtifactOfAnotherModel) {
    const std::string path = folder_ + "/other.kvc.gguf";
    write_artifact(make_artifact("f00"), path);
    const Result result = run("run --artifact '" + path + "' -- env -m '" + model_ + "'");
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(result.has("f00")) << result.output;
    EXPECT_TRUE(result.has(read_model_info(model_).fingerprint)) << result.output;
    EXPECT_TRUE(result.has("kvcodec train -m")) << result.output;
}

TEST_F(RunTest, RefusesWhatCannotWork) {
    Result result = run("run --budget 10% -- env -m '" + model_ + "'");
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(result.has("kvcodec train -m")) << result.output;
    result = run("run --codec dictionary -- env -m '" + model_ + "'");
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(result.has("kvcodec train -m")) << result.output;
    result = run("run -- env -ngl 0");
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(result.has("-ngl 0")) << result.output;
    result = run("run --plugin /absent.so -- env");
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(result.has("--plugin")) << result.output;
    EXPECT_EQ(run("run --artifact /absent -- env").code, 1);
}

TEST_F(RunTest, AddsFlagsForLlamaBench) {
    const std::string bench = folder_ + "/llama-bench";
    std::ofstream(bench) << "#!/bin/sh\necho \"bench: $*; $LLAMA_ARG_DEVICE\"\n";
    fs::permissions(bench, fs::perms::owner_all);
    EXPECT_TRUE(run("run -- '" + bench + "' -p 8").has("bench: -p 8 -dev KVCODEC -fa 1; \n"));
    EXPECT_TRUE(run("run -- '" + bench + "' -fa 1 --device KVCODEC").has("bench: -fa 1 --device KVCODEC; \n"));
}

TEST_F(RunTest, ExitCodes) {
    EXPECT_EQ(run("--help").code, 0);
    EXPECT_TRUE(run("--help").has("127"));
    EXPECT_TRUE(run("--version").has("kvcodec "));
    EXPECT_EQ(run("").code, 2);
    EXPECT_EQ(run("frobnicate").code, 2);
    EXPECT_EQ(run("run").code, 2);
    EXPECT_EQ(run("run --budget 30 -- env").code, 2);
    EXPECT_EQ(run("run --bugdet 30% -- env").code, 2);
    EXPECT_TRUE(run("run llama-server -m x").has("behind --"));
    EXPECT_EQ(run("run -- /absent/program").code, 127);
    EXPECT_EQ(run("run -- '" + plugin_ + "'").code, 126);
    EXPECT_EQ(run("inspect '" + model_ + "'").code, 1);
}

TEST_F(RunTest, InspectShowsTheArtifact) {
    const std::string path = folder_ + "/a.kvc.gguf";
    write_artifact(make_artifact("f00"), path);
    const Result text = run("inspect '" + path + "'");
    EXPECT_EQ(text.code, 0);
    EXPECT_TRUE(text.has("Tiny (tiny)")) << text.output;
    EXPECT_TRUE(text.has("f00")) << text.output;
    const Result json = run("inspect --json '" + path + "'");
    EXPECT_TRUE(json.has("\"fingerprint\": \"f00\"")) << json.output;
    EXPECT_EQ(run("inspect '" + path + "' > /dev/full").code, 1);
}

}  // namespace
}  // namespace kvcodec
