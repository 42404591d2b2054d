#include "kvcodec/store/layer_store.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "kvcodec/codec/baseline/kivi_codec.h"
#include "kvcodec/codec/baseline/token_codec.h"
#include "kvcodec/codec/baseline/zipcache_codec.h"
#include "kvcodec/codec/dictionary/dictionary_codec.h"
#include "kvcodec/codec/latent/latent_codec.h"
#include "kvcodec/codec/scalar/scalar_codec.h"
#include "kvcodec/codec/transform/transform_codec.h"
#include "kvcodec/error.h"
#include "kvcodec/half.h"
#include "kvcodec/test_targets.h"

namespace kvcodec {
namespace {

constexpr size_t kBlock = LayerStore::kBlock;
constexpr LayerGeometry kGeometry{4 * kBlock, 3, 64, 80};
constexpr size_t kRowK = kGeometry.n_head_kv * kGeometry.dim_k;
constexpr size_t kRowV = kGeometry.n_head_kv * kGeometry.dim_v;

std::vector<float> random_vector(size_t n, std::mt19937& rng, float deviation = 1.0F) {
    std::normal_distribution<float> normal(0.0F, deviation);
    std::vector<float> x(n);
    for (float& v : x) {
        v = normal(rng);
    }
    return x;
}

std::vector<uint16_t> halves(const std::vector<float>& x) {
    std::vector<uint16_t> half(x.size());
    std::transform(x.begin(), x.end(), half.begin(), float_to_half);
    return half;
}

double relative_error(const std::vector<uint16_t>& x, const std::vector<uint16_t>& y) {
    double error = 0.0;
    double energy = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
        const double difference = double{half_to_float(x[i])} - half_to_float(y[i]);
        error += difference * difference;
        energy += double{half_to_float(x[i])} * half_to_float(x[i]);
    }
    return error / energy;
}

Rope make_rope() {
    RopeParams params;
    params.pairing = RopeParams::Pairing::kHalves;
    params.n_dims = kGeometry.dim_k;
    return {params, kGeometry.dim_k};
}

class LayerStoreTest : public testing::Test {
  protected:
    void SetUp() override {
        std::iota(positions_.begin(), positions_.end(), 1000);
        store_.set_codecs(kGeometry, {k_codec_, v_codec_, {}, {}, rope_});
    }
    void TearDown() override { hwy::SetSupportedTargetsForTest(0); }

    /// With means much larger than what is left without them.
    void use_means() {
        k_mean_ = random_vector(kRowK, rng_, 20.0F);
        v_mean_ = random_vector(kRowV, rng_, 20.0F);
        const RotatingMean mean(std::make_shared<RopeTables>(rope_), k_mean_, kGeometry.n_head_kv);
        store_.set_codecs(kGeometry, {k_codec_, v_codec_, mean, v_mean_, rope_});
    }

    /// Writes both sides of a cell: the means plus noise. Returns what was written.
    void write(size_t cell) {
        std::vector<float> k = random_vector(kRowK, rng_);
        std::vector<float> v = random_vector(kRowV, rng_);
        if (!k_mean_.empty()) {
            for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
                std::vector<float> mean(k_mean_.begin() + static_cast<std::ptrdiff_t>(head * kGeometry.dim_k),
                                        k_mean_.begin() + static_cast<std::ptrdiff_t>((head + 1) * kGeometry.dim_k));
                rope_.rotate(mean.data(), positions_[cell]);
                for (size_t i = 0; i < kGeometry.dim_k; ++i) {
                    k[head * kGeometry.dim_k + i] += mean[i];
                }
            }
            std::transform(v.begin(), v.end(), v_mean_.begin(), v.begin(), std::plus<>());
        }
        store_.write(Side::kK, cell, k.data());
        store_.write(Side::kV, cell, v.data());
    }

    std::vector<uint16_t> read(Side side, size_t cell) const {
        std::vector<uint16_t> row(side == Side::kK ? kRowK : kRowV, 0x7777);
        store_.read(side, cell, positions_.data(), row.data());
        return row;
    }

    void encode(const std::vector<uint32_t>& cells) {
        SingleThread team;
        store_.encode(cells, positions_.data(), team);
    }

    std::mt19937 rng_{31};
    const Rope rope_ = make_rope();
    const std::shared_ptr<const Codec> k_codec_ = std::make_shared<ScalarCodec>(kGeometry.dim_k, 4);
    const std::shared_ptr<const Codec> v_codec_ = std::make_shared<ScalarCodec>(kGeometry.dim_v, 3);
    std::vector<float> k_mean_;
    std::vector<float> v_mean_;
    std::vector<int32_t> positions_ = std::vector<int32_t>(kGeometry.n_cells);
    LayerStore store_{kGeometry.n_cells, kRowK, kRowV, true};
};

TEST_F(LayerStoreTest, ReadsWhatWasWritten) {
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        for (const size_t cell : {size_t{0}, size_t{63}, size_t{64}, kGeometry.n_cells - 1}) {
            std::vector<float> k = random_vector(kRowK, rng_);
            std::vector<float> v = random_vector(kRowV, rng_, 1e-6F);
            k[3] = 1e6F;
            k[4] = -INFINITY;
            k[5] = 0.0F;
            k[6] = 65519.0F;
            store_.write(Side::kK, cell, k.data());
            ASSERT_TRUE(store_.is_dense(cell));
            store_.write(Side::kV, cell, v.data());
            ASSERT_TRUE(store_.is_whole(cell));
            ASSERT_FALSE(store_.is_coded(cell));
            ASSERT_EQ(read(Side::kK, cell), halves(k)) << cell;
            ASSERT_EQ(read(Side::kV, cell), halves(v)) << cell;
            store_.write_half(Side::kV, cell, halves(v).data());
            ASSERT_EQ(read(Side::kV, cell), halves(v)) << cell;
            ASSERT_EQ(read(Side::kK, cell), halves(k)) << "the other side changed";
            ASSERT_TRUE(std::equal(k.begin(), k.end(), store_.dense_row(Side::kK, cell),
                                   [](float a, uint16_t b) { return float_to_half(a) == b; }));
        }
    }
    EXPECT_EQ(store_.dense_rows(), 4U);
    EXPECT_EQ(store_.coded_cells(), 0U);
    EXPECT_EQ(store_.rows_rebuilt(), 0U);
}

TEST_F(LayerStoreTest, OneSideAloneIsNotWhole) {
    store_.write(Side::kV, 5, random_vector(kRowV, rng_).data());
    EXPECT_TRUE(store_.is_dense(5));
    EXPECT_FALSE(store_.is_whole(5));
    EXPECT_EQ(read(Side::kK, 5), std::vector<uint16_t>(kRowK, 0));
    store_.write(Side::kK, 5, random_vector(kRowK, rng_).data());
    EXPECT_TRUE(store_.is_whole(5));
    EXPECT_EQ(store_.dense_rows(), 1U);
}

TEST_F(LayerStoreTest, EmptyCellsReadAsZero) {
    write(9);
    store_.drop(9);
    for (const size_t cell : {9, 10}) {
        EXPECT_FALSE(store_.is_dense(cell) || store_.is_coded(cell));
        EXPECT_EQ(read(Side::kK, cell), std::vector<uint16_t>(kRowK, 0));
        EXPECT_EQ(read(Side::kV, cell), std::vector<uint16_t>(kRowV, 0));
    }
}

