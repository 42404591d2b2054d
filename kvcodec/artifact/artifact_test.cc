#include "kvcodec/artifact/artifact.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "kvcodec/artifact/gguf_file.h"
#include "kvcodec/error.h"
#include "kvcodec/half.h"

namespace kvcodec {
namespace {

namespace fs = std::filesystem;

SideArtifact make_side(uint32_t dim, uint32_t n_atoms, uint32_t n_head_kv) {
    SideArtifact side;
    side.dim = dim;
    side.n_atoms = n_atoms;
    side.atoms.assign(size_t{n_atoms} * dim, 0);
    for (uint32_t atom = 0; atom < n_atoms; ++atom) {
        side.atoms[atom * dim + atom % dim] = float_to_half(0.6F);
        side.atoms[atom * dim + (atom + 1) % dim] = float_to_half(-0.8F);
    }
    for (uint32_t i = 0; i < n_head_kv * dim; ++i) {
        side.mean.push_back(0.5F * static_cast<float>(i) - 3.0F);
    }
    for (size_t i = 1; i <= SideArtifact::kLevels; ++i) {
        side.levels.push_back(static_cast<float>(i) / SideArtifact::kLevels);
    }
    side.heldout_error = 0.25F;
    side.sensitivity = 0.5F;
    return side;
}

Artifact make_artifact() {
    LayerArtifact first;
    first.n_head_kv = 2;
    first.rope = {.pairing = RopeParams::Pairing::kHalves,
                  .n_dims = 4,
                  .n_ctx_orig = 2048,
                  .freq_base = 1e6F,
                  .freq_factors = {1.0F, 8.0F}};
    first.k = make_side(4, 3, first.n_head_kv);
    first.v = make_side(2, 2, first.n_head_kv);
    LayerArtifact second = first;
    second.layer = 5;
    second.rope = {};
    return {.model_name = "tiny",
            .model_fingerprint = "0123456789abcdef",
            .architecture = "llama",
            .training_source = "text",
            .training_sparsity = 8,
            .training_tokens = uint64_t{1} << 40,
            .layers = {first, second}};
}

/// Directions of K that are neither axes nor orthogonal nor exact in half precision, other ones for each head.
void add_basis(SideArtifact& side, uint32_t n_head_kv) {
    for (uint32_t head = 0; head < n_head_kv; ++head) {
        const float angle = 0.5F + static_cast<float>(head);
        for (uint32_t row = 0; row < side.dim; ++row) {
            std::vector<float> direction(side.dim);
            const float sign = row % 2 == 0 ? 1.0F : -1.0F;
            direction[row] = std::cos(angle);
            direction[row ^ 1U] = sign * std::sin(angle) + 0.25F;  // not orthogonal, either
            std::ranges::transform(direction, std::back_inserter(side.basis), float_to_half);
            side.variance.push_back(row + 1 == side.dim ? 0.0F : 2.5F / static_cast<float>(1 + row / 2));
        }
    }
}

Artifact make_artifact_with_basis() {
    Artifact artifact = make_artifact();
    for (LayerArtifact& layer : artifact.layers) {
        add_basis(layer.k, layer.n_head_kv);
        layer.k.loss_of_noise = 1.25F;
    }
    return artifact;
}

/// Of K by head, of V jointly.
Artifact make_latent_artifact() {
    Artifact artifact = make_artifact();
    artifact.kind = Artifact::Kind::kLatent;
    artifact.training_sparsity = 0;
    for (LayerArtifact& layer : artifact.layers) {
        for (SideArtifact* to : {&layer.k, &layer.v}) {
            SideArtifact side;
            side.dim = to->dim;
            side.mean = to->mean;
            side.joint_heads = to == &layer.k ? 1 : layer.n_head_kv;
            side.rank = 2;
            const uint32_t width = side.joint_heads * side.dim;
            for (uint32_t row = 0; row < layer.n_head_kv / side.joint_heads * side.rank; ++row) {
                std::vector<uint16_t> direction(width);
                direction[row % width] = float_to_half(0.6F);
                direction[(row + 1) % width] = float_to_half(0.8F);
                side.directions.insert(side.directions.end(), direction.begin(), direction.end());
            }
            *to = side;
        }
    }
    return artifact;
}

class ArtifactTest : public testing::Test {
  protected:
    void SetUp() override {
        folder_ = testing::TempDir() + "/kvcodec_artifact_" +
                  testing::UnitTest::GetInstance()->current_test_info()->name() + std::to_string(::getpid());
        path_ = folder_ + "/cache/a.kvc.gguf";
    }
    void TearDown() override { fs::remove_all(folder_); }

