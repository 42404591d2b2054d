#include "tools/eval/plugin_report.h"

#include <gtest/gtest.h>

namespace kvcodec {
namespace {

TEST(PluginReportTest, CachesOfOneContextAreJoined) {
    const Json full = {{"id", 4},
                       {"cells", 4096},
                       {"codecs", {"a", "b"}},
                       {"code_bytes", 100},
                       {"resident_bytes", 5000},
                       {"dense_tokens", 132},
                       {"pairs", 90},
                       {"pairs_coded", 60},
                       {"times_us", {{"score", 3}, {"encode", 1}}},
                       {"distortion", Json::array()}};
    Json window = full;
    window["id"] = 5;
    window["cells"] = 768;
    window["codecs"] = {"c"};
    window["code_bytes"] = 20;
    window["resident_bytes"] = 700;
    window["dense_tokens"] = 159;
    window["pairs"] = 10;
    window["distortion"] = {{{"layer", 1}}};
    const Json joined = joined_report({full, window});
    EXPECT_EQ(joined["id"], 4);
    EXPECT_EQ(joined["cells"], 4096);
    EXPECT_EQ(joined["codecs"], Json({"a", "b", "c"}));
    EXPECT_EQ(joined["code_bytes"], 120);
    EXPECT_EQ(joined["resident_bytes"], 5700);
    EXPECT_EQ(joined["dense_tokens"], 159);
    EXPECT_EQ(joined["pairs"], 100);
    EXPECT_EQ(joined["pairs_coded"], 120);
    EXPECT_EQ(joined["times_us"], Json({{"score", 6}, {"encode", 2}}));
    EXPECT_EQ(joined["distortion"].size(), 1U);
    EXPECT_EQ(joined_report(Json::array({full})), full);
    EXPECT_TRUE(joined_report(Json::array()).is_null());
}

}  // namespace
}  // namespace kvcodec