TEST_F(LayerStoreTest, ErrorAfterEncodeIsThatOfTheCodec) {
    for (const bool means : {false, true}) {
        if (means) {
            use_means();
        }
        for (const int64_t target : test_targets()) {
            SCOPED_TRACE(hwy::TargetName(target));
            hwy::SetSupportedTargetsForTest(target);
            const std::vector<uint32_t> cells = {3, 60, 64, 65, 130, 255};
            std::vector<std::vector<uint16_t>> k;
            std::vector<std::vector<uint16_t>> v;
            for (const uint32_t cell : cells) {
                write(cell);
                k.push_back(read(Side::kK, cell));
                v.push_back(read(Side::kV, cell));
            }
            write(66);
            const std::vector<uint16_t> neighbour = read(Side::kK, 66);
            encode(cells);
            ASSERT_EQ(store_.coded_cells(), cells.size());
            ASSERT_EQ(store_.dense_rows(), 1U);
            // Means of size 20 leave residuals of size 1: the error falls with the square.
            const double share = means ? 1.0 / 400 : 1.0;
            for (size_t i = 0; i < cells.size(); ++i) {
                ASSERT_TRUE(store_.is_coded(cells[i]));
                ASSERT_FALSE(store_.is_dense(cells[i]));
                const double k_error = relative_error(k[i], read(Side::kK, cells[i]));
                const double v_error = relative_error(v[i], read(Side::kV, cells[i]));
                EXPECT_LT(k_error, 0.02 * share) << cells[i];
                EXPECT_LT(v_error, 0.07 * share) << cells[i];
                EXPECT_GT(k_error, 0.003 * share) << cells[i];
                EXPECT_GT(v_error, 0.01 * share) << cells[i];
            }
            EXPECT_EQ(read(Side::kK, 66), neighbour);
        }
    }
}

TEST_F(LayerStoreTest, TeamsEncodeAlike) {
    use_means();
    std::vector<uint32_t> cells(kGeometry.n_cells);
    std::iota(cells.begin(), cells.end(), 0U);
    std::shuffle(cells.begin(), cells.end(), rng_);
    cells.resize(201);
    std::vector<std::vector<uint16_t>> dense;
    for (const uint32_t cell : cells) {
        write(cell);
        dense.push_back(read(Side::kK, cell));
    }
    const auto codes = [&](Side side) {
        const Codec& codec = side == Side::kK ? *k_codec_ : *v_codec_;
        std::vector<std::byte> code(codec.code_bytes());
        std::vector<std::byte> all;
        for (const uint32_t cell : cells) {
            for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
                codec.layout().get(store_.codes(side, cell / kBlock, head), cell % kBlock, code.data());
                all.insert(all.end(), code.begin(), code.end());
            }
        }
        return all;
    };
    std::vector<std::vector<uint16_t>> v_rows;
    for (const uint32_t cell : cells) {
        v_rows.push_back(read(Side::kV, cell));
    }
    encode(cells);
    const std::vector<std::byte> k_codes = codes(Side::kK);
    const std::vector<std::byte> v_codes = codes(Side::kV);
    for (const size_t size : {2, 5}) {
        store_.clear();
        for (size_t i = 0; i < cells.size(); ++i) {
            store_.write_half(Side::kK, cells[i], dense[i].data());
            store_.write_half(Side::kV, cells[i], v_rows[i].data());
        }
        const std::unique_ptr<Team> team = make_parked_team(size);
        store_.encode(cells, positions_.data(), *team);
        EXPECT_EQ(codes(Side::kK), k_codes);
        EXPECT_EQ(codes(Side::kV), v_codes);
    }
}

TEST_F(LayerStoreTest, ContextsOnThreadsOfTheirOwnShareCodecs) {
    const RotatingMean mean(std::make_shared<RopeTables>(rope_), random_vector(kRowK, rng_), kGeometry.n_head_kv);
    const LayerCodecs codecs{k_codec_, v_codec_, mean, random_vector(kRowV, rng_), rope_};
    // What a context reads at the end of some rounds of writing, coding, shifting and starting again.
    const auto live = [&] {
        std::mt19937 rng(3);
        LayerStore store(kGeometry.n_cells, kRowK, kRowV, true);
        store.set_codecs(kGeometry, codecs);
        SingleThread team;
        std::vector<uint16_t> rows;
        for (int round = 0; round < 3; ++round) {
            std::vector<uint32_t> cells;
            for (uint32_t cell = 0; cell < 100; ++cell) {
                const std::vector<float> k = random_vector(kRowK, rng), v = random_vector(kRowV, rng);
                store.write(Side::kK, cell, k.data());
                store.write(Side::kV, cell, v.data());
                cells.push_back(cell);
            }
            store.encode(cells, positions_.data(), team);
            store.shift_key(cells[round], 5, rope_);
            for (const uint32_t cell : cells) {
                std::vector<uint16_t> row(kRowK);
                store.read(Side::kK, cell, positions_.data(), row.data());
                rows.insert(rows.end(), row.begin(), row.end());
            }
            store.clear();
        }
        return rows;
    };
    const std::vector<uint16_t> alone = live();
    std::vector<std::vector<uint16_t>> rows(4);
    std::vector<std::thread> contexts;
    for (std::vector<uint16_t>& own : rows) {
        contexts.emplace_back([&live, &own] { own = live(); });
    }
    for (std::thread& context : contexts) {
        context.join();
    }
    for (const std::vector<uint16_t>& own : rows) {
        EXPECT_EQ(own, alone);
    }
}

TEST_F(LayerStoreTest, RowsThatAreReadOutAndWrittenBackKeepTheirCodes) {
    use_means();
    std::vector<uint32_t> cells(100);
    std::iota(cells.begin(), cells.end(), 10U);
    std::ranges::for_each(cells, [&](uint32_t cell) { write(cell); });
    encode(cells);
    const auto read_out = [&] {
        std::vector<std::vector<uint16_t>> rows;
        for (const uint32_t cell : cells) {
            for (const Side side : {Side::kK, Side::kV}) {
                rows.emplace_back(side == Side::kK ? kRowK : kRowV);
                store_.read_out(side, cell, positions_.data(), rows.back().data());
            }
        }
        return rows;
    };
    const auto write_back = [&](const std::vector<std::vector<uint16_t>>& rows) {
        store_.clear();
        for (size_t i = 0; i < cells.size(); ++i) {
            store_.write_half(Side::kK, cells[i], rows[2 * i].data());
            store_.write_half(Side::kV, cells[i], rows[2 * i + 1].data());
        }
        write(cells[5]);  // a new one among them
        encode(cells);
    };
    const size_t before = store_.resident_bytes();
    const std::vector<std::vector<uint16_t>> first = read_out();
    EXPECT_GT(store_.resident_bytes(), before);  // what is remembered is counted
    for (int round = 0; round < 5; ++round) {
        write_back(first);
        const std::vector<std::vector<uint16_t>> again = read_out();
        for (size_t i = 0; i < again.size(); ++i) {
            if (i / 2 != 5) {
                ASSERT_EQ(again[i], first[i]) << "round " << round << ", row " << i;
            }
        }
        EXPECT_NE(again[10], first[10]);
    }
    // A key that was shifted has no code that says it.
    store_.shift_key(cells[7], 3, rope_);
    std::vector<uint16_t> shifted(kRowK);
    store_.read_out(Side::kK, cells[7], positions_.data(), shifted.data());
    store_.write_half(Side::kK, cells[7], shifted.data());
    store_.write_half(Side::kV, cells[7], first[15].data());
    encode({cells[7]});
    EXPECT_LT(relative_error(shifted, read(Side::kK, cells[7])), 0.1);
    EXPECT_NE(read(Side::kK, cells[7]), shifted);
    EXPECT_EQ(read(Side::kV, cells[7]), first[15]);
}

