#include "kvcodec/codec/dictionary/packing.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kvcodec/codec/codec.h"
#include "kvcodec/codec/dictionary/omp.h"
#include "kvcodec/target.h"
#include "kvcodec/test_targets.h"

namespace kvcodec {
namespace {

// Magnitudes as training gives them: dense around the small coefficients.
constexpr float kLevels[Packing::kLevels] = {0.08F, 0.17F, 0.27F, 0.38F, 0.5F, 0.64F, 0.8F, 1.0F};

struct Kind {
    std::string name;
    CoefficientFormat format;
    CodeLayout layout;
};

/// Bits of each index that a packed code stores as such: with the fewest bits in all.
size_t low_bits(size_t n_atoms, size_t sparsity) {
    size_t best = 0;
    const auto cost = [&](size_t bits) { return sparsity * bits + (n_atoms - 1) / (size_t{1} << bits); };
    for (size_t bits = 1; bits < 16; ++bits) {
        best = cost(bits) < cost(best) ? bits : best;
    }
    return best;
}

unsigned bits_at(const std::byte* code, size_t bit, size_t n_bits) {
    unsigned value = 0;
    for (size_t i = 0; i < n_bits; ++i) {
        value |= (static_cast<unsigned>(code[(bit + i) / 8]) >> ((bit + i) % 8) & 1U) << i;
    }
    return value;
}

double e4m3(unsigned code) {
    const int exponent = static_cast<int>(code >> 3 & 15U);
    const int mantissa = static_cast<int>(code & 7U);
    const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    return (code & 128U) != 0 ? -magnitude : magnitude;
}

struct Row {
    std::vector<uint16_t> index;
    std::vector<float> coefficient;
};

class PackingTest : public testing::TestWithParam<Kind> {
  protected:
    void TearDown() override { hwy::SetSupportedTargetsForTest(0); }

    Packing packing(size_t n_atoms, size_t sparsity) const {
        return {n_atoms, sparsity, GetParam().format, GetParam().layout, kLevels};
    }

    Row random_row(size_t n_atoms, size_t count, float size = 1.0F) {
        std::normal_distribution<float> normal(0.0F, size);
        Row row;
        for (size_t i = 0; i < count; ++i) {
            // The largest indices show a lost bit best.
            row.index.push_back(static_cast<uint16_t>(rng_() % 4 == 0 ? n_atoms - 1 : rng_() % n_atoms));
            row.coefficient.push_back(normal(rng_));
        }
        return row;
    }

    /// Codes of the rows in a buffer of exactly the size that readers may touch: the sanitizer catches any more.
    static std::vector<std::byte> pack(const Packing& packing, const std::vector<Row>& rows) {
        std::vector<std::byte> codes(rows.size() * packing.code_bytes() + Codec::kCodeSlackBytes, std::byte{0xA5});
        for (size_t i = 0; i < rows.size(); ++i) {
            packing.pack(rows[i].index.data(), rows[i].coefficient.data(), rows[i].index.size(),
                         codes.data() + i * packing.code_bytes());
        }
        return codes;
    }

    /// What one code means, read bit by bit.
    static Row read(const Kind& kind, size_t n_atoms, size_t sparsity, const std::byte* code) {
        const bool published = kind.layout == CodeLayout::kPublished;
        const size_t coefficient_bits = !published && kind.format == CoefficientFormat::kSigned4 ? 4 : 8;
        const size_t header = published ? 16 : 8;
        const size_t bits = published ? 16 : low_bits(n_atoms, sparsity);
        const size_t first_index = header + sparsity * coefficient_bits;
        const double scale = std::exp2((static_cast<int>(code[0]) - 160) / 8.0);
        std::vector<size_t> high;
        if (published) {
            high.resize(bits_at(code, 0, 16));
        } else {
            const size_t n_high = sparsity + (n_atoms - 1) / (size_t{1} << bits);
            for (size_t bit = 0; bit < n_high; ++bit) {
                if (bits_at(code, first_index + sparsity * bits + bit, 1) == 1) {
                    high.push_back((bit - high.size()) << bits);
                }
            }
        }
        Row row;
        for (size_t i = 0; i < high.size(); ++i) {
            const unsigned value = bits_at(code, header + i * coefficient_bits, coefficient_bits);
            const double level = std::lround(kLevels[value % 8] * 127) / 127.0;
            row.index.push_back(static_cast<uint16_t>(high[i] + bits_at(code, first_index + i * bits, bits)));
            row.coefficient.push_back(static_cast<float>(coefficient_bits == 4 ? (value < 8 ? level : -level) * scale
                                                         : published           ? e4m3(value)
                                                                               : e4m3(value) * scale / 448));
        }
        return row;
    }

