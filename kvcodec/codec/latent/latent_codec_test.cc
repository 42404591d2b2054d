#include "kvcodec/codec/latent/latent_codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kvcodec/codec/latent/half_codec.h"
#include "kvcodec/codec/scalar/scalar_codec.h"
#include "kvcodec/error.h"
#include "kvcodec/target.h"
#include "kvcodec/test_targets.h"

namespace kvcodec {
namespace {

constexpr unsigned kHalf = LatentSpace::kHalfBits;

std::vector<float> random_vector(size_t n, std::mt19937& rng, float deviation = 1.0F) {
    std::normal_distribution<float> normal(0.0F, deviation);
    std::vector<float> x(n);
    for (float& v : x) {
        v = normal(rng);
    }
    return x;
}

/// Orthonormal rows [rank, width].
std::vector<float> random_directions(size_t rank, size_t width, std::mt19937& rng) {
    std::vector<float> rows = random_vector(rank * width, rng);
    for (size_t row = 0; row < rank; ++row) {
        float* x = &rows[row * width];
        for (int pass = 0; pass < 2; ++pass) {
            for (size_t before = 0; before < row; ++before) {
                const double along = std::inner_product(x, x + width, &rows[before * width], 0.0);
                for (size_t i = 0; i < width; ++i) {
                    x[i] -= static_cast<float>(along * double{rows[before * width + i]});
                }
            }
            const double norm = std::sqrt(std::inner_product(x, x + width, x, 0.0));
            std::transform(x, x + width, x, [&](float v) { return static_cast<float>(v / norm); });
        }
    }
    return rows;
}

struct Shape {
    size_t n_heads, dim, rank;
    unsigned bits;
};

class LatentCodecTest : public testing::TestWithParam<Shape> {
  protected:
    void TearDown() override { hwy::SetSupportedTargetsForTest(0); }

    const size_t n_heads_ = GetParam().n_heads;
    const size_t dim_ = GetParam().dim;
    const size_t rank_ = GetParam().rank;
    const size_t width_ = n_heads_ * dim_;
    std::mt19937 rng_{11};
    const std::vector<float> directions_ = random_directions(rank_, width_, rng_);
    const std::shared_ptr<const LatentSpace> space_ =
        std::make_shared<const LatentSpace>(directions_, n_heads_, dim_, GetParam().bits);