TEST_F(LayerStoreTest, OverwritingACodeDropsIt) {
    write(7);
    write(8);
    encode({7, 8});
    store_.shift_key(7, 3, rope_);
    const std::vector<float> k = random_vector(kRowK, rng_);
    store_.write(Side::kK, 7, k.data());
    EXPECT_TRUE(store_.is_dense(7));
    EXPECT_FALSE(store_.is_coded(7));
    EXPECT_FALSE(store_.is_whole(7));
    EXPECT_EQ(store_.shift(7), 0);
    EXPECT_EQ(store_.coded_cells(), 1U);
    EXPECT_EQ(read(Side::kK, 7), halves(k));
    write(7);
    encode({7});
    EXPECT_EQ(store_.coded_cells(), 2U);
    EXPECT_EQ(store_.dense_rows(), 0U);
}

TEST_F(LayerStoreTest, DropAndClear) {
    for (uint32_t cell = 0; cell < kGeometry.n_cells; ++cell) {
        write(cell);
    }
    std::vector<uint32_t> cells(3 * kBlock);
    std::iota(cells.begin(), cells.end(), 0U);
    const size_t dense_bytes = store_.resident_bytes();
    encode(cells);
    store_.trim();
    const size_t row_bytes = (kRowK + kRowV) * sizeof(uint16_t);
    EXPECT_LT(store_.resident_bytes(), dense_bytes - cells.size() * row_bytes / 2);
    EXPECT_EQ(store_.code_bytes_per_token(), kGeometry.n_head_kv * (k_codec_->code_bytes() + v_codec_->code_bytes()));
    store_.shift_key(1, 5, rope_);
    EXPECT_EQ(store_.shift(1), 5);
    store_.drop(1);
    store_.drop(1);
    store_.drop(kGeometry.n_cells - 1);
    EXPECT_EQ(store_.shift(1), 0);
    EXPECT_EQ(store_.coded_cells(), cells.size() - 1);
    EXPECT_EQ(store_.dense_rows(), kBlock - 1);
    store_.clear();
    EXPECT_EQ(store_.coded_cells(), 0U);
    EXPECT_EQ(store_.dense_rows(), 0U);
    for (size_t cell = 0; cell < kGeometry.n_cells; ++cell) {
        ASSERT_FALSE(store_.is_dense(cell) || store_.is_coded(cell));
    }
    // The states of cells, and three pointers a block.
    EXPECT_LE(store_.resident_bytes(), kGeometry.n_cells + 3 * kGeometry.n_cells / LayerStore::kBlock * sizeof(void*));
    write(2);
    EXPECT_EQ(store_.dense_rows(), 1U);
}

TEST_F(LayerStoreTest, GathersMixedRows) {
    use_means();
    constexpr size_t kTested = 2;  // block
    std::vector<uint32_t> coded;
    for (uint32_t row = 0; row < kBlock; ++row) {
        const uint32_t cell = kTested * kBlock + row;
        if (row % 11 != 4) {
            write(cell);
            if (row % 5 != 2) {
                coded.push_back(cell);
            }
        }
    }
    encode(coded);
    for (const uint32_t cell : {coded[2], coded[20], coded[21]}) {
        store_.shift_key(cell, 17, rope_);
        positions_[cell] += 17;
    }
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        for (int round = 0; round < 8; ++round) {
            std::vector<uint16_t> rows(kBlock);
            std::iota(rows.begin(), rows.end(), uint16_t{0});
            if (round % 2 == 1) {
                std::shuffle(rows.begin(), rows.end(), rng_);
            }
            rows.resize(round == 0 ? kBlock : 1 + rng_() % kBlock);
            for (const Side side : {Side::kK, Side::kV}) {
                const size_t dim = side == Side::kK ? kGeometry.dim_k : kGeometry.dim_v;
                for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
                    const uint64_t rebuilt = store_.rows_rebuilt();
                    std::vector<float> x(rows.size() * dim + 1, -7.0F);
                    store_.gather(side, kTested, head, rows, positions_.data(), x.data());
                    ASSERT_EQ(x.back(), -7.0F);
                    size_t n_coded = 0;
                    for (size_t i = 0; i < rows.size(); ++i) {
                        const size_t cell = kTested * kBlock + rows[i];
                        n_coded += store_.is_coded(cell) ? 1 : 0;
                        ASSERT_EQ(store_.is_dense(cell) || store_.is_coded(cell), rows[i] % 11 != 4);
                    }
                    ASSERT_EQ(store_.rows_rebuilt() - rebuilt, n_coded);
                    for (size_t i = 0; i < rows.size(); ++i) {
                        const std::vector<uint16_t> row = read(side, kTested * kBlock + rows[i]);
                        if (store_.is_dense(kTested * kBlock + rows[i])) {
                            for (size_t j = 0; j < dim; ++j) {
                                ASSERT_EQ(x[i * dim + j], half_to_float(row[head * dim + j])) << "row " << rows[i];
                            }
                        }
                        for (size_t j = 0; j < dim; ++j) {
                            const float value = half_to_float(row[head * dim + j]);
                            ASSERT_NEAR(x[i * dim + j], value, 6e-4 * std::abs(value) + 1e-6) << "row " << rows[i];
                        }
                    }
                }
            }
        }
    }
}

TEST_F(LayerStoreTest, CopiesCellsInAnyState) {
    use_means();
    std::fill(positions_.begin(), positions_.end(), 77);
    for (const size_t cell : {1, 2, 200, 201, 202, 203}) {
        write(cell);
    }
    store_.write(Side::kK, 4, random_vector(kRowK, rng_).data());
    encode({2, 201, 203});
    store_.shift_key(2, 9, rope_);
    store_.shift_key(201, -4, rope_);
    // Dense, coded, empty and half-written cells over dense, coded and empty ones.
    for (const size_t from : {size_t{1}, size_t{2}, size_t{3}, size_t{4}}) {
        for (const size_t to : {size_t{200}, size_t{201}, size_t{202}, size_t{203}, size_t{100}, from}) {
            const std::vector<uint16_t> k = read(Side::kK, from);
            const std::vector<uint16_t> v = read(Side::kV, from);
            const bool states[] = {store_.is_dense(from), store_.is_whole(from), store_.is_coded(from)};
            const int32_t shift = store_.shift(from);
            store_.copy_cell(from, to);
            for (const size_t cell : {from, to}) {
                EXPECT_EQ(read(Side::kK, cell), k) << from << " to " << to;
                EXPECT_EQ(read(Side::kV, cell), v) << from << " to " << to;
                EXPECT_EQ(store_.is_dense(cell), states[0]) << from << " to " << to;
                EXPECT_EQ(store_.is_whole(cell), states[1]) << from << " to " << to;
                EXPECT_EQ(store_.is_coded(cell), states[2]) << from << " to " << to;
                EXPECT_EQ(store_.shift(cell), shift) << from << " to " << to;
            }
        }
    }
    size_t n_dense = 0;
    size_t n_coded = 0;
    for (size_t cell = 0; cell < kGeometry.n_cells; ++cell) {
        n_dense += store_.is_dense(cell) ? 1 : 0;
        n_coded += store_.is_coded(cell) ? 1 : 0;
    }
    EXPECT_EQ(store_.dense_rows(), n_dense);
    EXPECT_EQ(store_.coded_cells(), n_coded);
}

TEST_F(LayerStoreTest, CopiedRowsAreIndependent) {
    write(1);
    store_.copy_cell(1, 2);
    const std::vector<uint16_t> before = read(Side::kK, 2);
    write(1);
    EXPECT_EQ(read(Side::kK, 2), before);
    encode({2});
    EXPECT_TRUE(store_.is_whole(1));
}

