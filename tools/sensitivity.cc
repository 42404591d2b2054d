#include "tools/sensitivity.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "kvcodec/codec/scalar/scalar_codec.h"
#include "tools/eval/host.h"
#include "tools/eval/statistics.h"

namespace kvcodec {

namespace {

constexpr uint32_t kBits = 2;
// A layer without any influence still counts a little, so that it is told from one that was not measured.
constexpr double kLeastSensitivity = 1e-6;

class Measurement {
  public:
    explicit Measurement(const SensitivityOptions& options)
        : options_(options), host_(options.model, options.plugin, options.n_threads) {
        size_t longest = 0;
        for (const auto& sequence : options.sequences) {
            longest = std::max(longest, sequence.size());
        }
        shape_.n_ctx = (longest + 255) / 256 * 256;
        shape_.n_ubatch = shape_.n_ctx;
        const CacheSpec reference = parse_caches("f16", {}, "strict").front();
        read(reference, [&](size_t /*prediction*/, const float* logits) {
            reference_.insert(reference_.end(), logits, logits + host_.n_vocab());
        });
    }

    double sensitivity(const LayerArtifact& artifact, bool is_k) const {
        const uint32_t layer = artifact.layer;
        const std::string cache = fmt::format("kvcodec:codec=scalar:sinks=4:log=quiet:layers={}:bits_{}={}:bits_{}=8",
                                              layer, is_k ? 'k' : 'v', kBits, is_k ? 'v' : 'k');
        const CacheSpec spec = parse_caches(cache, {options_.artifact}, "strict").front();
        double sum = 0;
        size_t n = 0;
        read(spec, [&](size_t prediction, const float* logits) {
            sum += divergence(&reference_[prediction * host_.n_vocab()], logits, host_.n_vocab(), 0).kld;
            ++n;
        });
        const double loss = ScalarCodec::expected_loss(kBits) * (is_k ? artifact.k : artifact.v).loss_of_noise;
        return std::max(sum / static_cast<double>(n) / loss, kLeastSensitivity);
    }

  private:
    template <typename Take>
    void read(const CacheSpec& spec, Take take) const {
        const std::unique_ptr<EvalContext> context = host_.make_context(spec, shape_);
        TokenBatch batch(shape_.n_ctx);
        size_t prediction = 0;
        for (const auto& sequence : options_.sequences) {
            context->clear();
            batch.clear();
            for (size_t i = 0; i < sequence.size(); ++i) {
                batch.add(sequence[i], static_cast<llama_pos>(i), 0, i >= sequence.size() / 4);
            }
            context->decode(batch);
            for (size_t i = sequence.size() / 4; i < sequence.size(); ++i) {
                take(prediction++, llama_get_logits_ith(context->get(), static_cast<int32_t>(i)));
            }
        }
    }

    const SensitivityOptions& options_;
    EvalHost host_;
    ContextShape shape_;
    std::vector<float> reference_;  // logits of all predictions
};

}  // namespace

std::vector<std::vector<int32_t>> sequences_to_measure(const Harvest& harvest, size_t n_tokens) {
    constexpr size_t kFewest = 32;
    std::vector<std::vector<int32_t>> sequences;
    for (const std::vector<int32_t>& sample : harvest.samples) {
        const size_t n = std::min(sample.size(), n_tokens);
        if (n >= kFewest) {
            sequences.emplace_back(sample.begin(), sample.begin() + static_cast<std::ptrdiff_t>(n));
            n_tokens -= n;
        }
    }
    return sequences;
}

void measure_sensitivity(Artifact& artifact, const SensitivityOptions& options) {
    const Measurement measurement(options);
    std::vector<std::pair<double, double>> measured;
    for (const LayerArtifact& layer : artifact.layers) {
        const double k = measurement.sensitivity(layer, true);
        measured.emplace_back(k, measurement.sensitivity(layer, false));
        if (options.progress) {
            options.progress(measured.size(), artifact.layers.size());
        }
    }
    for (size_t i = 0; i < measured.size(); ++i) {
        artifact.layers[i].k.sensitivity = static_cast<float>(measured[i].first);
        artifact.layers[i].v.sensitivity = static_cast<float>(measured[i].second);
    }
}

}  // namespace kvcodec
