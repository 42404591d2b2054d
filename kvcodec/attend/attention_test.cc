#include "kvcodec/attend/attention.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kvcodec/attend/short_gemm.h"
#include "kvcodec/codec/baseline/kivi_codec.h"
#include "kvcodec/codec/baseline/token_codec.h"
#include "kvcodec/codec/baseline/turboquant_codec.h"
#include "kvcodec/codec/dictionary/dictionary_codec.h"
#include "kvcodec/codec/latent/latent_codec.h"
#include "kvcodec/codec/scalar/scalar_codec.h"
#include "kvcodec/codec/transform/transform_codec.h"
#include "kvcodec/half.h"
#include "kvcodec/test_targets.h"

namespace kvcodec {
namespace {

constexpr size_t kBlock = LayerStore::kBlock;
constexpr uint16_t kHalfHidden = 0xFC00;
constexpr float kUntouched = -7.0F;
constexpr int kCodeSpace = 0;
constexpr int kBlocks = 1 << 30;

std::vector<float> random_vector(size_t n, std::mt19937& rng, float deviation = 1.0F) {
    std::normal_distribution<float> normal(0.0F, deviation);
    std::vector<float> x(n);
    for (float& v : x) {
        v = normal(rng);
    }
    return x;
}

std::shared_ptr<const Codec> dictionary_codec(size_t dim, std::mt19937& rng) {
    constexpr float kLevels[Packing::kLevels] = {0.08F, 0.17F, 0.27F, 0.38F, 0.5F, 0.64F, 0.8F, 1.0F};
    const size_t n_atoms = 100 + rng() % 120;
    std::vector<uint16_t> atoms;
    for (size_t atom = 0; atom < n_atoms; ++atom) {
        const std::vector<float> x = random_vector(dim, rng);
        const float length = std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0F));
        std::transform(x.begin(), x.end(), std::back_inserter(atoms),
                       [&](float v) { return float_to_half(v / length); });
    }
    DictionarySettings settings;
    settings.omp.sparsity = 3 + rng() % 10;
    settings.format = rng() % 2 == 0 ? CoefficientFormat::kSigned4 : CoefficientFormat::kFp8;
    return std::make_shared<DictionaryCodec>(std::move(atoms), n_atoms, dim, kLevels, settings);
}

std::shared_ptr<const Codec> scalar_codec(size_t dim, std::mt19937& rng) {
    constexpr unsigned kBits[] = {2, 3, 4, 8};
    return std::make_shared<ScalarCodec>(dim, kBits[rng() % 4]);
}

/// Without a code space; keys may be coded in groups.
std::shared_ptr<const Codec> baseline_codec(Side side, size_t dim, std::mt19937& rng) {
    const unsigned bits = rng() % 2 == 0 ? 2 : 4;
    if (rng() % 3 == 0) {
        return std::make_shared<TurboQuantCodec>(dim, bits);
    }
    if (side == Side::kK) {
        return std::make_shared<KiviKeyCodec>(dim, bits);
    }
    return std::make_shared<TokenCodec>(dim, bits);
}

/// With the axes as directions, of less and less variance.
std::shared_ptr<const TransformCodec> transform_codec(size_t dim, size_t code_bytes, float decay, bool before_rope) {
    std::vector<float> basis(dim * dim);
    std::vector<float> variance(dim);
    for (size_t i = 0; i < dim; ++i) {
        basis[i * dim + i] = 1.0F;
        variance[i] = std::pow(decay, static_cast<float>(i));
    }
    return std::make_shared<TransformCodec>(basis, variance, code_bytes, before_rope);
}

/// Of all heads together, along some of the axes.
std::vector<std::shared_ptr<const Codec>> latent_codecs(size_t n_heads, size_t dim, unsigned bits, bool before_rope) {
    const size_t width = n_heads * dim, rank = std::max<size_t>(16, width * 2 / 3 / 16 * 16);
    std::vector<float> axes(rank * width);
    for (size_t i = 0; i < rank; ++i) {
        axes[i * width + i * width / rank] = 1.0F;
    }
    const auto space = std::make_shared<const LatentSpace>(axes, n_heads, dim, bits);
    std::vector<std::shared_ptr<const Codec>> heads;
    for (size_t head = 0; head < n_heads; ++head) {
        heads.push_back(std::make_shared<const LatentCodec>(space, head, before_rope));
    }
    return heads;
}