TEST_F(LayerStoreTest, ShiftRotatesDenseKeys) {
    write(12);
    const std::vector<uint16_t> k = read(Side::kK, 12);
    const std::vector<uint16_t> v = read(Side::kV, 12);
    store_.shift_key(12, -31, rope_);
    store_.shift_key(13, -31, rope_);  // empty
    const std::vector<uint16_t> shifted = read(Side::kK, 12);
    for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
        std::vector<float> x;
        for (size_t i = 0; i < kGeometry.dim_k; ++i) {
            x.push_back(half_to_float(k[head * kGeometry.dim_k + i]));
        }
        rope_.shift(x.data(), -31);
        for (size_t i = 0; i < kGeometry.dim_k; ++i) {
            ASSERT_NEAR(half_to_float(shifted[head * kGeometry.dim_k + i]), x[i], 1e-3 * std::abs(x[i]) + 1e-6);
        }
    }
    EXPECT_EQ(read(Side::kV, 12), v);
    EXPECT_EQ(store_.shift(12), 0);
}

TEST_F(LayerStoreTest, ShiftOfACodeRotatesItsResidual) {
    use_means();
    const std::vector<uint32_t> cells = {66, 67, 68};
    for (const uint32_t cell : cells) {
        write(cell);
    }
    encode(cells);
    const std::vector<uint16_t> rows = {2, 3, 4};
    const size_t dim = kGeometry.dim_k;
    for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
        std::vector<float> residual(rows.size() * dim);
        std::vector<std::byte> codes(rows.size() * k_codec_->code_bytes() + Codec::kCodeSlackBytes);
        k_codec_->layout().get(store_.codes(Side::kK, 1, head), 2, rows.size(), codes.data());
        k_codec_->decode(codes.data(), 0, rows.size(), residual.data());
        if (head == 0) {
            store_.shift_key(67, 250, rope_);
            store_.shift_key(67, -50, rope_);
            positions_[67] += 200;
        }
        EXPECT_EQ(store_.shift(67), 200);
        rope_.shift(residual.data() + dim, 200);
        std::vector<float> x(rows.size() * dim);
        store_.gather(Side::kK, 1, head, rows, positions_.data(), x.data());
        for (size_t i = 0; i < rows.size(); ++i) {
            std::vector<float> mean(k_mean_.begin() + static_cast<std::ptrdiff_t>(head * dim),
                                    k_mean_.begin() + static_cast<std::ptrdiff_t>((head + 1) * dim));
            rope_.rotate(mean.data(), positions_[cells[i]]);
            for (size_t j = 0; j < dim; ++j) {
                ASSERT_NEAR(x[i * dim + j], residual[i * dim + j] + mean[j], 2e-4) << "row " << i;
            }
        }
    }
}

TEST_F(LayerStoreTest, WithoutRopeAMeanOfKeysNeedsNoPositions) {
    const Rope none(RopeParams{}, kGeometry.dim_k);
    const std::vector<float> mean = random_vector(kRowK, rng_, 20.0F), noise = random_vector(kRowK, rng_);
    const LayerCodecs codecs{
        k_codec_, v_codec_, RotatingMean(std::make_shared<RopeTables>(none), mean, kGeometry.n_head_kv), {}, none};
    EXPECT_FALSE(codecs.need_positions());
    store_.set_codecs(kGeometry, codecs);
    std::vector<float> key(kRowK);
    std::transform(mean.begin(), mean.end(), noise.begin(), key.begin(), std::plus<>());
    store_.write(Side::kK, 3, key.data());
    store_.write(Side::kV, 3, random_vector(kRowV, rng_).data());
    SingleThread team;
    store_.encode(std::vector<uint32_t>{3}, nullptr, team);
    double missed = 0.0;
    std::vector<uint16_t> row(kRowK);
    store_.read(Side::kK, 3, nullptr, row.data());
    for (size_t i = 0; i < kRowK; ++i) {
        missed += std::pow(half_to_float(row[i]) - key[i], 2);
    }
    EXPECT_LT(missed, 0.02 * static_cast<double>(kRowK));  // of the noise, not of the mean
}

TEST_F(LayerStoreTest, EachHeadOfKeysMayHaveACodecBeforeRope) {
    // Eight axes a head: a key before RoPE is kept only along its own.
    constexpr size_t kKept = TransformFormat::kGroup;
    constexpr size_t kDim = kGeometry.dim_k;
    LayerCodecs codecs{nullptr, v_codec_, {}, {}, rope_};
    for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
        std::vector<float> basis(kDim * kDim);
        std::vector<float> variance(kDim);
        std::fill_n(variance.begin(), kKept, 1.0F);
        for (size_t i = 0; i < kDim; ++i) {
            basis[i * kDim + (i + head) % kDim] = 1.0F;
        }
        codecs.k_heads.push_back(std::make_shared<TransformCodec>(basis, variance, 7, true));
    }
    codecs.k = codecs.k_heads[0];
    codecs.k_plain_mean.assign(kRowK, 0.25F);
    codecs.rope_tables = std::make_shared<RopeTables>(rope_);
    EXPECT_TRUE(codecs.need_positions());
    store_.set_codecs(kGeometry, codecs);
    constexpr uint32_t kCell = 70;
    std::vector<float> key(kRowK, 1.25F);
    for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
        rope_.rotate(&key[head * kDim], positions_[kCell]);
    }
    store_.write(Side::kK, kCell, key.data());
    store_.write(Side::kV, kCell, random_vector(kRowV, rng_).data());
    encode({kCell});
    for (const int32_t delta : {0, 37, -500}) {
        store_.shift_key(kCell, delta, rope_);
        positions_[kCell] += delta;
        const std::vector<uint16_t> row = read(Side::kK, kCell);
        for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
            std::vector<float> expected(kDim, 0.25F);
            std::fill_n(expected.begin() + static_cast<std::ptrdiff_t>(head), kKept, 1.25F);
            rope_.rotate(expected.data(), positions_[kCell]);
            for (size_t i = 0; i < kDim; ++i) {
                EXPECT_NEAR(half_to_float(row[head * kDim + i]), expected[i], 0.1) << "head " << head << ", " << i;
            }
        }
    }
}

