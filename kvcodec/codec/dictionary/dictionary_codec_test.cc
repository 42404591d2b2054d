#include "kvcodec/codec/dictionary/dictionary_codec.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kvcodec/codec/variable_block.h"
#include "kvcodec/error.h"
#include "kvcodec/half.h"
#include "kvcodec/test_targets.h"

namespace kvcodec {
namespace {

constexpr float kLevels[Packing::kLevels] = {0.08F, 0.17F, 0.27F, 0.38F, 0.5F, 0.64F, 0.8F, 1.0F};

std::vector<float> random_vector(size_t n, std::mt19937& rng) {
    std::normal_distribution<float> normal;
    std::vector<float> x(n);
    for (float& v : x) {
        v = normal(rng);
    }
    return x;
}

std::vector<uint16_t> random_atoms(size_t n_atoms, size_t dim, std::mt19937& rng) {
    std::vector<uint16_t> atoms;
    for (size_t atom = 0; atom < n_atoms; ++atom) {
        const std::vector<float> x = random_vector(dim, rng);
        double energy = 0.0;
        for (const float v : x) {
            energy += double{v} * v;
        }
        for (const float v : x) {
            atoms.push_back(float_to_half(static_cast<float>(v / std::sqrt(energy))));
        }
    }
    return atoms;
}

struct Shape {
    size_t dim, n_atoms, sparsity;
    CoefficientFormat format;
    CodeLayout layout;
};

std::string name_of(const Shape& shape) {
    return "Dim" + std::to_string(shape.dim) + "N" + std::to_string(shape.n_atoms) + "S" +
           std::to_string(shape.sparsity) +
           (shape.layout == CodeLayout::kPublished        ? "Published"
            : shape.format == CoefficientFormat::kSigned4 ? "Signed4"
                                                          : "Fp8");
}

class DictionaryCodecTest : public testing::TestWithParam<Shape> {
  protected:
    void TearDown() override { hwy::SetSupportedTargetsForTest(0); }

    std::vector<std::byte> encode(const std::vector<float>& x) const {
        const size_t n = x.size() / dim_;
        std::vector<std::byte> codes(n * codec_.code_bytes() + Codec::kCodeSlackBytes);
        codec_.encode(x.data(), n, codes.data());
        return codes;
    }

    /// Codes as a matrix [n, n_atoms] in double, from the unpacked nonzeros.
    std::vector<double> sparse_matrix(const std::vector<std::byte>& codes, size_t n) const {
        const Packing packing(n_atoms_, GetParam().sparsity, GetParam().format, GetParam().layout, kLevels);
        std::vector<double> y(n * n_atoms_, 0.0);
        std::vector<uint32_t> index(packing.stride());
        std::vector<float> coefficient(packing.stride());
        for (size_t i = 0; i < n; ++i) {
            const auto row = static_cast<uint16_t>(i);
            packing.unpack(codes.data(), {&row, 1}, 1, index.data(), coefficient.data());
            for (size_t k = 0; k < packing.sparsity(); ++k) {
                y[i * n_atoms_ + index[k]] += coefficient[k];
            }
        }
        return y;
    }

    /// x [n, dim] = y [n, n_atoms] * atoms.
    std::vector<double> expand(const std::vector<double>& y) const {
        std::vector<double> x(y.size() / n_atoms_ * dim_, 0.0);
        for (size_t i = 0; i < y.size(); ++i) {
            if (y[i] != 0.0) {
                for (size_t j = 0; j < dim_; ++j) {
                    x[i / n_atoms_ * dim_ + j] += y[i] * half_to_float(atoms_[i % n_atoms_ * dim_ + j]);
                }
            }
        }
        return x;
    }