    std::vector<std::byte> encode(const std::vector<float>& x) const {
        const LatentCodec codec(space_, n_heads_ - 1, false);  // any head codes for all
        std::vector<std::byte> codes(x.size() / width_ * codec.code_bytes() + Codec::kCodeSlackBytes);
        codec.encode(x.data(), x.size() / width_, codes.data());
        return codes;
    }
    /// Rows [n, width] from all heads' views.
    std::vector<float> decode(const std::vector<std::byte>& codes, size_t n) const {
        std::vector<float> all(n * width_), one(n * dim_);
        for (size_t head = 0; head < n_heads_; ++head) {
            LatentCodec(space_, head, false).decode(codes.data(), 0, n, one.data());
            for (size_t row = 0; row < n; ++row) {
                std::copy_n(&one[row * dim_], dim_, &all[row * width_ + head * dim_]);
            }
        }
        return all;
    }
    /// x projected on the directions, in double.
    std::vector<double> projected(const float* x) const {
        std::vector<double> out(width_, 0.0);
        for (size_t row = 0; row < rank_; ++row) {
            const float* direction = &directions_[row * width_];
            const double along = std::inner_product(x, x + width_, direction, 0.0);
            for (size_t i = 0; i < width_; ++i) {
                out[i] += along * double{direction[i]};
            }
        }
        return out;
    }
};

TEST_P(LatentCodecTest, CodesTheProjection) {
    for (const size_t n : {1, 2, 5, 66}) {
        const std::vector<float> x = random_vector(n * width_, rng_, 3.0F);
        const std::vector<float> decoded = decode(encode(x), n);
        double missed = 0.0, energy = 0.0;
        for (size_t row = 0; row < n; ++row) {
            const std::vector<double> expected = projected(&x[row * width_]);
            for (size_t i = 0; i < width_; ++i) {
                missed += std::pow(decoded[row * width_ + i] - expected[i], 2);
                energy += expected[i] * expected[i];
            }
        }
        const double loss = GetParam().bits == kHalf ? 1e-6 : ScalarCodec::expected_loss(GetParam().bits);
        EXPECT_LT(missed / energy, 1.6 * loss) << n << " rows";
    }
}

TEST_P(LatentCodecTest, CodeSpaceAgreesWithDecodedRowsOnEveryTarget) {
    constexpr size_t kRows = 37;
    std::vector<uint16_t> rows;
    for (uint16_t row = 0; row < kRows; ++row) {
        if (row % 3 != 1) {
            rows.push_back(row);
        }
    }
    std::ranges::shuffle(rows, rng_);
    const std::vector<std::byte> codes = encode(random_vector(kRows * width_, rng_));
    for (const size_t lanes : {4, 8, 16}) {
        const std::vector<float> q = random_vector(lanes * dim_, rng_);
        std::vector<float> p = random_vector(rows.size() * lanes, rng_);
        std::ranges::transform(p, p.begin(), [](float weight) { return std::abs(weight); });
        for (const int64_t target : test_targets()) {
            SCOPED_TRACE(hwy::TargetName(target & -target));
            hwy::SetSupportedTargetsForTest(target);
            // Products of bytes round queries and weights to 8 bits.
            const double noise = GetParam().bits <= 4 && has_avx512_vnni() ? 0.01 : 1e-4;
            double missed = 0.0, energy = 0.0;
            const auto compare = [&](double actual, double expected) {
                missed += (actual - expected) * (actual - expected);
                energy += expected * expected;
            };
            const auto space = std::make_shared<const LatentSpace>(directions_, n_heads_, dim_, GetParam().bits);
            for (size_t head = 0; head < n_heads_; ++head) {
                const LatentCodec codec(space, head, false);
                ASSERT_EQ(codec.space(), rank_);
                const auto block = codec.arrange({codes.data(), kRows * codec.code_bytes()});
                std::vector<float> x(kRows * dim_);
                codec.decode(codes.data(), 0, kRows, x.data());
                std::vector<float> table(rank_ * lanes), s(rows.size() * lanes);
                codec.prepare(q.data(), lanes, 0, 16, table.data());
                codec.prepare(q.data(), lanes, 16, rank_, table.data());
                codec.score(table.data(), lanes, block.data(), rows, s.data());
                std::vector<float> acc(rank_ * lanes), out(lanes * dim_, 0.5F);
                codec.accumulate(p.data(), lanes, block.data(), rows, acc.data());
                codec.finish(acc.data(), lanes, 0, 16, out.data());
                codec.finish(acc.data(), lanes, 16, dim_, out.data());
                for (size_t lane = 0; lane < lanes; ++lane) {
                    std::vector<double> expected(dim_, 0.5);
                    for (size_t i = 0; i < rows.size(); ++i) {
                        const float* row = &x[rows[i] * dim_];
                        const double score = std::inner_product(row, row + dim_, &q[lane * dim_], 0.0);
                        compare(s[i * lanes + lane], score);
                        for (size_t j = 0; j < dim_; ++j) {
                            expected[j] += double{p[i * lanes + lane]} * double{row[j]};
                        }
                    }
                    for (size_t j = 0; j < dim_; ++j) {
                        compare(out[lane * dim_ + j], expected[j]);
                    }
                }
            }
            EXPECT_LT(missed, noise * noise * energy);
        }
    }
}

TEST_P(LatentCodecTest, SizesAreThoseOfTheLatents) {
    const LatentCodec codec(space_, 0, true);
    EXPECT_EQ(codec.dim(), dim_);
    EXPECT_EQ(codec.joint_heads(), n_heads_);
    EXPECT_EQ(codec.space(), 0U);
    EXPECT_EQ(codec.code_bytes(), LatentSpace::code_bytes(rank_, GetParam().bits));
    EXPECT_EQ(codec.code_bytes(), GetParam().bits == kHalf ? 2 * rank_ : rank_ * GetParam().bits / 8 + 1);
    const size_t directions = GetParam().bits == kHalf ? sizeof(float) : sizeof(float) + sizeof(int8_t);
    EXPECT_GE(codec.fixed_bytes(), rank_ * dim_ * directions);
    EXPECT_NE(codec.describe().find("rank " + std::to_string(rank_)), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Shapes, LatentCodecTest,
                         testing::Values(Shape{1, 64, 32, kHalf}, Shape{3, 64, 112, kHalf}, Shape{3, 64, 112, 4},
                                         Shape{3, 64, 192, 8}, Shape{1, 80, 48, 3}, Shape{2, 96, 176, 2},
                                         Shape{2, 128, 144, kHalf}, Shape{2, 128, 144, 3}, Shape{1, 256, 256, 4},
                                         Shape{8, 128, 608, 4}),
                         [](const auto& shape) {
                             const Shape& s = shape.param;
                             return std::to_string(s.n_heads) + "x" + std::to_string(s.dim) + "_rank" +
                                    std::to_string(s.rank) + "_bits" + std::to_string(s.bits);
                         });

// Blocks of 64, 32 and 16 that have the weight in turn: none is coded much coarser than it needs to be.
TEST(LatentCodec, LatentsOfUnequalWeightAreSpreadOverBlocks) {
    constexpr size_t kRank = 112, kRows = 400;
    std::mt19937 rng(3);
    std::vector<float> axes(kRank * kRank);
    for (size_t i = 0; i < kRank; ++i) {
        axes[i * kRank + i] = 1.0F;
    }
    std::vector<float> x = random_vector(kRows * kRank, rng);
    for (size_t i = 0; i < x.size(); ++i) {
        x[i] *= std::pow(0.95F, static_cast<float>(i % kRank));
    }
    const LatentCodec codec(std::make_shared<const LatentSpace>(axes, 1, kRank, 4), 0, false);
    std::vector<std::byte> codes(kRows * codec.code_bytes() + Codec::kCodeSlackBytes);
    codec.encode(x.data(), kRows, codes.data());
    std::vector<float> decoded(x.size());
    codec.decode(codes.data(), 0, kRows, decoded.data());
    double missed = 0.0, energy = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
        missed += std::pow(double{x[i]} - decoded[i], 2);
        energy += double{x[i]} * x[i];
    }
    EXPECT_LT(missed / energy, 1.25 * ScalarCodec::expected_loss(4));
}

TEST(LatentCodec, ValuesBeyondHalfPrecisionAreItsLargest) {
    const HalfCodec codec(4);
    const std::vector<float> x = {1e6F, -1e6F, 0.5F, -65504.0F};
    std::vector<std::byte> codes(codec.code_bytes() + Codec::kCodeSlackBytes);
    codec.encode(x.data(), 1, codes.data());
    std::vector<float> decoded(4);
    codec.decode(codes.data(), 0, 1, decoded.data());
    EXPECT_EQ(decoded, (std::vector<float>{65504.0F, -65504.0F, 0.5F, -65504.0F}));
}

TEST(LatentCodec, RefusesWhatItCannotCode) {
    const auto expect_refused = [](size_t rank, size_t n_heads, size_t dim, unsigned bits, const std::string& why) {
        const std::vector<float> directions(rank * n_heads * dim);
        try {
            const LatentSpace space(directions, n_heads, dim, bits);
            ADD_FAILURE() << "accepted rank " << rank;
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
        }
    };
    expect_refused(0, 1, 64, 4, "rank");
    expect_refused(24, 1, 64, 4, "multiple of 16");
    expect_refused(80, 1, 64, 4, "up to 64");
    expect_refused(16, 1, 72, 4, "multiple of 16");
    expect_refused(16, 1, 62, kHalf, "multiple of 4");
    expect_refused(16, 1, 64, 5, "2, 3, 4 or 8 bits");
    expect_refused(1040, 9, 128, 4, "bits=16");
    EXPECT_NO_THROW(LatentSpace(std::vector<float>(1040 * 9 * 128), 9, 128, kHalf));
}

}  // namespace
}  // namespace kvcodec
