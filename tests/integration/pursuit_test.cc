// Orthogonal matching pursuit over dictionaries and vectors of a real model.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "kvcodec/artifact/model_info.h"
#include "kvcodec/learn/dictionary_learning.h"
#include "tests/exact_pursuit.h"
#include "tools/harvest.h"

namespace kvcodec {
namespace {

namespace fs = std::filesystem;

fs::path model_path() {
    if (const char* path = std::getenv("KVCODEC_TEST_MODEL")) {
        return path;
    }
    const char* cache = std::getenv("XDG_CACHE_HOME");
    const char* home = std::getenv("HOME");
    const fs::path folder = cache != nullptr ? fs::path(cache) : fs::path(home == nullptr ? "" : home) / ".cache";
    return folder / "kvcodec/models/SmolLM2-135M-Instruct.Q4_1.gguf";
}

TEST(Pursuit, OfRealVectorsIsExact) {
    if (!fs::exists(model_path())) {
        GTEST_SKIP() << "the test model (scripts/get-model.sh) not found: " << model_path();
    }
    HarvestOptions harvest_options;
    harvest_options.n_tokens = 512;
    harvest_options.ctx_size = 128;
    harvest_options.n_threads = 2;
    const ModelInfo model = read_model_info(model_path());
    Harvester harvester(model, harvest_options);
    const Harvest harvest = harvester.harvest();
    ASSERT_FALSE(harvest.layers.empty()) << (harvest.skipped.empty() ? "no layer was seen" : harvest.skipped.front());
    PursuitComparison sum;
    size_t n_rows = 0;
    for (const HarvestedLayer* layer : {&harvest.layers.front(), &harvest.layers.back()}) {
        for (const HarvestedRows* rows : {&layer->k, &layer->v}) {
            LearnOptions learn_options;
            learn_options.n_atoms = 256;
            learn_options.sweeps = 2;
            const std::vector<float> x = rows->residuals();
            const LearnedDictionary learned = learn_dictionary(x, rows->dim(), learn_options);
            const PursuitComparison comparison = compare_with_exact_pursuit(learned.atoms, rows->dim(), x, 8);
            sum.n_equal += comparison.n_equal;
            sum.n_tied += comparison.n_tied;
            n_rows += x.size() / rows->dim();
        }
    }
    EXPECT_EQ(sum.n_equal + sum.n_tied, n_rows);
    EXPECT_GE(n_rows, 4000U);
    EXPECT_LE(sum.n_tied, n_rows / 20);  // real vectors are long beside what is left of them
    RecordProperty("equal", static_cast<int>(sum.n_equal));
    RecordProperty("tied", static_cast<int>(sum.n_tied));
}

}  // namespace
}  // namespace kvcodec
