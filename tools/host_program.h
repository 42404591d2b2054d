// What the command line and environment of a llama.cpp program say about its model and its KV cache.
#pragma once

#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvcodec {

/// A program to be started and the environment it will see. The command line wins over the environment and the last
/// mention of a flag over earlier ones, as in llama.cpp's own parser.
class HostProgram {
  public:
    /// argv: the program and its arguments, at least one.
    explicit HostProgram(std::vector<std::string> argv);

    const std::vector<std::string>& argv() const { return argv_; }
    /// llama-bench parses its flags itself: it takes lists and ignores LLAMA_ARG_* variables.
    bool is_bench() const { return is_bench_; }
    /// Whether the command line has one of these flags.
    bool has_flag(std::span<const std::string_view> flags) const;
    void append(std::string_view flag, std::string_view value);

    /// The model's file, as given or, for a Hugging Face repository, as llama.cpp's cache folders have it. Nothing if
    /// no model is named or the file is not found.
    std::optional<std::string> find_model() const;

    /// Throws Error naming the flag or variable to change if it would keep every layer's KV cache off `device`.
    void check_layers_reach(const std::string& device) const;

  private:
    struct Setting {
        std::string value;
        std::string given;  ///< as the user wrote it, for messages
    };
    std::optional<Setting> find(std::initializer_list<std::string_view> flags, const char* variable) const;
    std::optional<Setting> find_kv_offload_switch() const;

    std::vector<std::string> argv_;
    bool is_bench_;
};

}  // namespace kvcodec
