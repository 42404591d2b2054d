#include "kvcodec/codec/trellis/trellis.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kvcodec/error.h"
#include "kvcodec/test_targets.h"

namespace kvcodec {
namespace {

constexpr size_t kScales = TrellisEncoder::kScales;

/// Place of each element's level, bit by bit as the header has it.
std::vector<unsigned> places(const std::vector<uint8_t>& index) {
    const auto path = [&](size_t t, size_t back) { return t < back ? 0U : index[t - back] & 1U; };
    std::vector<unsigned> place(index.size());
    for (size_t t = 0; t < index.size(); ++t) {
        place[t] = path(t, 2) | (path(t, 0) ^ path(t, 1) ^ path(t, 3)) << 1 | (index[t] >> 1U) << 2;
    }
    return place;
}

double level_of(unsigned bits, unsigned place) {
    const Trellis::Levels& levels = Trellis::levels(bits);
    return double{levels.unit} * levels.level[place];
}

struct Row {
    std::vector<uint8_t> bits;
    std::vector<float> weight;
    std::vector<float> y;
    std::array<float, kScales> scales{};
};

double error_of(const Row& row, float scale, const std::vector<uint8_t>& index) {
    const std::vector<unsigned> place = places(index);
    double error = 0.0;
    for (size_t t = 0; t < row.y.size(); ++t) {
        const double miss = row.y[t] - scale * level_of(row.bits[t], place[t]);
        error += row.weight[t] * miss * miss;
    }
    return error;
}

/// Least error of all codes with one scale, by trying every index after every state.
double least_error(const Row& row, float scale) {
    std::array<double, Trellis::kStates> cost;  // state: the last path bits, the latest lowest
    cost.fill(INFINITY);
    cost[0] = 0.0;
    for (size_t t = 0; t < row.y.size(); ++t) {
        std::array<double, Trellis::kStates> next;
        next.fill(INFINITY);
        for (unsigned state = 0; state < Trellis::kStates; ++state) {
            for (unsigned index = 0; index < 1U << row.bits[t]; ++index) {
                const unsigned u = index & 1U;
                const unsigned place =
                    (state >> 1 & 1U) | (u ^ (state & 1U) ^ (state >> 2 & 1U)) << 1 | index >> 1 << 2;
                const double miss = row.y[t] - scale * level_of(row.bits[t], place);
                double& best = next[(state << 1 | u) & 7U];
                best = std::min(best, cost[state] + row.weight[t] * miss * miss);
            }
        }
        cost = next;
    }
    return *std::ranges::min_element(cost);
}

class TrellisTest : public testing::Test {
  protected:
    void TearDown() override { hwy::SetSupportedTargetsForTest(0); }

    float normal() { return normal_(rng_); }

    std::mt19937 rng_{7};

