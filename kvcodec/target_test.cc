#include "kvcodec/target.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "kvcodec/codec/scalar/scalar_codec.h"
#include "kvcodec/error.h"

namespace kvcodec {
namespace {

class TargetTest : public testing::Test {
  protected:
    void TearDown() override {
        ::unsetenv(kTargetVariable);
        force_target("");
    }
};

TEST_F(TargetTest, EachOfTheMachineCanBeForced) {
    const std::vector<std::string> names = target_names();
    ASSERT_FALSE(names.empty());
    EXPECT_EQ(target_name(), names.front());
    const ScalarCodec codec(64, 4);
    std::vector<float> x(64);
    for (size_t i = 0; i < x.size(); ++i) {
        x[i] = static_cast<float>(i) - 30.0F;
    }
    std::vector<std::byte> codes(codec.code_bytes() + Codec::kCodeSlackBytes);
    std::vector<float> decoded(x.size());
    for (size_t i = 0; i < names.size(); ++i) {
        force_target(names[i]);
        EXPECT_EQ(target_name(), names[i]);
        EXPECT_EQ(target_names(), std::vector(names.begin() + static_cast<std::ptrdiff_t>(i), names.end()));
        codec.encode(x.data(), 1, codes.data());
        codec.decode(codes.data(), 0, 1, decoded.data());
        for (size_t k = 0; k < x.size(); ++k) {
            EXPECT_NEAR(decoded[k], x[k], 4.0F) << names[i];
        }
    }
    force_target("");
    EXPECT_EQ(target_names(), names);
}

TEST_F(TargetTest, NamesAreReadInAnyCaseFromTheEnvironment) {
    std::string last = target_names().back();
    std::ranges::transform(last, last.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    ::setenv(kTargetVariable, last.c_str(), 1);
    force_target_of_environment();
    EXPECT_EQ(target_name(), target_names().back());
    ::unsetenv(kTargetVariable);
    force_target_of_environment();
    EXPECT_EQ(target_names().size(), 1) << "left as it was";
}

TEST_F(TargetTest, UnknownOnesAreRefused) {
    try {
        force_target("AVX9");
        FAIL();
    } catch (const Error& error) {
        EXPECT_EQ(std::string(error.what()).find("KVCODEC_TARGET=AVX9: this machine has " + target_names().front()), 0)
            << error.what();
    }
}

}  // namespace
}  // namespace kvcodec