    std::mt19937 rng_{11};
};

TEST_P(PackingTest, CountsBytes) {
    for (size_t n_atoms = 2; n_atoms <= 65536; n_atoms = n_atoms * 5 / 4 + 1) {
        for (size_t s = 1; s <= 64; ++s) {
            const size_t coefficient_bits = GetParam().format == CoefficientFormat::kSigned4 ? 4 : 8;
            const size_t bits = low_bits(n_atoms, s);
            const size_t expected =
                GetParam().layout == CodeLayout::kPublished
                    ? 3 * s + 2
                    : 1 + (s * (coefficient_bits + bits) + s + (n_atoms - 1) / (size_t{1} << bits) + 7) / 8;
            if (GetParam().layout == CodeLayout::kPacked && 8 * s <= n_atoms) {  // half a bit from the bound, and a few
                const auto n = static_cast<double>(n_atoms), k = static_cast<double>(s);
                const double bound = (std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1)) / std::log(2.0);
                ASSERT_LE(static_cast<double>(8 * expected - 8 - s * coefficient_bits), bound + 0.6 * k + 15);
            }
            const Packing p = packing(n_atoms, s);
            ASSERT_EQ(p.code_bytes(), expected) << "N " << n_atoms << " s " << s;
            ASSERT_EQ(Packing::code_bytes(n_atoms, s, GetParam().format, GetParam().layout), expected);
            ASSERT_EQ(p.sparsity(), s);
            ASSERT_EQ(p.stride(), (s + 7) / 8 * 8);
        }
    }
}

TEST_P(PackingTest, RoundTrips) {
    constexpr size_t kRows = 3;
    for (const size_t n_atoms : {2,   3,    4,    5,    8,    9,    16,   31,    64,    100,   128,  257,
                                 512, 1000, 1024, 2048, 4095, 4096, 8192, 16384, 20000, 32768, 65536}) {
        for (size_t s = 1; s <= 64; ++s) {
            SCOPED_TRACE("N " + std::to_string(n_atoms) + " s " + std::to_string(s));
            const Packing p = packing(n_atoms, s);
            const std::vector<Row> rows = {random_row(n_atoms, s), random_row(n_atoms, rng_() % (s + 1)),
                                           random_row(n_atoms, s, 30.0F)};
            const std::vector<std::byte> codes = pack(p, rows);
            for (size_t i = 0; i < Codec::kCodeSlackBytes; ++i) {
                ASSERT_EQ(codes[kRows * p.code_bytes() + i], std::byte{0xA5}) << "wrote past the code";
            }
            std::vector<Row> expected;
            for (size_t i = 0; i < kRows; ++i) {
                expected.push_back(read(GetParam(), n_atoms, s, codes.data() + i * p.code_bytes()));
                std::vector<uint16_t> index = rows[i].index;
                if (GetParam().layout == CodeLayout::kPacked) {
                    std::ranges::sort(index);
                }
                ASSERT_EQ(expected[i].index, index);
            }
            std::vector<uint16_t> order = {2, 0, 1, 2};
            order.resize(4 + rng_() % 30, 1);
            const auto scale = static_cast<uint32_t>(s % 2 == 0 ? 1U << rng_() % 9 : 1 + rng_() % 256);
            for (const int64_t target : test_targets()) {
                hwy::SetSupportedTargetsForTest(target);
                SCOPED_TRACE(target_name());
                const Packing reader = packing(n_atoms, s);
                std::vector<uint32_t> offset(order.size() * p.stride(), 77);
                std::vector<float> coefficient(order.size() * p.stride(), 77.0F);
                reader.unpack(codes.data(), order, scale, offset.data(), coefficient.data());
                for (size_t i = 0; i < offset.size(); ++i) {
                    const Row& row = expected[order[i / p.stride()]];
                    const size_t k = i % p.stride();
                    if (k < row.index.size()) {
                        ASSERT_EQ(offset[i], row.index[k] * scale) << "nonzero " << k;
                        ASSERT_NEAR(coefficient[i], row.coefficient[k], 1e-6 * std::abs(row.coefficient[k]));
                    } else {
                        ASSERT_EQ(offset[i], 0U) << "nonzero " << k;
                        ASSERT_EQ(coefficient[i], 0.0F) << "nonzero " << k;
                    }
                }
            }
        }
    }
}

TEST_P(PackingTest, AnyBytesNameAtoms) {
    constexpr size_t kAtoms = 1000, kRows = 37;
    constexpr uint32_t kScale = 4;
    for (const size_t s : {1, 7, 8, 9, 16, 33, 64}) {
        const size_t bytes = packing(kAtoms, s).code_bytes();
        for (const unsigned share : {1, 4, 7, 8}) {  // of ones, in eighths
            std::vector<std::byte> codes(kRows * bytes + Codec::kCodeSlackBytes);
            for (size_t bit = 0; bit < 8 * codes.size(); ++bit) {
                codes[bit / 8] |= static_cast<std::byte>((rng_() % 8 < share ? 1U : 0U) << bit % 8);
            }
            std::vector<uint16_t> order(kRows);
            std::iota(order.begin(), order.end(), uint16_t{0});
            std::vector<uint32_t> first_offset;
            std::vector<float> first_coefficient;
            for (const int64_t target : test_targets()) {
                hwy::SetSupportedTargetsForTest(target);
                SCOPED_TRACE(target_name() + " s " + std::to_string(s) + " share " + std::to_string(share));
                const Packing p = packing(kAtoms, s);
                std::vector<uint32_t> offset(kRows * p.stride(), 77);
                std::vector<float> coefficient(kRows * p.stride(), 77.0F);
                p.unpack(codes.data(), order, kScale, offset.data(), coefficient.data());
                for (size_t i = 0; i < offset.size(); ++i) {
                    ASSERT_LE(offset[i], (kAtoms - 1) * kScale);
                    ASSERT_TRUE(std::isfinite(coefficient[i]));
                    if (i % p.stride() >= s) {
                        ASSERT_EQ(offset[i], 0U);
                        ASSERT_EQ(coefficient[i], 0.0F);
                    }
                }
                if (first_offset.empty()) {
                    first_offset = offset;
                    first_coefficient = coefficient;
                }
                ASSERT_EQ(offset, first_offset);
                ASSERT_EQ(coefficient, first_coefficient);
            }
        }
    }
}

TEST_P(PackingTest, QuantisationErrorIsBounded) {
    constexpr size_t kAtoms = 1024;
    constexpr size_t kSparsity = 16;
    const Packing p = packing(kAtoms, kSparsity);
    const bool published = GetParam().layout == CodeLayout::kPublished;
    for (const float size : {1e-3F, 0.1F, 1.0F, 40.0F}) {
        for (int round = 0; round < 200; ++round) {
            const Row row = random_row(kAtoms, 1 + rng_() % kSparsity, size);
            const std::vector<std::byte> codes = pack(p, {row});
            const uint16_t first = 0;
            std::vector<uint32_t> offset(p.stride());
            std::vector<float> coefficient(p.stride());
            p.unpack(codes.data(), {&first, 1}, 1, offset.data(), coefficient.data());
            double largest = 0.0;
            for (const float c : row.coefficient) {
                largest = std::max(largest, std::abs(double{c}));
            }
            double squared_error = 0.0;
            std::vector<size_t> order(row.index.size());
            std::iota(order.begin(), order.end(), size_t{0});
            if (!published) {
                std::ranges::stable_sort(order, {}, [&](size_t i) { return row.index[i]; });
            }
            for (size_t k = 0; k < row.coefficient.size(); ++k) {
                const size_t i = order[k];
                const double error = std::abs(double{row.coefficient[i]} - coefficient[k]);
                squared_error += error * error;
                if (GetParam().format == CoefficientFormat::kFp8) {
                    // Half of the last of three bits of mantissa, or half a step of the subnormals.
                    const double unit = published ? 1.0 : largest * std::exp2(0.125) / 448;
                    const double bound = std::max(std::abs(double{row.coefficient[i]}) / 16, unit / 1024);
                    ASSERT_LE(error, bound * 1.0001) << row.coefficient[i];
                }
                ASSERT_LE(row.coefficient[i] * coefficient[k], published ? 1e9 : largest * largest * 1.2);
                ASSERT_GE(row.coefficient[i] * coefficient[k], 0.0F) << "the sign was lost";
            }
            // The widest gap of the levels is 0.2 (0.8 to 1.0); the smallest level 0.08 stands for zero.
            const double bound = 0.1 * std::exp2(0.125) * largest + largest / 127;
            if (GetParam().format == CoefficientFormat::kSigned4) {
                ASSERT_LE(std::sqrt(squared_error / static_cast<double>(row.coefficient.size())), bound);
            }
        }
    }
}

TEST_P(PackingTest, ZeroRowsAndLimits) {
    const Packing p = packing(512, 5);
    const Row zeros{{1, 2, 3}, {0.0F, 0.0F, -0.0F}};
    const Row huge{{511, 0, 3}, {1e20F, -1e20F, 1.0F}};
    const Row tiny{{511, 0, 3}, {1e-20F, -1e-20F, 1e-30F}};
    const std::vector<std::byte> codes = pack(p, {zeros, {}, huge, tiny});
    const std::vector<uint16_t> rows = {0, 1, 2, 3};
    std::vector<uint32_t> offset(4 * p.stride());
    std::vector<float> coefficient(4 * p.stride());
    p.unpack(codes.data(), rows, 1, offset.data(), coefficient.data());
    for (size_t i = 0; i < 2 * p.stride(); ++i) {
        ASSERT_EQ(coefficient[i], 0.0F);
    }
    for (size_t i = 2 * p.stride(); i < 4 * p.stride(); ++i) {
        ASSERT_TRUE(std::isfinite(coefficient[i]));
    }
    // What the format cannot hold becomes its largest value, not noise.
    const size_t positive = GetParam().layout == CodeLayout::kPacked ? 2 : 0, negative = positive == 2 ? 0 : 1;
    EXPECT_GT(coefficient[2 * p.stride() + positive], 400.0F);
    EXPECT_LT(coefficient[2 * p.stride() + negative], -400.0F);
    EXPECT_NEAR(coefficient[3 * p.stride() + positive], 0.0F, 1e-5F);
}

class PackingWithProducts : public testing::TestWithParam<size_t> {
  protected:
    void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

TEST_P(PackingWithProducts, LowersTheErrorOfTheSum) {
    constexpr size_t kDim = 64, kAtoms = 256, kRows = 300;
    const size_t sparsity = GetParam();
    std::mt19937 rng(3);
    std::normal_distribution<float> normal;
    std::vector<float> atoms(kAtoms * kDim), x(kRows * kDim);
    std::ranges::generate(x, [&] { return normal(rng); });
    for (size_t j = 0; j < kAtoms; ++j) {
        float* atom = &atoms[j * kDim];
        std::generate_n(atom, kDim, [&] { return normal(rng); });
        const float norm = std::sqrt(std::inner_product(atom, atom + kDim, atom, 0.0F));
        std::transform(atom, atom + kDim, atom, [&](float v) { return v / norm; });
    }
    std::vector<uint16_t> index(kRows * sparsity);
    std::vector<float> coefficient(kRows * sparsity), gram(kRows * sparsity * gram_stride(sparsity));
    std::vector<uint8_t> count(kRows);
    omp_encode(atoms.data(), kAtoms, kDim, x.data(), kRows, {sparsity}, index.data(), coefficient.data(), count.data(),
               nullptr, gram.data());
    const Packing p(kAtoms, sparsity, CoefficientFormat::kSigned4, CodeLayout::kPacked, kLevels);
    const auto added_error = [&](bool with_products) {
        double sum = 0.0;
        std::vector<std::byte> code(p.code_bytes() + Codec::kCodeSlackBytes);
        for (size_t row = 0; row < kRows; ++row) {
            p.pack(&index[row * sparsity], &coefficient[row * sparsity], count[row], code.data(),
                   with_products ? SupportGram{&gram[row * sparsity * gram_stride(sparsity)], gram_stride(sparsity)}
                                 : SupportGram{});
            std::vector<uint32_t> atom(p.stride());
            std::vector<float> value(p.stride());
            const uint16_t first = 0;
            p.unpack(code.data(), {&first, 1}, 1, atom.data(), value.data());
            for (size_t i = 0; i < kDim; ++i) {
                double miss = 0.0;
                for (size_t k = 0; k < sparsity; ++k) {
                    miss += double{coefficient[row * sparsity + k]} * atoms[index[row * sparsity + k] * kDim + i];
                    miss -= double{value[k]} * atoms[atom[k] * kDim + i];
                }
                sum += miss * miss;
            }
        }
        return sum;
    };
    double of_first_target = 0.0;
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        const double with_products = added_error(true);
        EXPECT_LT(with_products, 0.96 * added_error(false));
        of_first_target = of_first_target == 0.0 ? with_products : of_first_target;
        EXPECT_NEAR(with_products / of_first_target, 1.0, 1e-3);
    }
}

TEST_P(PackingWithProducts, TakesRowsAtAnyDistance) {
    constexpr size_t kStride = 40;
    const size_t count = GetParam();
    std::mt19937 rng(5);
    std::normal_distribution<float> normal;
    std::vector<float> atoms(count * kStride), near(count * gram_stride(count), NAN), far(count * kStride, NAN);
    std::ranges::generate(atoms, [&] { return normal(rng) / std::sqrt(float{kStride}); });
    for (size_t i = 0; i < count; ++i) {
        for (size_t j = 0; j < count; ++j) {
            near[i * gram_stride(count) + j] = far[i * kStride + j] =
                std::inner_product(&atoms[i * kStride], &atoms[i * kStride] + kStride, &atoms[j * kStride], 0.0F);
        }
    }
    std::vector<uint16_t> index(count);
    std::iota(index.begin(), index.end(), uint16_t{3});
    const Packing p(256, count, CoefficientFormat::kSigned4, CodeLayout::kPacked, kLevels);
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        size_t n_otherwise = 0;
        for (int i = 0; i < 20; ++i) {
            std::vector<float> coefficient(count);
            std::ranges::generate(coefficient, [&] { return normal(rng); });
            std::vector<std::byte> of_near(p.code_bytes()), of_far(p.code_bytes()), alone(p.code_bytes());
            p.pack(index.data(), coefficient.data(), count, of_near.data(), {near.data(), gram_stride(count)});
            p.pack(index.data(), coefficient.data(), count, of_far.data(), {far.data(), kStride});
            p.pack(index.data(), coefficient.data(), count, alone.data());
            EXPECT_EQ(of_near, of_far);
            n_otherwise += of_near != alone ? 1 : 0;
        }
        EXPECT_GT(n_otherwise, 5);
    }
}

INSTANTIATE_TEST_SUITE_P(Sparsities, PackingWithProducts, testing::Values(8, 9, 12, 16, 17, 33, 40));

INSTANTIATE_TEST_SUITE_P(Kinds, PackingTest,
                         testing::Values(Kind{"Signed4", CoefficientFormat::kSigned4, CodeLayout::kPacked},
                                         Kind{"Fp8", CoefficientFormat::kFp8, CodeLayout::kPacked},
                                         Kind{"Published", CoefficientFormat::kFp8, CodeLayout::kPublished}),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace kvcodec