TEST_F(LayerStoreTest, HeadsMayShareACode) {
    // Two axes of three are kept, whichever head they belong to.
    const auto shared = [](size_t dim, bool before_rope) {
        const size_t width = kGeometry.n_head_kv * dim, rank = width / 48 * 32;
        std::vector<float> axes(rank * width);
        for (size_t i = 0; i < rank; ++i) {
            axes[i * width + i / 2 * 3 + i % 2] = 1.0F;
        }
        const auto space = std::make_shared<const LatentSpace>(axes, kGeometry.n_head_kv, dim, LatentSpace::kHalfBits);
        std::vector<std::shared_ptr<const Codec>> heads;
        for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
            heads.push_back(std::make_shared<const LatentCodec>(space, head, before_rope));
        }
        return heads;
    };
    LayerCodecs codecs{nullptr, nullptr, {}, {}, rope_};
    codecs.k_heads = shared(kGeometry.dim_k, true);
    codecs.v_heads = shared(kGeometry.dim_v, false);
    codecs.k = codecs.k_heads[0];
    codecs.v = codecs.v_heads[0];
    codecs.k_plain_mean.assign(kRowK, 0.25F);
    codecs.rope_tables = std::make_shared<RopeTables>(rope_);
    store_.set_codecs(kGeometry, codecs);
    EXPECT_EQ(store_.code_bytes_per_token(), (kRowK + kRowV) / 3 * 2 * sizeof(uint16_t));

    const std::vector<uint32_t> cells = {1, 70, 71, 200};
    std::vector<std::vector<float>> keys, values;
    for (const uint32_t cell : cells) {
        keys.push_back(random_vector(kRowK, rng_));
        values.push_back(random_vector(kRowV, rng_));
        std::vector<float> rotated = keys.back();
        for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
            rope_.rotate(&rotated[head * kGeometry.dim_k], positions_[cell]);
        }
        store_.write(Side::kK, cell, rotated.data());
        store_.write(Side::kV, cell, values.back().data());
    }
    std::vector<double> promised;
    for (const Side side : {Side::kK, Side::kV}) {
        for (const Distortion& distortion : store_.distortion(side, cells, positions_.data())) {
            promised.push_back(distortion.miss);
        }
    }
    encode(cells);
    store_.copy_cell(70, 10);
    positions_[10] = positions_[70];
    const auto check = [&](size_t i, uint32_t cell) {
        std::vector<double> missed(2);
        const std::vector<uint16_t> k = read(Side::kK, cell), v = read(Side::kV, cell);
        std::vector<float> expected = keys[i];
        for (size_t j = 2; j < kRowK; j += 3) {
            expected[j] = 0.25F;
            missed[0] += std::pow(double{keys[i][j]} - 0.25, 2);
        }
        for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
            rope_.rotate(&expected[head * kGeometry.dim_k], positions_[cell]);
        }
        for (size_t j = 0; j < kRowK; ++j) {
            ASSERT_NEAR(half_to_float(k[j]), expected[j], 6e-3) << "cell " << cell << ", " << j;
        }
        for (size_t j = 0; j < kRowV; ++j) {
            ASSERT_NEAR(half_to_float(v[j]), j % 3 == 2 ? 0.0F : values[i][j], 3e-3) << "cell " << cell << ", " << j;
            missed[1] += j % 3 == 2 ? double{values[i][j]} * values[i][j] : 0.0;
        }
        EXPECT_NEAR(promised[i], missed[0], 0.02 * missed[0]);
        EXPECT_NEAR(promised[cells.size() + i], missed[1], 0.02 * missed[1]);
    };
    for (size_t i = 0; i < cells.size(); ++i) {
        check(i, cells[i]);
    }
    check(1, 10);
    store_.shift_key(71, 33, rope_);
    positions_[71] += 33;
    check(2, 71);

    LayerCodecs halved = codecs;
    halved.k_heads.pop_back();
    EXPECT_THROW(LayerStore(kGeometry.n_cells, kRowK, kRowV, true).set_codecs(kGeometry, halved), Error);
    halved.k_heads.clear();
    EXPECT_THROW(LayerStore(kGeometry.n_cells, kRowK, kRowV, true).set_codecs(kGeometry, halved), Error);
}

TEST_F(LayerStoreTest, DistortionIsWhatEncodeThenLoses) {
    use_means();
    std::vector<uint32_t> cells = {3, 60, 64, 65, 255};
    for (const uint32_t cell : cells) {
        write(cell);
    }
    std::vector<std::vector<Distortion>> promised;
    std::vector<std::vector<uint16_t>> before;
    for (const Side side : {Side::kK, Side::kV}) {
        const std::vector<Distortion>& all = promised.emplace_back(store_.distortion(side, cells, positions_.data()));
        ASSERT_EQ(all.size(), cells.size());
        for (size_t i = 0; i < cells.size(); ++i) {
            const Distortion alone = store_.distortion(side, {&cells[i], 1}, positions_.data()).front();
            EXPECT_EQ(alone.miss, all[i].miss);
            EXPECT_EQ(alone.residual, all[i].residual);
            EXPECT_LT(all[i].residual, all[i].energy / 100);
            EXPECT_LT(all[i].miss, all[i].residual / 10);
            EXPECT_GT(all[i].miss, 0);
            before.push_back(read(side, cells[i]));
        }
    }
    encode(cells);
    for (const Side side : {Side::kK, Side::kV}) {
        for (size_t i = 0; i < cells.size(); ++i) {
            const size_t n = static_cast<size_t>(side) * cells.size() + i;
            const Distortion& d = promised[static_cast<size_t>(side)][i];
            ASSERT_TRUE(store_.is_coded(cells[i]));
            EXPECT_NEAR(d.miss / d.energy / relative_error(before[n], read(side, cells[i])), 1.0, 0.02) << cells[i];
        }
    }
}

/// Keys have codes of variable length, values of a fixed one.
class VariableStoreTest : public LayerStoreTest {
  protected:
    void SetUp() override {
        LayerStoreTest::SetUp();
        constexpr size_t kAtoms = 128;
        std::vector<uint16_t> atoms;
        for (size_t j = 0; j < kAtoms; ++j) {
            std::vector<float> atom = random_vector(kGeometry.dim_k, rng_);
            const float norm = std::sqrt(std::inner_product(atom.begin(), atom.end(), atom.begin(), 0.0F));
            std::ranges::transform(atom, std::back_inserter(atoms), [&](float v) { return float_to_half(v / norm); });
        }
        constexpr std::array<float, Packing::kLevels> kLevels = {0.08F, 0.17F, 0.27F, 0.38F, 0.5F, 0.64F, 0.8F, 1.0F};
        DictionarySettings settings{{32, 0.4F}, CoefficientFormat::kSigned4, CodeLayout::kPacked};
        variable_ = std::make_shared<DictionaryCodec>(atoms, kAtoms, kGeometry.dim_k, kLevels, settings);
        settings.omp.sparsity = 4;  // hardly ever enough
        settings.adaptive_atoms = kAdaptive;
        adaptive_ = std::make_shared<DictionaryCodec>(atoms, kAtoms, kGeometry.dim_k, kLevels, settings);
        store_.set_codecs(kGeometry, {variable_, v_codec_, {}, {}, rope_});
    }

    static constexpr size_t kAdaptive = 100;
    std::shared_ptr<const Codec> variable_;
    std::shared_ptr<const Codec> adaptive_;
};

TEST_F(VariableStoreTest, RowsThatAreReadOutAndWrittenBackKeepTheirCodes) {
    std::vector<uint32_t> cells(100);
    std::iota(cells.begin(), cells.end(), 30U);
    std::ranges::for_each(cells, [&](uint32_t cell) { write(cell); });
    const std::unique_ptr<Team> team = make_parked_team(3);
    store_.encode(cells, positions_.data(), *team);
    std::vector<std::vector<uint16_t>> rows;
    for (const uint32_t cell : cells) {
        for (const Side side : {Side::kK, Side::kV}) {
            rows.emplace_back(side == Side::kK ? kRowK : kRowV);
            store_.read_out(side, cell, positions_.data(), rows.back().data());
        }
    }
    for (int round = 0; round < 3; ++round) {
        store_.clear();
        for (size_t i = 0; i < cells.size(); ++i) {
            store_.write_half(Side::kK, cells[i], rows[2 * i].data());
            store_.write_half(Side::kV, cells[i], rows[2 * i + 1].data());
        }
        store_.encode(cells, positions_.data(), *team);
        for (size_t i = 0; i < cells.size(); ++i) {
            ASSERT_EQ(read(Side::kK, cells[i]), rows[2 * i]);
            ASSERT_EQ(read(Side::kV, cells[i]), rows[2 * i + 1]);
        }
    }
}

