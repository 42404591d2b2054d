#include "tools/host_program.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "kvcodec/error.h"

namespace kvcodec {

namespace fs = std::filesystem;

namespace {

/// llama.cpp takes '_' for '-' in long flags.
std::string normalized(std::string_view argument) {
    std::string flag(argument.substr(0, argument.find('=')));
    if (flag.starts_with("--")) {
        std::ranges::replace(flag, '_', '-');
    }
    return flag;
}

bool is_one_of(std::string_view text, std::span<const std::string_view> words) {
    return std::ranges::find(words, text) != words.end();
}

bool is_one_of(std::string_view text, std::initializer_list<std::string_view> words) {
    return is_one_of(text, std::span(words.begin(), words.size()));
}

bool is_off(std::string_view value) {
    return is_one_of(value, {"off", "disabled", "false", "0"});
}

/// llama-bench takes lists: ',' between values, '/' between the devices of one value.
bool lists(std::string_view list, std::string_view word) {
    for (size_t begin = 0; begin <= list.size();) {
        const size_t end = std::min(list.find_first_of(",/", begin), list.size());
        if (list.substr(begin, end - begin) == word) {
            return true;
        }
        begin = end + 1;
    }
    return false;
}

std::string upper(std::string_view text) {
    std::string result(text);
    std::ranges::transform(result, result.begin(), [](unsigned char c) { return std::toupper(c); });
    return result;
}

std::string replace_slashes(std::string_view repository, std::string_view with) {
    std::string name;
    for (const char c : repository) {
        name += c == '/' ? std::string(with) : std::string(1, c);
    }
    return name;
}

/// Where llama.cpp looks for downloads (common/hf-cache.cpp, and fs_get_cache_directory for older versions).
std::vector<fs::path> download_folders() {
    static constexpr std::array<std::pair<const char*, const char*>, 8> kPlaces = {{
        {"LLAMA_CACHE", ""},
        {"HF_HUB_CACHE", ""},
        {"HUGGINGFACE_HUB_CACHE", ""},
        {"HF_HOME", "hub"},
        {"XDG_CACHE_HOME", "huggingface/hub"},
        {"HOME", ".cache/huggingface/hub"},
        {"XDG_CACHE_HOME", "llama.cpp"},
        {"HOME", ".cache/llama.cpp"},
    }};
    std::vector<fs::path> folders;
    for (const auto& [variable, below] : kPlaces) {
        if (const char* base = std::getenv(variable); base != nullptr && *base != '\0') {
            folders.push_back(fs::path(base) / below);
        }
    }
    return folders;
}

bool is_model_file(const fs::path& file) {
    const std::string name = upper(file.filename().native());
    const bool later_split = name.find("-OF-") != std::string::npos && name.find("-00001-OF-") == std::string::npos;
    return name.ends_with(".GGUF") && name.find("MMPROJ") == std::string::npos && !later_split;
}

/// The GGUF files of a repository "user/model" in one download folder, sorted.
std::vector<fs::path> downloaded_files(const fs::path& folder, std::string_view repository) {
    std::vector<fs::path> files;
    std::error_code error;
    const fs::path snapshots = folder / ("models--" + replace_slashes(repository, "--")) / "snapshots";
    for (fs::recursive_directory_iterator it(snapshots, error), end; !error && it != end; it.increment(error)) {
        files.push_back(it->path());
    }
    error.clear();
    const std::string flat_prefix = replace_slashes(repository, "_") + "_";
    for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
        if (it->path().filename().native().starts_with(flat_prefix)) {
            files.push_back(it->path());
        }
    }
    std::erase_if(files, [](const fs::path& file) { return !is_model_file(file); });
    std::ranges::sort(files);
    return files;
}

/// The file that llama.cpp would take for `-hf user/model[:quant]`, if it has been downloaded.
std::optional<std::string> find_download(const std::string& repository_and_quant, const std::string& file_name) {
    const size_t colon = repository_and_quant.find(':');
    const std::string repository = repository_and_quant.substr(0, colon);
    std::vector<std::string> wanted = {"Q4_K_M", "Q8_0", ""};
    if (!file_name.empty()) {
        wanted = {file_name};
    } else if (colon != std::string::npos) {
        wanted = {repository_and_quant.substr(colon + 1)};
    }
    for (const fs::path& folder : download_folders()) {
        const auto files = downloaded_files(folder, repository);
        for (const std::string& part : wanted) {
            const auto it = std::ranges::find_if(files, [&](const fs::path& file) {
                return upper(file.filename().native()).find(upper(part)) != std::string::npos;
            });
            if (it != files.end()) {
                return it->native();
            }
        }
    }
    return std::nullopt;
}

}  // namespace

HostProgram::HostProgram(std::vector<std::string> argv)
    : argv_(std::move(argv)), is_bench_(fs::path(argv_.front()).filename() == "llama-bench") {}