    /// Either a usable artifact or Error; anything else fails the test.
    bool is_accepted() {
        try {
            read_artifact(path_);
            return true;
        } catch (const Error&) {
            return false;
        }
    }
    void expect_refused(const std::function<void(Artifact&)>& damage, const std::string& why,
                        Artifact artifact = make_artifact()) {
        damage(artifact);
        try {
            write_artifact(artifact, path_);
            ADD_FAILURE() << "accepted: " << why;
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
        }
    }

    std::string folder_;
    std::string path_;
};

TEST_F(ArtifactTest, DirectionsOfJointHeadsRoundTripAndAreChecked) {
    Artifact artifact = make_artifact();
    for (LayerArtifact& layer : artifact.layers) {
        layer.v.joint_heads = layer.n_head_kv;
        layer.v.basis.assign(layer.v.width() * layer.v.width(), float_to_half(0.5F));
        layer.v.variance.assign(layer.v.width(), 0.25F);
    }
    write_artifact(artifact, path_);
    EXPECT_EQ(read_artifact(path_), artifact);
    const auto refuse = [&](const std::function<void(SideArtifact&)>& damage, const std::string& why) {
        expect_refused([&](Artifact& damaged) { damage(damaged.layers[0].v); }, why, artifact);
    };
    refuse([](SideArtifact& v) { v.joint_heads = 1; }, "wrong size");
    refuse([](SideArtifact& v) { v.joint_heads = 3; }, "3 heads together, of 2");
    refuse([](SideArtifact& v) { v.variance[3] = 1.0F; }, "the variance of set 0 of heads does not descend");
    refuse([](SideArtifact& v) { v.basis[3] = 0x7C00; }, "the basis of set 0 of heads is not finite");
}

TEST_F(ArtifactTest, LatentsRoundTripAndAreChecked) {
    const Artifact artifact = make_latent_artifact();
    write_artifact(artifact, path_);
    EXPECT_EQ(read_artifact(path_), artifact);
    const auto refuse = [&](const std::function<void(SideArtifact&)>& damage, const std::string& why) {
        expect_refused([&](Artifact& damaged) { damage(damaged.layers[1].v); }, why, artifact);
    };
    refuse([](SideArtifact& v) { v.rank = 5; }, "layer 5 V: rank 5 is not in 1 to 4");
    refuse([](SideArtifact& v) { v.rank = 0; }, "rank 0");
    refuse([](SideArtifact& v) { v.joint_heads = 3; }, "3 heads together, of 2");
    refuse([](SideArtifact& v) { v.joint_heads = 0; }, "0 heads together");
    refuse([](SideArtifact& v) { v.directions.pop_back(); }, "wrong size");
    refuse([](SideArtifact& v) { v.mean.pop_back(); }, "wrong size");
    refuse([](SideArtifact& v) { v.directions[0] = float_to_half(0.9F); }, "direction 0 is not of unit norm");
    refuse([](SideArtifact& v) { v.directions[1] = 0x7E00; }, "direction 0 is not of unit norm");
    refuse([](SideArtifact& v) { v.mean[1] = std::numeric_limits<float>::infinity(); }, "mean is not finite");
    // One kind cannot stand for the other.
    expect_refused([](Artifact& damaged) { damaged.kind = Artifact::Kind::kDictionary; }, "belongs to latents",
                   artifact);
    expect_refused([](Artifact& damaged) { damaged.kind = Artifact::Kind::kLatent; }, "rank 0");
}

TEST_F(ArtifactTest, RoundTrip) {
    write_artifact(make_artifact(), path_);
    EXPECT_EQ(read_artifact(path_), make_artifact());
}

TEST_F(ArtifactTest, RoundTripWithBasis) {
    write_artifact(make_artifact_with_basis(), path_);
    EXPECT_EQ(read_artifact(path_), make_artifact_with_basis());

    Artifact some_layers = make_artifact_with_basis();
    some_layers.layers[0].k.basis.clear();
    some_layers.layers[0].k.variance.clear();
    write_artifact(some_layers, path_);
    EXPECT_EQ(read_artifact(path_), some_layers);
}

TEST_F(ArtifactTest, KeepsGgufLayout) {
    write_artifact(make_artifact_with_basis(), path_);
    const GgufFile file(path_);
    EXPECT_EQ(file.get_string("general.type"), "kvcodec");
    EXPECT_EQ(file.get_uint("kvcodec.version"), 1U);
    const GgufTensor* atoms = file.find_tensor("blk.5.k.atoms");
    ASSERT_NE(atoms, nullptr);
    EXPECT_EQ(atoms->type, kGgmlF16);
    EXPECT_EQ(atoms->dims, (std::array<uint64_t, 4>{4, 3, 1, 1}));
    const GgufTensor* basis = file.find_tensor("blk.5.k.basis");
    ASSERT_NE(basis, nullptr);
    EXPECT_EQ(basis->type, kGgmlF16);
    EXPECT_EQ(basis->dims, (std::array<uint64_t, 4>{4, 4, 2, 1}));
    const GgufTensor* variance = file.find_tensor("blk.5.k.variance");
    ASSERT_NE(variance, nullptr);
    EXPECT_EQ(variance->type, kGgmlF32);
    EXPECT_EQ(variance->dims, (std::array<uint64_t, 4>{4, 2, 1, 1}));
    EXPECT_EQ(file.find_tensor("blk.5.v.basis"), nullptr);
}

TEST_F(ArtifactTest, RefusesInsaneNumbers) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float infinity = std::numeric_limits<float>::infinity();
    expect_refused([](Artifact& a) { a.model_fingerprint.clear(); }, "names no model");
    expect_refused([](Artifact& a) { a.layers.clear(); }, "no layers");
    expect_refused([](Artifact& a) { a.layers[1].layer = 0; }, "repeated");
    expect_refused([](Artifact& a) { a.layers[0].n_head_kv = 0; }, "0 KV heads");
    expect_refused([](Artifact& a) { a.layers[0].n_head_kv = 3; }, "wrong size");
    expect_refused([](Artifact& a) { a.layers[0].k = make_side(1025, 2, 2); }, "dimension 1025");
    expect_refused([](Artifact& a) { a.layers[0].k.dim = 0; }, "dimension 0");
    expect_refused([](Artifact& a) { a.layers[0].v = make_side(2, 1, 2); }, "1 atoms");
    expect_refused([](Artifact& a) { a.layers[0].v = make_side(2, 32769, 2); }, "32769 atoms");
    expect_refused([](Artifact& a) { a.layers[0].k.atoms[0] = 0x7C00; }, "atom 0");
    expect_refused([](Artifact& a) { a.layers[0].k.atoms[1] = 0x7E00; }, "atom 0");
    expect_refused([](Artifact& a) { a.layers[0].k.atoms[0] = float_to_half(0.62F); }, "unit norm");
    expect_refused([&](Artifact& a) { a.layers[0].v.mean[1] = nan; }, "mean");
    expect_refused([&](Artifact& a) { a.layers[0].v.mean[1] = infinity; }, "mean");
    expect_refused([](Artifact& a) { a.layers[0].k.levels[0] = 0.0F; }, "levels");
    expect_refused([](Artifact& a) { a.layers[0].k.levels[3] = a.layers[0].k.levels[2]; }, "levels");
    expect_refused([](Artifact& a) { a.layers[0].k.levels[7] = 1.5F; }, "levels");
    expect_refused([&](Artifact& a) { a.layers[0].k.levels[7] = nan; }, "levels");
    expect_refused([](Artifact& a) { a.layers[0].k.levels.pop_back(); }, "wrong size");
    expect_refused([&](Artifact& a) { a.layers[0].k.heldout_error = nan; }, "held-out");
    expect_refused([&](Artifact& a) { a.layers[0].v.sensitivity = nan; }, "sensitivity");
    expect_refused([&](Artifact& a) { a.layers[0].v.sensitivity = -1.0F; }, "sensitivity");
    expect_refused([](Artifact& a) { a.layers[0].rope.n_dims = 6; }, "rotated dimensions");
    expect_refused([](Artifact& a) { a.layers[0].rope.n_dims = 3; }, "rotated dimensions");
    expect_refused([](Artifact& a) { a.layers[1].rope.n_dims = 2; }, "rotated dimensions");
    expect_refused([](Artifact& a) { a.layers[0].rope.freq_base = 0.0F; }, "positive");
    expect_refused([&](Artifact& a) { a.layers[0].rope.beta_slow = infinity; }, "beta_slow");
    expect_refused([](Artifact& a) { a.layers[0].rope.freq_factors.pop_back(); }, "frequency factors");
    expect_refused([](Artifact& a) { a.layers[0].rope.freq_factors[0] = 0.0F; }, "frequency factor");
}

TEST_F(ArtifactTest, RefusesAnInsaneBasis) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float infinity = std::numeric_limits<float>::infinity();
    const auto expect = [&](const std::function<void(SideArtifact&)>& damage, const std::string& why) {
        expect_refused([&](Artifact& a) { damage(a.layers[1].k); }, why, make_artifact_with_basis());
    };
    expect([](SideArtifact& k) { k.basis.clear(); }, "layer 5 K: basis or variance");
    expect([](SideArtifact& k) { k.variance.clear(); }, "wrong size");
    expect([](SideArtifact& k) { k.basis.pop_back(); }, "wrong size");
    expect([](SideArtifact& k) { k.variance.push_back(0.0F); }, "wrong size");
    expect([](SideArtifact& k) { k.basis.resize(k.basis.size() / 2); }, "wrong size");
    expect([](SideArtifact& k) { k.variance[3] = -1e-9F; }, "the variance of head 0");
    expect([](SideArtifact& k) { k.variance[6] = k.variance[5] * 1.01F; }, "the variance of head 1");
    expect([&](SideArtifact& k) { k.variance[0] = infinity; }, "the variance of head 0");
    expect([&](SideArtifact& k) { k.variance[4] = nan; }, "the variance of head 1");
    expect([&](SideArtifact& k) { k.variance[7] = nan; }, "the variance of head 1");
    expect([](SideArtifact& k) { k.basis[0] = 0x7C00; }, "the basis of head 0 is not finite; make it again");
    expect([](SideArtifact& k) { k.basis[31] = 0x7E00; }, "the basis of head 1");
    expect([](SideArtifact& k) { k.loss_of_noise = 0.0F; }, "the loss of noise");
    expect([&](SideArtifact& k) { k.loss_of_noise = nan; }, "the loss of noise");
    expect([&](SideArtifact& k) { k.loss_of_noise = infinity; }, "the loss of noise");
}

