#include "tools/host_model.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <filesystem>

#include "kvcodec/error.h"

namespace kvcodec {

namespace fs = std::filesystem;

namespace {

// How the plug-in's lines begin.
constexpr std::string_view kPluginMark = "kvcodec: ";

std::string& host_error() {
    static std::string line;
    return line;
}

std::vector<std::string>& warnings() {
    static std::vector<std::string> lines;
    return lines;
}

void keep_errors(ggml_log_level level, const char* text, void*) {
    std::string line = text;
    line.erase(line.find_last_not_of(" \n") + 1);
    if (level == GGML_LOG_LEVEL_WARN && line.starts_with(kPluginMark)) {
        warnings().push_back(line.substr(kPluginMark.size()));
    } else if (level == GGML_LOG_LEVEL_ERROR) {
        host_error() = line;
    }
}

}  // namespace

const std::string& last_host_error() {
    return host_error();
}

const std::vector<std::string>& plugin_warnings() {
    return warnings();
}

// A host built with GGML_BACKEND_DL looks for its backends beside the running program, which is not where ours is.
void load_cpu_backend() {
    llama_log_set(keep_errors, nullptr);
    if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) != nullptr) {
        return;
    }
    ggml_backend_load_all();
    if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) == nullptr) {
        Dl_info info{};
        if (dladdr(reinterpret_cast<void*>(&ggml_backend_load_all), &info) != 0 && info.dli_fname != nullptr) {
            ggml_backend_load_all_from_path(fs::path(info.dli_fname).parent_path().c_str());
        }
    }
    if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) == nullptr) {
        throw Error(
            "llama.cpp's CPU backend (libggml-cpu*.so) was not found beside libggml.so; build all of llama.cpp");
    }
}

ggml_backend_dev_t load_plugin(const std::string& path) {
    load_cpu_backend();
    ggml_backend_reg_t registry = ggml_backend_load(path.c_str());
    if (registry == nullptr || ggml_backend_reg_dev_count(registry) == 0) {
        throw Error(fmt::format("the plug-in {} cannot be loaded: {}", path,
                                host_error().empty() ? "not a plug-in of this llama.cpp" : host_error()));
    }
    return ggml_backend_reg_dev_get(registry, 0);
}

LlamaModel load_llama_model(const std::string& path, ggml_backend_dev_t device) {
    load_cpu_backend();
    ggml_backend_dev_t devices[] = {device, nullptr};
    llama_model_params params = llama_model_default_params();
    params.devices = devices;
    params.n_gpu_layers = device == nullptr ? 0 : -1;
    LlamaModel model(llama_model_load_from_file(path.c_str(), params));
    if (model == nullptr) {
        throw Error(fmt::format("llama.cpp cannot load {}: {}", path, host_error()));
    }
    return model;
}

LlamaContext make_llama_context(llama_model* model, const llama_context_params& params) {
    LlamaContext context(llama_init_from_model(model, params));
    if (context == nullptr) {
        throw Error(fmt::format("llama.cpp cannot run the model: {}", host_error()));
    }
    return context;
}

std::vector<llama_token> tokenize(const llama_vocab* vocab, std::string_view text, bool add_special,
                                  bool parse_special) {
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
        throw Error("the model has no vocabulary, so it can neither read nor write text");
    }
    std::vector<llama_token> tokens(text.size() + 8);
    const auto fill = [&] {
        return llama_tokenize(vocab, text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                              static_cast<int32_t>(tokens.size()), add_special, parse_special);
    };
    int32_t n = fill();
    if (n < 0 && n != INT32_MIN) {  // as many are needed: a character may become several bytes, each a token
        tokens.resize(static_cast<size_t>(-n));
        n = fill();
    }
    if (n < 0) {
        throw Error("the text cannot be tokenised");
    }
    tokens.resize(static_cast<size_t>(n));
    return tokens;
}

std::string detokenize(const llama_vocab* vocab, const std::vector<llama_token>& tokens) {
    std::string text(tokens.size() * 16 + 64, '\0');
    for (;;) {
        const int32_t n = llama_detokenize(vocab, tokens.data(), static_cast<int32_t>(tokens.size()), text.data(),
                                           static_cast<int32_t>(text.size()), true, false);
        if (n >= 0) {
            text.resize(static_cast<size_t>(n));
            return text;
        }
        text.resize(static_cast<size_t>(-n));
    }
}

}  // namespace kvcodec