    std::mt19937 rng_{21};
    const size_t dim_ = GetParam().dim;
    const size_t n_atoms_ = GetParam().n_atoms;
    const std::vector<uint16_t> atoms_ = random_atoms(n_atoms_, dim_, rng_);
    const DictionaryCodec codec_{
        atoms_, n_atoms_, dim_, kLevels, {{GetParam().sparsity, 0.0F}, GetParam().format, GetParam().layout}};
};

TEST_P(DictionaryCodecTest, DescribesItself) {
    EXPECT_EQ(codec_.dim(), dim_);
    EXPECT_EQ(codec_.space(), n_atoms_);
    EXPECT_EQ(codec_.nonzeros(), GetParam().sparsity);
    EXPECT_GE(codec_.fixed_bytes(), 2 * n_atoms_ * dim_);
    EXPECT_LE(codec_.fixed_bytes(), 2 * n_atoms_ * dim_ + 2000);
    EXPECT_EQ(codec_.code_bytes(),
              Packing::code_bytes(n_atoms_, GetParam().sparsity, GetParam().format, GetParam().layout));
    EXPECT_NE(codec_.describe().find("N=" + std::to_string(n_atoms_)), std::string::npos);
}

TEST_P(DictionaryCodecTest, AgreesWithUnpackedCodes) {
    for (const size_t n : {1, 7, 64, 150}) {
        const std::vector<std::byte> codes = encode(random_vector(n * dim_, rng_));
        const std::vector<double> y = sparse_matrix(codes, n);
        const std::vector<double> x = expand(y);
        std::vector<uint16_t> rows;
        for (size_t i = 0; i < n; ++i) {
            rows.push_back(static_cast<uint16_t>(rng_() % n));
        }
        rows.back() = static_cast<uint16_t>(n - 1);
        for (const int64_t target : test_targets()) {
            SCOPED_TRACE(std::string(hwy::TargetName(target)) + ", n " + std::to_string(n));
            hwy::SetSupportedTargetsForTest(target);
            std::vector<float> decoded(n * dim_ + 1, -7.0F);
            codec_.decode(codes.data(), 0, n, decoded.data());
            ASSERT_EQ(decoded.back(), -7.0F) << "wrote past the last row";
            for (size_t i = 0; i < x.size(); ++i) {
                ASSERT_NEAR(decoded[i], x[i], 1e-5) << i;
            }
            for (const size_t lanes : {4, 8, 12, 16, 20, 32}) {
                SCOPED_TRACE("lanes " + std::to_string(lanes));
                const std::vector<float> q = random_vector(lanes * dim_, rng_);
                std::vector<float> table(n_atoms_ * lanes, -7.0F);
                codec_.prepare(q.data(), lanes, 0, n_atoms_, table.data());
                std::vector<float> s(rows.size() * lanes + 1, -7.0F);
                codec_.score(table.data(), lanes, codes.data(), rows, s.data());
                ASSERT_EQ(s.back(), -7.0F) << "wrote past the last row";

                const std::vector<float> p = random_vector(rows.size() * lanes, rng_);
                const std::vector<float> out_before = random_vector(lanes * dim_, rng_);
                std::vector<float> acc(n_atoms_ * lanes, 0.0F);
                codec_.accumulate(p.data(), lanes, codes.data(), rows, acc.data());
                std::vector<float> out = out_before;
                codec_.finish(acc.data(), lanes, 0, dim_, out.data());

                for (size_t lane = 0; lane < lanes; ++lane) {
                    std::vector<double> sum(out_before.begin() + static_cast<std::ptrdiff_t>(lane * dim_),
                                            out_before.begin() + static_cast<std::ptrdiff_t>((lane + 1) * dim_));
                    for (size_t i = 0; i < rows.size(); ++i) {
                        const double* row = &x[rows[i] * dim_];
                        double product = 0.0;
                        for (size_t j = 0; j < dim_; ++j) {
                            product += q[lane * dim_ + j] * row[j];
                            sum[j] += p[i * lanes + lane] * row[j];
                        }
                        ASSERT_NEAR(s[i * lanes + lane], product, 2e-4) << "row " << i << " lane " << lane;
                    }
                    for (size_t j = 0; j < dim_; ++j) {
                        ASSERT_NEAR(out[lane * dim_ + j], sum[j], 2e-4) << "element " << j << " lane " << lane;
                    }
                }
            }
        }
    }
}

TEST_P(DictionaryCodecTest, WorksInSlices) {
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        for (const size_t lanes : {4, 12, 32}) {
            const std::vector<float> q = random_vector(lanes * dim_, rng_);
            std::vector<float> whole(n_atoms_ * lanes);
            codec_.prepare(q.data(), lanes, 0, n_atoms_, whole.data());
            const size_t begin = rng_() % n_atoms_;
            const size_t end = begin + rng_() % (n_atoms_ - begin + 1);
            std::vector<float> slice(n_atoms_ * lanes, -7.0F);
            codec_.prepare(q.data(), lanes, begin, end, slice.data());
            for (size_t i = 0; i < slice.size(); ++i) {
                const bool inside = i / lanes >= begin && i / lanes < end;
                ASSERT_NEAR(slice[i], inside ? whole[i] : -7.0F, inside ? 1e-5F : 0.0F) << "atom " << i / lanes;
            }

            const std::vector<float> acc = random_vector(n_atoms_ * lanes, rng_);
            std::vector<float> all(lanes * dim_, 0.0F);
            codec_.finish(acc.data(), lanes, 0, dim_, all.data());
            for (size_t first = 0; first < dim_; first += 16) {
                std::vector<float> part(lanes * dim_, -7.0F);
                codec_.finish(acc.data(), lanes, first, std::min(first + 16, dim_), part.data());
                for (size_t i = 0; i < part.size(); ++i) {
                    const bool inside = i % dim_ / 16 == first / 16;
                    ASSERT_NEAR(part[i], inside ? all[i] - 7.0F : -7.0F, inside ? 2e-4F : 0.0F) << i;
                }
            }
        }
    }
}

TEST_P(DictionaryCodecTest, AccumulatesOnTop) {
    constexpr size_t kCount = 9;
    const std::vector<std::byte> codes = encode(random_vector(kCount * dim_, rng_));
    const std::vector<double> y = sparse_matrix(codes, kCount);
    const std::vector<uint16_t> rows = {8, 3, 3, 0, 5};
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        for (const size_t lanes : {4, 8, 24}) {
            const std::vector<float> p = random_vector(rows.size() * lanes, rng_);
            const std::vector<float> before = random_vector(n_atoms_ * lanes, rng_);
            std::vector<float> acc = before;
            codec_.accumulate(p.data(), lanes, codes.data(), rows, acc.data());
            for (size_t i = 0; i < acc.size(); ++i) {
                double expected = before[i];
                for (size_t r = 0; r < rows.size(); ++r) {
                    expected += p[r * lanes + i % lanes] * y[rows[r] * n_atoms_ + i / lanes];
                }
                ASSERT_NEAR(acc[i], expected, 1e-4) << "atom " << i / lanes << " lane " << i % lanes;
            }
        }
    }
}