TEST_F(VariableStoreTest, RowsSurviveOthers) {
    std::vector<uint32_t> cells(150);
    std::iota(cells.begin(), cells.end(), 20U);
    for (const uint32_t cell : cells) {
        write(cell);
    }
    EXPECT_DOUBLE_EQ(
        store_.mean_bytes_per_token(),
        static_cast<double>(kGeometry.n_head_kv) *
            (VariableBlock::kBytesBesideCode + static_cast<double>(variable_->code_bytes() + v_codec_->code_bytes())));
    EXPECT_FALSE(store_.mean_nonzeros(Side::kK));
    std::vector<std::vector<uint16_t>> dense;
    double miss = 0.0;
    for (const uint32_t cell : cells) {
        dense.push_back(read(Side::kK, cell));
        miss += store_.distortion(Side::kK, {&cell, 1}, positions_.data()).front().miss;
    }
    const std::vector<Distortion> promised = store_.distortion(Side::kK, cells, positions_.data());
    const std::unique_ptr<Team> team = make_parked_team(3);
    store_.encode(cells, positions_.data(), *team);
    std::vector<std::vector<uint16_t>> coded;
    double lost = 0.0, total = 0.0;
    for (size_t i = 0; i < cells.size(); ++i) {
        coded.push_back(read(Side::kK, cells[i]));
        EXPECT_LT(relative_error(dense[i], coded[i]), 0.22);
        lost += relative_error(dense[i], coded[i]) * promised[i].energy;
        total += promised[i].miss;
    }
    EXPECT_NEAR(lost / total, 1.0, 0.01);
    EXPECT_NEAR(miss / total, 1.0, 1e-3);  // alone and among others, of atoms that are equally good any may be chosen
    EXPECT_GT(store_.mean_nonzeros(Side::kK).value(), 4.0);
    EXPECT_LT(store_.mean_nonzeros(Side::kK).value(), 32.0);
    EXPECT_LT(store_.mean_bytes_per_token(), static_cast<double>(store_.code_bytes_per_token()));

    // Overwriting, copying and coding again leave the others alone.
    for (int round = 0; round < 5; ++round) {
        for (uint32_t cell = 20; cell < 170; cell += 3) {
            write(cell);
        }
        std::vector<uint32_t> again;
        for (uint32_t cell = 20; cell < 170; cell += 3) {
            again.push_back(cell);
        }
        encode(again);
    }
    store_.copy_cell(21, 200);
    store_.copy_cell(22, 23);
    for (size_t i = 0; i < cells.size(); ++i) {
        if (cells[i] % 3 == 0 || cells[i] == 22) {
            ASSERT_EQ(read(Side::kK, cells[i]), coded[i]) << cells[i];
        }
    }
    EXPECT_EQ(read(Side::kK, 200), read(Side::kK, 21));
    EXPECT_EQ(read(Side::kK, 23), read(Side::kK, 22));
    const size_t resident = store_.resident_bytes();
    store_.clear();
    EXPECT_LT(store_.resident_bytes(), resident);
    write(21);
    encode({21});
    EXPECT_EQ(store_.coded_cells(), 1U);
}

TEST_F(VariableStoreTest, WhatMissesTheThresholdBecomesAnAtom) {
    store_.set_codecs(kGeometry, {adaptive_, v_codec_, {}, {}, rope_});
    std::vector<std::vector<uint16_t>> once;
    for (const size_t threads : {1, 3}) {
        store_.clear();
        EXPECT_EQ(store_.adopted_bytes(), 0U);
        rng_.seed(5);
        std::vector<uint32_t> cells(60);
        std::iota(cells.begin(), cells.end(), 0U);
        std::vector<std::vector<uint16_t>> before, after;
        for (const uint32_t cell : cells) {
            write(cell);
            before.push_back(read(Side::kK, cell));
        }
        const std::unique_ptr<Team> team = make_parked_team(threads);
        store_.encode(std::span(cells).first(30), positions_.data(), *team);  // 90 rows: room for all
        EXPECT_EQ(store_.adopted_bytes(), 90 * kGeometry.dim_k * sizeof(uint16_t));
        for (size_t i = 0; i < 30; ++i) {
            EXPECT_LT(relative_error(before[i], read(Side::kK, cells[i])), 0.002) << i;
        }
        store_.encode(std::span(cells).subspan(30), positions_.data(), *team);
        EXPECT_EQ(store_.adopted_bytes(), kAdaptive * kGeometry.dim_k * sizeof(uint16_t));
        EXPECT_GT(relative_error(before[59], read(Side::kK, cells[59])), 0.05);  // as good as four atoms are
        for (const uint32_t cell : cells) {
            after.push_back(read(Side::kK, cell));
        }
        EXPECT_TRUE(once.empty() || once == after) << "threads change the result";
        once = after;
        // A row that was seen before is found among the atoms, and attention in code space sees them, too.
        store_.write_half(Side::kK, 100, before[3].data());
        store_.write_half(Side::kV, 100, std::vector<uint16_t>(kRowV).data());
        encode({100});
        EXPECT_LT(relative_error(before[3], read(Side::kK, 100)), 0.002);
        std::vector<float> q(4 * kGeometry.dim_k, 1.0F), table(adaptive_->space() * 4), s(4);
        adaptive_->prepare(q.data(), 4, 0, adaptive_->space(), table.data());
        const uint16_t row = 100 % kBlock;
        adaptive_->score(table.data(), 4, store_.codes(Side::kK, 100 / kBlock, 0), {&row, 1}, s.data());
        double expected = 0.0;
        for (size_t i = 0; i < kGeometry.dim_k; ++i) {
            expected += half_to_float(before[3][i]);
        }
        EXPECT_NEAR(s[0], expected, 0.3);
    }
}

TEST_F(LayerStoreTest, SingleCellsAreCompleteGroups) {
    std::vector<uint32_t> cells = {1, 5, 6, 130};
    const std::vector<uint32_t> before = cells;
    EXPECT_EQ(store_.group_cells(), 1U);
    EXPECT_EQ(store_.complete_groups(cells), 4U);
    EXPECT_EQ(cells, before);
}

// Keys that are coded 32 at a time.
class GroupedStoreTest : public LayerStoreTest {
  protected:
    static constexpr uint32_t kGroup = 32;

    void SetUp() override {
        LayerStoreTest::SetUp();
        store_.set_codecs(kGeometry, {key_codec_, value_codec_, {}, {}, rope_});
    }

    static std::vector<uint32_t> range(uint32_t first, uint32_t n) {
        std::vector<uint32_t> cells(n);
        std::iota(cells.begin(), cells.end(), first);
        return cells;
    }
    void write_all(const std::vector<uint32_t>& cells) {
        for (const uint32_t cell : cells) {
            write(cell);
        }
    }
    /// The rows of both sides.
    std::vector<std::vector<uint16_t>> read_all(const std::vector<uint32_t>& cells) const {
        std::vector<std::vector<uint16_t>> rows;
        for (const uint32_t cell : cells) {
            rows.push_back(read(Side::kK, cell));
            rows.push_back(read(Side::kV, cell));
        }
        return rows;
    }

    const std::shared_ptr<const Codec> key_codec_ = std::make_shared<KiviKeyCodec>(kGeometry.dim_k, 4);
    const std::shared_ptr<const Codec> value_codec_ = std::make_shared<TokenCodec>(kGeometry.dim_v, 2);
};

TEST_F(GroupedStoreTest, CompleteGroupsComeFirst) {
    EXPECT_EQ(store_.group_cells(), kGroup);
    std::vector<uint32_t> cells = range(3, 31);  // a group without its first rows, two cells of the next
    for (const uint32_t cell : range(64, 32)) {
        cells.push_back(cell);
    }
    cells.push_back(97);
    for (const uint32_t cell : range(128, 65)) {
        cells.push_back(cell);
    }
    std::vector<uint32_t> expected = range(64, 32);
    for (const uint32_t cell : range(128, 64)) {
        expected.push_back(cell);
    }
    for (const uint32_t cell : range(3, 31)) {
        expected.push_back(cell);
    }
    expected.push_back(97);
    expected.push_back(192);
    EXPECT_EQ(store_.complete_groups(cells), 96U);
    EXPECT_EQ(cells, expected);

    std::vector<uint32_t> none = range(33, 31);
    EXPECT_EQ(store_.complete_groups(none), 0U);
    EXPECT_EQ(none, range(33, 31));
    EXPECT_EQ(store_.complete_groups({}), 0U);
}