TEST_F(ArtifactTest, RefusesABasisOfTheWrongShape) {
    // A file whose layer has another number of heads or dimensions than its basis, as no writer here makes it.
    const auto expect_shape_refused = [&](const std::string& from, const std::string& to) {
        write_artifact(make_artifact_with_basis(), path_);
        std::fstream file(path_, std::ios::binary | std::ios::in | std::ios::out);
        const std::string bytes{std::istreambuf_iterator<char>(file), {}};
        const size_t at = bytes.find(from);
        ASSERT_NE(at, std::string::npos);
        file.seekp(static_cast<std::streamoff>(at)).write(to.data(), static_cast<std::streamsize>(to.size()));
        file.close();
        try {
            read_artifact(path_);
            ADD_FAILURE() << "accepted";
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find("blk.5.k."), std::string::npos) << error.what();
        }
    };
    const auto little_endian = [](uint64_t value, size_t n_bytes) {
        std::string bytes;
        for (size_t i = 0; i < n_bytes; ++i) {
            bytes.push_back(static_cast<char>(value >> (8 * i)));
        }
        return bytes;
    };
    const auto info = [&](const std::string& name, const std::vector<uint64_t>& dims) {
        std::string bytes = name + little_endian(dims.size(), 4);
        for (const uint64_t dim : dims) {
            bytes += little_endian(dim, 8);
        }
        return bytes;
    };
    expect_shape_refused(info("blk.5.k.basis", {4, 4, 2}), info("blk.5.k.basis", {2, 8, 2}));
    expect_shape_refused(info("blk.5.k.basis", {4, 4, 2}), info("blk.5.k.basis", {4, 4, 1}));
    expect_shape_refused(info("blk.5.k.basis", {4, 4, 2}), info("blk.5.k.basys", {4, 4, 2}));
    expect_shape_refused(info("blk.5.k.variance", {4, 2}), info("blk.5.k.variance", {2, 4}));
    expect_shape_refused(info("blk.5.k.variance", {4, 2}), info("blk.5.k.variants", {4, 2}));
}