TEST_P(DictionaryCodecTest, RecoversSparseVectors) {
    // A combination of a few atoms is what the pursuit finds; only quantisation is left.
    constexpr size_t kCount = 40;
    std::vector<double> y(kCount * n_atoms_, 0.0);
    for (size_t i = 0; i < kCount; ++i) {
        y[i * n_atoms_ + rng_() % n_atoms_] = 2.0;
        if (GetParam().sparsity > 1) {
            y[i * n_atoms_ + rng_() % n_atoms_] = -1.1;
        }
    }
    const std::vector<double> exact = expand(y);
    const std::vector<float> x(exact.begin(), exact.end());
    std::vector<float> decoded(x.size());
    codec_.decode(encode(x).data(), 0, kCount, decoded.data());
    double error = 0.0;
    double energy = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
        error += (double{x[i]} - decoded[i]) * (double{x[i]} - decoded[i]);
        energy += double{x[i]} * x[i];
    }
    EXPECT_LT(error, 0.03 * energy);
}

TEST_P(DictionaryCodecTest, ZeroAndNonFiniteVectorsBecomeZero) {
    constexpr size_t kCount = 5;
    std::vector<float> x = random_vector(kCount * dim_, rng_);
    std::fill_n(x.begin(), dim_, 0.0F);
    x[dim_ + 3] = std::numeric_limits<float>::quiet_NaN();
    x[2 * dim_ + dim_ - 1] = std::numeric_limits<float>::infinity();
    x[3 * dim_] = -std::numeric_limits<float>::infinity();
    const std::vector<uint16_t> rows = {0, 1, 2, 3};
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        const std::vector<std::byte> codes = encode(x);
        std::vector<float> decoded(kCount * dim_);
        codec_.decode(codes.data(), 0, kCount, decoded.data());
        for (size_t i = 0; i < 4 * dim_; ++i) {
            ASSERT_EQ(decoded[i], 0.0F) << i;
        }
        EXPECT_TRUE(std::any_of(decoded.end() - static_cast<std::ptrdiff_t>(dim_), decoded.end(),
                                [](float v) { return v != 0.0F; }));
        std::vector<float> table(n_atoms_ * 4);
        codec_.prepare(random_vector(4 * dim_, rng_).data(), 4, 0, n_atoms_, table.data());
        std::vector<float> s(16, -7.0F);
        codec_.score(table.data(), 4, codes.data(), rows, s.data());
        EXPECT_EQ(s, std::vector<float>(16, 0.0F));
        std::vector<float> acc(n_atoms_ * 4, 0.0F);
        codec_.accumulate(std::vector<float>(16, 1.0F).data(), 4, codes.data(), rows, acc.data());
        EXPECT_EQ(acc, std::vector<float>(n_atoms_ * 4, 0.0F));
    }
}