enum class Masking : uint8_t { kNone, kCausal, kRandom, kHoles };

/// What a case may contain.
struct Features {
    bool dictionary = false;
    bool baseline = false;
    bool transform = false;  // codecs of their own for heads; keys coded before RoPE
    bool latent = false;     // heads share codes; keys coded before RoPE in half of the cases
    bool means = false;
    bool shifted = false;
    bool softcap = false;
    bool slopes = false;
    bool sinks = false;
    Masking masking = Masking::kNone;
    bool empty = false;  // some cells hold nothing
    bool dense = true;   // some cells are not coded
    bool evicted = false;
};

struct Shape {
    size_t dim_k, dim_v, n_head_kv, group, n_tokens, n_cells;
};

/// A store with cells in several states and one call on it.
class Case {
  public:
    Case(const Shape& shape, const Features& features, unsigned seed)
        : shape_(shape),
          features_(features),
          rng_(seed),
          first_cell_(rng_() % 3 * kBlock),
          n_cells_((first_cell_ + shape.n_cells + kBlock - 1) / kBlock * kBlock + kBlock),
          rope_(make_rope()),
          positions_(n_cells_),
          store_(n_cells_, shape.n_head_kv * shape.dim_k, shape.n_head_kv * shape.dim_v, true) {
        fill_store();
        fill_call();
        expected_ = reference();
    }

    AttentionCall call(std::vector<float>& out) const {
        AttentionCall call;
        call.q = q_.data();
        call.q_token_stride = shape_.dim_k + 3;
        call.q_head_stride = call.q_token_stride * shape_.n_tokens + 5;
        call.n_tokens = shape_.n_tokens;
        call.n_head = n_head();
        call.first_cell = first_cell_;
        call.n_cells = shape_.n_cells;
        call.mask = mask_.empty() ? nullptr : mask_.data();
        call.mask_stride = mask_stride();
        call.scale = scale_;
        call.softcap = softcap_;
        call.slopes = slopes_.empty() ? nullptr : slopes_.data();
        call.sinks = sinks_.empty() ? nullptr : sinks_.data();
        call.out_head_stride = shape_.dim_v + 1;
        call.out_token_stride = call.out_head_stride * n_head() + 2;
        call.positions = positions_.data();
        out.assign(call.out_token_stride * shape_.n_tokens, kUntouched);
        call.out = out.data();
        return call;
    }

    const LayerStore& store() const { return store_; }

    /// Runs one way with one team and compares with the reference.
    void check(int crossover, size_t team_size) const {
        SCOPED_TRACE((crossover == kCodeSpace ? "code space" : "blocks") + std::string(", team of ") +
                     std::to_string(team_size));
        Attention attention(crossover);
        const std::unique_ptr<Team> team = make_parked_team(team_size);
        std::vector<float> out;
        const AttentionCall c = call(out);
        const bool code_space = crossover == kCodeSpace && !features_.baseline &&
                                shape_.group * shape_.n_tokens <= Attention::kMaxCodeLanes;
        ASSERT_EQ(attention.in_code_space(store_, c), code_space);
        for (int repetition = 0; repetition < 2; ++repetition) {  // the second run finds used scratch memory
            std::fill(out.begin(), out.end(), kUntouched);
            const uint64_t rebuilt = store_.rows_rebuilt();
            attention.run(store_, c, *team);
            if (code_space && !features_.shifted && !features_.transform && !rebuilds_k_) {
                ASSERT_EQ(store_.rows_rebuilt(), rebuilt) << "code space rebuilt coded rows";
            }
            compare(c, out, !code_space && shape_.group * shape_.n_tokens > 8 && ShortGemm::pays());
        }
        ASSERT_GT(attention.scratch_bytes(), 0U);
    }

  private:
    size_t n_head() const { return shape_.group * shape_.n_head_kv; }
    size_t mask_stride() const { return shape_.n_cells + 7; }

    Rope make_rope() {
        RopeParams params;
        params.pairing = rng_() % 2 == 0 ? RopeParams::Pairing::kHalves : RopeParams::Pairing::kAdjacent;
        params.n_dims = static_cast<uint32_t>(shape_.dim_k / (1 + rng_() % 2));
        return {params, shape_.dim_k};
    }

