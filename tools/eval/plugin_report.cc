#include "tools/eval/plugin_report.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace kvcodec {

namespace {

constexpr std::array<std::string_view, 9> kSums = {"code_bytes",     "f16_bytes", "fixed_bytes",
                                                   "resident_bytes", "pairs",     "pairs_coded",
                                                   "rows_rebuilt",   "encode_us", "attention_us"};
constexpr std::array<std::string_view, 3> kMost = {"dense_tokens", "coded_cells", "dense_cells"};

void add(Json& sum, const Json& value) {
    sum = sum.get<int64_t>() + value.get<int64_t>();
}

}  // namespace

Json joined_report(const Json& reports) {
    Json joined;
    for (const Json& report : reports) {
        if (joined.is_null()) {
            joined = report;
            continue;
        }
        for (const auto& [key, value] : report.items()) {
            if (std::ranges::find(kSums, key) != kSums.end()) {
                add(joined[key], value);
            } else if (std::ranges::find(kMost, key) != kMost.end()) {
                joined[key] = std::max(joined[key], value);
            } else if (value.is_array()) {
                joined[key].insert(joined[key].end(), value.begin(), value.end());
            } else if (value.is_object()) {
                for (const auto& [part, time] : value.items()) {
                    add(joined[key][part], time);
                }
            }
        }
    }
    return joined;
}

double total_bytes(const Json& report, double tokens) {
    const auto number = [&](const char* key) { return report[key].get<double>(); };
    const double dense = std::min(tokens, number("dense_tokens"));
    return number("code_bytes") * (tokens - dense) + number("f16_bytes") * dense + number("fixed_bytes");
}

}  // namespace kvcodec
