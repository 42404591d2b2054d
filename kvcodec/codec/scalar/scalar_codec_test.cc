#include "kvcodec/codec/scalar/scalar_codec.h"

#include <gtest/gtest.h>

#include <hwy/targets.h>
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "kvcodec/codec/scalar/byte_products.h"
#include "kvcodec/error.h"
#include "kvcodec/test_targets.h"

namespace kvcodec {
namespace {

std::vector<float> random_vector(size_t n, std::mt19937& rng, float deviation = 1.0F) {
    std::normal_distribution<float> normal(0.0F, deviation);
    std::vector<float> x(n);
    for (float& v : x) {
        v = normal(rng);
    }
    return x;
}

/// Codes of n vectors with the slack that the interface asks for.
std::vector<std::byte> encode(const Codec& codec, const std::vector<float>& x) {
    const size_t n = x.size() / codec.dim();
    std::vector<std::byte> codes(n * codec.code_bytes() + Codec::kCodeSlackBytes);
    codec.encode(x.data(), n, codes.data());
    return codes;
}

/// The first n codes as a store has them.
std::vector<std::byte> arrange(const Codec& codec, const std::vector<std::byte>& codes, size_t n) {
    return codec.arrange({codes.data(), n * codec.code_bytes()});
}

std::vector<float> decode(const Codec& codec, const std::vector<std::byte>& codes, size_t n) {
    std::vector<float> x(n * codec.dim());
    codec.decode(codes.data(), 0, n, x.data());
    return x;
}

/// H [dim, dim] row-major, as prepare() applies it.
std::vector<float> rotation(const Codec& codec) {
    const size_t dim = codec.dim();
    std::vector<float> identity(dim * dim, 0.0F);
    for (size_t i = 0; i < dim; ++i) {
        identity[i * dim + i] = 1.0F;
    }
    std::vector<float> h(dim * dim);
    codec.prepare(identity.data(), dim, 0, dim, h.data());
    return h;
}

unsigned bits_at(const uint8_t* bytes, size_t byte, size_t bit, unsigned n_bits) {
    return bytes[byte] >> bit & ((1U << n_bits) - 1U);
}

/// Places of one row's levels, read bit by bit as scalar_codec.h and trellis.h describe them.
std::vector<unsigned> places(const ScalarFormat& format, const uint8_t* code) {
    const uint8_t* pairs = code + format.dim / 8;
    const uint8_t* singles = format.bits == 4 ? pairs + format.dim / 4 : pairs;
    std::vector<unsigned> place(format.dim);
    std::vector<size_t> bit_of(format.dim);  // in the plane of path bits
    for (size_t element = 0; element < format.dim; ++element) {
        const size_t group = element / 32 * 32;
        const bool half = group + 32 > format.dim;
        size_t i = element % 32 / 4, k = element % 4;
        const size_t byte = half ? group / 8 + k % 2 : group / 8 + k;
        const size_t bit = half && k >= 2 ? i + 4 : i;
        bit_of[element] = 8 * byte + bit;
        i = element % 32 / 8;
        k = element % 8;
        const unsigned two = half ? bits_at(pairs, group / 4 + k % 4, 2 * i + (k < 4 ? 0 : 4), 2)
                                  : bits_at(pairs, group / 4 + k, 2 * i, 2);
        const unsigned one = bits_at(singles, byte, bit, 1);
        place[element] = (format.bits == 2 ? one : format.bits == 3 ? two : two | one << 2) << 2;
    }
    for (size_t element = 0; element < format.dim; ++element) {
        const auto path = [&](size_t back) {
            const size_t t = bit_of[element];
            return t < back ? 0U : bits_at(code, (t - back) / 8, (t - back) % 8, 1);
        };
        place[element] |= path(2) | (path(0) ^ path(1) ^ path(3)) << 1;
    }
    return place;
}

/// Rotated vectors y [n, dim] = scale * level in double, from the bytes alone.
std::vector<double> reference_rotated(const ScalarFormat& format, const std::vector<std::byte>& codes, size_t n) {
    std::vector<double> y(n * format.dim);
    for (size_t row = 0; row < n; ++row) {
        const auto* code = reinterpret_cast<const uint8_t*>(codes.data()) + row * format.code_bytes;
        const std::vector<unsigned> place = format.bits == 8 ? std::vector<unsigned>() : places(format, code);
        for (size_t i = 0; i < format.dim; ++i) {
            const int level = format.bits == 8 ? static_cast<int8_t>(code[i]) : format.levels[place[i]];
            y[row * format.dim + i] = double{format.scales[code[format.code_bytes - 1]]} * level;
        }
    }
    return y;
}

/// x [n, dim] = y H.
std::vector<double> rotate_back(const std::vector<double>& y, const std::vector<float>& h, size_t dim) {
    std::vector<double> x(y.size(), 0.0);
    for (size_t row = 0; row < y.size() / dim; ++row) {
        for (size_t i = 0; i < dim; ++i) {
            for (size_t j = 0; j < dim; ++j) {
                x[row * dim + j] += y[row * dim + i] * h[i * dim + j];
            }
        }
    }
    return x;
}

double relative_error(const std::vector<float>& x, const std::vector<float>& y) {
    double error = 0.0;
    double energy = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
        error += (double{x[i]} - y[i]) * (double{x[i]} - y[i]);
        energy += double{x[i]} * x[i];
    }
    return error / energy;
}

bool by_bytes(const ScalarCodec& codec) {
#if HWY_ARCH_X86
    return byte_products::serve(codec.format());
#else
    return false;
#endif
}

/// table [dim, lanes] as products of bytes have it.
std::vector<float> rounded_queries(const std::vector<float>& table, size_t lanes) {
    std::vector<float> rounded(table.size());
    for (size_t lane = 0; lane < lanes; ++lane) {
        float largest = 0.0F;
        for (size_t i = lane; i < table.size(); i += lanes) {
            largest = std::max(largest, std::abs(table[i]));
        }
        for (size_t i = lane; i < table.size(); i += lanes) {
            rounded[i] = std::nearbyint(table[i] * (127.0F / largest)) * (largest / 127.0F);
        }
    }
    return rounded;
}

/// p [rows, lanes] as products of bytes have it, which round them times the scales of the rows.
std::vector<float> rounded_weights(const std::vector<float>& p, const std::vector<float>& scale, size_t lanes) {
    std::vector<float> rounded(p.size());
    for (size_t lane = 0; lane < lanes; ++lane) {
        for (size_t begin = 0; begin < scale.size(); begin += 64) {
            const size_t end = std::min(begin + 64, scale.size());
            float largest = 0.0F;
            for (size_t i = begin; i < end; ++i) {
                largest = std::max(largest, p[i * lanes + lane] * scale[i]);
            }
            std::array<float, 16> carry{};  // [16 rows, 4]
            for (size_t i = 0; i < carry.size(); ++i) {
                carry[i] = (static_cast<float>(i) + 0.5F) / 16.0F - 0.5F;
            }
            for (size_t i = begin; i < end && largest > 0.0F; ++i) {
                float& rest = carry[(i - begin) / 16 * 4 + i % 4];
                const float wanted = std::fma(p[i * lanes + lane] * scale[i], 254.0F / largest, rest);
                rest = wanted - std::nearbyint(wanted);
                rounded[i * lanes + lane] = std::nearbyint(wanted) * (largest / 254.0F) / scale[i];
            }
        }
    }
    return rounded;
}

struct Shape {
    size_t dim;
    unsigned bits;
};

class ScalarCodecTest : public testing::TestWithParam<Shape> {
  protected:
    void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
    const ScalarCodec codec_{GetParam().dim, GetParam().bits};
    const size_t dim_ = GetParam().dim;
    std::mt19937 rng_{42};
};

TEST_P(ScalarCodecTest, RotationIsOrthonormal) {
    const std::vector<float> h = rotation(codec_);
    for (size_t i = 0; i < dim_; ++i) {
        for (size_t j = 0; j < dim_; ++j) {
            double product = 0.0;
            for (size_t k = 0; k < dim_; ++k) {
                product += double{h[i * dim_ + k]} * h[j * dim_ + k];
            }
            ASSERT_NEAR(product, i == j ? 1.0 : 0.0, 1e-6);
        }
    }
}

TEST_P(ScalarCodecTest, AgreesWithBytesRead) {
    const std::vector<float> h = rotation(codec_);
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target & -target));
        hwy::SetSupportedTargetsForTest(target);
        const ScalarCodec codec(dim_, GetParam().bits);
        constexpr double kTolerance = 1e-4;
        for (const size_t n : {1, 2, 7, 64, 70}) {
            const std::vector<float> x = random_vector(n * dim_, rng_);
            const std::vector<std::byte> codes = encode(codec, x), block = arrange(codec, codes, n);
            const std::vector<double> y = reference_rotated(codec.format(), codes, n);
            const std::vector<double> expected = rotate_back(y, h, dim_);
            const std::vector<float> decoded = decode(codec, codes, n);
            for (size_t i = 0; i < decoded.size(); ++i) {
                ASSERT_NEAR(decoded[i], expected[i], 2e-6);
            }

            std::vector<uint16_t> rows;
            for (uint16_t row = 0; row < n; ++row) {
                if (row + 1U == n || rng_() % 3 != 0) {
                    rows.push_back(row);
                }
            }
            std::shuffle(rows.begin(), rows.end(), rng_);
            if (rng_() % 2 == 0) {  // all of them in order, as most blocks have them
                rows.resize(n);
                std::iota(rows.begin(), rows.end(), uint16_t{0});
            }
            for (const size_t lanes : {4, 8, 12, 32}) {
                const std::vector<float> q = random_vector(lanes * dim_, rng_);
                std::vector<float> table(dim_ * lanes, -7.0F);
                codec.prepare(q.data(), lanes, 0, 16, table.data());
                ASSERT_EQ(table[16 * lanes], -7.0F) << "wrote outside the slice";
                codec.prepare(q.data(), lanes, 16, dim_, table.data());
                for (size_t lane = 0; lane < lanes; ++lane) {
                    for (size_t i = 0; i < dim_; ++i) {
                        const double rotated =
                            std::inner_product(&h[i * dim_], &h[i * dim_] + dim_, &q[lane * dim_], 0.0);
                        ASSERT_NEAR(table[i * lanes + lane], rotated, 1e-5);
                    }
                }

                std::vector<float> s(rows.size() * lanes + 1, -7.0F);
                codec.score(table.data(), lanes, block.data(), rows, s.data());
                ASSERT_EQ(s.back(), -7.0F);
                std::vector<float> p = random_vector(rows.size() * lanes, rng_);
                std::ranges::transform(p, p.begin(), [](float weight) { return std::abs(weight); });
                const std::vector<float> before = random_vector(dim_ * lanes, rng_);
                std::vector<float> acc = before;
                codec.accumulate(p.data(), lanes, block.data(), rows, acc.data());
                const std::vector<float> out_before = random_vector(lanes * dim_, rng_);
                std::vector<float> out = out_before;
                codec.finish(acc.data(), lanes, 16, dim_, out.data());
                for (size_t lane = 0; lane < lanes; ++lane) {
                    for (size_t i = 0; i < 16; ++i) {
                        ASSERT_EQ(out[lane * dim_ + i], out_before[lane * dim_ + i]) << "wrote outside the slice";
                    }
                }
                codec.finish(acc.data(), lanes, 0, 16, out.data());

                std::vector<float> scale;
                for (const uint16_t row : rows) {
                    scale.push_back(
                        codec.format().scales[static_cast<size_t>(codes[(row + 1) * codec.code_bytes() - 1])]);
                }
                if (by_bytes(codec)) {
                    table = rounded_queries(table, lanes);
                    p = rounded_weights(p, scale, lanes);
                }
                for (size_t lane = 0; lane < lanes; ++lane) {
                    std::vector<double> sum(dim_);
                    for (size_t i = 0; i < dim_; ++i) {
                        sum[i] = before[i * lanes + lane];
                    }
                    for (size_t i = 0; i < rows.size(); ++i) {
                        double product = 0.0;
                        for (size_t j = 0; j < dim_; ++j) {
                            product += table[j * lanes + lane] * y[rows[i] * dim_ + j];
                            sum[j] += double{p[i * lanes + lane]} * y[rows[i] * dim_ + j];
                        }
                        ASSERT_NEAR(s[i * lanes + lane], product, kTolerance) << "row " << i << " lane " << lane;
                    }
                    for (size_t i = 0; i < dim_; ++i) {
                        ASSERT_NEAR(acc[i * lanes + lane], sum[i], kTolerance) << "element " << i << " lane " << lane;
                    }
                    const std::vector<double> expansion = rotate_back(sum, h, dim_);
                    for (size_t i = 0; i < dim_; ++i) {
                        ASSERT_NEAR(out[lane * dim_ + i], out_before[lane * dim_ + i] + expansion[i], 3 * kTolerance);
                    }
                }
            }
        }
    }
}

