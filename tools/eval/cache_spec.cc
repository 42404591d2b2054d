#include "tools/eval/cache_spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <ranges>

#include "kvcodec/error.h"
#include "kvcodec/options.h"

namespace kvcodec {

namespace {

// What llama.cpp's -ctk and -ctv take.
constexpr std::array kHostTypes = {GGML_TYPE_F32,  GGML_TYPE_F16,    GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
                                   GGML_TYPE_Q4_1, GGML_TYPE_IQ4_NL, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1};

constexpr std::string_view kPlugin = "kvcodec";

std::vector<std::string> split(std::string_view text, char separator) {
    std::vector<std::string> parts = {""};
    for (const char c : text) {
        if (c == separator) {
            parts.emplace_back();
        } else {
            parts.back() += c;
        }
    }
    return parts;
}

std::optional<ggml_type> host_type(std::string_view name) {
    const auto* it = std::ranges::find_if(
        kHostTypes, [&](ggml_type type) { return name == std::string_view(ggml_type_name(type)); });
    return it == kHostTypes.end() ? std::nullopt : std::optional(*it);
}

std::optional<CacheSpec> parse_host_cache(const std::string& name) {
    const std::vector<std::string> sides = split(name, '/');
    const auto k = host_type(sides.front());
    const auto v = host_type(sides.back());
    if (sides.size() > 2 || !k || !v) {
        return std::nullopt;
    }
    CacheSpec spec;
    spec.name = name;
    spec.type_k = *k;
    spec.type_v = *v;
    return spec;
}

std::vector<CacheSpec> parse_plugin_cache(const std::string& name, const std::vector<std::string>& artifacts,
                                          std::string_view mode) {
    CacheSpec spec;
    spec.name = name;
    spec.plugin = true;
    spec.options = fmt::format("mode={},log=quiet", mode);
    std::optional<std::string> artifact;
    for (const std::string& part : split(name, ':') | std::views::drop(1)) {
        if (part.starts_with("artifact=")) {
            artifact = part.substr(part.find('=') + 1);
        } else {
            spec.options += fmt::format(",{}{}", part.find('=') == std::string::npos ? "budget=" : "", part);
        }
    }
    const Options options = parse_options(spec.options);  // an unknown key is reported now, not after an hour
    if (artifact || artifacts.empty() || options.is_baseline()) {
        spec.artifact = artifact == "none" ? "" : artifact.value_or("");
        return {spec};
    }
    std::vector<CacheSpec> specs;
    for (const std::string& file : artifacts) {
        specs.push_back(spec);
        specs.back().artifact = file;
        if (artifacts.size() > 1) {
            specs.back().name = fmt::format("{} {}", name, std::filesystem::path(file).filename().string());
        }
    }
    return specs;
}

}  // namespace

double CacheSpec::host_rate() const {
    const auto bits = [](ggml_type type) {
        return 8.0 * static_cast<double>(ggml_type_size(type)) / static_cast<double>(ggml_blck_size(type));
    };
    return (bits(type_k) + bits(type_v)) / 32.0;
}

std::vector<CacheSpec> parse_caches(std::string_view list, const std::vector<std::string>& artifacts,
                                    std::string_view mode) {
    std::vector<CacheSpec> specs;
    for (const std::string& name : split(list, ',')) {
        std::vector<CacheSpec> found;
        if (name == kPlugin || name.starts_with(fmt::format("{}:", kPlugin))) {
            found = parse_plugin_cache(name, artifacts, mode);
        } else if (const auto spec = parse_host_cache(name)) {
            found = {*spec};
        } else {
            std::string known;
            for (const ggml_type type : kHostTypes) {
                known += fmt::format("{}, ", ggml_type_name(type));
            }
            throw Error(fmt::format("unknown cache '{}'; the caches are {}pairs of these (K/V), and kvcodec:OPTIONS",
                                    name, known));
        }
        for (CacheSpec& spec : found) {
            if (std::ranges::find(specs, spec) == specs.end()) {
                specs.push_back(std::move(spec));
            }
        }
    }
    return specs;
}

}  // namespace kvcodec
