// What holds for every baseline.
#include "kvcodec/codec/baseline/baseline_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kvcodec/codec/baseline/kivi_codec.h"
#include "kvcodec/codec/baseline/token_codec.h"
#include "kvcodec/codec/baseline/turboquant_codec.h"
#include "kvcodec/codec/baseline/zipcache_codec.h"
#include "kvcodec/error.h"

namespace kvcodec {
namespace {

constexpr size_t kRows = 96;  // whole groups of every codec

struct Kind {
    std::string name;
    std::function<std::shared_ptr<const Codec>()> make;
};

template <class T, class... Arguments>
std::function<std::shared_ptr<const Codec>()> maker(Arguments... arguments) {
    return [=] { return std::make_shared<T>(arguments...); };
}

/// Made at first use and kept: TurboQuant's levels take long to find.
const Codec& codec_of(const Kind& kind) {
    static std::map<std::string, std::shared_ptr<const Codec>> made;
    std::shared_ptr<const Codec>& codec = made[kind.name];
    if (codec == nullptr) {
        codec = kind.make();
    }
    return *codec;
}

std::vector<Kind> all_kinds() {
    std::vector<Kind> kinds;
    for (const size_t dim : {64, 80, 96, 128, 256}) {
        const std::string suffix = "Dim" + std::to_string(dim) + "Bits";
        for (const unsigned bits : {2U, 4U}) {
            kinds.push_back({"Token" + suffix + std::to_string(bits), maker<TokenCodec>(dim, bits)});
            kinds.push_back({"Kivi" + suffix + std::to_string(bits), maker<KiviKeyCodec>(dim, bits)});
        }
        kinds.push_back({"ZipcacheKey" + std::to_string(dim), maker<ZipCacheKeyCodec>(dim)});
        kinds.push_back({"ZipcacheValue" + std::to_string(dim), maker<ZipCacheValueCodec>(dim)});
        for (const unsigned bits : {1U, 2U, 3U, 4U}) {
            kinds.push_back({"Turboquant" + suffix + std::to_string(bits), maker<TurboQuantCodec>(dim, bits)});
        }
    }
    return kinds;
}

std::vector<float> random_rows(size_t n, std::mt19937& rng) {
    std::normal_distribution<float> normal;
    std::vector<float> x(n);
    for (float& v : x) {
        v = normal(rng);
    }
    return x;
}

class BaselineCodecTest : public testing::TestWithParam<Kind> {
  protected:
    std::vector<float> decoded(const std::vector<float>& x) const {
        std::vector<std::byte> codes(kRows * codec_.code_bytes());
        codec_.encode(x.data(), kRows, codes.data());
        std::vector<float> y(x.size());
        codec_.decode(codes.data(), 0, kRows, y.data());
        return y;
    }

    const Codec& codec_ = codec_of(GetParam());
    const size_t dim_ = codec_.dim();
    std::mt19937 rng_{17};
};

TEST_P(BaselineCodecTest, HasNoCodeSpace) {
    std::vector<float> x(dim_ * 4);
    std::vector<std::byte> codes(codec_.code_bytes());
    const uint16_t row = 0;
    EXPECT_EQ(codec_.space(), 0U);
    EXPECT_THROW(codec_.prepare(x.data(), 4, 0, 0, x.data()), Error);
    EXPECT_THROW(codec_.score(x.data(), 4, codes.data(), {&row, 1}, x.data()), Error);
    EXPECT_THROW(codec_.accumulate(x.data(), 4, codes.data(), {&row, 1}, x.data()), Error);
    EXPECT_THROW(codec_.finish(x.data(), 4, 0, dim_, x.data()), Error);
    EXPECT_EQ(kRows % codec_.group_rows(), 0U);
}

TEST_P(BaselineCodecTest, WritesItsBytesAndNoMore) {
    const std::vector<float> x = random_rows(kRows * dim_, rng_);
    std::vector<std::byte> codes(kRows * codec_.code_bytes() + 1, std::byte{0x5A});
    std::vector<std::byte> again(codes.size(), std::byte{0xA5});
    codec_.encode(x.data(), kRows, codes.data());
    codec_.encode(x.data(), kRows, again.data());
    EXPECT_EQ(codes.back(), std::byte{0x5A});
    EXPECT_EQ(again.back(), std::byte{0xA5});
    codes.pop_back();
    again.pop_back();
    EXPECT_EQ(codes, again) << "some byte was not written";
}

TEST_P(BaselineCodecTest, PartsDecodeAsTheWhole) {
    const std::vector<float> x = random_rows(kRows * dim_, rng_);
    std::vector<std::byte> codes(kRows * codec_.code_bytes());
    codec_.encode(x.data(), kRows, codes.data());
    std::vector<float> whole(kRows * dim_);
    codec_.decode(codes.data(), 0, kRows, whole.data());
    for (int round = 0; round < 40; ++round) {
        const size_t first = rng_() % kRows;
        const size_t n = round == 0 ? 0 : 1 + rng_() % (kRows - first);
        std::vector<float> part(n * dim_ + 1, -7.0F);
        codec_.decode(codes.data(), first, n, part.data());
        ASSERT_EQ(part.back(), -7.0F);
        for (size_t i = 0; i < n * dim_; ++i) {
            ASSERT_EQ(part[i], whole[first * dim_ + i]) << "rows from " << first << ", element " << i;
        }
    }
}

TEST_P(BaselineCodecTest, GroupsAreIndependent) {
    std::vector<float> x = random_rows(kRows * dim_, rng_);
    const std::vector<float> before = decoded(x);
    const size_t group = codec_.group_rows();
    const size_t changed = kRows / group / 2;
    for (size_t i = changed * group * dim_; i < (changed + 1) * group * dim_; ++i) {
        x[i] = 10 - x[i];
    }
    const std::vector<float> after = decoded(x);
    for (size_t i = 0; i < x.size(); ++i) {
        if (i / dim_ / group == changed) {
            ASSERT_NE(after[i], before[i]);
        } else {
            ASSERT_EQ(after[i], before[i]);
        }
    }
}

TEST_P(BaselineCodecTest, ZerosBecomeZero) {
    for (const float y : decoded(std::vector<float>(kRows * dim_, 0.0F))) {
        ASSERT_EQ(y, 0.0F);
    }
}

TEST_P(BaselineCodecTest, AnythingDecodesToFiniteValues) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const float odd[] = {kInfinity,
                         -kInfinity,
                         std::nanf(""),
                         std::numeric_limits<float>::max(),
                         std::numeric_limits<float>::lowest(),
                         std::numeric_limits<float>::denorm_min(),
                         65504.0F,
                         -1e5F};
    for (const unsigned share : {2U, 50U}) {
        std::vector<float> x = random_rows(kRows * dim_, rng_);
        for (float& v : x) {
            v = rng_() % share == 0 ? odd[rng_() % std::size(odd)] : v;
        }
        for (const float y : decoded(x)) {
            ASSERT_TRUE(std::isfinite(y));
        }
    }
    for (const float v : odd) {
        for (const float y : decoded(std::vector<float>(kRows * dim_, v))) {
            ASSERT_TRUE(std::isfinite(y)) << v;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(All, BaselineCodecTest, testing::ValuesIn(all_kinds()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace kvcodec