TEST_F(ArtifactTest, RefusesOtherFiles) {
    GgufWriter model;
    model.set_string("general.architecture", "llama");
    fs::create_directories(folder_);
    model.write(folder_ + "/model.gguf");
    EXPECT_THROW(read_artifact(folder_ + "/model.gguf"), Error);
    GgufWriter newer;
    newer.set_string("general.type", "kvcodec");
    newer.set_u32("kvcodec.version", 2);
    newer.write(folder_ + "/newer.gguf");
    try {
        read_artifact(folder_ + "/newer.gguf");
        ADD_FAILURE() << "accepted version 2";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("version is 2"), std::string::npos) << error.what();
    }
}

TEST_F(ArtifactTest, SurvivesEveryTruncation) {
    write_artifact(make_artifact_with_basis(), path_);
    const size_t whole = fs::file_size(path_);
    for (size_t length = whole; length-- > 0;) {
        fs::resize_file(path_, length);
        // The last tensor's padding is the only part that nothing needs.
        if (is_accepted()) {
            ASSERT_GT(length + 32, whole);
        }
    }
}

TEST_F(ArtifactTest, SurvivesEveryDamagedByte) {
    write_artifact(make_artifact_with_basis(), path_);
    std::fstream file(path_, std::ios::binary | std::ios::in | std::ios::out);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    const auto put = [&](size_t i, char byte) {
        file.seekp(static_cast<std::streamoff>(i));
        file.put(byte).flush();
    };
    for (size_t i = 0; i < bytes.size(); ++i) {
        for (const int mask : {0x01, 0x40, 0x80, 0xFF}) {
            put(i, static_cast<char>(bytes[i] ^ mask));
            is_accepted();
        }
        put(i, bytes[i]);
    }
    EXPECT_EQ(read_artifact(path_), make_artifact_with_basis());
}

