// What a user may choose: the environment variable KVCODEC, parsed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvcodec/codec/dictionary/packing.h"
#include "kvcodec/codec/shrinkage.h"

namespace kvcodec {

/// A budget in bytes.
struct SizeBudget {
    double bytes = 0;
    uint32_t tokens = 0;  ///< 0: bytes of one token's codes; else of the whole cache, window and tables too, at so many

    bool operator==(const SizeBudget&) const = default;
};

/// KVCODEC is a list `key=value,key=value`; a value may hold anything but ','. A key given twice: the last one counts.
/// Each field names its key.
struct Options {
    enum class CodecChoice : uint8_t {
        kAuto,        ///< what the artifact is best at at this budget, or the scalar codec
        kDictionary,  ///< needs an artifact
        kScalar,      ///< needs no artifact, but uses the means of one
        kTransform,   ///< along the artifact's directions: keys, before RoPE, and often values
        kLatent,      ///< low ranks, of an artifact of `kvcodec lowrank`
        kNone,        ///< every layer passes through
        kToken,       ///< baselines that code, see docs/baselines.md
        kKivi,
        kTurboQuant,
        kZipCache,  ///< `budget` decides how many rows get 4 bits, the others get 2
        kH2o,       ///< baselines that evict rows instead: `budget` is the share that is kept
        kSnapKv,
        kPyramidKv,
    };
    enum class Mode : uint8_t {
        kLive,    ///< window and sinks stay dense
        kStrict,  ///< every key is read through its code: window 0, and sinks 0 unless given
    };
    enum class Log : uint8_t { kQuiet, kInfo, kDebug };
    enum class Measure : uint8_t {
        kOff,
        kError,  ///< everything that is coded is decoded once, to report its error
        kTime,   ///< clocks are read between the parts of attention
    };
    enum class Prefill : uint8_t {
        kStream,  ///< a prompt is coded while it is read
        kExact,   ///< a prompt stays dense until the first single-token step
    };

    std::string artifact;                    ///< artifact=PATH
    CodecChoice codec = CodecChoice::kAuto;  ///< codec=auto|dictionary|scalar|transform|latent|none|token|kivi|...
    std::optional<double> budget;            ///< budget=20% or 0.2: code bytes per f16 byte, in (0, 1]
    std::optional<SizeBudget> size_budget;   ///< budget=2.5KiB or 1GiB@32768, instead
    std::optional<uint32_t> s_k;             ///< s_k=, or s= for both: atoms per vector, fixed whatever the budget
    std::optional<uint32_t> s_v;             ///< s_v=
    std::optional<uint32_t> bits_k;  ///< bits_k=2|3|4|8|16, or bits= for both: of an element, where the codec has them
    std::optional<uint32_t> bits_v;  ///< bits_v=
    CoefficientFormat coefficients = CoefficientFormat::kSigned4;  ///< coefficients=q4|fp8
    CodeLayout layout = CodeLayout::kPacked;                       ///< layout=packed|published
    std::vector<std::pair<uint32_t, uint32_t>> layers;  ///< layers=0-3+7: first to last, the others pass through; all
    float relative_error_k = 0.0F;     ///< relative_error_k=, in [0, 1), or relative_error= for both: OMP stops early
                                       ///< below it, rows get lengths of their own; 0 = off
    float relative_error_v = 0.0F;     ///< relative_error_v=
    uint32_t adaptive = 0;             ///< adaptive=: vectors that miss the error become atoms, so many a layer's side
    float unbias_k = kUnbiasOfKeys;    ///< unbias_k=, in [0, 1]: how much of the codes' shrinkage is undone
    float unbias_v = kUnbiasOfValues;  ///< unbias_v=
    uint32_t window = 128;             ///< window=: a cell stays dense until as many queries have seen it
    uint32_t sinks = 4;                ///< sinks=: positions at the start that stay dense
    Mode mode = Mode::kLive;           ///< mode=live|strict
    Log log = Log::kInfo;              ///< log=quiet|info|debug
    bool release = true;               ///< release=on|off: give dense memory back to the system
    bool remember = true;              ///< remember=on|off: keep the codes of rows that a saved state holds
    int32_t crossover = -1;            ///< crossover=: attention in code space from that many cells; -1 = auto
    Prefill prefill = Prefill::kStream;  ///< prefill=stream|exact
    Measure measure = Measure::kOff;     ///< measure=off|error|time, for evaluation

    bool operator==(const Options&) const = default;

    /// Whether this layer is to be compressed.
    bool takes_layer(uint32_t layer) const {
        return layers.empty() || std::any_of(layers.begin(), layers.end(), [&](const auto& range) {
                   return layer >= range.first && layer <= range.second;
               });
    }

    /// Whether rows are evicted. Then there is no window, and no sinks unless they are given.
    bool evicts() const {
        return codec == CodecChoice::kH2o || codec == CodecChoice::kSnapKv || codec == CodecChoice::kPyramidKv;
    }
    /// Whether the codec is a published rival, there to be compared with. These use no artifact.
    bool is_baseline() const {
        return evicts() || codec == CodecChoice::kToken || codec == CodecChoice::kKivi ||
               codec == CodecChoice::kTurboQuant || codec == CodecChoice::kZipCache;
    }
};

/// Throws Error naming the unknown key or the bad value, and the valid ones.
Options parse_options(std::string_view text);
/// The shortest text that parse_options turns into the same options: defaults are left out. An artifact path with ','
/// in it cannot be written: throws Error.
std::string to_string(const Options& options);

}  // namespace kvcodec
