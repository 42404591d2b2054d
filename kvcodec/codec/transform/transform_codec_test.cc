#include "kvcodec/codec/transform/transform_codec.h"

#include <gtest/gtest.h>

#include <hwy/targets.h>
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kvcodec/codec/transform/inverse.h"
#include "kvcodec/error.h"
#include "kvcodec/test_targets.h"

namespace kvcodec {
namespace {

constexpr size_t kGroup = TransformFormat::kGroup;

/// Directions by Gram-Schmidt and variances that fall by the same factor from each to the next.
struct Source {
    Source(size_t dim, double decay, unsigned seed) : rng(seed), basis(dim * dim), variance(dim) {
        std::normal_distribution<double> normal;
        std::vector<double> rows(dim * dim);
        std::ranges::generate(rows, [&] { return normal(rng); });
        for (size_t i = 0; i < dim; ++i) {
            double* row = &rows[i * dim];
            for (size_t j = 0; j < 2 * i; ++j) {
                const double* other = &rows[j % i * dim];
                const double product = std::inner_product(row, row + dim, other, 0.0);
                for (size_t k = 0; k < dim; ++k) {
                    row[k] -= product * other[k];
                }
            }
            const double length = std::sqrt(std::inner_product(row, row + dim, row, 0.0));
            for (size_t k = 0; k < dim; ++k) {
                row[k] /= length;
                basis[i * dim + k] = static_cast<float>(row[k]);
            }
            variance[i] = static_cast<float>(std::pow(decay, static_cast<double>(i)));
        }
    }

    std::vector<float> draw(size_t n, float factor = 1.0F) {
        const size_t dim = variance.size();
        std::normal_distribution<float> normal;
        std::vector<float> x(n * dim, 0.0F);
        for (size_t row = 0; row < n; ++row) {
            for (size_t j = 0; j < dim; ++j) {
                const float y = factor * std::sqrt(variance[j]) * normal(rng);
                for (size_t i = 0; i < dim; ++i) {
                    x[row * dim + i] += y * basis[j * dim + i];
                }
            }
        }
        return x;
    }

