#include "kvcodec/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <span>
#include <system_error>
#include <type_traits>
#include <utility>

#include "kvcodec/codec/dictionary/omp.h"
#include "kvcodec/error.h"

namespace kvcodec {

namespace {

template <typename E>
using Names = std::span<const std::pair<std::string_view, E>>;

constexpr std::pair<std::string_view, Options::CodecChoice> kCodecs[] = {
    {"auto", Options::CodecChoice::kAuto},
    {"dictionary", Options::CodecChoice::kDictionary},
    {"scalar", Options::CodecChoice::kScalar},
    {"transform", Options::CodecChoice::kTransform},
    {"latent", Options::CodecChoice::kLatent},
    {"none", Options::CodecChoice::kNone},
    {"token", Options::CodecChoice::kToken},
    {"kivi", Options::CodecChoice::kKivi},
    {"turboquant", Options::CodecChoice::kTurboQuant},
    {"zipcache", Options::CodecChoice::kZipCache},
    {"h2o", Options::CodecChoice::kH2o},
    {"snapkv", Options::CodecChoice::kSnapKv},
    {"pyramidkv", Options::CodecChoice::kPyramidKv},
};
constexpr std::pair<std::string_view, CoefficientFormat> kCoefficients[] = {
    {"q4", CoefficientFormat::kSigned4},
    {"fp8", CoefficientFormat::kFp8},
};
constexpr std::pair<std::string_view, CodeLayout> kLayouts[] = {
    {"packed", CodeLayout::kPacked},
    {"published", CodeLayout::kPublished},
};
constexpr std::pair<std::string_view, Options::Mode> kModes[] = {
    {"live", Options::Mode::kLive},
    {"strict", Options::Mode::kStrict},
};
constexpr std::pair<std::string_view, Options::Log> kLogs[] = {
    {"quiet", Options::Log::kQuiet},
    {"info", Options::Log::kInfo},
    {"debug", Options::Log::kDebug},
};
constexpr std::pair<std::string_view, Options::Prefill> kPrefills[] = {
    {"stream", Options::Prefill::kStream},
    {"exact", Options::Prefill::kExact},
};
constexpr std::pair<std::string_view, Options::Measure> kMeasures[] = {
    {"off", Options::Measure::kOff},
    {"error", Options::Measure::kError},
    {"time", Options::Measure::kTime},
};
constexpr std::pair<std::string_view, bool> kSwitch[] = {{"on", true}, {"off", false}};

constexpr uint32_t kMaxCells = std::numeric_limits<int32_t>::max();

/// The value as T, all of it; nothing if it is not a number of that type.
template <typename T>
std::optional<T> parse_number(std::string_view value) {
    T number{};
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    return error == std::errc() && end == value.data() + value.size() ? std::optional(number) : std::nullopt;
}

/// Like Options, with what was left out still open.
struct Draft {
    Options options;
    std::optional<uint32_t> window;
    std::optional<uint32_t> sinks;
};

/// Each setter returns false if it cannot use the value.
template <typename E>
bool set_name(std::string_view value, std::type_identity_t<Names<E>> names, E& to) {
    const auto it = std::ranges::find(names, value, [](const auto& entry) { return entry.first; });
    if (it != names.end()) {
        to = it->second;
    }
    return it != names.end();
}

template <typename T, typename To>
bool set_number(std::string_view value, T lowest, T highest, To& to) {
    const auto number = parse_number<T>(value);
    const bool valid = number && *number >= lowest && *number <= highest;
    if (valid) {
        to = *number;
    }
    return valid;
}

bool set_budget(std::string_view value, std::optional<double>& to) {
    const bool percent = value.ends_with('%');
    auto number = parse_number<double>(percent ? value.substr(0, value.size() - 1) : value);
    if (number && percent) {
        *number /= 100;
    }
    const bool valid = number && *number > 0 && *number <= 1;
    if (valid) {
        to = *number;
    }
    return valid;
}

/// "1.5GiB" in bytes; nothing if it is not a positive number with a unit.
std::optional<double> parse_bytes(std::string_view value) {
    constexpr std::pair<std::string_view, double> kUnits[] = {
        {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"B", 1.0}};
    for (const auto& [unit, size] : kUnits) {
        if (value.ends_with(unit)) {
            const auto number = parse_number<double>(value.substr(0, value.size() - unit.size()));
            return number && *number > 0 && std::isfinite(*number) ? std::optional(*number * size) : std::nullopt;
        }
    }
    return std::nullopt;
}

bool set_any_budget(std::string_view value, Options& to) {
    const size_t at = value.find('@');
    if (const auto bytes = parse_bytes(value.substr(0, at))) {
        SizeBudget budget{*bytes};
        if (at != std::string_view::npos &&
            !set_number<uint32_t>(value.substr(at + 1), 1, std::numeric_limits<int32_t>::max(), budget.tokens)) {
            return false;
        }
        to.size_budget = budget;
        to.budget.reset();
        return true;
    }
    to.size_budget.reset();
    return set_budget(value, to.budget);
}

bool set_error(std::string_view value, float& to) {
    return set_number<float>(value, 0.0F, 0x1.fffffep-1F, to);  // the float below 1
}

bool set_sparsity(std::string_view value, std::optional<uint32_t>& to) {
    return set_number<uint32_t>(value, 1, kMaxSparsity, to);
}

bool set_bits(std::string_view value, std::optional<uint32_t>& to) {
    return (value == "2" || value == "3" || value == "4" || value == "8" || value == "16") &&
           set_number<uint32_t>(value, 2, 16, to);
}

bool set_layers(std::string_view value, std::vector<std::pair<uint32_t, uint32_t>>& to) {
    to.clear();
    for (bool more = true; more;) {
        const size_t plus = value.find('+');
        const std::string_view range = value.substr(0, plus);
        const size_t dash = range.find('-');
        const auto first = parse_number<uint32_t>(range.substr(0, dash));
        const auto last = dash == std::string_view::npos ? first : parse_number<uint32_t>(range.substr(dash + 1));
        if (!first || !last || *first > *last) {
            return false;
        }
        to.emplace_back(*first, *last);
        more = plus != std::string_view::npos;
        value.remove_prefix(more ? plus + 1 : 0);
    }
    return true;
}

struct Key {
    std::string_view name;
    std::string_view valid;  // its values, for messages
    bool (*set)(Draft&, std::string_view value);
};

constexpr std::string_view kErrors = "a number >= 0 and < 1";
constexpr std::string_view kSparsities = "a whole number from 1 to 64";
constexpr std::string_view kBits = "2, 3, 4 or 8";
constexpr std::string_view kCounts = "a whole number >= 0";
static_assert(kMaxSparsity == 64, "kSparsities says so");

constexpr Key kKeys[] = {
    {"artifact", "the path of an artifact",
     [](Draft& d, std::string_view v) {
         d.options.artifact = v;
         return !v.empty();
     }},
    {"codec",
     "auto, dictionary, scalar, transform, latent, none, or a baseline: token, kivi, turboquant, zipcache, h2o, snapkv "
     "or "
     "pyramidkv",
     [](Draft& d, std::string_view v) { return set_name(v, kCodecs, d.options.codec); }},
    {"budget", "a share such as 20% or 0.2, bytes of a token such as 2.5KiB, or of all tokens such as 1GiB@32768",
     [](Draft& d, std::string_view v) { return set_any_budget(v, d.options); }},
    {"s", kSparsities,
     [](Draft& d, std::string_view v) { return set_sparsity(v, d.options.s_k) && set_sparsity(v, d.options.s_v); }},
    {"s_k", kSparsities, [](Draft& d, std::string_view v) { return set_sparsity(v, d.options.s_k); }},
    {"s_v", kSparsities, [](Draft& d, std::string_view v) { return set_sparsity(v, d.options.s_v); }},
    {"bits", kBits,
     [](Draft& d, std::string_view v) { return set_bits(v, d.options.bits_k) && set_bits(v, d.options.bits_v); }},
    {"bits_k", kBits, [](Draft& d, std::string_view v) { return set_bits(v, d.options.bits_k); }},
    {"bits_v", kBits, [](Draft& d, std::string_view v) { return set_bits(v, d.options.bits_v); }},
    {"coefficients", "q4 or fp8",
     [](Draft& d, std::string_view v) { return set_name(v, kCoefficients, d.options.coefficients); }},
    {"layout", "packed or published",
     [](Draft& d, std::string_view v) { return set_name(v, kLayouts, d.options.layout); }},
    {"layers", "layers and ranges of them such as 0-3+7",
     [](Draft& d, std::string_view v) { return set_layers(v, d.options.layers); }},
    {"relative_error", kErrors,
     [](Draft& d, std::string_view v) {
         return set_error(v, d.options.relative_error_k) && set_error(v, d.options.relative_error_v);
     }},
    {"relative_error_k", kErrors,
     [](Draft& d, std::string_view v) { return set_error(v, d.options.relative_error_k); }},
    {"relative_error_v", kErrors,
     [](Draft& d, std::string_view v) { return set_error(v, d.options.relative_error_v); }},
    {"adaptive", "a whole number from 0 to 32768",
     [](Draft& d, std::string_view v) { return set_number<uint32_t>(v, 0, 32768, d.options.adaptive); }},
    {"unbias_k", "a number from 0 to 1",
     [](Draft& d, std::string_view v) { return set_number<float>(v, 0.0F, 1.0F, d.options.unbias_k); }},
    {"unbias_v", "a number from 0 to 1",
     [](Draft& d, std::string_view v) { return set_number<float>(v, 0.0F, 1.0F, d.options.unbias_v); }},
    {"window", kCounts, [](Draft& d, std::string_view v) { return set_number<uint32_t>(v, 0, kMaxCells, d.window); }},
    {"sinks", kCounts, [](Draft& d, std::string_view v) { return set_number<uint32_t>(v, 0, kMaxCells, d.sinks); }},
    {"mode", "live or strict", [](Draft& d, std::string_view v) { return set_name(v, kModes, d.options.mode); }},
    {"log", "quiet, info or debug", [](Draft& d, std::string_view v) { return set_name(v, kLogs, d.options.log); }},
    {"release", "on or off", [](Draft& d, std::string_view v) { return set_name(v, kSwitch, d.options.release); }},
    {"remember", "on or off", [](Draft& d, std::string_view v) { return set_name(v, kSwitch, d.options.remember); }},
    {"crossover", "a whole number of cells, or -1 for automatic",
     [](Draft& d, std::string_view v) {
         return set_number<int32_t>(v, -1, std::numeric_limits<int32_t>::max(), d.options.crossover);
     }},
    {"prefill", "stream or exact",
     [](Draft& d, std::string_view v) { return set_name(v, kPrefills, d.options.prefill); }},
    {"measure", "off, error or time",
     [](Draft& d, std::string_view v) { return set_name(v, kMeasures, d.options.measure); }},
};

void parse_item(Draft& draft, std::string_view item) {
    const size_t equals = item.find('=');
    const std::string_view name = item.substr(0, equals);
    const auto* key = std::ranges::find(kKeys, name, &Key::name);
    if (key == std::end(kKeys)) {
        std::string valid;
        for (const Key& known : kKeys) {
            valid += fmt::format("{}{}", valid.empty() ? "" : ", ", known.name);
        }
        throw Error(fmt::format("KVCODEC: unknown key '{}'; the keys are {}", name, valid));
    }
    const std::string_view value = equals == std::string_view::npos ? "" : item.substr(equals + 1);
    if (!key->set(draft, value)) {
        throw Error(fmt::format("KVCODEC: {}={} is not valid; give {}", name, value, key->valid));
    }
}

template <typename E>
std::string_view name_of(Names<E> names, E value) {
    return std::ranges::find(names, value, [](const auto& entry) { return entry.second; })->first;
}

void check_budget(const Options& options) {
    if (options.size_budget && options.is_baseline()) {
        throw Error(fmt::format("KVCODEC: codec={} takes budgets such as 20%, not in bytes",
                                name_of<Options::CodecChoice>(kCodecs, options.codec)));
    }
}

void check_thresholds(const Options& options) {
    const bool any = options.relative_error_k != 0.0F || options.relative_error_v != 0.0F;
    if (any && options.codec != Options::CodecChoice::kDictionary && options.codec != Options::CodecChoice::kAuto &&
        options.codec != Options::CodecChoice::kNone) {
        throw Error(fmt::format("KVCODEC: relative_error= is of the dictionary, not of codec={}; leave one of them out",
                                name_of<Options::CodecChoice>(kCodecs, options.codec)));
    }
    if (options.adaptive != 0 && (options.relative_error_k == 0.0F || options.relative_error_v == 0.0F ||
                                  options.layout != CodeLayout::kPacked)) {
        throw Error("KVCODEC: adaptive= adds what misses an error; give relative_error= too, and layout=packed");
    }
}

/// The baselines come with the bits of their papers only.
void check_bits(const Options& options) {
    const auto check = [&](std::string_view side, std::optional<uint32_t> bits) {
        const bool has_3 = options.codec == Options::CodecChoice::kTurboQuant;
        if (options.evicts() && bits) {
            throw Error(fmt::format("KVCODEC: codec={} keeps rows in f16, but bits_{}={} is given; leave it out",
                                    name_of<Options::CodecChoice>(kCodecs, options.codec), side, *bits));
        }
        if (options.codec == Options::CodecChoice::kZipCache && bits) {
            throw Error(
                fmt::format("KVCODEC: codec=zipcache has rows of 4 and of 2 bits, but bits_{}={} is given; "
                            "leave it out, or give a budget",
                            side, *bits));
        }
        const bool has_16 = options.codec == Options::CodecChoice::kLatent ||
                            options.codec == Options::CodecChoice::kAuto ||
                            options.codec == Options::CodecChoice::kNone;
        if (bits == 16U && !has_16 && !options.is_baseline()) {
            throw Error(fmt::format("KVCODEC: bits_{}=16 is of latents, not of codec={}; give 2, 3, 4 or 8", side,
                                    name_of<Options::CodecChoice>(kCodecs, options.codec)));
        }
        if (options.codec == Options::CodecChoice::kTransform && side == "k" && bits && *bits > 4) {
            throw Error(
                fmt::format("KVCODEC: codec=transform has 2, 3 or 4 bits for keys, but bits_k={} is given", *bits));
        }
        if (options.is_baseline() && bits && (*bits > 4 || (*bits == 3 && !has_3))) {
            throw Error(fmt::format("KVCODEC: codec={} has {} bits, but bits_{}={} is given",
                                    name_of<Options::CodecChoice>(kCodecs, options.codec),
                                    has_3 ? "2, 3 or 4" : "2 or 4", side, *bits));
        }
    };
    check("k", options.bits_k);
    check("v", options.bits_v);
}

}  // namespace

Options parse_options(std::string_view text) {
    Draft draft;
    while (!text.empty()) {
        const std::string_view item = text.substr(0, text.find(','));
        text.remove_prefix(std::min(text.size(), item.size() + 1));
        if (!item.empty()) {
            parse_item(draft, item);
        }
    }
    check_budget(draft.options);
    check_bits(draft.options);
    check_thresholds(draft.options);
    const bool strict = draft.options.mode == Options::Mode::kStrict;
    const bool bare = strict || draft.options.evicts();
    if (bare && draft.window.value_or(0) != 0) {
        throw Error(fmt::format("KVCODEC: {} keeps no window, but window={} is given; leave one of them out",
                                strict ? "mode=strict" : "a codec that evicts", *draft.window));
    }
    draft.options.window = draft.window.value_or(bare ? 0 : draft.options.window);
    draft.options.sinks = draft.sinks.value_or(bare ? 0 : draft.options.sinks);
    return draft.options;
}

std::string to_string(const Options& options) {
    if (options.artifact.find(',') != std::string::npos) {
        throw Error(fmt::format("KVCODEC cannot hold the artifact path '{}': it contains a comma; rename the file",
                                options.artifact));
    }
    const Options defaults = parse_options(options.mode == Options::Mode::kStrict ? "mode=strict"
                                           : options.evicts()                     ? "codec=h2o"
                                                                                  : "");
    std::string text;
    const auto put = [&](std::string_view key, const auto& value, bool wanted) {
        if (wanted) {
            text += fmt::format("{}{}={}", text.empty() ? "" : ",", key, value);
        }
    };
    const auto put_name = [&]<typename E>(std::string_view key, E value, E otherwise,
                                          std::type_identity_t<Names<E>> names) {
        put(key, name_of<E>(names, value), value != otherwise);
    };
    const auto put_sides = [&](const std::string& key, std::optional<uint32_t> k, std::optional<uint32_t> v) {
        const bool both = k && k == v;
        put(key, k.value_or(0), both);
        put(key + "_k", k.value_or(0), k && !both);
        put(key + "_v", v.value_or(0), v && !both);
    };
    put("artifact", options.artifact, !options.artifact.empty());
    put_name("codec", options.codec, Options().codec, kCodecs);
    put("budget", options.budget.value_or(0), options.budget.has_value());
    if (const auto& size = options.size_budget) {
        put("budget", fmt::format("{}B{}", size->bytes, size->tokens == 0 ? "" : fmt::format("@{}", size->tokens)),
            true);
    }
    put_sides("s", options.s_k, options.s_v);
    put_sides("bits", options.bits_k, options.bits_v);
    put_name("coefficients", options.coefficients, defaults.coefficients, kCoefficients);
    put_name("layout", options.layout, defaults.layout, kLayouts);
    std::string layers;
    for (const auto& [first, last] : options.layers) {
        layers += fmt::format("{}{}", layers.empty() ? "" : "+", first);
        layers += first == last ? "" : fmt::format("-{}", last);
    }
    put("layers", layers, !layers.empty());
    const auto put_error = [&](std::string_view key, float value) { put(key, value, value != 0.0F); };
    if (options.relative_error_k == options.relative_error_v) {
        put_error("relative_error", options.relative_error_k);
    } else {
        put_error("relative_error_k", options.relative_error_k);
        put_error("relative_error_v", options.relative_error_v);
    }
    put("adaptive", options.adaptive, options.adaptive != 0);
    put("unbias_k", options.unbias_k, options.unbias_k != defaults.unbias_k);
    put("unbias_v", options.unbias_v, options.unbias_v != defaults.unbias_v);
    put_name("mode", options.mode, Options::Mode::kLive, kModes);
    put("window", options.window, options.window != defaults.window);
    put("sinks", options.sinks, options.sinks != defaults.sinks);
    put_name("log", options.log, defaults.log, kLogs);
    put_name("release", options.release, defaults.release, kSwitch);
    put_name("remember", options.remember, defaults.remember, kSwitch);
    put("crossover", options.crossover, options.crossover != defaults.crossover);
    put_name("measure", options.measure, defaults.measure, kMeasures);
    put_name("prefill", options.prefill, defaults.prefill, kPrefills);
    return text;
}

}  // namespace kvcodec
