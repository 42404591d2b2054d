#include "tools/eval/cache_spec.h"

#include <gtest/gtest.h>

#include "kvcodec/error.h"

namespace kvcodec {
namespace {

TEST(CacheSpecTest, HostCachesAndPairs) {
    const auto specs = parse_caches("f16,q8_0,q8_0/q4_0", {}, "strict");
    ASSERT_EQ(specs.size(), 3U);
    EXPECT_TRUE(specs[0].is_reference());
    EXPECT_DOUBLE_EQ(specs[0].host_rate(), 1);
    EXPECT_DOUBLE_EQ(specs[1].host_rate(), 0.53125);
    EXPECT_EQ(specs[2].type_k, GGML_TYPE_Q8_0);
    EXPECT_EQ(specs[2].type_v, GGML_TYPE_Q4_0);
    EXPECT_DOUBLE_EQ(specs[2].host_rate(), (0.53125 + 0.28125) / 2);
}

TEST(CacheSpecTest, PluginCachesForEveryArtifact) {
    const auto specs =
        parse_caches("kvcodec:12.5%,kvcodec:codec=scalar:bits=3:artifact=none", {"a.gguf", "b/c.gguf"}, "strict");
    ASSERT_EQ(specs.size(), 3U);
    EXPECT_EQ(specs[0].options, "mode=strict,log=quiet,budget=12.5%");
    EXPECT_EQ(specs[0].artifact, "a.gguf");
    EXPECT_EQ(specs[1].name, "kvcodec:12.5% c.gguf");
    EXPECT_EQ(specs[2].options, "mode=strict,log=quiet,codec=scalar,bits=3");
    EXPECT_EQ(specs[2].artifact, "");
    EXPECT_EQ(parse_caches("kvcodec,kvcodec", {}, "live").size(), 1U);
    const auto baseline = parse_caches("kvcodec:codec=kivi:bits=4", {"a.gguf", "b/c.gguf"}, "strict");
    ASSERT_EQ(baseline.size(), 1U);
    EXPECT_EQ(baseline[0].artifact, "") << "baselines use none";
}

TEST(CacheSpecTest, UnknownNamesAreErrors) {
    EXPECT_THROW(parse_caches("q9_9", {}, "strict"), Error);
    EXPECT_THROW(parse_caches("q8_0/q4_0/q4_0", {}, "strict"), Error);
    EXPECT_THROW(parse_caches("kvcodec:bits=5", {}, "strict"), Error);
    EXPECT_THROW(parse_caches("kvcodec:colour=red", {}, "strict"), Error);
    EXPECT_THROW(parse_caches("", {}, "strict"), Error);
}

}  // namespace
}  // namespace kvcodec