TEST_F(GroupedStoreTest, IncompleteGroupsStayDense) {
    std::vector<uint32_t> cells = range(0, 80);
    cells.erase(cells.begin() + 40);
    write_all(cells);
    const std::vector<std::vector<uint16_t>> before = read_all(cells);
    std::vector<uint32_t> ripe = cells;
    ripe.resize(store_.complete_groups(ripe));
    ASSERT_EQ(ripe, range(0, 32));
    encode(ripe);
    EXPECT_EQ(store_.coded_cells(), 32U);
    EXPECT_EQ(store_.dense_rows(), cells.size() - 32);
    const std::vector<std::vector<uint16_t>> after = read_all(cells);
    for (size_t i = 0; i < cells.size(); ++i) {
        const bool coded = cells[i] < 32;
        EXPECT_EQ(store_.is_coded(cells[i]), coded);
        EXPECT_EQ(after[2 * i] == before[2 * i], !coded);
        EXPECT_EQ(after[2 * i + 1] == before[2 * i + 1], !coded);
        EXPECT_LT(relative_error(before[2 * i], after[2 * i]), 0.02);
        EXPECT_LT(relative_error(before[2 * i + 1], after[2 * i + 1]), 0.25);
    }
    // The rows of one group and head, as the codec alone would have them.
    const size_t dim = kGeometry.dim_k;
    for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
        std::vector<float> x;
        for (size_t row = 0; row < kGroup; ++row) {
            for (size_t i = 0; i < dim; ++i) {
                x.push_back(half_to_float(before[2 * row][head * dim + i]));
            }
        }
        std::vector<std::byte> codes(kGroup * key_codec_->code_bytes());
        key_codec_->encode(x.data(), kGroup, codes.data());
        key_codec_->decode(codes.data(), 0, kGroup, x.data());
        std::vector<float> gathered(5 * dim);
        const std::vector<uint16_t> rows = {7, 8, 9, 31, 2};
        store_.gather(Side::kK, 0, head, rows, positions_.data(), gathered.data());
        for (size_t i = 0; i < rows.size(); ++i) {
            for (size_t j = 0; j < dim; ++j) {
                ASSERT_EQ(gathered[i * dim + j], x[rows[i] * dim + j]) << "row " << rows[i];
            }
        }
    }
}

TEST_F(GroupedStoreTest, SalientRowsAreThoseThatWereMarked) {
    const auto codec = std::make_shared<ZipCacheKeyCodec>(kGeometry.dim_k);
    const auto v_codec = std::make_shared<ZipCacheValueCodec>(kGeometry.dim_v);
    store_.set_codecs(kGeometry, {codec, v_codec, {}, {}, rope_});
    const std::vector<uint32_t> cells = range(32, 4 * kGroup);
    std::vector<uint8_t> salient(kGeometry.n_head_kv * cells.size());
    std::generate(salient.begin(), salient.end(), [&] { return static_cast<uint8_t>(rng_() % 4 == 0); });
    for (const size_t size : {1, 3}) {
        write_all(cells);
        const std::unique_ptr<Team> team = make_parked_team(size);
        store_.encode(cells, positions_.data(), *team, salient.data());
        for (size_t i = 0; i < salient.size(); ++i) {
            const size_t head = i / cells.size(), cell = cells[i % cells.size()];
            for (const Side side : {Side::kK, Side::kV}) {
                const ZipCacheCodec& of_side = side == Side::kK ? static_cast<const ZipCacheCodec&>(*codec) : *v_codec;
                const std::byte* code = store_.codes(side, cell / kBlock, head) + cell % kBlock * of_side.code_bytes();
                ASSERT_EQ(of_side.is_salient(code), salient[i] != 0) << "head " << head << ", cell " << cell;
            }
        }
    }
}

TEST_F(GroupedStoreTest, TeamsEncodeAlike) {
    const std::vector<uint32_t> cells = range(32, 5 * kGroup);
    write_all(cells);
    const std::vector<std::vector<uint16_t>> dense = read_all(cells);
    encode(cells);
    const std::vector<std::vector<uint16_t>> coded = read_all(cells);
    ASSERT_NE(coded, dense);
    for (const size_t size : {2, 3, 7}) {
        for (size_t i = 0; i < cells.size(); ++i) {
            store_.write_half(Side::kK, cells[i], dense[2 * i].data());
            store_.write_half(Side::kV, cells[i], dense[2 * i + 1].data());
        }
        const std::unique_ptr<Team> team = make_parked_team(size);
        store_.encode(cells, positions_.data(), *team);
        EXPECT_EQ(read_all(cells), coded) << "team of " << size;
    }
}

TEST_F(GroupedStoreTest, OthersOutliveAnOverwrittenCell) {
    const std::vector<uint32_t> cells = range(64, 2 * kGroup);
    write_all(cells);
    encode(cells);
    const std::vector<std::vector<uint16_t>> before = read_all(cells);
    // The first row of a group and one within.
    for (const uint32_t cell : {64U, 100U}) {
        write(cell);
        EXPECT_TRUE(store_.is_whole(cell));
        const std::vector<std::vector<uint16_t>> after = read_all(cells);
        for (size_t i = 0; i < cells.size(); ++i) {
            if (store_.is_coded(cells[i])) {
                ASSERT_EQ(after[2 * i], before[2 * i]) << cells[i];
                ASSERT_EQ(after[2 * i + 1], before[2 * i + 1]) << cells[i];
            } else {
                ASSERT_NE(after[2 * i], before[2 * i]) << cells[i];
            }
        }
    }
    EXPECT_EQ(store_.coded_cells(), cells.size() - 2);
    std::vector<uint32_t> ripe = {64, 100};
    EXPECT_EQ(store_.complete_groups(ripe), 0U);

    write_all(range(64, kGroup));
    const std::vector<uint16_t> written = read(Side::kK, 70);
    encode(range(64, kGroup));
    EXPECT_EQ(store_.dense_rows(), 1U);
    EXPECT_NE(read(Side::kK, 70), before[2 * 6]);
    EXPECT_LT(relative_error(written, read(Side::kK, 70)), 0.02);
}

TEST_F(GroupedStoreTest, CopiesOfGroupsAreWhole) {
    write_all(range(0, 2 * kGroup));
    encode(range(0, 2 * kGroup));
    write(5);           // dense in a coded group
    store_.drop(0);     // empty in a coded group
    write_all({130U});  // stands where the copy goes
    const std::vector<std::vector<uint16_t>> before = read_all(range(0, 2 * kGroup));
    for (const uint32_t cell : range(0, 2 * kGroup)) {
        store_.copy_cell(cell, 128 + cell);
    }
    write_all(range(0, 2 * kGroup));
    encode(range(0, 2 * kGroup));
    EXPECT_EQ(read_all(range(128, 2 * kGroup)), before);
    EXPECT_TRUE(store_.is_dense(133));
    EXPECT_FALSE(store_.is_dense(128) || store_.is_coded(128));
    EXPECT_EQ(store_.coded_cells(), 2 * kGroup + 2 * kGroup - 2);
}