/// Least squared error of a quantiser of single elements with 2^bits levels for a unit Gaussian (J. Max 1960); with 8
/// bits, of a uniform one over +-3.5.
double distortion_of_single_elements(unsigned bits) {
    switch (bits) {
        case 2:
            return 0.1175;
        case 3:
            return 0.03454;
        case 4:
            return 0.009497;
        default:
            return 9e-5;
    }
}

TEST_P(ScalarCodecTest, DistortionOnGaussianVectorsIsBelowThatOfSingleElements) {
    const unsigned bits = GetParam().bits;
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        for (const float deviation : {0.01F, 1.0F, 30.0F}) {
            const std::vector<float> x = random_vector(2000 * dim_, rng_, deviation);
            const double error = relative_error(x, decode(codec_, encode(codec_, x), 2000));
            EXPECT_LT(error, (bits == 8 ? 1.0 : 0.8) * distortion_of_single_elements(bits));
            if (bits != 8) {  // where the scale of each vector follows its largest element
                EXPECT_NEAR(error / ScalarCodec::expected_loss(bits), 1.0, 0.1);
            }
        }
    }
}

TEST_P(ScalarCodecTest, VectorsOfOneElementSpreadOverAll) {
    std::vector<float> x(dim_, 0.0F);
    x[3] = 100.0F;
    const double limit = GetParam().bits == 2 ? 0.13 : 0.04;
    EXPECT_LT(relative_error(x, decode(codec_, encode(codec_, x), 1)), limit);
}