    std::shared_ptr<const Codec> make_codec(Side side, size_t dim) {
        if (features_.baseline) {
            return baseline_codec(side, dim, rng_);
        }
        if (features_.dictionary) {
            return dictionary_codec(dim, rng_);
        }
        // Codecs look at the newest byte instructions when they are made: half of them are to do without.
        if (rng_() % 2 == 0) {
            by_bytes_ = true;
            return scalar_codec(dim, rng_);
        }
        hwy::SetSupportedTargetsForTest(hwy::SupportedTargets() & ~int64_t{HWY_AVX3_DL});
        const auto codec = scalar_codec(dim, rng_);
        hwy::SetSupportedTargetsForTest(0);
        return codec;
    }

    void write(uint32_t cell) {
        store_.write(Side::kK, cell, random_vector(shape_.n_head_kv * shape_.dim_k, rng_).data());
        store_.write(Side::kV, cell, random_vector(shape_.n_head_kv * shape_.dim_v, rng_).data());
    }

    void fill_store() {
        LayerCodecs codecs;
        codecs.rope = rope_;
        codecs.k = make_codec(Side::kK, shape_.dim_k);
        codecs.v = make_codec(Side::kV, shape_.dim_v);
        if (features_.transform) {
            const size_t code_bytes = shape_.dim_k / 4 + rng_() % (shape_.dim_k / 4);
            for (size_t head = 0; head < shape_.n_head_kv; ++head) {
                const float decay = 1.0F - 0.02F * static_cast<float>(head + 1);
                codecs.k_heads.push_back(transform_codec(shape_.dim_k, code_bytes, decay, true));
                codecs.v_heads.push_back(transform_codec(shape_.dim_v, shape_.dim_v / 4, decay, false));
            }
            if (shape_.n_head_kv % 2 == 0 && shape_.dim_v <= 256) {  // values of two heads together
                const auto two = transform_codec(2 * shape_.dim_v, shape_.dim_v / 2, 0.98F, false);
                for (size_t head = 0; head < shape_.n_head_kv; ++head) {
                    codecs.v_heads[head] = std::make_shared<const TransformHead>(two, head % 2, 2);
                }
            }
            codecs.v = codecs.v_heads[0];
            codecs.k = codecs.k_heads[0];
            if (features_.means) {
                codecs.k_mean = {};
                codecs.k_plain_mean = random_vector(shape_.n_head_kv * shape_.dim_k, rng_);
            }
            codecs.rope_tables = std::make_shared<RopeTables>(rope_);
        }
        if (features_.latent) {
            constexpr unsigned kBits[] = {3, 4, 8, LatentSpace::kHalfBits};
            rebuilds_k_ = rng_() % 2 == 0;
            by_bytes_ = true;
            codecs.k_heads = latent_codecs(shape_.n_head_kv, shape_.dim_k, kBits[rng_() % 4], rebuilds_k_);
            codecs.v_heads = latent_codecs(shape_.n_head_kv, shape_.dim_v, kBits[rng_() % 4], false);
            codecs.k = codecs.k_heads[0];
            codecs.v = codecs.v_heads[0];
            if (rebuilds_k_) {
                codecs.rope_tables = std::make_shared<RopeTables>(rope_);
            }
        }
        if (features_.means) {
            codecs.k_mean = RotatingMean(std::make_shared<RopeTables>(rope_),
                                         random_vector(shape_.n_head_kv * shape_.dim_k, rng_), shape_.n_head_kv);
            codecs.v_mean = random_vector(shape_.n_head_kv * shape_.dim_v, rng_);
        }
        store_.set_codecs({n_cells_, shape_.n_head_kv, shape_.dim_k, shape_.dim_v}, std::move(codecs));
        std::vector<uint32_t> coded;
        for (uint32_t cell = 0; cell < n_cells_; ++cell) {
            positions_[cell] = static_cast<int32_t>(2000 + cell + (cell % 97 == 0 ? rng_() % 500 : 0));
            // Runs of one state, as in real caches, and single cells between them.
            const unsigned kind = rng_() % 8 == 0 && !features_.baseline ? rng_() : cell / 40 * 7;
            if (features_.empty && kind % 4 == 3) {
                continue;
            }
            write(cell);
            if (!features_.dense || kind % 3 != 1) {
                coded.push_back(cell);
            }
        }
        SingleThread team;
        coded.resize(store_.complete_groups(coded));
        store_.encode(coded, positions_.data(), team);
        for (uint32_t cell = 0; features_.baseline && features_.dense && cell < n_cells_; ++cell) {
            if (store_.is_coded(cell) && rng_() % 16 == 0) {
                write(cell);  // dense in a coded group
            }
        }
        for (uint32_t cell = 0; features_.evicted && cell < n_cells_; ++cell) {
            for (size_t head = 0; head < shape_.n_head_kv; ++head) {
                // Nothing, every other row, and a whole block.
                if (cell / kBlock % 3 == 2 || (cell / kBlock % 3 == 1 && rng_() % 2 == 0)) {
                    store_.evict(cell, head);
                }
            }
        }
        for (uint32_t cell = 0; features_.shifted && cell < n_cells_; ++cell) {
            if (rng_() % 5 == 0) {
                const auto delta = static_cast<int32_t>(rng_() % 400) - 200;
                store_.shift_key(cell, delta, rope_);
                positions_[cell] += delta;
            }
        }
    }

