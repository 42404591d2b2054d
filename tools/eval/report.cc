#include "tools/eval/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ggml-kvcodec/report.h"
#include "kvcodec/options.h"
#include "tools/eval/chart.h"

namespace kvcodec {

namespace {

using Json = nlohmann::json;

// ---- tables, as rows of text that either form prints ---------------------------------------------------------------

struct Table {
    std::string title;
    std::string caption;
    std::vector<std::string> head;
    std::vector<std::vector<std::string>> rows;
    std::string figure;        ///< SVG, in HTML only
    std::string preformatted;  ///< long texts, in HTML only
};

std::string percent(double share) {
    return fmt::format("{:.1f} %", 100 * share);
}

std::string with_error(double value, double error, int digits) {
    return fmt::format("{:.{}f} ± {:.{}f}", value, digits, error, digits);
}

double number(const Json& json, const char* key) {
    return json.contains(key) && json[key].is_number() ? json[key].get<double>() : 0.0;
}

/// The array of this name; empty where there is none, as in files of older runs.
Json list_of(const Json& json, const char* key) {
    return json.value(key, Json::array());
}

/// A number of the result, or nothing where it was not measured.
std::string number_cell(const Json& json, const char* key, int digits) {
    return json.contains(key) ? fmt::format("{:.{}f}", number(json, key), digits) : "";
}

std::string bytes_cells(const Json& result) {
    return percent(number(result, "rate"));
}

/// What of an entry's settings belongs to the suite, not to the cache.
Json common_settings(Json settings) {
    for (const char* own : {"options", "artifact"}) {
        settings.erase(own);
    }
    return settings;
}

std::string describe(const Json& settings) {
    std::string text;
    for (const auto& [key, value] : settings.items()) {
        if (key.find("checksum") == std::string::npos) {
            text += fmt::format("{}{} {}", text.empty() ? "" : ", ", key,
                                value.is_string() ? value.get<std::string>() : value.dump());
        }
    }
    return text;
}

std::string mode_of(const Json& entry) {
    const std::string options = entry["settings"].value("options", "");
    const size_t last = options.rfind("mode=");  // the last one is in force
    return last != std::string::npos && options.compare(last, 9, "mode=live") == 0 ? "live" : "strict";
}

bool is_plugin(const Json& entry) {
    return entry["settings"].contains("options");
}

/// Whether the cache is kvcodec with one of its own codecs, not a published rival.
bool is_own(const Json& entry) {
    const auto options = entry["settings"].find("options");
    return options != entry["settings"].end() && !parse_options(options->get<std::string>()).is_baseline();
}

/// Name of a cache in a chart: of a rival, its own.
std::string label_of(const Json& entry) {
    const auto name = entry["cache"].get<std::string>();
    const std::string_view prefix = "kvcodec:codec=";
    return name.starts_with(prefix) && !is_own(entry) ? name.substr(prefix.size()) : name;
}

struct Section {
    std::string suite;
    Json settings;
    std::vector<Json> entries;
};

/// Results of equal suite and settings, in order of first appearance.
std::vector<Section> sections_of(const Json& document) {
    std::vector<Section> sections;
    for (const Json& entry : document["results"]) {
        const Json settings = common_settings(entry["settings"]);
        auto it = std::ranges::find_if(sections, [&](const Section& section) {
            return section.suite == entry["suite"] && section.settings == settings;
        });
        if (it == sections.end()) {
            sections.push_back({entry["suite"], settings, {}});
            it = sections.end() - 1;
        }
        it->entries.push_back(entry);
    }
    return sections;
}

/// The layer of a cache that compresses one alone ("...:layers=3"), and its name without it.
std::optional<std::pair<std::string, double>> single_layer(const std::string& cache) {
    static const std::regex kPattern(":layers=([0-9]+)(?=[: ]|$)");
    std::smatch match;
    if (!std::regex_search(cache, match, kPattern)) {
        return std::nullopt;
    }
    return std::pair(match.prefix().str() + match.suffix().str(), std::stod(match[1].str()));
}

std::vector<std::string> words_of(const std::string& name) {
    std::vector<std::string> parts(1);
    for (const char c : name) {
        if (c == ':' || c == ' ') {
            parts.emplace_back();
        } else {
            parts.back() += c;
        }
    }
    return parts;
}

/// Leaves out of names what all of them say.
void shorten_names(std::vector<ChartSeries>& series) {
    std::vector<std::string> common = series.empty() ? std::vector<std::string>() : words_of(series.front().name);
    for (const ChartSeries& other : series) {
        const std::vector<std::string> parts = words_of(other.name);
        std::erase_if(common, [&](const std::string& part) { return std::ranges::count(parts, part) == 0; });
    }
    if (common.empty() || series.size() < 2) {
        return;
    }
    for (size_t i = 0; i < series.size(); ++i) {
        std::string shorter;
        for (const std::string& part : words_of(series[i].name)) {
            if (std::ranges::count(common, part) == 0) {
                shorter += (shorter.empty() ? "" : " ") + part;
            }
        }
        series[i].name = shorter.empty() ? series[i].name : shorter;
    }
}

/// Against rate, or against the layer where every cache compresses one layer alone.
Chart kld_chart(const Section& section) {
    Chart by_rate{"rate: bytes of a coded token, % of f16", "mean KLD to the f16 cache", true, {}};
    Chart by_layer{"the only compressed layer", "mean KLD to the f16 cache", true, {}};
    bool all_single = true;
    for (const Json& entry : section.entries) {
        const Json& r = entry["result"];
        if (r.value("refused", false)) {
            continue;
        }
        by_rate.series.push_back(
            {label_of(entry), {{100 * number(r, "rate"), number(r, "kld")}}, false, true, is_own(entry)});
        const auto layer = single_layer(entry["cache"]);
        all_single = all_single && layer;
        if (layer) {
            auto series = std::ranges::find(by_layer.series, layer->first, &ChartSeries::name);
            if (series == by_layer.series.end()) {
                by_layer.series.push_back({layer->first, {}});
                series = by_layer.series.end() - 1;
            }
            series->points.emplace_back(layer->second, number(r, "kld"));
        }
    }
    for (ChartSeries& series : by_layer.series) {
        std::ranges::sort(series.points);
    }
    Chart& chart = all_single && !by_layer.series.empty() ? by_layer : by_rate;
    shorten_names(chart.series);
    return chart;
}

Table divergence_table(const Section& section) {
    Table table;
    table.title = fmt::format("{}: {}", section.suite, describe(section.settings));
    table.caption =
        "KL divergence of the next-token distribution from the f16 cache's, lower is better; same top: share of "
        "predictions with the same most likely token. Rate is of a coded token, total counts window, sinks and "
        "dictionaries too.";
    table.head = {"cache",
                  "mode",
                  "rate",
                  "total at 4k",
                  "total at 32k",
                  "mean KLD",
                  "median",
                  "99 %",
                  "99.9 %",
                  "max",
                  "same top",
                  "perplexity ratio",
                  "pairs read through codes"};
    for (const Json& entry : section.entries) {
        const Json& r = entry["result"];
        const std::string share = percent(number(r, "pairs_through_codes"));
        std::vector<std::string> row = {entry["cache"], mode_of(entry), bytes_cells(r), percent(number(r, "total_4k")),
                                        percent(number(r, "total_32k"))};
        if (r.value("refused", false)) {
            row.insert(row.end(), {"refused: too few pairs", "", "", "", "", "", "", share});
        } else {
            row.insert(
                row.end(),
                {with_error(number(r, "kld"), number(r, "kld_error"), 4),
                 fmt::format("{:.4f}", number(r, "kld_median")), fmt::format("{:.3f}", number(r, "kld_99")),
                 fmt::format("{:.3f}", number(r, "kld_99.9")), fmt::format("{:.2f}", number(r, "kld_max")),
                 fmt::format("{:.2f} ± {:.2f} %", 100 * number(r, "same_top"), 100 * number(r, "same_top_error")),
                 with_error(number(r, "perplexity_ratio"), number(r, "perplexity_ratio_error"), 4), share});
        }
        table.rows.push_back(std::move(row));
    }
    table.figure = svg_of(kld_chart(section));
    return table;
}

double relative_error(const Json& sums) {
    double miss = 0;
    double residual = 0;
    for (const Json& range : sums) {
        miss += range[0].get<double>();
        residual += range[1].get<double>();
    }
    return residual > 0 ? std::sqrt(miss / residual) : 0.0;
}

Table recon_table(const Section& section) {
    Table table;
    table.title = fmt::format("recon: {}", describe(section.settings));
    table.caption =
        "Relative error of coded vectors, sqrt(sum ||x - x̂||² / sum ||x - mean||²), all layers together, by first "
        "position of a range; the chart shows it layer by layer.";
    table.head = {"cache", "rate", "side"};
    for (size_t i = 0; i < std::size(host::kDistortionRanges); ++i) {
        table.head.push_back(fmt::format("from {}", host::kDistortionRanges[i]));
    }
    Chart chart{"layer", "relative error", false, {}};
    for (const Json& entry : section.entries) {
        for (const char* side : {"k", "v"}) {
            std::vector<double> miss(std::size(host::kDistortionRanges));
            std::vector<double> residual(miss.size());
            ChartSeries series{fmt::format("{} {}", entry["cache"].get<std::string>(), *side == 'k' ? "K" : "V"), {}};
            for (const Json& layer : entry["result"]["distortion"]) {
                series.points.emplace_back(layer["layer"].get<double>(), relative_error(layer[side]));
                for (size_t i = 0; i < miss.size(); ++i) {
                    miss[i] += layer[side][i][0].get<double>();
                    residual[i] += layer[side][i][1].get<double>();
                }
            }
            std::vector<std::string> row = {entry["cache"], bytes_cells(entry["result"]), *side == 'k' ? "K" : "V"};
            for (size_t i = 0; i < miss.size(); ++i) {
                row.push_back(residual[i] > 0 ? fmt::format("{:.3f}", std::sqrt(miss[i] / residual[i])) : "");
            }
            table.rows.push_back(std::move(row));
            chart.series.push_back(std::move(series));
        }
    }
    table.figure = svg_of(chart);
    return table;
}

/// Milliseconds of a step at the deepest depth; nothing where none was measured.
std::optional<double> deepest_ms(const Json& speed) {
    const Json depths = list_of(speed, "depths");
    return depths.empty() ? std::nullopt : std::optional(number(depths.back(), "median_ms"));
}

/// When and where each entry's times were measured, and what a step with f16 took in that run; nothing where all
/// entries are of one run.
std::vector<std::string> runs_of(const Section& section) {
    std::vector<std::string> runs;
    for (const Json& entry : section.entries) {
        std::string run = fmt::format("{}, {}", entry.value("date", "no date"), entry.value("cpu", "no processor"));
        if (const auto f16 = deepest_ms(entry["result"].value("f16", Json::object()))) {
            run += fmt::format("; f16 {:.2f} ms a step", *f16);
        }
        runs.push_back(std::move(run));
    }
    if (std::ranges::count(runs, runs.front()) == std::ssize(runs)) {
        runs.clear();
    }
    return runs;
}

/// Adds a column to a table of the section's entries, one a row, unless all are of one run.
void mark_runs(Table& table, const Section& section) {
    const std::vector<std::string> runs = runs_of(section);
    if (runs.empty()) {
        return;
    }
    table.caption += " Rows are of several runs: only ratios and rows of one run can be compared.";
    table.head.emplace_back("run");
    for (size_t i = 0; i < runs.size(); ++i) {
        table.rows[i].push_back(runs[i]);
    }
}

Table speed_table(const Section& section) {
    Table table;
    table.title = fmt::format("speed: {}", describe(section.settings));
    table.caption =
        "Inter-token latency against depth, medians, live mode. Latency = intercept + slope · depth; ratios are to the "
        "f16 cache of the same run. Break-even: the depth from which a step is faster than with f16.";
    table.head = {"cache",
                  "rate",
                  "intercept, ms",
                  "slope, µs a token",
                  "slope / f16",
                  "break-even depth",
                  "prompt time / f16",
                  "encoding, % of the prompt",
                  "99 % / median, deepest"};
    const Json counts = list_of(section.settings, "sequences");
    for (const Json& n : counts) {
        table.head.push_back(fmt::format("tokens/s, {} at once", n.dump()));
    }
    Chart chart{"depth, tokens", "inter-token latency, ms", false, {}};
    for (const Json& entry : section.entries) {
        const Json& r = entry["result"];
        const Json depths = list_of(r, "depths");
        ChartSeries series{entry["cache"], {}};
        for (const Json& depth : depths) {
            series.points.emplace_back(number(depth, "depth"), number(depth, "median_ms"));
        }
        chart.series.push_back(std::move(series));
        const Json deepest = depths.empty() ? Json::object() : depths.back();
        std::vector<std::string> row = {
            entry["cache"],
            bytes_cells(r),
            number_cell(r, "intercept_ms", 2),
            number_cell(r, "slope_us_per_token", 3),
            number_cell(r, "slope_ratio", 2),
            number_cell(r, "break_even_depth", 0),
            number_cell(r, "prompt_ratio", 2),
            r.contains("prompt_encode_share") ? fmt::format("{:.1f}", 100 * number(r, "prompt_encode_share")) : "",
            deepest.contains("median_ms")
                ? fmt::format("{:.2f}", number(deepest, "p99_ms") / std::max(number(deepest, "median_ms"), 1e-9))
                : ""};
        const Json points = list_of(r, "sequences");
        for (const Json& n : counts) {
            const auto point =
                std::ranges::find_if(points, [&](const Json& p) { return p.value("sequences", Json()) == n; });
            row.push_back(point == points.end() ? "" : number_cell(*point, "tokens_per_second", 1));
        }
        table.rows.push_back(std::move(row));
    }
    table.figure = svg_of(chart);
    mark_runs(table, section);
    return table;
}

Table component_table(const Section& section) {
    Table table;
    table.title = fmt::format("components: {}", describe(section.settings));
    table.caption =
        "Where the time of a step's attention goes: milliseconds a token, summed over threads, with a clock read "
        "between all parts, live mode.";
    table.head = {"cache", "rate"};
    const auto parts_of = [](const Json& entry) { return entry["result"].value("parts_ms", Json::object()); };
    for (const Json& entry : section.entries) {
        const Json parts = parts_of(entry);
        for (const auto& [part, value] : parts.items()) {
            if (std::ranges::find(table.head, part) == table.head.end()) {
                table.head.push_back(part);
            }
        }
    }
    for (const Json& entry : section.entries) {
        std::vector<std::string> row = {entry["cache"], bytes_cells(entry["result"])};
        const Json parts = parts_of(entry);
        for (size_t i = row.size(); i < table.head.size(); ++i) {
            row.push_back(parts.contains(table.head[i]) ? fmt::format("{:.3g}", number(parts, table.head[i].c_str()))
                                                        : "");
        }
        table.rows.push_back(std::move(row));
    }
    mark_runs(table, section);
    return table;
}

/// "512 tokens, depth 25 %" -> heat-map of depth by length.
std::string needle_map(const Json& result) {
    HeatMap map{"length of the text, tokens", "depth of the needle", {}, {}, {}};
    std::map<std::pair<int, int>, double> cells;
    for (const auto& [group, value] : result["groups"].items()) {
        int length = 0;
        int depth = 0;
        if (std::sscanf(group.c_str(), "%d tokens, depth %d", &length, &depth) == 2) {
            cells[{depth, length}] = number(value, "score");
        }
    }
    std::vector<int> lengths;
    int last_depth = -1;
    for (const auto& [key, score] : cells) {
        if (key.first != last_depth) {
            last_depth = key.first;
            map.rows.push_back(fmt::format("{} %", key.first));
            map.values.emplace_back();
        }
        if (map.rows.size() == 1) {
            map.columns.push_back(std::to_string(key.second));
        }
        map.values.back().push_back(score);
    }
    return cells.empty() ? "" : svg_of(map);
}

Table task_table(const Section& section) {
    Table table;
    table.title = fmt::format("{}: {}", section.suite, describe(section.settings));
    table.caption =
        "Scores of greedy answers, with 95 % intervals where answers are right or wrong. p: McNemar's exact test on "
        "the answers that only one of f16 and the cache has right.";
    table.head = {"cache",
                  "mode",
                  "rate",
                  "n",
                  "score",
                  "95 % interval",
                  "strict",
                  "only f16 right",
                  "only this right",
                  "p",
                  "pairs read through codes"};
    for (const Json& entry : section.entries) {
        const Json& r = entry["result"];
        table.rows.push_back(
            {entry["cache"], entry["cache"].get<std::string>().starts_with("kvcodec") ? mode_of(entry) : "",
             bytes_cells(r), r["n"].dump(), percent(number(r, "score")),
             r.contains("interval") ? fmt::format("{:.1f} – {:.1f} %", 100 * r["interval"][0].get<double>(),
                                                  100 * r["interval"][1].get<double>())
                                    : fmt::format("± {:.1f} %", 196 * number(r, "error")),
             r.contains("strict_score") ? percent(number(r, "strict_score")) : "",
             r.contains("only_f16_right") ? r["only_f16_right"].dump() : "",
             r.contains("only_cache_right") ? r["only_cache_right"].dump() : "",
             r.contains("mcnemar_p") ? fmt::format("{:.3f}", number(r, "mcnemar_p")) : "",
             percent(number(r, "pairs_through_codes"))});
        if (section.suite == "needle") {
            table.figure += fmt::format("<h4>{}</h4>{}", escape_markup(entry["cache"]), needle_map(r));
        }
        if (section.suite == "generate") {
            table.preformatted += fmt::format("<h4>{}</h4>", escape_markup(entry["cache"]));
            for (const Json& answer : r["answers"]) {
                table.preformatted += fmt::format("<pre>{}</pre>", escape_markup(answer));
            }
        }
    }
    return table;
}

Table group_table(const Section& section) {
    Table table;
    table.title = fmt::format("{}: by group", section.suite);
    table.caption = "Mean score of each kind of problem.";
    table.head = {"cache"};
    for (const auto& [group, value] : section.entries.front()["result"]["groups"].items()) {
        table.head.push_back(fmt::format("{} (n={})", group, value["n"].dump()));
    }
    for (const Json& entry : section.entries) {
        std::vector<std::string> row = {entry["cache"]};
        for (const auto& [group, value] : entry["result"]["groups"].items()) {
            row.push_back(percent(number(value, "score")));
        }
        table.rows.push_back(std::move(row));
    }
    return table;
}

/// Options of a cache apart from its mode.
std::string options_without_mode(const Json& entry) {
    std::string options = "," + entry["settings"].value("options", "");
    for (size_t at = options.find(",mode="); at != std::string::npos; at = options.find(",mode=")) {
        options.erase(at, options.find(',', at + 1) - at);
    }
    return options;
}

/// The result of the same cache in another section: in the same mode if there is one; null if there is none at all.
const Json* counterpart_of(const Json& entry, const Section& section) {
    const Json* best = nullptr;
    for (const Json& other : section.entries) {
        const bool same_cache = other["cache"] == entry["cache"] &&
                                options_without_mode(other) == options_without_mode(entry) &&
                                other["settings"].value("artifact", "") == entry["settings"].value("artifact", "");
        if (same_cache && (best == nullptr || mode_of(other) == mode_of(entry))) {
            best = &other;
        }
    }
    return best;
}

/// Size, fidelity and speed of each cache in one row, where both suites were run: of the largest context of `kld` and
/// the deepest depth of `speed`.
std::optional<Table> overview_table(const std::vector<Section>& sections) {
    const auto last_of = [&](std::string_view suite, const auto& size_of) {
        const Section* best = nullptr;
        for (const Section& section : sections) {
            if (section.suite == suite && (best == nullptr || size_of(section) >= size_of(*best))) {
                best = &section;
            }
        }
        return best;
    };
    const auto deepest_of = [](const Section& section) {
        const Json depths = list_of(section.settings, "depths");
        return depths.empty() ? 0 : depths.back().get<int>();
    };
    const Section* kld =
        last_of("kld", [](const Section& section) { return section.settings.value("n_ctx", size_t{0}); });
    const Section* speed = last_of("speed", deepest_of);
    if (kld == nullptr || speed == nullptr) {
        return std::nullopt;
    }
    std::set<std::string> modes;
    for (const Json& timed : speed->entries) {
        if (const Json* measured = counterpart_of(timed, *kld); measured != nullptr && is_plugin(*measured)) {
            modes.insert(mode_of(*measured));
        }
    }
    const bool mode_by_row = modes.size() > 1;
    Table table;
    table.title = "overview";
    table.caption = fmt::format(
        "Shares are of the f16 cache. Rate: bytes of a coded token; total: window, sinks and dictionaries too, "
        "computed; resident: of the cells in use at the depth of the speed column, measured for kvcodec and computed "
        "for "
        "the host's caches, which keep unused cells in memory as well. Fidelity: {}{}. Speed and resident "
        "memory: live mode.",
        modes.size() == 1 ? *modes.begin() + " mode, " : "", describe(kld->settings));
    table.head = {"cache", "rate", "total at 4k tokens", "total at 32k tokens", "resident"};
    if (mode_by_row) {
        table.head.emplace_back("mode of fidelity");
    }
    table.head.insert(table.head.end(),
                      {"mean KLD", "same top token", "pairs read through codes",
                       fmt::format("decoding at {}, tokens/s", deepest_of(*speed)), "prompt time / f16"});
    for (const Json& timed : speed->entries) {
        const Json& s = timed["result"];
        std::vector<std::string> row = {timed["cache"]};
        const double f16 = number(s, "f16_bytes_of_token");
        const auto with_bytes = [&](const char* key, double tokens) {
            return fmt::format("{} ({:.0f} MiB)", percent(number(s, key)), number(s, key) * f16 * tokens / (1 << 20));
        };
        row.insert(row.end(), {percent(number(s, "rate")), with_bytes("total_4k", 4096), with_bytes("total_32k", 32768),
                               fmt::format("{:.1f} MiB", number(s, "resident_bytes") / (1 << 20))});
        const Json* measured = counterpart_of(timed, *kld);
        if (mode_by_row) {
            row.push_back(measured != nullptr && is_plugin(*measured) ? mode_of(*measured) : "");
        }
        if (measured == nullptr) {
            row.insert(row.end(), {timed["cache"] == "f16" ? "reference" : "", "", ""});
        } else {
            const Json& r = (*measured)["result"];
            const bool refused = r.value("refused", false);
            row.insert(row.end(),
                       {refused ? "refused" : with_error(number(r, "kld"), number(r, "kld_error"), 4),
                        refused ? "" : percent(number(r, "same_top")), percent(number(r, "pairs_through_codes"))});
        }
        const Json depths = list_of(s, "depths");
        row.push_back(depths.empty() ? ""
                                     : fmt::format("{:.1f}", 1e3 / std::max(number(depths.back(), "median_ms"), 1e-9)));
        row.push_back(number_cell(s, "prompt_ratio", 2));
        table.rows.push_back(std::move(row));
    }
    mark_runs(table, *speed);
    return table;
}

std::vector<Table> tables_of(const Json& document) {
    std::vector<Table> tables;
    const std::vector<Section> sections = sections_of(document);
    if (std::optional<Table> overview = overview_table(sections)) {
        tables.push_back(std::move(*overview));
    }
    for (const Section& section : sections) {
        if (section.suite == "kld" || section.suite == "solutions") {
            tables.push_back(divergence_table(section));
        } else if (section.suite == "recon") {
            tables.push_back(recon_table(section));
        } else if (section.suite == "speed") {
            tables.push_back(speed_table(section));
        } else if (section.suite == "components") {
            tables.push_back(component_table(section));
        } else {
            tables.push_back(task_table(section));
            if (section.entries.front()["result"]["groups"].size() > 1) {
                tables.push_back(group_table(section));
            }
        }
    }
    return tables;
}

std::string setting_line(const Json& document) {
    const Json& s = document["setting"];
    // A file may have been filled on several days and machines.
    std::set<std::string> runs;
    for (const Json& entry : document["results"]) {
        runs.insert(
            fmt::format("{}, {}", entry.value("cpu", s.value("cpu", "")), entry.value("date", s.value("date", ""))));
    }
    return fmt::format("{} (fingerprint {}), {} threads, llama.cpp with ggml {}, kvcodec {}; {}", s.value("model", ""),
                       s.value("fingerprint", ""), s.value("threads", Json(0)).dump(), s.value("ggml", ""),
                       s.value("kvcodec", ""), fmt::join(runs, "; "));
}

}  // namespace

std::string kld_curve(const Json& document) {
    std::vector<Section> sections = sections_of(document);
    std::erase_if(sections, [](const Section& section) { return section.suite != "kld"; });
    const auto best = std::ranges::max_element(sections, {}, [](const Section& section) {
        return std::pair(section.entries.size(), section.settings.value("n_ctx", size_t{0}));
    });
    return best == sections.end() ? "" : svg_of(kld_chart(*best));
}

std::string markdown_report(const Json& document) {
    std::string text = setting_line(document) + "\n";
    const auto line = [](const std::vector<std::string>& cells) {
        std::string joined = "|";
        for (const std::string& cell : cells) {
            joined += " " + cell + " |";
        }
        return joined + "\n";
    };
    for (const Table& table : tables_of(document)) {
        text += fmt::format("\n**{}**\n\n{}\n\n", table.title, table.caption) + line(table.head);
        text += line(std::vector<std::string>(table.head.size(), "---"));
        for (const auto& row : table.rows) {
            text += line(row);
        }
    }
    return text;
}

std::string html_report(const Json& document) {
    std::string body;
    std::set<std::string> own;
    for (const Json& entry : document["results"]) {
        if (is_own(entry)) {
            own.insert(entry["cache"]);
        }
    }
    for (const Table& table : tables_of(document)) {
        body += fmt::format("<section><h2>{}</h2><p>{}</p><div class=\"wide\"><table><thead><tr>",
                            escape_markup(table.title), escape_markup(table.caption));
        for (const std::string& cell : table.head) {
            body += fmt::format("<th>{}</th>", escape_markup(cell));
        }
        body += "</tr></thead><tbody>";
        for (const auto& row : table.rows) {
            body += own.contains(row.front()) ? "<tr class=\"own\">" : "<tr>";
            for (const std::string& cell : row) {
                body += fmt::format("<td>{}</td>", escape_markup(cell));
            }
            body += "</tr>";
        }
        body += "</tbody></table></div>";
        body += table.figure.empty() ? "" : fmt::format("<figure>{}</figure>", table.figure);
        body += table.preformatted + "</section>";
    }
    return fmt::format(R"(<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>kvcodec eval: {0}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #24292f; margin: 2rem auto; max-width: 1280px; padding: 0 1rem; }}
table {{ border-collapse: collapse; font-size: 13px; }}
th, td {{ border-bottom: 1px solid #d0d7de; padding: 4px 8px; text-align: left; white-space: nowrap; }}
th {{ background: #f6f8fa; white-space: normal; vertical-align: bottom; }}
tr.own td:first-child {{ font-weight: 600; }}
.wide {{ overflow-x: auto; }}
figure {{ margin: 1rem 0 2.5rem; max-width: 900px; }}
pre {{ background: #f6f8fa; padding: 10px; white-space: pre-wrap; }}
</style></head><body><h1>Cache evaluation: {0}</h1><p>{1}</p>{2}</body></html>
)",
                       escape_markup(document["setting"].value("model", "")), escape_markup(setting_line(document)),
                       body);
}

}  // namespace kvcodec