class CacheFolderTest : public testing::Test {
  protected:
    void SetUp() override { folder_ = testing::TempDir() + "/kvcodec_cache_" + std::to_string(::getpid()); }
    void TearDown() override {
        restore("XDG_CACHE_HOME", cache_);
        restore("HOME", home_);
        fs::remove_all(folder_);
    }

    static std::optional<std::string> saved(const char* name) {
        const char* value = std::getenv(name);
        return value != nullptr ? std::optional<std::string>(value) : std::nullopt;
    }
    static void restore(const char* name, const std::optional<std::string>& value) {
        value ? ::setenv(name, value->c_str(), 1) : ::unsetenv(name);
    }

    std::optional<std::string> cache_ = saved("XDG_CACHE_HOME");
    std::optional<std::string> home_ = saved("HOME");
    std::string folder_;
};

TEST_F(CacheFolderTest, FollowsXdg) {
    ::setenv("XDG_CACHE_HOME", folder_.c_str(), 1);
    EXPECT_EQ(artifact_cache_dir(), folder_ + "/kvcodec/artifacts");
    EXPECT_EQ(find_artifact("abc"), std::nullopt);
    write_artifact(make_artifact(), default_artifact_path("abc"));
    EXPECT_EQ(find_artifact("abc"), folder_ + "/kvcodec/artifacts/abc.kvc.gguf");

    ::unsetenv("XDG_CACHE_HOME");
    ::setenv("HOME", "/home/x", 1);
    EXPECT_EQ(artifact_cache_dir(), "/home/x/.cache/kvcodec/artifacts");
    ::unsetenv("HOME");
    EXPECT_THROW(artifact_cache_dir(), Error);
}

}  // namespace
}  // namespace kvcodec