TEST_P(ScalarCodecTest, ZeroAndNonFiniteVectorsBecomeZero) {
    std::vector<float> x = random_vector(5 * dim_, rng_);
    std::fill_n(x.begin(), dim_, 0.0F);
    x[dim_ + 3] = std::numeric_limits<float>::quiet_NaN();
    x[2 * dim_] = std::numeric_limits<float>::infinity();
    std::fill_n(x.begin() + static_cast<std::ptrdiff_t>(3 * dim_), dim_, std::numeric_limits<float>::max());
    const std::vector<std::byte> codes = encode(codec_, x);
    const std::vector<float> decoded = decode(codec_, codes, 5);
    for (size_t i = 0; i < 4 * dim_; ++i) {
        ASSERT_EQ(decoded[i], 0.0F);
    }
    EXPECT_NE(decoded[4 * dim_], 0.0F);

    const std::vector<float> q = random_vector(4 * dim_, rng_);
    std::vector<float> table(4 * dim_);
    codec_.prepare(q.data(), 4, 0, dim_, table.data());
    const std::vector<uint16_t> rows = {0, 1, 2, 3};
    std::vector<float> s(16, -7.0F);
    codec_.score(table.data(), 4, arrange(codec_, codes, 5).data(), rows, s.data());
    EXPECT_EQ(s, std::vector<float>(16, 0.0F));
}

