#include "tools/eval/results.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "kvcodec/error.h"
#include "tools/eval/report.h"

namespace kvcodec {
namespace {

const Json kSetting = {{"model", "tiny.gguf"}, {"fingerprint", "f00d"}, {"threads", 2}};

std::string fresh_path(const std::string& name) {
    std::string path = testing::TempDir() + name;
    std::filesystem::remove(path);
    return path;
}

TEST(ResultStoreTest, FinishedResultsAreFoundAgain) {
    const std::string path = fresh_path("results.json");
    {
        ResultStore store(path, kSetting);
        EXPECT_FALSE(store.find("kld", "q8_0", {{"n_ctx", 512}}));
        store.put("kld", "q8_0", {{"n_ctx", 512}}, {{"kld", 0.5}});
    }
    const ResultStore store(path, kSetting);
    EXPECT_EQ(store.find("kld", "q8_0", {{"n_ctx", 512}}), Json({{"kld", 0.5}}));
    EXPECT_FALSE(store.find("kld", "q8_0", {{"n_ctx", 1024}}));
    EXPECT_FALSE(store.find("kld", "q4_0", {{"n_ctx", 512}}));
    EXPECT_FALSE(store.find("recon", "q8_0", {{"n_ctx", 512}}));
}

TEST(ResultStoreTest, MeasuredAgainReplaces) {
    ResultStore store("", kSetting);
    store.put("speed", "f16", {{"n", 1}}, {{"ms", 5}});
    store.put("speed", "f16", {{"n", 2}}, {{"ms", 6}});
    store.put("speed", "f16", {{"n", 1}}, {{"ms", 7}});
    EXPECT_EQ(store.document()["results"].size(), 2U);
    EXPECT_EQ(store.find("speed", "f16", {{"n", 1}}), Json({{"ms", 7}}));
    EXPECT_EQ(store.find("speed", "f16", {{"n", 2}}), Json({{"ms", 6}}));
}

TEST(ResultStoreTest, RefusesOtherFiles) {
    const std::string path = fresh_path("other.json");
    std::ofstream(path) << "[1, 2";
    EXPECT_THROW(ResultStore(path, kSetting), Error);
    std::ofstream(path, std::ios::trunc) << R"({"setting": {"fingerprint": "beef", "model": "m"}, "results": []})";
    EXPECT_THROW(ResultStore(path, kSetting), Error);
}

TEST(ResultStoreTest, AFailedWriteKeepsWhatWasThere) {
    const std::string folder = testing::TempDir() + "readable_results";
    std::filesystem::create_directories(folder);
    const std::string path = folder + "/r.json";
    std::filesystem::remove_all(path);
    write_whole_file(path, "old");
    // A folder in the way of the temporary file's target: the rename must fail.
    const std::string blocked = folder + "/blocked";
    std::filesystem::create_directories(blocked + "/child");
    EXPECT_THROW(write_whole_file(blocked, "new"), Error);
    EXPECT_THROW(write_whole_file(folder + "/absent/r.json", "new"), Error);
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    EXPECT_EQ(text.str(), "old");
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        EXPECT_EQ(entry.path().native().find(".tmp"), std::string::npos) << entry.path();
    }
}

TEST(ResultStoreTest, FullDiskIsOneError) {
    if (!std::filesystem::exists("/dev/full")) {
        GTEST_SKIP() << "no /dev/full";
    }
    const std::string path = fresh_path("full.json");
    const std::string temporary = path + "." + std::to_string(::getpid()) + ".tmp";
    std::filesystem::remove(temporary);
    std::filesystem::create_symlink("/dev/full", temporary);
    EXPECT_THROW(write_whole_file(path, std::string(1 << 20, 'x')), Error);
    EXPECT_FALSE(std::filesystem::exists(path));
}

Json kld_document() {
    const Json settings = {{"n_ctx", 512}, {"text", "a.txt"}};
    const auto result = [](double rate, double kld) {
        return Json{{"rate", rate},       {"total_4k", rate}, {"total_32k", rate},         {"kld", kld},
                    {"kld_error", 0.001}, {"same_top", 0.9},  {"pairs_through_codes", 1.0}};
    };
    return {{"setting", kSetting},
            {"results",
             {{{"suite", "kld"}, {"cache", "q8_0"}, {"settings", settings}, {"result", result(0.531, 0.004)}},
              {{"suite", "kld"},
               {"cache", "kvcodec:20% <x>"},
               {"settings", {{"n_ctx", 512}, {"text", "a.txt"}, {"options", "mode=live"}, {"artifact", ""}}},
               {"result", result(0.195, 0.08)}}}}};
}

TEST(ReportTest, OneTableForCachesOfOneSetting) {
    const std::string text = markdown_report(kld_document());
    EXPECT_NE(text.find("**kld: n_ctx 512, text a.txt**"), std::string::npos) << text;
    EXPECT_NE(text.find("| q8_0 | strict | 53.1 %"), std::string::npos) << text;
    EXPECT_NE(text.find("| kvcodec:20% <x> | live | 19.5 %"), std::string::npos) << text;
    EXPECT_EQ(text.find("**kld", text.find("**kld") + 1), std::string::npos) << "one table";
}

/// A result of the suite `speed`.
Json timed(const char* cache, double rate, double ms, const Json& own_settings = Json::object()) {
    Json settings = {{"depths", {0, 4096}}, {"sequences", Json::array()}, {"threads", 2}};
    settings.update(own_settings);
    return Json{
        {"suite", "speed"},
        {"cache", cache},
        {"settings", settings},
        {"result",
         {{"rate", rate},
          {"total_4k", rate + 0.03},
          {"total_32k", rate + 0.01},
          {"f16_bytes_of_token", 1 << 20},
          {"resident_bytes", 7 << 20},
          {"prompt_ratio", 1.25},
          {"prompt_encode_share", 0.025},
          {"depths", {{{"depth", 0}, {"median_ms", 5}}, {{"depth", 4096}, {"median_ms", ms}, {"p99_ms", ms}}}}}}};
}

TEST(ReportTest, OverviewJoinsFidelityAndSpeed) {
    Json document = kld_document();
    EXPECT_EQ(markdown_report(document).find("**overview**"), std::string::npos);
    document["results"].push_back(timed("f16", 1.0, 20));
    document["results"].push_back(timed("q8_0", 0.531, 40));
    const std::string text = markdown_report(document);
    EXPECT_NE(
        text.find("| q8_0 | 53.1 % | 56.1 % (2298 MiB) | 54.1 % (17727 MiB) | 7.0 MiB | 0.0040 ± 0.0010 | 90.0 % | "
                  "100.0 % | 25.0 | 1.25 |"),
        std::string::npos)
        << text;
    EXPECT_NE(text.find("| 7.0 MiB | reference |  |  | 50.0 |"), std::string::npos) << text;
    EXPECT_NE(text.find("Fidelity: n_ctx 512"), std::string::npos) << "the host's caches have no mode: " << text;
}

TEST(ReportTest, OverviewTakesTheResultOfTheSameOptions) {
    const char* const cache = "kvcodec:20% <x>";
    const auto own = [](const char* options, const char* artifact = "") {
        return Json{{"options", options}, {"artifact", artifact}};
    };
    Json document = kld_document();
    Json strict = document["results"][1];
    strict["settings"].update(own("mode=strict"));
    strict["result"]["kld"] = 0.5;
    document["results"].push_back(timed(cache, 0.195, 40, own("mode=live")));
    const std::string live = "| 7.0 MiB | 0.0800 ± 0.0010 |";
    std::string text = markdown_report(document);
    EXPECT_NE(text.find(live), std::string::npos) << text;
    EXPECT_NE(text.find("Fidelity: live mode, n_ctx 512"), std::string::npos) << text;

    document["results"].push_back(strict);
    text = markdown_report(document);
    EXPECT_NE(text.find(live), std::string::npos) << text;
    EXPECT_EQ(text.find("| 7.0 MiB | 0.5000 ± 0.0010 |"), std::string::npos) << text;

    // Both were timed as well: each row says its mode.
    document["results"].push_back(timed(cache, 0.195, 40, own("mode=strict")));
    text = markdown_report(document);
    EXPECT_NE(text.find("| 7.0 MiB | live | 0.0800 ± 0.0010 |"), std::string::npos) << text;
    EXPECT_NE(text.find("| 7.0 MiB | strict | 0.5000 ± 0.0010 |"), std::string::npos) << text;
    EXPECT_NE(text.find("| mode of fidelity |"), std::string::npos) << text;

    // Another artifact, other options: another cache of the same name.
    for (const Json& other : {own("mode=live", "beef"), own("mode=live,window=0")}) {
        document = kld_document();
        document["results"].push_back(timed(cache, 0.195, 40, other));
        text = markdown_report(document);
        EXPECT_NE(text.find("| 7.0 MiB |  |  |  | 25.0 |"), std::string::npos) << text;
    }
}

TEST(ReportTest, OverviewSaysWhatWasRefused) {
    Json document = kld_document();
    document["results"][1]["result"]["refused"] = true;
    document["results"][1]["result"]["pairs_through_codes"] = 0.3;
    document["results"].push_back(timed("kvcodec:20% <x>", 0.195, 40, {{"options", "mode=live"}, {"artifact", ""}}));
    const std::string text = markdown_report(document);
    EXPECT_NE(text.find("| 7.0 MiB | refused |  | 30.0 % | 25.0 |"), std::string::npos) << text;
}

// An older run measured no sequences, or others, and parts of other names.
TEST(ReportTest, ResultsOfOlderRunsLeaveCellsEmpty) {
    Json document = {{"setting", kSetting}, {"results", Json::array()}};
    Json full = timed("f16", 1.0, 20);
    full["settings"]["sequences"] = {1, 4};
    full["result"]["sequences"] = {{{"sequences", 4}, {"tokens_per_second", 90.0}},
                                   {{"sequences", 8}, {"tokens_per_second", 95.0}}};
    document["results"].push_back(full);
    full["cache"] = "q8_0";
    full["result"] = {{"rate", 0.531}};
    document["results"].push_back(full);
    Json old = timed("q4_0", 0.281, 30);
    old["settings"].erase("sequences");
    document["results"].push_back(old);
    const auto parts = [](const char* cache, const Json& result) {
        return Json{{"suite", "components"}, {"cache", cache}, {"settings", {{"depth", 0}}}, {"result", result}};
    };
    document["results"].push_back(parts("a", {{"rate", 0.2}}));
    document["results"].push_back(parts("b", {{"rate", 0.2}, {"parts_ms", {{"score", 1.5}}}}));
    document["results"].push_back(parts("c", {{"rate", 0.2}, {"parts_ms", {{"tables", 2.5}}}}));
    const std::string text = markdown_report(document);
    for (const char* line : {"| tokens/s, 1 at once | tokens/s, 4 at once |\n", "| 1.25 | 2.5 | 1.00 |  | 90.0 |\n",
                             "| q8_0 | 53.1 % |  |  |  |  |  |  |  |  |  |\n", "| 99 % / median, deepest |\n",
                             "| cache | rate | score | tables |\n", "| a | 20.0 % |  |  |\n",
                             "| b | 20.0 % | 1.5 |  |\n", "| c | 20.0 % |  | 2.5 |\n"}) {
        EXPECT_NE(text.find(line), std::string::npos) << line << text;
    }
}

// f16 is measured in every run and its result replaced, so older rows would stand beside it as if of one run.
TEST(ReportTest, RowsOfSeveralRunsAreMarked) {
    const auto run = [](const char* date, const char* cpu, const char* cache, double f16_ms) {
        Json entry = timed(cache, 0.5, 25);
        entry["date"] = date;
        entry["cpu"] = cpu;
        entry["result"]["f16"] = {{"depths", {{{"depth", 4096}, {"median_ms", f16_ms}}}}};
        return entry;
    };
    const auto report = [&](const Json& second) {
        Json document = kld_document();
        document["results"].push_back(run("2026-01-01", "Z80", "q8_0", 20));
        document["results"].push_back(second);
        return markdown_report(document);
    };
    EXPECT_EQ(report(run("2026-01-01", "Z80", "f16", 20)).find("| run |"), std::string::npos);
    for (const Json& second : {run("2026-01-02", "Z80", "f16", 20), run("2026-01-01", "6502", "f16", 20),
                               run("2026-01-01", "Z80", "f16", 21)}) {
        const std::string text = report(second);
        EXPECT_NE(text.find("| 40.0 | 1.25 | 2026-01-01, Z80; f16 20.00 ms a step |\n"), std::string::npos) << text;
        EXPECT_NE(text.find("| 1.00 | 2026-01-01, Z80; f16 20.00 ms a step |\n"), std::string::npos) << text;
        EXPECT_NE(text.find("Rows are of several runs"), std::string::npos);
        EXPECT_NE(text.find("| prompt time / f16 | run |"), std::string::npos) << text;
    }
    // A file of an earlier version has no f16 beside each result.
    Json old = run("2026-01-01", "Z80", "q4_0", 20);
    old["result"].erase("f16");
    EXPECT_NE(report(old).find("| 2026-01-01, Z80 |\n"), std::string::npos);
}

TEST(ReportTest, RefusedResultsShowNoDivergence) {
    Json document = kld_document();
    document["results"][1]["result"]["refused"] = true;
    document["results"][1]["result"]["pairs_through_codes"] = 0.3;
    const std::string text = markdown_report(document);
    EXPECT_NE(text.find("refused"), std::string::npos);
    EXPECT_EQ(text.find("0.0800"), std::string::npos) << text;
    EXPECT_EQ(kld_curve(document).find("kvcodec"), std::string::npos);
}

TEST(ReportTest, PageIsEscapedAndSelfContained) {
    const std::string page = html_report(kld_document());
    EXPECT_NE(page.find("kvcodec:20% &lt;x&gt;"), std::string::npos);
    EXPECT_EQ(page.find("<x>"), std::string::npos);
    EXPECT_NE(page.find("<svg"), std::string::npos);
    EXPECT_EQ(page.find("src="), std::string::npos);
    EXPECT_EQ(page.find("href="), std::string::npos);
    const std::string curve = kld_curve(kld_document());
    EXPECT_NE(curve.find("q8_0"), std::string::npos);
}

TEST(ReportTest, CachesOfSingleLayersAreDrawnAgainstTheLayer) {
    Json document = kld_document();
    document["results"][0]["cache"] = "kvcodec:layers=0:sinks=4";
    document["results"][1]["cache"] = "kvcodec:sinks=4:layers=1 other";
    const std::string curve = kld_curve(document);
    EXPECT_NE(curve.find("the only compressed layer"), std::string::npos);
    EXPECT_NE(curve.find(">kvcodec:sinks=4</text>"), std::string::npos) << curve;
    EXPECT_NE(curve.find(">other</text>"), std::string::npos) << "the rest is common to all";
    document["results"][1]["cache"] = "kvcodec:layers=1-2";
    EXPECT_EQ(kld_curve(document).find("the only compressed layer"), std::string::npos);
}

TEST(ReportTest, NothingMeasuredIsAnEmptyReport) {
    const Json empty = {{"setting", kSetting}, {"results", Json::array()}};
    EXPECT_EQ(kld_curve(empty), "");
    EXPECT_EQ(markdown_report(empty).find('|'), std::string::npos);
}

}  // namespace
}  // namespace kvcodec