    void fill_call() {
        q_ = random_vector(((shape_.dim_k + 3) * shape_.n_tokens + 5) * n_head(), rng_);
        scale_ = 1.5F / std::sqrt(static_cast<float>(shape_.dim_k));
        softcap_ = features_.softcap ? 2.0F : 0.0F;
        if (features_.slopes) {
            for (size_t head = 0; head < n_head(); ++head) {
                slopes_.push_back(std::exp2(-8.0F * static_cast<float>(head + 1) / static_cast<float>(n_head())));
            }
        }
        if (features_.sinks) {
            sinks_ = random_vector(n_head(), rng_, 3.0F);
        }
        if (features_.masking == Masking::kNone) {
            return;
        }
        mask_.assign(mask_stride() * shape_.n_tokens, 0x7E00);  // NaN where nobody may look
        for (size_t token = 0; token < shape_.n_tokens; ++token) {
            for (size_t cell = 0; cell < shape_.n_cells; ++cell) {
                mask_[token * mask_stride() + cell] = mask_value(token, cell);
            }
        }
    }

    uint16_t mask_value(size_t token, size_t cell) {
        const uint16_t distance = features_.slopes ? float_to_half(-static_cast<float>((cell * 3 + token) % 50)) : 0;
        switch (features_.masking) {
            case Masking::kCausal:
                return cell + shape_.n_tokens <= shape_.n_cells + token ? distance : kHalfHidden;
            case Masking::kHoles:  // nobody sees every other block; token 1 and token 4 see nothing at all
                return cell / kBlock % 2 == 1 || token % 3 == 1 || rng_() % 4 == 0 ? kHalfHidden : distance;
            default: {
                std::normal_distribution<float> normal;
                return rng_() % 3 == 0 ? kHalfHidden : float_to_half(normal(rng_));
            }
        }
    }

    /// softmax(q K^T) V over rows as they read, in double: [n_tokens, n_head, dim_v].
    std::vector<double> reference() const {
        std::vector<float> scratch;
        const AttentionCall c = call(scratch);
        std::vector<double> out(shape_.n_tokens * n_head() * shape_.dim_v, 0.0);
        for (size_t head_kv = 0; head_kv < shape_.n_head_kv; ++head_kv) {
            const std::vector<float> k = rows(Side::kK, head_kv);
            const std::vector<float> v = rows(Side::kV, head_kv);
            for (size_t head = head_kv * shape_.group; head < (head_kv + 1) * shape_.group; ++head) {
                for (size_t token = 0; token < shape_.n_tokens; ++token) {
                    attend(c, k, v, head, token, &out[(token * n_head() + head) * shape_.dim_v]);
                }
            }
        }
        return out;
    }

    /// One head of all cells of the call.
    std::vector<float> rows(Side side, size_t head) const {
        const size_t dim = side == Side::kK ? shape_.dim_k : shape_.dim_v;
        std::vector<float> x(shape_.n_cells * dim);
        for (size_t cell = 0; cell < shape_.n_cells; ++cell) {
            const auto row = static_cast<uint16_t>(cell % kBlock);
            store_.gather(side, (first_cell_ + cell) / kBlock, head, {&row, 1}, positions_.data(), &x[cell * dim]);
        }
        return x;
    }