TEST_P(ScalarCodecTest, TinyAndHugeVectorsStayFinite) {
    for (const float deviation : {1e-30F, 1e-5F, 1e4F, 1e15F}) {
        const std::vector<float> x = random_vector(dim_, rng_, deviation);
        EXPECT_LE(relative_error(x, decode(codec_, encode(codec_, x), 1)), 1.0 + 1e-6) << deviation;
    }
}

INSTANTIATE_TEST_SUITE_P(Shapes, ScalarCodecTest,
                         testing::Values(Shape{64, 2}, Shape{64, 3}, Shape{64, 4}, Shape{64, 8}, Shape{80, 2},
                                         Shape{80, 3}, Shape{80, 4}, Shape{80, 8}, Shape{96, 3}, Shape{112, 4},
                                         Shape{128, 2}, Shape{128, 3}, Shape{128, 4}, Shape{128, 8}, Shape{256, 3},
                                         Shape{256, 4}),
                         [](const auto& test) {
                             return "Dim" + std::to_string(test.param.dim) + "Bits" + std::to_string(test.param.bits);
                         });

TEST(ScalarCodec, GainUndoesShrinkage) {
    std::mt19937 rng(3);
    const std::vector<float> x = random_vector(4000 * 128, rng);
    for (const unsigned bits : {2, 3, 4}) {
        for (const float unbias : {0.0F, 0.5F, 1.0F}) {
            const ScalarCodec codec(128, bits, unbias);
            const std::vector<float> decoded = decode(codec, encode(codec, x), 4000);
            const double slope = std::inner_product(x.begin(), x.end(), decoded.begin(), 0.0) /
                                 std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
            const double expected = std::pow(1 - ScalarCodec::expected_loss(bits), 1 - unbias);
            EXPECT_NEAR(slope, expected, 0.01) << bits << " bits, " << unbias;
        }
    }
}