  private:
    std::normal_distribution<float> normal_;
};

TEST_F(TrellisTest, ReferenceIsExhaustive) {
    const Row row{std::vector<uint8_t>(9, 1), std::vector<float>(9, 1.0F), {}, {}};
    for (int round = 0; round < 20; ++round) {
        Row drawn = row;
        std::generate_n(std::back_inserter(drawn.y), 9, [&] { return normal(); });
        double least = INFINITY;
        for (unsigned code = 0; code < 1U << 9; ++code) {
            std::vector<uint8_t> index;
            for (unsigned t = 0; t < 9; ++t) {
                index.push_back(code >> t & 1U);
            }
            least = std::min(least, error_of(drawn, 1.1F, index));
        }
        EXPECT_NEAR(least_error(drawn, 1.1F), least, 1e-9);
    }
}

TEST_F(TrellisTest, FindsTheLeastErrorOfAllScales) {
    for (const int64_t target : test_targets()) {
        hwy::SetSupportedTargetsForTest(target);
        for (const size_t n_elements : {1, 2, 3, 8, 64, 80, 128, 1024}) {
            for (const size_t n : {1, 2, 4, 5, 11}) {
                SCOPED_TRACE(std::string(hwy::TargetName(target)) + ", " + std::to_string(n) + " rows of " +
                             std::to_string(n_elements));
                std::vector<uint8_t> bits(n_elements);
                std::vector<float> weight(n_elements), y(n * n_elements), scales(n * kScales);
                std::ranges::generate(bits, [&] { return static_cast<uint8_t>(1 + rng_() % Trellis::kMaxBits); });
                std::ranges::generate(weight, [&] { return 0.1F + std::abs(normal()); });
                std::ranges::generate(y, [&] { return 3.0F * normal(); });
                std::ranges::generate(scales, [&] { return 3.0F * std::exp2(0.3F * normal()); });
                const TrellisEncoder encoder(bits, weight);
                std::vector<uint8_t> index(n * n_elements + 1, 99);
                std::vector<TrellisEncoder::Choice> choice(n);
                encoder.encode(y.data(), n, scales.data(), index.data(), choice.data());
                ASSERT_EQ(index.back(), 99);
                for (size_t r = 0; r < n; ++r) {
                    Row row{bits, weight, {}, {}};
                    row.y.assign(y.begin() + static_cast<std::ptrdiff_t>(r * n_elements),
                                 y.begin() + static_cast<std::ptrdiff_t>((r + 1) * n_elements));
                    const std::vector<uint8_t> code(index.begin() + static_cast<std::ptrdiff_t>(r * n_elements),
                                                    index.begin() + static_cast<std::ptrdiff_t>((r + 1) * n_elements));
                    double least = INFINITY;
                    for (size_t s = 0; s < kScales; ++s) {
                        least = std::min(least, least_error(row, scales[r * kScales + s]));
                    }
                    ASSERT_LT(choice[r].scale, kScales);
                    const double error = error_of(row, scales[r * kScales + choice[r].scale], code);
                    ASSERT_NEAR(error, least, 1e-4 * least + 1e-6) << "row " << r;
                    ASSERT_NEAR(choice[r].error, least, 1e-4 * least + 1e-6) << "row " << r;
                }
            }
        }
    }
}

TEST_F(TrellisTest, PlanesOfBitsGivePlaces) {
    std::vector<uint8_t> index(96);
    std::ranges::generate(index, [&] { return static_cast<uint8_t>(rng_() % 2); });
    const std::vector<unsigned> expected = places(index);
    unsigned history = 0;
    for (size_t begin = 0; begin < index.size(); begin += 32) {
        uint32_t path = 0;
        for (size_t t = 0; t < 32; ++t) {
            path |= uint32_t{index[begin + t]} << t;
        }
        const uint32_t low = Trellis::low(path, history), high = Trellis::high(path, history);
        for (size_t t = 0; t < 32; ++t) {
            EXPECT_EQ((low >> t & 1U) | (high >> t & 1U) << 1, expected[begin + t]);
        }
        history = Trellis::history_after(path);
    }
}

TEST_F(TrellisTest, LevelsAreCentroidsAndLossesAreMeasured) {
    for (unsigned bits = 1; bits <= Trellis::kMaxBits; ++bits) {
        SCOPED_TRACE(std::to_string(bits) + " bits");
        double loss = 0.0;
        for (const size_t n_elements : {64, 128}) {
            const TrellisEncoder encoder(std::vector<uint8_t>(n_elements, static_cast<uint8_t>(bits)),
                                         std::vector<float>(n_elements, 1.0F));
            constexpr size_t kRows = 2000;
            std::vector<float> y(kRows * n_elements), scales(kRows * kScales);
            std::ranges::generate(y, [&] { return normal(); });
            // The root mean square of a vector, and steps around it.
            double energy = 0.0;
            for (size_t r = 0; r < kRows; ++r) {
                double squares = 0.0;
                for (size_t t = 0; t < n_elements; ++t) {
                    squares += double{y[r * n_elements + t]} * y[r * n_elements + t];
                }
                energy += squares;
                for (size_t s = 0; s < kScales; ++s) {
                    scales[r * kScales + s] = static_cast<float>(std::sqrt(squares / static_cast<double>(n_elements)) *
                                                                 std::exp2((static_cast<double>(s) - 2.0) / 12.0));
                }
            }
            std::vector<uint8_t> index(y.size());
            std::vector<TrellisEncoder::Choice> choice(kRows);
            encoder.encode(y.data(), kRows, scales.data(), index.data(), choice.data());
            double error = 0.0;
            std::vector<double> sum(size_t{2} << bits), weight(size_t{2} << bits);
            for (size_t r = 0; r < kRows; ++r) {
                error += choice[r].error;
                const std::vector<unsigned> place =
                    places({index.begin() + static_cast<std::ptrdiff_t>(r * n_elements),
                            index.begin() + static_cast<std::ptrdiff_t>((r + 1) * n_elements)});
                const float scale = scales[r * kScales + choice[r].scale];
                for (size_t t = 0; t < n_elements; ++t) {
                    sum[place[t]] += double{scale} * y[r * n_elements + t];
                    weight[place[t]] += double{scale} * scale;
                }
            }
            loss += error / energy / 2;
            for (unsigned place = 0; bits <= 4 && place < sum.size(); ++place) {
                EXPECT_NEAR(sum[place] / weight[place], level_of(bits, place), 0.04) << "level " << place;
            }
        }
        EXPECT_NEAR(loss / Trellis::levels(bits).loss, 1.0, 0.04);
    }
}

TEST(Trellis, HarmfulShapesAreRefused) {
    EXPECT_THROW(TrellisEncoder({1, 2}, {1.0F}), Error);
    EXPECT_THROW(TrellisEncoder({0}, {1.0F}), Error);
    EXPECT_THROW(TrellisEncoder({7}, {1.0F}), Error);
    EXPECT_THROW(TrellisEncoder(std::vector<uint8_t>(1025, 1), std::vector<float>(1025, 1.0F)), Error);
}

}  // namespace
}  // namespace kvcodec