    void attend(const AttentionCall& c, const std::vector<float>& k, const std::vector<float>& v, size_t head,
                size_t token, double* out) const {
        const float* q = c.q + head * c.q_head_stride + token * c.q_token_stride;
        std::vector<double> s(shape_.n_cells);
        double top = sinks_.empty() ? -INFINITY : sinks_[head];
        for (size_t cell = 0; cell < shape_.n_cells; ++cell) {
            s[cell] = c.scale * std::inner_product(q, q + shape_.dim_k, &k[cell * shape_.dim_k], 0.0);
            if (softcap_ != 0) {
                s[cell] = softcap_ * std::tanh(s[cell] / softcap_);
            }
            if (!mask_.empty()) {
                const float bias = half_to_float(mask_[token * mask_stride() + cell]);
                s[cell] += double{slopes_.empty() ? 1.0F : slopes_[head]} * bias;
            }
            if (store_.is_evicted(first_cell_ + cell, head / shape_.group)) {
                s[cell] = -INFINITY;
            }
            top = std::max(top, s[cell]);
        }
        if (top == -INFINITY) {
            return;
        }
        double sum = sinks_.empty() ? 0.0 : std::exp(sinks_[head] - top);
        for (size_t cell = 0; cell < shape_.n_cells; ++cell) {
            const double weight = std::exp(s[cell] - top);
            sum += weight;
            for (size_t i = 0; i < shape_.dim_v; ++i) {
                out[i] += weight * v[cell * shape_.dim_v + i];
            }
        }
        for (size_t i = 0; i < shape_.dim_v; ++i) {
            out[i] /= sum;
        }
    }

    void compare(const AttentionCall& c, const std::vector<float>& out, bool in_shorts) const {
        std::vector<bool> written(out.size(), false);
        double missed = 0.0, energy = 0.0;
        for (size_t token = 0; token < shape_.n_tokens; ++token) {
            for (size_t head = 0; head < n_head(); ++head) {
                for (size_t i = 0; i < shape_.dim_v; ++i) {
                    const size_t at = token * c.out_token_stride + head * c.out_head_stride + i;
                    const double expected = expected_[(token * n_head() + head) * shape_.dim_v + i];
                    written[at] = true;
                    // Bytes round queries; the scores of a mean that turns are of 16 bits, and so are prompts'
                    // products.
                    const double exact = in_shorts ? 1e-3 : 5e-5;
                    const double tolerance = by_bytes_ ? 0.1 : features_.means ? 3e-3 : exact;
                    ASSERT_NEAR(out[at], expected, tolerance)
                        << "token " << token << " head " << head << " element " << i;
                    missed += (out[at] - expected) * (out[at] - expected);
                    energy += expected * expected;
                }
            }
        }
        for (size_t i = 0; i < out.size(); ++i) {
            ASSERT_TRUE(written[i] || out[i] == kUntouched) << "wrote between the rows";
        }
        ASSERT_LE(missed, 0.02 * 0.02 * energy);
    }

    Shape shape_;
    Features features_;
    bool by_bytes_ = false;  // products of bytes round queries and weights to 8 bits
    std::mt19937 rng_;
    size_t first_cell_;
    size_t n_cells_;
    Rope rope_;
    std::vector<int32_t> positions_;
    LayerStore store_;
    bool rebuilds_k_ = false;
    std::vector<float> q_;
    std::vector<uint16_t> mask_;
    std::vector<float> slopes_;
    std::vector<float> sinks_;
    float scale_ = 1.0F;
    float softcap_ = 0.0F;
    std::vector<double> expected_;
};

class AttentionTest : public testing::TestWithParam<unsigned> {
  protected:
    void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

/// Every target with one size of team or another, every size of team with the best target.
void check_everywhere(const Case& test, int crossover) {
    constexpr size_t kTeams[] = {1, 2, 3, 5};
    size_t next = 0;
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        test.check(crossover, kTeams[next++ % 4]);
    }
    hwy::SetSupportedTargetsForTest(0);
    for (const size_t team : kTeams) {
        test.check(crossover, team);
    }
}