TEST(ScalarCodec, CountsBytes) {
    EXPECT_EQ(ScalarCodec(64, 3).code_bytes(), 25U);
    EXPECT_EQ(ScalarCodec(80, 3).code_bytes(), 31U);
    EXPECT_EQ(ScalarCodec(128, 3).code_bytes(), 49U);
    EXPECT_EQ(ScalarCodec(128, 4).code_bytes(), 65U);
    EXPECT_EQ(ScalarCodec(128, 8).code_bytes(), 129U);
    EXPECT_EQ(ScalarCodec(128, 3).space(), 128U);
}

TEST(ScalarCodec, CodesHardlyDependOnTheTarget) {
    std::mt19937 rng(5);
    const ScalarCodec codec(128, 3);
    const std::vector<float> x = random_vector(500 * 128, rng);
    const std::vector<std::byte> best = encode(codec, x);
    for (const int64_t target : test_targets()) {
        hwy::SetSupportedTargetsForTest(target);
        const std::vector<std::byte> codes = encode(codec, x);
        // Sums are rounded in another order, which may tip an element that lies on a threshold.
        size_t n_different = 0;
        for (size_t i = 0; i < codes.size(); ++i) {
            n_different += codes[i] == best[i] ? 0 : 1;
        }
        EXPECT_LT(n_different, codes.size() / 1000) << hwy::TargetName(target);
    }
    hwy::SetSupportedTargetsForTest(0);
}

TEST(ScalarCodec, RefusesWhatItCannotCode) {
    EXPECT_THROW(ScalarCodec(0, 3), Error);
    EXPECT_THROW(ScalarCodec(72, 3), Error);
    EXPECT_THROW(ScalarCodec(1040, 3), Error);
    EXPECT_THROW(ScalarCodec(64, 5), Error);
}

}  // namespace
}  // namespace kvcodec