bool HostProgram::has_flag(std::span<const std::string_view> flags) const {
    return std::any_of(argv_.begin() + 1, argv_.end(),
                       [&](const std::string& argument) { return is_one_of(normalized(argument), flags); });
}

void HostProgram::append(std::string_view flag, std::string_view value) {
    argv_.emplace_back(flag);
    argv_.emplace_back(value);
}

std::optional<HostProgram::Setting> HostProgram::find(std::initializer_list<std::string_view> flags,
                                                      const char* variable) const {
    std::optional<Setting> found;
    if (const char* value = is_bench_ ? nullptr : std::getenv(variable)) {
        found = Setting{value, fmt::format("{}={}", variable, value)};
    }
    for (size_t i = 1; i < argv_.size(); ++i) {
        const std::string& argument = argv_[i];
        if (!is_one_of(normalized(argument), flags)) {
            continue;
        }
        if (const size_t equals = argument.find('='); equals != std::string::npos) {
            found = Setting{argument.substr(equals + 1), argument};
        } else if (i + 1 < argv_.size()) {
            found = Setting{argv_[i + 1], argument + " " + argv_[i + 1]};
        }
    }
    return found;
}

std::optional<std::string> HostProgram::find_model() const {
    const auto existing = [](const std::string& path) {
        std::error_code error;
        return fs::is_regular_file(path, error) ? std::optional(path) : std::nullopt;
    };
    if (const auto model = find({"-m", "--model"}, "LLAMA_ARG_MODEL")) {
        if (auto path = existing(model->value)) {
            return path;
        }
    }
    if (const auto repository = find({"-hf", "-hfr", "--hf-repo"}, "LLAMA_ARG_HF_REPO")) {
        const auto file = find({"-hff", "--hf-file"}, "LLAMA_ARG_HF_FILE");
        return find_download(repository->value, file ? file->value : "");
    }
    return std::nullopt;
}

/// The setting that keeps the KV cache on the CPU, if there is one.
std::optional<HostProgram::Setting> HostProgram::find_kv_offload_switch() const {
    if (is_bench_) {
        auto setting = find({"-nkvo", "--no-kv-offload"}, "LLAMA_ARG_NO_KV_OFFLOAD");
        return setting && setting->value == "1" ? setting : std::nullopt;
    }
    const auto is_positive = [](const std::string& argument) {
        return is_one_of(normalized(argument), {"-kvo", "--kv-offload"});
    };
    const auto is_negative = [](const std::string& argument) {
        return is_one_of(normalized(argument), {"-nkvo", "--no-kv-offload"});
    };
    const auto last = std::find_if(argv_.rbegin(), argv_.rend() - 1, [&](const std::string& argument) {
        return is_positive(argument) || is_negative(argument);
    });
    if (last != argv_.rend() - 1) {
        return is_negative(*last) ? std::optional(Setting{"", *last}) : std::nullopt;
    }
    if (std::getenv("LLAMA_ARG_NO_KV_OFFLOAD") != nullptr) {
        return Setting{"", "LLAMA_ARG_NO_KV_OFFLOAD"};
    }
    auto setting = find({}, "LLAMA_ARG_KV_OFFLOAD");
    return setting && is_off(setting->value) ? setting : std::nullopt;
}

void HostProgram::check_layers_reach(const std::string& device) const {
    const auto refuse = [](const std::string& given, std::string_view why, std::string_view remedy) {
        throw Error(fmt::format("{} {}, so kvcodec would compress nothing; {}", given, why, remedy));
    };
    if (const auto layers = find({"-ngl", "--gpu-layers", "--n-gpu-layers"}, "LLAMA_ARG_N_GPU_LAYERS");
        layers && layers->value == "0") {
        refuse(layers->given, "keeps every layer off the device", "leave it out or set it to 99");
    }
    if (const auto offload = find_kv_offload_switch()) {
        refuse(offload->given, "keeps the KV cache off the device", "leave it out");
    }
    if (const auto attention = find({"-fa", "--flash-attn"}, "LLAMA_ARG_FLASH_ATTN");
        attention && is_off(attention->value)) {
        refuse(attention->given, "switches flash attention off, which kvcodec implements", "set it to on");
    }
    const auto check_type = [&](std::initializer_list<std::string_view> flags, const char* variable) {
        const auto type = find(flags, variable);
        if (type && !lists(type->value, "f16")) {
            refuse(type->given, "asks llama.cpp for another cache type", "leave it out or set it to f16");
        }
    };
    check_type({"-ctk", "--cache-type-k"}, "LLAMA_ARG_CACHE_TYPE_K");
    check_type({"-ctv", "--cache-type-v"}, "LLAMA_ARG_CACHE_TYPE_V");
    if (const auto devices = find({"-dev", "--device"}, "LLAMA_ARG_DEVICE");
        devices && !lists(devices->value, device)) {
        refuse(devices->given, "leaves out the device " + device, "leave it out or add " + device);
    }
}

}  // namespace kvcodec