TEST_F(GroupedStoreTest, DistortionIsWhatEncodeThenLoses) {
    const std::vector<uint32_t> cells = range(32, 2 * kGroup);
    write_all(cells);
    const std::vector<std::vector<uint16_t>> before = read_all(cells);
    const std::vector<Distortion> k = store_.distortion(Side::kK, cells, positions_.data());
    const std::vector<Distortion> v = store_.distortion(Side::kV, cells, positions_.data());
    ASSERT_EQ(read_all(cells), before) << "something changed";
    encode(cells);
    for (size_t i = 0; i < cells.size(); ++i) {
        const double k_error = relative_error(before[2 * i], read(Side::kK, cells[i]));
        const double v_error = relative_error(before[2 * i + 1], read(Side::kV, cells[i]));
        EXPECT_NEAR(k[i].miss / k[i].energy / k_error, 1.0, 0.02) << cells[i];
        EXPECT_NEAR(v[i].miss / v[i].energy / v_error, 1.0, 0.02) << cells[i];
    }
}

TEST_F(GroupedStoreTest, ShiftOfACodeRotatesIt) {
    write_all(range(32, kGroup));
    encode(range(32, kGroup));
    const std::vector<uint16_t> neighbour = read(Side::kK, 41);
    const size_t dim = kGeometry.dim_k;
    std::vector<float> x;
    for (const uint16_t half : read(Side::kK, 40)) {
        x.push_back(half_to_float(half));
    }
    store_.shift_key(40, 123, rope_);
    const std::vector<uint16_t> shifted = read(Side::kK, 40);
    for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
        rope_.shift(&x[head * dim], 123);
    }
    for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_NEAR(half_to_float(shifted[i]), x[i], 4e-3);
    }
    EXPECT_EQ(read(Side::kK, 41), neighbour);
}

/// A row with some heads zero.
std::vector<uint16_t> without(std::vector<uint16_t> row, const std::vector<size_t>& heads) {
    const size_t dim = row.size() / kGeometry.n_head_kv;
    for (const size_t head : heads) {
        std::fill_n(row.begin() + static_cast<std::ptrdiff_t>(head * dim), dim, uint16_t{0});
    }
    return row;
}

TEST_F(LayerStoreTest, EvictedHeadsReadAsZero) {
    for (const size_t cell : {70, 71, 72}) {
        write(cell);
    }
    encode({71});
    const size_t bytes = store_.resident_bytes();
    EXPECT_EQ(store_.evicted_rows(1, 0), 0U);
    for (const size_t cell : {70, 71}) {
        const std::vector<uint16_t> k = read(Side::kK, cell);
        const std::vector<uint16_t> v = read(Side::kV, cell);
        store_.evict(cell, 1);
        EXPECT_EQ(read(Side::kK, cell), without(k, {1}));
        EXPECT_EQ(read(Side::kV, cell), without(v, {1}));
        EXPECT_TRUE(store_.is_evicted(cell, 1));
        EXPECT_FALSE(store_.is_evicted(cell, 0) || store_.is_evicted(cell, 2) || store_.is_emptied(cell));
        const auto row = static_cast<uint16_t>(cell % kBlock);
        std::vector<float> x(kGeometry.dim_k, -7.0F);
        store_.gather(Side::kK, 1, 1, {&row, 1}, positions_.data(), x.data());
        EXPECT_EQ(x, std::vector<float>(kGeometry.dim_k, 0.0F));
    }
    EXPECT_EQ(store_.evicted_rows(1, 1), 0b11U << (70 % kBlock));
    EXPECT_FALSE(store_.is_evicted(72, 1));
    // The flags: a word for each block and head.
    EXPECT_EQ(store_.resident_bytes() - bytes, kGeometry.n_cells / kBlock * kGeometry.n_head_kv * sizeof(uint64_t));
    EXPECT_EQ(store_.dense_rows(), 2U);
    EXPECT_EQ(store_.coded_cells(), 1U);
}

TEST_F(LayerStoreTest, ACellWithoutHeadsGivesItsMemoryBack) {
    write(5);
    write(6);
    encode({6});
    for (const size_t cell : {5, 6}) {
        for (const size_t head : {2, 0, 1, 1}) {
            store_.evict(cell, head);
        }
        EXPECT_TRUE(store_.is_emptied(cell));
        EXPECT_FALSE(store_.is_dense(cell) || store_.is_coded(cell));
        EXPECT_EQ(read(Side::kV, cell), std::vector<uint16_t>(kRowV, 0));
    }
    store_.shift_key(5, 3, rope_);
    EXPECT_EQ(store_.dense_rows(), 0U);
    EXPECT_EQ(store_.coded_cells(), 0U);
    EXPECT_EQ(store_.emptied_cells(), 2U);
}

TEST_F(LayerStoreTest, EvictedHeadsComeBackOnlyWhenTheCellIsWritten) {
    const auto evict_some = [&](size_t cell, size_t n_heads) {
        write(cell);
        for (size_t head = 0; head < n_heads; ++head) {
            store_.evict(cell, head);
        }
    };
    evict_some(1, 2);
    encode({1});
    EXPECT_TRUE(store_.is_evicted(1, 0) && store_.is_evicted(1, 1)) << "coding brought heads back";
    for (const size_t n_heads : {size_t{1}, kGeometry.n_head_kv}) {
        evict_some(1, n_heads);
        write(1);
        EXPECT_FALSE(store_.is_evicted(1, 0) || store_.is_emptied(1));
        EXPECT_TRUE(store_.is_whole(1));
        evict_some(1, n_heads);
        store_.drop(1);
        EXPECT_FALSE(store_.is_evicted(1, 0) || store_.is_emptied(1));
        EXPECT_EQ(store_.emptied_cells(), 0U);
    }
    evict_some(1, kGeometry.n_head_kv);
    evict_some(2, 1);
    store_.clear();
    EXPECT_FALSE(store_.is_evicted(1, 0) || store_.is_evicted(2, 0) || store_.is_emptied(1));
    EXPECT_EQ(store_.emptied_cells(), 0U);
}

TEST_F(LayerStoreTest, CopiesEvictedHeads) {
    for (const size_t cell : {1, 2, 3, 200, 201, 202}) {
        write(cell);
    }
    encode({2, 201});
    for (const size_t cell : {1, 2}) {
        store_.evict(cell, 0);
    }
    for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
        store_.evict(3, head);
        store_.evict(202, head);
    }
    for (const size_t from : {1, 2, 3, 4}) {
        for (const size_t to : {200, 201, 202, 100}) {
            store_.copy_cell(from, to);
            EXPECT_EQ(read(Side::kK, to), read(Side::kK, from)) << from << " to " << to;
            EXPECT_EQ(read(Side::kV, to), read(Side::kV, from)) << from << " to " << to;
            for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
                EXPECT_EQ(store_.is_evicted(to, head), store_.is_evicted(from, head)) << from << " to " << to;
            }
            EXPECT_EQ(store_.is_emptied(to), from == 3);
            size_t n_emptied = 0;
            for (size_t cell = 0; cell < kGeometry.n_cells; ++cell) {
                n_emptied += store_.is_emptied(cell) ? 1 : 0;
            }
            EXPECT_EQ(store_.emptied_cells(), n_emptied);
        }
    }
}

TEST_F(LayerStoreTest, WithoutCodecsRowsStayDense) {
    store_.set_codecs(kGeometry, {});
    EXPECT_FALSE(store_.has_codecs());
    EXPECT_EQ(store_.code_bytes_per_token(), (kRowK + kRowV) * sizeof(uint16_t));
    write(3);
    EXPECT_TRUE(store_.is_whole(3));
    store_.clear();
    EXPECT_EQ(store_.dense_rows(), 0U);
}

}  // namespace
}  // namespace kvcodec