    std::mt19937 rng;
    std::vector<float> basis;
    std::vector<float> variance;
};

std::vector<std::byte> encode(const Codec& codec, const std::vector<float>& x) {
    const size_t n = x.size() / codec.dim();
    std::vector<std::byte> codes(n * codec.code_bytes() + Codec::kCodeSlackBytes, std::byte{0x55});
    codec.encode(x.data(), n, codes.data());
    return codes;
}

std::vector<float> decode(const Codec& codec, const std::vector<std::byte>& codes, size_t n) {
    std::vector<float> x(n * codec.dim());
    codec.decode(codes.data(), 0, n, x.data());
    return x;
}

double squared_distance(const float* x, const float* y, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) {
        sum += (double{x[i]} - double{y[i]}) * (double{x[i]} - double{y[i]});
    }
    return sum;
}

double relative_error(const std::vector<float>& x, const std::vector<float>& y) {
    const std::vector<float> zero(x.size());
    return squared_distance(x.data(), y.data(), x.size()) / squared_distance(x.data(), zero.data(), x.size());
}

/// One row from its bytes alone, as transform_codec.h and trellis.h describe them, in double.
std::vector<double> reference_row(const TransformFormat& format, const Source& source, const uint8_t* code) {
    std::vector<double> x(format.dim, 0.0);
    const double scale = std::exp2((code[format.code_bytes - 1] - 128) / 12.0);
    std::vector<double> level;
    for (size_t j = 0; j < format.n_active; ++j) {
        const unsigned bits = format.bits[j / kGroup];
        unsigned index = 0;
        size_t plane_begin = 0;
        for (unsigned plane = 0; plane < bits; ++plane) {
            index |= (code[plane_begin + j / 8] >> (j % 8) & 1U) << plane;
            plane_begin += format.plane_bytes[plane];
        }
        const auto path = [&](size_t back) { return j < back ? 0U : code[(j - back) / 8] >> ((j - back) % 8) & 1U; };
        const unsigned place = path(2) | (path(0) ^ path(1) ^ path(3)) << 1 | index >> 1 << 2;
        level.push_back(double{Trellis::levels(bits).unit} * Trellis::levels(bits).level[place]);
    }
    // Blocks of powers of two, the largest first, within runs of equal bits.
    for (size_t begin = 0, size = 0; begin < format.n_active; begin += size) {
        size_t run = kGroup;
        while (begin + run < format.n_active && format.bits[(begin + run) / kGroup] == format.bits[begin / kGroup]) {
            run += kGroup;
        }
        for (size = kGroup; 2 * size <= run;) {
            size *= 2;
        }
        std::vector<double> block(level.begin() + static_cast<std::ptrdiff_t>(begin),
                                  level.begin() + static_cast<std::ptrdiff_t>(begin + size));
        for (size_t half = 1; half < size; half *= 2) {  // Walsh-Hadamard
            for (size_t k = 0; k < size; ++k) {
                if ((k & half) == 0) {
                    const double a = block[k], b = block[k + half];
                    block[k] = (a + b) / std::sqrt(2.0);
                    block[k + half] = (a - b) / std::sqrt(2.0);
                }
            }
        }
        double mean = 0.0;
        for (size_t k = 0; k < size; ++k) {
            mean += double{source.variance[begin + k]} / static_cast<double>(size);
        }
        for (size_t k = 0; k < size; ++k) {
            const size_t component = begin + k;
            const double variance = std::max(double{source.variance[component]}, mean / 16);
            for (size_t i = 0; i < format.dim; ++i) {
                x[i] += scale * block[k] * std::sqrt(variance) * double{source.basis[component * format.dim + i]};
            }
        }
    }
    return x;
}

class TransformCodecTest : public testing::TestWithParam<size_t> {
  protected:
    void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

TEST_P(TransformCodecTest, BytesMeanWhatTheHeaderSays) {
    const size_t dim = GetParam();
    for (const double decay : {0.97, 0.6}) {
        Source source(dim, decay, 3);
        for (const int64_t target : test_targets()) {
            hwy::SetSupportedTargetsForTest(target);
            for (const size_t code_bytes : {size_t{2}, size_t{4}, dim / 8 + 1, dim / 4 + 1, dim * 3 / 8 + 1}) {
                SCOPED_TRACE(std::string(hwy::TargetName(target & -target)) + ", bytes " + std::to_string(code_bytes));
                const TransformCodec codec(source.basis, source.variance, code_bytes, true);
                const size_t n = 1 + source.rng() % 70;
                const std::vector<float> x = source.draw(n, 0.3F);
                const std::vector<std::byte> codes = encode(codec, x);
                const std::vector<float> decoded = decode(codec, codes, n);
                for (size_t row = 0; row < n; ++row) {
                    const std::vector<double> expected =
                        reference_row(codec.format(), source,
                                      reinterpret_cast<const uint8_t*>(codes.data()) + row * codec.code_bytes());
                    for (size_t i = 0; i < dim; ++i) {
                        // The synthesis is rounded to 1/127 of its largest element.
                        ASSERT_NEAR(decoded[row * dim + i], expected[i], 2e-2) << "row " << row << ", element " << i;
                    }
                }
            }
        }
    }
}

TEST_P(TransformCodecTest, TargetsAgreeAndPartsAreThoseOfTheWhole) {
    const size_t dim = GetParam();
    Source source(dim, 0.9, 5);
    const size_t n = 67;
    const std::vector<float> x = source.draw(n);
    for (size_t code_bytes = 2; code_bytes <= TransformCodec::max_code_bytes(dim); code_bytes += 5) {
        std::vector<float> first;
        for (const int64_t target : test_targets()) {
            SCOPED_TRACE(std::string(hwy::TargetName(target & -target)) + ", bytes " + std::to_string(code_bytes));
            hwy::SetSupportedTargetsForTest(target);
            const TransformCodec codec(source.basis, source.variance, code_bytes, true);
            const std::vector<std::byte> codes = encode(codec, x);
            const std::vector<float> whole = decode(codec, codes, n);
            if (first.empty()) {
                first = whole;
            }
            // An index at the edge of two levels may fall either way.
            ASSERT_LT(relative_error(first, whole), 1e-3);
            std::vector<float> part(13 * dim);
            codec.decode(codes.data(), 31, 13, part.data());
            ASSERT_LT(squared_distance(part.data(), &whole[31 * dim], part.size()), 1e-8);
        }
    }
}

TEST_P(TransformCodecTest, LosesWhatIsExpected) {
    const size_t dim = GetParam();
    for (const double decay : {0.95, 0.8}) {
        Source source(dim, decay, 7);
        const std::vector<float> x = source.draw(2000);
        double before = 1.0;
        for (const size_t code_bytes : {dim / 16 + 1, dim / 8 + 1, dim / 4 + 1, dim * 3 / 8 + 1, dim / 2 + 1}) {
            SCOPED_TRACE(std::to_string(code_bytes) + " bytes, decay " + std::to_string(decay));
            const TransformCodec codec(source.basis, source.variance, code_bytes, true);
            const double error = relative_error(x, decode(codec, encode(codec, x), 2000));
            const double expected = TransformCodec::expected_loss(source.variance, code_bytes);
            EXPECT_LT(error, before);
            // The scale adapts, which helps most where few components have all the bits; the synthesis is rounded.
            EXPECT_LT(error, (dim < 64 ? 1.1 : 1.05) * expected);
            EXPECT_GT(error, (decay < 0.9 ? 0.2 : 0.75) * expected);
            before = error;
        }
    }
}

TEST_P(TransformCodecTest, AnySizeOfVector) {
    const size_t dim = GetParam();
    Source source(dim, 0.9, 11);
    const TransformCodec codec(source.basis, source.variance, dim / 4 + 1, true);
    const double usual = relative_error(source.draw(200), std::vector<float>(200 * dim));
    ASSERT_NEAR(usual, 1.0, 1e-6);
    for (const float factor : {2e-3F, 0.1F, 10.0F, 500.0F}) {
        const std::vector<float> x = source.draw(200, factor);
        EXPECT_LT(relative_error(x, decode(codec, encode(codec, x), 200)), 0.15) << factor;
    }
}

TEST_P(TransformCodecTest, CodeSpaceAgreesWithDecodedRows) {
    const size_t dim = GetParam();
    Source source(dim, 0.95, 13);
    std::normal_distribution<float> normal;
    for (const int64_t target : test_targets()) {
        hwy::SetSupportedTargetsForTest(target);
        for (size_t round = 0; round < 6; ++round) {
            const size_t lanes = 4 * (1 + source.rng() % 4);
            const size_t code_bytes = 2 + source.rng() % (TransformCodec::max_code_bytes(dim) - 1);
            SCOPED_TRACE(std::string(hwy::TargetName(target & -target)) + ", bytes " + std::to_string(code_bytes));
            const TransformCodec codec(source.basis, source.variance, code_bytes, false);
            ASSERT_EQ(codec.space(), dim);
            const std::vector<float> x = source.draw(64);
            const std::vector<std::byte> codes = encode(codec, x);
            const std::vector<float> decoded = decode(codec, codes, 64);
            std::vector<uint16_t> rows;
            for (uint16_t row = 0; row < 64; ++row) {
                if (source.rng() % 4 != 0 || row == 63) {
                    rows.push_back(row);
                }
            }
            std::vector<float> q(lanes * dim), p(rows.size() * lanes);
            std::ranges::generate(q, [&] { return normal(source.rng); });
            std::ranges::generate(p, [&] { return normal(source.rng); });
            std::vector<float> table(dim * lanes), s(rows.size() * lanes), acc(dim * lanes), out(lanes * dim, 0.5F);
            const size_t middle = dim / 32 * 16;
            codec.prepare(q.data(), lanes, 0, middle, table.data());
            codec.prepare(q.data(), lanes, middle, dim, table.data());
            codec.score(table.data(), lanes, codes.data(), rows, s.data());
            codec.accumulate(p.data(), lanes, codes.data(), rows, acc.data());
            codec.finish(acc.data(), lanes, 0, middle, out.data());
            codec.finish(acc.data(), lanes, middle, dim, out.data());
            for (size_t lane = 0; lane < lanes; ++lane) {
                std::vector<double> sum(dim, 0.5);
                for (size_t i = 0; i < rows.size(); ++i) {
                    const float* row = &decoded[rows[i] * dim];
                    const double product = std::inner_product(row, row + dim, &q[lane * dim], 0.0);
                    ASSERT_NEAR(s[i * lanes + lane], product, 2e-4 * (1 + std::abs(product)));
                    for (size_t k = 0; k < dim; ++k) {
                        sum[k] += double{p[i * lanes + lane]} * double{row[k]};
                    }
                }
                for (size_t k = 0; k < dim; ++k) {
                    ASSERT_NEAR(out[lane * dim + k], sum[k], 1e-3);
                }
            }
        }
    }
}

/// Heads of a joint transform: each reads its part of what the whole codec reads.
TEST_P(TransformCodecTest, HeadsArePartsOfTheWhole) {
    const size_t dim = GetParam(), n_heads = dim <= 128 ? 3 : 2, width = n_heads * dim;
    Source source(width, 0.98, 17);
    std::normal_distribution<float> normal;
    const size_t n = 40;
    for (const size_t code_bytes : {width / 16, width / 5, width / 3}) {
        const auto all = std::make_shared<const TransformCodec>(source.basis, source.variance, code_bytes, false);
        const std::vector<float> x = source.draw(n);
        const std::vector<std::byte> codes = encode(*all, x);
        std::vector<uint16_t> rows(n);
        std::iota(rows.begin(), rows.end(), uint16_t{0});
        for (const int64_t target : test_targets()) {
            SCOPED_TRACE(std::string(hwy::TargetName(target & -target)) + ", bytes " + std::to_string(code_bytes));
            hwy::SetSupportedTargetsForTest(target);
            const std::vector<float> whole = decode(*all, codes, n);
            for (size_t head = 0; head < n_heads; ++head) {
                const TransformHead codec(all, head, n_heads);
                ASSERT_EQ(codec.dim(), dim);
                ASSERT_EQ(codec.joint_heads(), n_heads);
                ASSERT_EQ(codec.code_bytes(), code_bytes);
                const std::vector<float> part = decode(codec, codes, n);
                for (size_t row = 0; row < n; ++row) {
                    ASSERT_EQ(squared_distance(&part[row * dim], &whole[row * width + head * dim], dim), 0.0);
                }
                constexpr size_t kLanes = 4;
                std::vector<float> q(kLanes * dim), p(n * kLanes);
                std::ranges::generate(q, [&] { return normal(source.rng); });
                std::ranges::generate(p, [&] { return normal(source.rng); });
                std::vector<float> table(width * kLanes), s(n * kLanes), acc(width * kLanes), out(kLanes * dim, 0.5F);
                codec.prepare(q.data(), kLanes, 0, 32, table.data());
                codec.prepare(q.data(), kLanes, 32, width, table.data());
                codec.score(table.data(), kLanes, codes.data(), rows, s.data());
                codec.accumulate(p.data(), kLanes, codes.data(), rows, acc.data());
                codec.finish(acc.data(), kLanes, 0, 16, out.data());
                codec.finish(acc.data(), kLanes, 16, dim, out.data());
                for (size_t lane = 0; lane < kLanes; ++lane) {
                    std::vector<double> sum(dim, 0.5);
                    for (size_t row = 0; row < n; ++row) {
                        const float* y = &part[row * dim];
                        const double product = std::inner_product(y, y + dim, &q[lane * dim], 0.0);
                        ASSERT_NEAR(s[row * kLanes + lane], product, 3e-4 * (1 + std::abs(product)));
                        for (size_t i = 0; i < dim; ++i) {
                            sum[i] += double{p[row * kLanes + lane]} * double{y[i]};
                        }
                    }
                    for (size_t i = 0; i < dim; ++i) {
                        ASSERT_NEAR(out[lane * dim + i], sum[i], 2e-3);
                    }
                }
            }
        }
    }
    const auto all = std::make_shared<const TransformCodec>(source.basis, source.variance, width / 4, false);
    EXPECT_THROW(TransformHead(all, n_heads, n_heads), Error);
    EXPECT_THROW(TransformHead(all, 0, 7), Error);
}

INSTANTIATE_TEST_SUITE_P(Sizes, TransformCodecTest, testing::Values(16, 64, 80, 96, 128, 256));

TEST(TransformCodec, BitsFollowVarianceAndFillTheCode) {
    Source source(64, 0.8, 1);
    for (size_t code_bytes = 2; code_bytes <= TransformCodec::max_code_bytes(64); ++code_bytes) {
        const TransformCodec codec(source.basis, source.variance, code_bytes, true);
        const std::vector<uint8_t>& bits = codec.format().bits;
        EXPECT_TRUE(std::ranges::is_sorted(bits, std::greater<>()));
        EXPECT_EQ(std::accumulate(bits.begin(), bits.end(), size_t{0}) + 1, code_bytes);
        EXPECT_EQ(codec.code_bytes(), code_bytes);
    }
}

TEST(TransformCodec, FlatVarianceIsPlainTrellisQuantisation) {
    Source source(64, 1.0, 2);
    EXPECT_NEAR(TransformCodec::expected_loss(source.variance, 17), Trellis::levels(2).loss, 1e-6);
    EXPECT_NEAR(TransformCodec::expected_loss(source.variance, 25), Trellis::levels(3).loss, 1e-6);
}

TEST(TransformCodec, ZeroAndNonFiniteVectorsDecodeToZero) {
    Source source(64, 0.9, 4);
    const TransformCodec codec(source.basis, source.variance, 17, true);
    std::vector<float> x = source.draw(4);
    std::fill_n(x.begin(), 64, 0.0F);
    x[64 + 5] = std::numeric_limits<float>::quiet_NaN();
    x[128 + 7] = std::numeric_limits<float>::infinity();
    const std::vector<float> decoded = decode(codec, encode(codec, x), 4);
    EXPECT_TRUE(std::all_of(decoded.begin(), decoded.begin() + 192, [](float v) { return v == 0.0F; }));
    EXPECT_GT(std::abs(decoded[192]), 0.0F);
}

TEST(TransformCodec, ComponentsWithoutVarianceAreHarmless) {
    Source source(64, 0.9, 6);
    std::fill(source.variance.begin() + 20, source.variance.end(), 0.0F);
    const std::vector<float> x = source.draw(50);
    const TransformCodec codec(source.basis, source.variance, 40, true);
    EXPECT_LT(relative_error(x, decode(codec, encode(codec, x), 50)), 0.01);
    const std::vector<float> nothing(64, 0.0F);
    const TransformCodec flat(source.basis, nothing, 17, true);
    const std::vector<float> decoded = decode(flat, encode(flat, x), 50);
    EXPECT_TRUE(std::ranges::all_of(decoded, [](float v) { return std::isfinite(v); }));
}

TEST(TransformCodec, GainUndoesShrinkage) {
    Source source(64, 0.95, 9);
    const size_t n = 3000;
    const std::vector<float> x = source.draw(n);
    // Regression of what is decoded on x, over all directions that have bits.
    const auto slope = [&](float unbias) {
        const TransformCodec codec(source.basis, source.variance, 17, false, unbias);
        const std::vector<float> decoded = decode(codec, encode(codec, x), n);
        double product = 0.0, energy = 0.0;
        for (size_t row = 0; row < n; ++row) {
            for (size_t j = 0; j < codec.format().n_active; ++j) {
                const float* direction = &source.basis[j * 64];
                const double along = std::inner_product(direction, direction + 64, &x[row * 64], 0.0);
                product += along * std::inner_product(direction, direction + 64, &decoded[row * 64], 0.0);
                energy += along * along;
            }
        }
        return product / energy;
    };
    EXPECT_LT(slope(0.0F), 0.95);
    EXPECT_NEAR(slope(0.5F), 0.5 * (slope(0.0F) + 1.0), 0.01);
    EXPECT_NEAR(slope(1.0F), 1.0, 0.01);
}

// Errors count along the directions whatever these are: y is coded as well as if the directions were the axes.
TEST(TransformCodec, DirectionsNeedNotBeOrthogonal) {
    constexpr size_t kDim = 64, kRows = 2000;
    Source source(kDim, 0.93, 10);
    std::vector<float> skewed(source.basis);
    std::normal_distribution<float> normal(0.0F, 0.05F);
    for (size_t j = 0; j < kDim; ++j) {
        for (size_t i = 0; i < kDim; ++i) {
            skewed[j * kDim + i] =
                skewed[j * kDim + i] * (0.3F + 0.1F * static_cast<float>(j % 9)) + normal(source.rng);
        }
    }
    std::vector<float> axes(kDim * kDim);
    for (size_t j = 0; j < kDim; ++j) {
        axes[j * kDim + j] = 1.0F;
    }
    const std::vector<float> rotated = source.draw(kRows);
    std::vector<float> y(kRows * kDim), x(kRows * kDim);
    for (size_t row = 0; row < kRows; ++row) {
        for (size_t j = 0; j < kDim; ++j) {
            const float along =
                std::inner_product(&source.basis[j * kDim], &source.basis[j * kDim] + kDim, &rotated[row * kDim], 0.0F);
            y[row * kDim + j] = along;
            for (size_t i = 0; i < kDim; ++i) {
                x[row * kDim + i] += along * skewed[j * kDim + i];
            }
        }
    }
    const auto inverted = inverse(skewed, kDim);
    ASSERT_TRUE(inverted.has_value());
    for (const size_t code_bytes : {size_t{9}, size_t{17}, size_t{25}}) {
        const TransformCodec codec(skewed, source.variance, code_bytes, true);
        const TransformCodec plain(axes, source.variance, code_bytes, true);
        const std::vector<float> decoded = decode(codec, encode(codec, x), kRows);
        const double expected = relative_error(y, decode(plain, encode(plain, y), kRows));
        std::vector<float> along(kRows * kDim);
        for (size_t row = 0; row < kRows; ++row) {
            for (size_t j = 0; j < kDim; ++j) {
                double sum = 0.0;
                for (size_t i = 0; i < kDim; ++i) {
                    sum += double{decoded[row * kDim + i]} * (*inverted)[i * kDim + j];
                }
                along[row * kDim + j] = static_cast<float>(sum);
            }
        }
        EXPECT_NEAR(relative_error(y, along), expected, 0.01 * expected);
        const double share = codec.expected().lost / codec.expected().energy;
        EXPECT_NEAR(relative_error(x, decoded), share, 0.05 * share);
    }
}

TEST(TransformCodec, RefusesWhatItCannotDo) {
    Source source(64, 0.9, 8);
    EXPECT_THROW(TransformCodec(source.basis, source.variance, 1, true), Error);
    EXPECT_THROW(TransformCodec(source.basis, source.variance, 50, true), Error);
    EXPECT_THROW(TransformCodec(std::span<const float>(source.basis).first(72 * 8), source.variance, 17, true), Error);
    const std::vector<float> odd(72);
    EXPECT_THROW(TransformCodec(std::vector<float>(72 * 72), odd, 17, true), Error);
    std::vector<float> twice(source.basis);
    std::copy_n(twice.begin(), 64, twice.begin() + 64);
    EXPECT_THROW(TransformCodec(twice, source.variance, 17, true), Error);
    const TransformCodec codec(source.basis, source.variance, 17, true);
    EXPECT_EQ(codec.space(), 0U);  // before RoPE
}

}  // namespace
}  // namespace kvcodec