constexpr auto kSigned4 = CoefficientFormat::kSigned4;
constexpr auto kFp8 = CoefficientFormat::kFp8;
constexpr auto kPacked = CodeLayout::kPacked;
constexpr auto kPublished = CodeLayout::kPublished;

/// Codes of rows, as a cache keeps those of variable length.
VariableBlock block_of(const Codec& codec, const std::vector<float>& x) {
    const size_t n = x.size() / codec.dim();
    std::vector<std::byte> codes(n * codec.code_bytes());
    codec.encode(x.data(), n, codes.data());
    VariableBlock block;
    for (size_t row = n; row-- > 0;) {  // the order does not matter
        const std::byte* code = &codes[row * codec.code_bytes()];
        block.put(row, {code, codec.length(code)});
    }
    return block;
}

TEST(DictionaryCodecOfVariableLength, RowsHaveWhatTheThresholdAsksFor) {
    constexpr size_t kDim = 64, kAtoms = 256, kRows = 60, kLanes = 8;
    std::mt19937 rng(9);
    const std::vector<uint16_t> atoms = random_atoms(kAtoms, kDim, rng);
    std::vector<float> x = random_vector(kRows * kDim, rng);
    std::fill_n(x.begin(), kDim, 0.0F);
    for (size_t i = 0; i < kDim; ++i) {  // one atom is enough for the second row
        x[kDim + i] = 3.0F * half_to_float(atoms[7 * kDim + i]);
    }
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        for (const CoefficientFormat format : {CoefficientFormat::kSigned4, CoefficientFormat::kFp8}) {
            const DictionaryCodec codec(atoms, kAtoms, kDim, kLevels, {{32, 0.5F}, format, CodeLayout::kPacked});
            ASSERT_TRUE(codec.is_variable());
            const VariableBlock block = block_of(codec, x);
            size_t bytes = 0;
            for (size_t row = 0; row < kRows; ++row) {
                const auto code = block.code(row);
                const size_t count = codec.nonzeros_of(code.data());
                ASSERT_EQ(code.size(), codec.length(code.data()));
                ASSERT_EQ(code.size(),
                          count == 0 ? 1 : 1 + Packing::code_bytes(kAtoms, count, format, CodeLayout::kPacked));
                bytes += code.size();
            }
            EXPECT_EQ(codec.nonzeros_of(block.code(0).data()), 0U);
            EXPECT_EQ(codec.nonzeros_of(block.code(1).data()), 1U);
            EXPECT_LT(bytes, kRows * codec.code_bytes() * 3 / 4);

            std::vector<float> decoded(kRows * kDim), part(7 * kDim);
            codec.decode(block.data(), 0, kRows, decoded.data());
            codec.decode(block.data(), 31, 7, part.data());
            EXPECT_TRUE(std::equal(part.begin(), part.end(), decoded.begin() + 31 * kDim));
            for (size_t row = 0; row < kRows; ++row) {
                double miss = 0.0, energy = 0.0;
                for (size_t i = row * kDim; i < (row + 1) * kDim; ++i) {
                    miss += (double{x[i]} - decoded[i]) * (double{x[i]} - decoded[i]);
                    energy += double{x[i]} * x[i];
                }
                EXPECT_LE(std::sqrt(miss), 0.56 * std::sqrt(energy)) << "row " << row;  // 4 bits add a little
            }

            std::vector<uint16_t> rows = {59, 0, 1, 17, 17, 30};
            const std::vector<float> q = random_vector(kLanes * kDim, rng),
                                     p = random_vector(rows.size() * kLanes, rng);
            std::vector<float> table(kAtoms * kLanes), s(rows.size() * kLanes), acc(kAtoms * kLanes),
                out(kLanes * kDim);
            codec.prepare(q.data(), kLanes, 0, kAtoms, table.data());
            codec.score(table.data(), kLanes, block.data(), rows, s.data());
            codec.accumulate(p.data(), kLanes, block.data(), rows, acc.data());
            codec.finish(acc.data(), kLanes, 0, kDim, out.data());
            for (size_t lane = 0; lane < kLanes; ++lane) {
                std::vector<double> sum(kDim);
                for (size_t i = 0; i < rows.size(); ++i) {
                    double product = 0.0;
                    for (size_t j = 0; j < kDim; ++j) {
                        product += double{q[lane * kDim + j]} * decoded[rows[i] * kDim + j];
                        sum[j] += double{p[i * kLanes + lane]} * decoded[rows[i] * kDim + j];
                    }
                    ASSERT_NEAR(s[i * kLanes + lane], product, 2e-4);
                }
                for (size_t j = 0; j < kDim; ++j) {
                    ASSERT_NEAR(out[lane * kDim + j], sum[j], 2e-4);
                }
            }
        }
    }
    hwy::SetSupportedTargetsForTest(0);
}