TEST_P(AttentionTest, AgreesWithDouble) {
    constexpr size_t kDims[] = {64, 80, 96, 128, 256};
    const unsigned seed = GetParam();
    std::mt19937 rng(seed);
    Shape shape{};
    shape.dim_k = kDims[seed % 5];
    shape.dim_v = rng() % 4 == 0 ? kDims[rng() % 5] : shape.dim_k;
    shape.n_head_kv = 1 + rng() % 4;
    shape.group = 1 + rng() % 8;
    // Few lanes most of the time: that is where there are two ways.
    shape.n_tokens = rng() % 3 == 0 ? 1 + rng() % 70 : 1 + rng() % (Attention::kMaxCodeLanes / shape.group);
    const size_t most_cells = shape.n_tokens > 8 ? 200 : 500;
    shape.n_cells = rng() % 3 == 0 ? kBlock * (1 + rng() % (most_cells / kBlock)) : (1 + rng() % most_cells) | 1;
    Features features;
    features.dictionary = seed / 5 % 2 == 0;
    features.latent = seed / 5 % 4 == 1;
    features.transform = seed / 5 % 4 == 3;
    features.means = rng() % 2 == 0;
    features.shifted = rng() % 3 == 0;
    features.softcap = rng() % 4 == 0;
    features.masking = static_cast<Masking>(rng() % 4);
    features.slopes = features.masking != Masking::kNone && rng() % 3 == 0;
    features.sinks = rng() % 4 == 0;
    features.empty = rng() % 3 == 0;
    features.dense = rng() % 3 != 0;
    features.evicted = rng() % 3 == 0;
    SCOPED_TRACE("dims " + std::to_string(shape.dim_k) + "/" + std::to_string(shape.dim_v) + ", heads " +
                 std::to_string(shape.n_head_kv) + "x" + std::to_string(shape.group) + ", tokens " +
                 std::to_string(shape.n_tokens) + ", cells " + std::to_string(shape.n_cells));
    const Case test(shape, features, seed);
    check_everywhere(test, kCodeSpace);
    check_everywhere(test, kBlocks);
}

INSTANTIATE_TEST_SUITE_P(Seeds, AttentionTest, testing::Range(0U, 60U));

TEST(Attention, BaselinesAgreeWithDouble) {
    constexpr size_t kDims[] = {64, 80, 96, 128, 256};
    for (unsigned seed = 0; seed < 15; ++seed) {
        SCOPED_TRACE(seed);
        Features features;
        features.baseline = true;
        features.shifted = seed % 3 == 1;
        features.empty = seed % 4 == 1;
        features.dense = seed % 5 != 4;
        features.masking = static_cast<Masking>(seed % 4);
        const size_t dim = kDims[seed % 5];
        const Case test({dim, dim, 1 + seed % 3, 1 + seed % 4, 1 + seed % 7, 100 + 37 * seed}, features, seed);
        ASSERT_GT(test.store().coded_cells(), 0U);
        for (const int crossover : {-1, kCodeSpace, kBlocks}) {
            test.check(crossover, 1 + seed % 3);
        }
    }
}

// Each feature alone, so that a failure names it.
TEST(Attention, EachFeatureAgreesWithDouble) {
    std::vector<std::pair<std::string, Features>> cases(14);
    const auto with = [&](size_t i, const std::string& name) -> Features& {
        cases[i].first = name;
        return cases[i].second;
    };
    with(0, "plain");
    with(1, "dictionary").dictionary = true;
    with(2, "means").means = true;
    with(3, "shifted").shifted = true;
    with(4, "softcap").softcap = true;
    with(5, "sinks").sinks = true;
    with(6, "causal").masking = Masking::kCausal;
    with(7, "random mask").masking = Masking::kRandom;
    with(8, "hidden blocks and tokens").masking = Masking::kHoles;
    with(9, "empty").empty = true;
    with(11, "evicted").evicted = true;
    with(12, "keys before RoPE").transform = true;
    with(13, "heads that share codes").latent = true;
    Features& alibi = with(10, "ALiBi");
    alibi.masking = Masking::kCausal;
    alibi.slopes = true;
    for (const auto& [name, features] : cases) {
        SCOPED_TRACE(name);
        const Case test({64, 64, 2, 3, 5, 257}, features, 99);
        for (const int crossover : {kCodeSpace, kBlocks}) {
            for (const size_t team : {1, 3}) {
                test.check(crossover, team);
            }
        }
    }
}

