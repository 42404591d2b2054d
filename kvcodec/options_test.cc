#include "kvcodec/options.h"

#include <gtest/gtest.h>

#include <string>

#include "kvcodec/error.h"

namespace kvcodec {
namespace {

std::string error_of(std::string_view text) {
    try {
        parse_options(text);
    } catch (const Error& error) {
        return error.what();
    }
    return {};
}

TEST(OptionsTest, EmptyTextMeansDefaults) {
    EXPECT_EQ(parse_options(""), Options());
    EXPECT_EQ(parse_options(",,"), Options());
    EXPECT_EQ(to_string(Options()), "");
}

TEST(OptionsTest, ReadsEveryKey) {
    const Options options = parse_options(
        "artifact=/tmp/a b=c.kvc.gguf,codec=dictionary,budget=20%,s_k=8,s_v=12,bits_k=3,bits_v=8,coefficients=fp8,"
        "layout=published,relative_error=0.25,window=64,sinks=2,log=debug,release=off,remember=off,crossover=512,"
        "prefill=exact,"
        "measure=time");
    EXPECT_EQ(options.artifact, "/tmp/a b=c.kvc.gguf");
    EXPECT_EQ(options.codec, Options::CodecChoice::kDictionary);
    EXPECT_DOUBLE_EQ(options.budget.value(), 0.2);
    EXPECT_EQ(options.s_k, 8U);
    EXPECT_EQ(options.s_v, 12U);
    EXPECT_EQ(options.bits_k, 3U);
    EXPECT_EQ(options.bits_v, 8U);
    EXPECT_EQ(options.coefficients, CoefficientFormat::kFp8);
    EXPECT_EQ(options.layout, CodeLayout::kPublished);
    EXPECT_EQ(options.relative_error_k, 0.25F);
    EXPECT_EQ(options.relative_error_v, 0.25F);
    EXPECT_EQ(options.window, 64U);
    EXPECT_EQ(options.sinks, 2U);
    EXPECT_EQ(options.log, Options::Log::kDebug);
    EXPECT_FALSE(options.release);
    EXPECT_FALSE(options.remember);
    EXPECT_EQ(options.crossover, 512);
    EXPECT_EQ(options.prefill, Options::Prefill::kExact);
    EXPECT_EQ(options.measure, Options::Measure::kTime);
}

TEST(OptionsTest, LastMentionCounts) {
    EXPECT_EQ(parse_options("window=1,window=2").window, 2U);
    const Options options = parse_options("s_k=4,s=8,s_v=6");
    EXPECT_EQ(options.s_k, 8U);
    EXPECT_EQ(options.s_v, 6U);
}

TEST(OptionsTest, BudgetIsAShare) {
    EXPECT_DOUBLE_EQ(parse_options("budget=12.5%").budget.value(), 0.125);
    EXPECT_DOUBLE_EQ(parse_options("budget=0.125").budget.value(), 0.125);
    EXPECT_DOUBLE_EQ(parse_options("budget=100%").budget.value(), 1.0);
}

TEST(OptionsTest, StrictKeepsNothingDenseUnlessSinksAreGiven) {
    const Options strict = parse_options("mode=strict");
    EXPECT_EQ(strict.window, 0U);
    EXPECT_EQ(strict.sinks, 0U);
    EXPECT_EQ(parse_options("sinks=4,mode=strict").sinks, 4U);
    EXPECT_EQ(parse_options("mode=strict,window=0").window, 0U);
    EXPECT_NE(error_of("window=128,mode=strict").find("window=128"), std::string::npos);
}

TEST(OptionsTest, EvictionKeepsNothingBeyondItsBudgetUnlessSinksAreGiven) {
    for (const auto& [text, codec] : {std::pair{"codec=h2o", Options::CodecChoice::kH2o},
                                      {"codec=snapkv", Options::CodecChoice::kSnapKv},
                                      {"codec=pyramidkv", Options::CodecChoice::kPyramidKv}}) {
        const Options options = parse_options(text);
        EXPECT_EQ(options.codec, codec);
        EXPECT_TRUE(options.evicts());
        EXPECT_EQ(options.window, 0U);
        EXPECT_EQ(options.sinks, 0U);
        EXPECT_EQ(parse_options(std::string("sinks=4,") + text).sinks, 4U);
        EXPECT_EQ(to_string(options), text);
    }
    EXPECT_FALSE(parse_options("codec=scalar").evicts());
    EXPECT_NE(error_of("codec=snapkv,window=64").find("window=64"), std::string::npos);
}

TEST(OptionsTest, RoundTrips) {
    for (const char* text : {"mode=strict",
                             "mode=strict,sinks=4",
                             "mode=live,window=0,sinks=0",
                             "s=8",
                             "s_k=8",
                             "s_v=9",
                             "s_k=8,s_v=9,bits=4",
                             "bits_v=3",
                             "budget=18.3%",
                             "budget=0.3333333333333333",
                             "relative_error=0.1",
                             "relative_error_k=0.1",
                             "relative_error=0.1,adaptive=64",
                             "relative_error_k=0.1,relative_error_v=0.2",
                             "crossover=0",
                             "layers=0-3+7+9-29",
                             "unbias_k=0.25,unbias_v=0",
                             "budget=2.5KiB",
                             "budget=1GiB@32768",
                             "codec=h2o,budget=20%",
                             "mode=strict,codec=pyramidkv,sinks=4",
                             "codec=snapkv,sinks=4",
                             "codec=none,log=quiet,release=off,remember=off,prefill=exact,measure=error",
                             "artifact=/x/ü.gguf,codec=scalar,coefficients=fp8,layout=published",
                             "artifact=/x.gguf,codec=transform,budget=12.5%",
                             "codec=token",
                             "codec=kivi,bits_v=4",
                             "codec=turboquant,bits_k=3,bits_v=2",
                             "codec=zipcache,budget=20%",
                             "mode=strict,codec=zipcache"}) {
        const Options options = parse_options(text);
        EXPECT_EQ(parse_options(to_string(options)), options) << text << " became " << to_string(options);
    }
}

TEST(OptionsTest, BudgetsMayBeBytes) {
    const Options token = parse_options("budget=2.5KiB");
    EXPECT_EQ(token.size_budget, (SizeBudget{2560, 0}));
    EXPECT_FALSE(token.budget);
    EXPECT_EQ(parse_options("budget=20%,budget=1.5GiB@32768").size_budget, (SizeBudget{1.5 * 0x1p30, 32768}));
    EXPECT_FALSE(parse_options("budget=1MiB,budget=20%").size_budget);
    for (const char* text : {"budget=KiB", "budget=-1KiB", "budget=0B", "budget=1GiB@", "budget=1GiB@0", "budget=1GB",
                             "budget=1GiB@32k", "budget=20%@4096", "budget=infMiB"}) {
        EXPECT_NE(error_of(text).find("a share such as"), std::string::npos) << text;
    }
    EXPECT_NE(error_of("codec=h2o,budget=1MiB").find("not in bytes"), std::string::npos);
}

TEST(OptionsTest, LayersAreASumOfRanges) {
    const Options options = parse_options("layers=0-3+7");
    for (uint32_t layer = 0; layer < 10; ++layer) {
        EXPECT_EQ(options.takes_layer(layer), layer <= 3 || layer == 7) << layer;
        EXPECT_TRUE(Options().takes_layer(layer));
    }
    EXPECT_EQ(to_string(options), "layers=0-3+7");
    for (const char* text : {"layers=", "layers=3-1", "layers=1+", "layers=-1", "layers=1-", "layers=x", "layers=+1"}) {
        EXPECT_NE(error_of(text).find("give layers and ranges of them"), std::string::npos) << text;
    }
}

TEST(OptionsTest, BaselinesHaveTheBitsOfTheirPapers) {
    EXPECT_EQ(parse_options("codec=token").codec, Options::CodecChoice::kToken);
    EXPECT_EQ(parse_options("codec=kivi").codec, Options::CodecChoice::kKivi);
    EXPECT_EQ(parse_options("codec=turboquant").codec, Options::CodecChoice::kTurboQuant);
    for (const char* text : {"codec=token,bits=2", "codec=token,bits=4", "codec=kivi,bits_k=2,bits_v=4",
                             "codec=turboquant,bits=2", "bits=3,codec=turboquant", "codec=turboquant,bits=4"}) {
        EXPECT_EQ(error_of(text), "") << text;
    }
    EXPECT_EQ(error_of("codec=token,bits=3"), "KVCODEC: codec=token has 2 or 4 bits, but bits_k=3 is given");
    EXPECT_EQ(error_of("bits_v=8,codec=kivi"), "KVCODEC: codec=kivi has 2 or 4 bits, but bits_v=8 is given");
    EXPECT_EQ(error_of("codec=turboquant,bits_k=8"),
              "KVCODEC: codec=turboquant has 2, 3 or 4 bits, but bits_k=8 is given");
}

TEST(OptionsTest, SixteenBitsAreOfLatents) {
    const Options options = parse_options("codec=latent,bits_k=16,bits_v=4");
    EXPECT_EQ(options.codec, Options::CodecChoice::kLatent);
    EXPECT_EQ(options.bits_k, 16U);
    EXPECT_EQ(parse_options(to_string(options)), options);
    EXPECT_NO_THROW(parse_options("bits=16"));
    for (const char* codec : {"scalar", "transform", "dictionary", "token", "kivi"}) {
        EXPECT_THROW(parse_options(std::string("bits=16,codec=") + codec), Error) << codec;
    }
}

TEST(OptionsTest, ZipCacheHasABudgetButNoBits) {
    const Options options = parse_options("codec=zipcache,budget=20%");
    EXPECT_EQ(options.codec, Options::CodecChoice::kZipCache);
    EXPECT_TRUE(options.is_baseline());
    EXPECT_FALSE(options.evicts());
    EXPECT_EQ(options.window, Options().window);
    EXPECT_EQ(error_of("codec=zipcache,bits=4"),
              "KVCODEC: codec=zipcache has rows of 4 and of 2 bits, but bits_k=4 is given; leave it out, or give a "
              "budget");
    EXPECT_NE(error_of("bits_v=2,codec=zipcache").find("bits_v=2"), std::string::npos);
}

TEST(OptionsTest, CommaInThePathCannotBeWritten) {
    Options options;
    options.artifact = "/a,b.gguf";
    EXPECT_THROW(to_string(options), Error);
}

TEST(OptionsTest, NamesTheUnknownKeyAndTheValidOnes) {
    const std::string message = error_of("bugdet=20%");
    EXPECT_NE(message.find("'bugdet'"), std::string::npos) << message;
    EXPECT_NE(message.find("budget"), std::string::npos) << message;
    EXPECT_FALSE(error_of("=").empty());
    EXPECT_FALSE(error_of("20%").empty());
}

TEST(OptionsTest, NamesTheBadValueAndTheValidOnes) {
    const std::string message = error_of("codec=zip");
    EXPECT_NE(message.find("codec=zip"), std::string::npos) << message;
    for (const char* codec : {"auto", "dictionary", "scalar", "none", "token", "kivi", "turboquant", "zipcache"}) {
        EXPECT_NE(message.find(codec), std::string::npos) << message;
    }
    for (const char* text : {"artifact=",
                             "codec",
                             "codec=",
                             "budget=0",
                             "budget=-1",
                             "budget=20",
                             "budget=1.01",
                             "budget=nan",
                             "budget=%",
                             "budget=20%%",
                             "s=0",
                             "s=65",
                             "s=-1",
                             "s=4.5",
                             "s=99999999999",
                             "s= 8",
                             "bits=5",
                             "bits=",
                             "coefficients=q8",
                             "layout=x",
                             "relative_error=1",
                             "relative_error=-0.1",
                             "relative_error=nan",
                             "adaptive=64",
                             "codec=transform,relative_error=0.1",
                             "codec=kivi,relative_error_k=0.1",
                             "adaptive=64,relative_error_k=0.1",
                             "adaptive=64,relative_error=0.1,layout=published",
                             "adaptive=-1",
                             "window=-1",
                             "window=4294967295",
                             "window=1k",
                             "sinks=x",
                             "mode=fast",
                             "log=all",
                             "release=1",
                             "crossover=-2",
                             "prefill=x",
                             "measure=on"}) {
        EXPECT_FALSE(error_of(text).empty()) << text;
    }
}

}  // namespace
}  // namespace kvcodec