INSTANTIATE_TEST_SUITE_P(Shapes, DictionaryCodecTest,
                         testing::Values(Shape{64, 255, 8, kSigned4, kPacked}, Shape{64, 33, 1, kFp8, kPacked},
                                         Shape{80, 131, 5, kSigned4, kPacked}, Shape{80, 256, 16, kFp8, kPublished},
                                         Shape{96, 201, 12, kFp8, kPacked}, Shape{128, 513, 17, kSigned4, kPacked},
                                         Shape{128, 512, 24, kFp8, kPacked}, Shape{100, 130, 6, kSigned4, kPacked},
                                         Shape{128, 301, 7, kFp8, kPublished}, Shape{256, 401, 9, kSigned4, kPacked},
                                         Shape{256, 97, 33, kFp8, kPacked}),
                         [](const auto& test) { return name_of(test.param); });

TEST(DictionaryCodec, RefusesSparsityOutOfRange) {
    std::mt19937 rng(1);
    const std::vector<uint16_t> atoms = random_atoms(100, 64, rng);
    DictionarySettings settings;
    for (const size_t sparsity : {size_t{0}, kMaxSparsity + 1}) {
        settings.omp.sparsity = sparsity;
        EXPECT_THROW(DictionaryCodec(atoms, 100, 64, kLevels, settings), Error);
    }
    settings.omp.sparsity = kMaxSparsity;
    EXPECT_NO_THROW(DictionaryCodec(atoms, 100, 64, kLevels, settings));
}

TEST(DictionaryCodec, GainUndoesShrinkageOfEachVector) {
    constexpr size_t kDim = 64, kAtoms = 256, kN = 40;
    std::mt19937 rng(7);
    const std::vector<uint16_t> atoms = random_atoms(kAtoms, kDim, rng);
    const std::vector<float> x = random_vector(kN * kDim, rng);
    const auto slopes = [&](float unbias) {
        const DictionaryCodec codec(atoms, kAtoms, kDim, kLevels,
                                    {{12, 0.0F}, CoefficientFormat::kFp8, CodeLayout::kPacked, unbias});
        std::vector<std::byte> codes(kN * codec.code_bytes() + Codec::kCodeSlackBytes);
        codec.encode(x.data(), kN, codes.data());
        std::vector<float> decoded(x.size());
        codec.decode(codes.data(), 0, kN, decoded.data());
        std::vector<double> slope;
        for (size_t i = 0; i < kN; ++i) {
            double product = 0.0, energy = 0.0;
            for (size_t j = i * kDim; j < (i + 1) * kDim; ++j) {
                product += double{x[j]} * decoded[j];
                energy += double{x[j]} * x[j];
            }
            slope.push_back(product / energy);
        }
        return slope;
    };
    const std::vector<double> shrunk = slopes(0.0F), half = slopes(0.5F), whole = slopes(1.0F);
    for (size_t i = 0; i < kN; ++i) {
        EXPECT_LT(shrunk[i], 0.99);
        EXPECT_NEAR(half[i], std::sqrt(shrunk[i]), 0.03);
        EXPECT_NEAR(whole[i], 1.0, 0.03);
    }
}

}  // namespace
}  // namespace kvcodec