TEST(Attention, TokensThatSeeNothingGetZero) {
    Features features;
    features.masking = Masking::kHoles;
    for (const bool sinks : {false, true}) {
        features.sinks = sinks;
        const Case test({64, 64, 2, 2, 3, 130}, features, 5);
        for (const int crossover : {kCodeSpace, kBlocks}) {
            std::vector<float> out;
            const AttentionCall call = test.call(out);
            SingleThread team;
            Attention(crossover).run(test.store(), call, team);
            for (size_t head = 0; head < call.n_head; ++head) {
                for (size_t i = 0; i < 64; ++i) {
                    EXPECT_EQ(out[call.out_token_stride + head * call.out_head_stride + i], 0.0F);
                    EXPECT_NE(out[head * call.out_head_stride + i], 0.0F);
                }
            }
        }
    }
}

TEST(Attention, NoCellsGiveZero) {
    const Case test({64, 64, 2, 2, 3, 64}, {}, 5);
    for (const int crossover : {kCodeSpace, kBlocks, -1}) {
        std::vector<float> out;
        AttentionCall call = test.call(out);
        call.n_cells = 0;
        SingleThread team;
        Attention(crossover).run(test.store(), call, team);
        EXPECT_EQ(out[0], 0.0F);
        EXPECT_EQ(out[63], 0.0F);
        EXPECT_EQ(out[64], kUntouched);
    }
}

TEST(Attention, OnlyBlocksRebuildCodedRows) {
    Features features;
    features.dense = false;
    const Case test({128, 128, 2, 4, 1, 300}, features, 6);
    for (const int crossover : {kCodeSpace, kBlocks}) {
        std::vector<float> out;
        const AttentionCall call = test.call(out);
        SingleThread team;
        const uint64_t before = test.store().rows_rebuilt();
        Attention(crossover).run(test.store(), call, team);
        const size_t all = 2 * 2 * 300;  // heads, sides, cells
        EXPECT_EQ(test.store().rows_rebuilt() - before, crossover == kCodeSpace ? 0 : all);
    }
}

TEST(Attention, ChoosesItsWay) {
    Features features;
    features.dictionary = true;
    const Case one_token({64, 64, 1, 1, 1, 400}, features, 7);
    std::vector<float> out;
    AttentionCall call = one_token.call(out);
    EXPECT_TRUE(Attention(400).in_code_space(one_token.store(), call));
    EXPECT_FALSE(Attention(401).in_code_space(one_token.store(), call));
    // By cost: tables of a dictionary do not pay for a few cells, but for many.
    call.n_cells = 1;
    EXPECT_FALSE(Attention().in_code_space(one_token.store(), call));
    call.n_cells = 1'000'000;
    EXPECT_TRUE(Attention().in_code_space(one_token.store(), call));

    const Case many_lanes({64, 64, 1, 8, 5, 64}, {}, 8);
    EXPECT_FALSE(Attention(kCodeSpace).in_code_space(many_lanes.store(), many_lanes.call(out)));
    const Case most_lanes({64, 64, 1, 8, 4, 64}, {}, 8);
    EXPECT_TRUE(Attention(kCodeSpace).in_code_space(most_lanes.store(), most_lanes.call(out)));
    // Codes of the scalar codec are as dense as the vectors: no table to pay for, unless there are few cells.
    call = most_lanes.call(out);
    EXPECT_FALSE(Attention().in_code_space(most_lanes.store(), call));
    call.n_cells = 10'000;
    EXPECT_TRUE(Attention().in_code_space(most_lanes.store(), call));

    LayerStore nothing_coded(kBlock, 64, 64, true);
    nothing_coded.set_codecs(most_lanes.store().geometry(), most_lanes.store().codecs());
    EXPECT_FALSE(Attention().in_code_space(nothing_coded, call));

    LayerStore no_codecs(kBlock, 64, 64, true);
    no_codecs.set_codecs(most_lanes.store().geometry(), {});
    EXPECT_FALSE(Attention(kCodeSpace).in_code_space(no_codecs, call));
}

}  // namespace
}  // namespace kvcodec
