#include "kvcodec/artifact/artifact.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <span>
#include <string_view>
#include <utility>

#include "kvcodec/artifact/gguf_file.h"
#include "kvcodec/error.h"
#include "kvcodec/half.h"

namespace kvcodec {

namespace {

constexpr std::string_view kFileType = "kvcodec";
constexpr uint64_t kVersion = 1;
constexpr std::array<std::pair<Artifact::Kind, std::string_view>, 2> kKinds = {{
    {Artifact::Kind::kDictionary, "dictionary"},
    {Artifact::Kind::kLatent, "latent"},
}};
constexpr uint32_t kMaxDim = 1024;
constexpr uint32_t kMinAtoms = 2;
constexpr uint32_t kMaxAtoms = 32768;
constexpr uint32_t kMaxHeads = 4096;
constexpr uint32_t kMaxLayer = 65535;
constexpr float kNormTolerance = 0.01F;
constexpr float kMaxHeldoutError = 10.0F;  // 1 is as bad as coding nothing

constexpr std::array<std::pair<RopeParams::Pairing, std::string_view>, 3> kPairings = {{
    {RopeParams::Pairing::kNone, "none"},
    {RopeParams::Pairing::kAdjacent, "adjacent"},
    {RopeParams::Pairing::kHalves, "halves"},
}};

/// RopeParams' numbers by their metadata name, once for writing and reading.
constexpr std::array<std::pair<std::string_view, uint32_t RopeParams::*>, 2> kRopeCounts = {{
    {"n_dims", &RopeParams::n_dims},
    {"n_ctx_orig", &RopeParams::n_ctx_orig},
}};
constexpr std::array<std::pair<std::string_view, float RopeParams::*>, 6> kRopeFactors = {{
    {"freq_base", &RopeParams::freq_base},
    {"freq_scale", &RopeParams::freq_scale},
    {"ext_factor", &RopeParams::ext_factor},
    {"attn_factor", &RopeParams::attn_factor},
    {"beta_fast", &RopeParams::beta_fast},
    {"beta_slow", &RopeParams::beta_slow},
}};

std::string layer_key(uint32_t layer, std::string_view name) {
    return fmt::format("kvcodec.blk.{}.{}", layer, name);
}
std::string tensor_name(uint32_t layer, std::string_view name) {
    return fmt::format("blk.{}.{}", layer, name);
}

bool all_finite(const std::vector<float>& values) {
    return std::ranges::all_of(values, [](float value) { return std::isfinite(value); });
}

/// The first of these half-precision rows [.., width] that is not of unit L2 norm.
std::optional<size_t> find_not_unit(const std::vector<uint16_t>& rows, size_t width) {
    for (size_t row = 0; row < rows.size() / width; ++row) {
        double energy = 0.0;
        for (size_t i = 0; i < width; ++i) {
            const double value = half_to_float(rows[row * width + i]);
            energy += value * value;
        }
        if (!(std::abs(std::sqrt(energy) - 1.0) <= kNormTolerance)) {
            return row;
        }
    }
    return std::nullopt;
}

/// What is wrong with the directions of one side; empty if nothing is or there are none.
std::string find_basis_fault(const SideArtifact& side, uint32_t n_head_kv) {
    if (side.basis.empty() && side.variance.empty()) {
        return {};
    }
    const size_t width = side.width(), n_sets = n_head_kv / side.joint_heads;
    if (side.basis.size() != n_sets * width * width || side.variance.size() != n_sets * width) {
        return "basis or variance have the wrong size";
    }
    const auto heads = [&](size_t set) {
        return side.joint_heads == 1 ? fmt::format("head {}", set) : fmt::format("set {} of heads", set);
    };
    for (size_t set = 0; set < n_sets; ++set) {
        float previous = std::numeric_limits<float>::max();
        for (size_t j = set * width; j < (set + 1) * width; ++j) {
            if (!(side.variance[j] >= 0.0F && side.variance[j] <= previous)) {
                return fmt::format("the variance of {} does not descend in finite numbers to 0 or more", heads(set));
            }
            previous = side.variance[j];
        }
        const auto basis = std::span(side.basis).subspan(set * width * width, width * width);
        if (!std::ranges::all_of(basis, [](uint16_t value) { return std::isfinite(half_to_float(value)); })) {
            return fmt::format("the basis of {} is not finite", heads(set));
        }
    }
    return {};
}

/// What is wrong with one side of an artifact of latents; empty if nothing is.
std::string find_latent_fault(const SideArtifact& side, uint32_t n_head_kv) {
    const size_t width = side.width();
    if (side.rank < 1 || side.rank > width) {
        return fmt::format("rank {} is not in 1 to {}", side.rank, width);
    }
    if (side.directions.size() != n_head_kv / side.joint_heads * side.rank * width ||
        side.mean.size() != size_t{n_head_kv} * side.dim) {
        return "directions or mean have the wrong size";
    }
    if (!all_finite(side.mean)) {
        return "the mean is not finite";
    }
    if (const auto row = find_not_unit(side.directions, width)) {
        return fmt::format("direction {} is not of unit norm", *row);
    }
    return {};
}

/// What is wrong with one side; empty if nothing is.
std::string find_fault(const SideArtifact& side, uint32_t n_head_kv, Artifact::Kind kind) {
    if (side.dim < 1 || side.dim > kMaxDim) {
        return fmt::format("dimension {} is not in 1 to {}", side.dim, kMaxDim);
    }
    if (side.joint_heads < 1 || n_head_kv % side.joint_heads != 0) {
        return fmt::format("{} heads together, of {}", side.joint_heads, n_head_kv);
    }
    if (!(side.heldout_error >= 0.0F && side.heldout_error <= kMaxHeldoutError)) {
        return "the held-out error is not a usable number";
    }
    if (kind == Artifact::Kind::kLatent) {
        return find_latent_fault(side, n_head_kv);
    }
    if (!side.directions.empty() || (side.joint_heads != 1 && side.basis.empty())) {
        return "it has what belongs to latents";
    }
    if (side.n_atoms < kMinAtoms || side.n_atoms > kMaxAtoms) {
        return fmt::format("{} atoms, not {} to {}", side.n_atoms, kMinAtoms, kMaxAtoms);
    }
    if (side.atoms.size() != size_t{side.n_atoms} * side.dim || side.mean.size() != size_t{n_head_kv} * side.dim ||
        side.levels.size() != SideArtifact::kLevels) {
        return "atoms, mean or levels have the wrong size";
    }
    if (const auto atom = find_not_unit(side.atoms, side.dim)) {
        return fmt::format("atom {} is not of unit norm", *atom);
    }
    if (!all_finite(side.mean)) {
        return "the mean is not finite";
    }
    float previous = 0.0F;
    for (const float level : side.levels) {
        if (!(level > previous && level <= 1.0F)) {
            return "levels do not ascend in (0, 1]";
        }
        previous = level;
    }
    if (!(side.sensitivity >= 0.0F && std::isfinite(side.sensitivity))) {
        return "the sensitivity is not a usable number";
    }
    if (!(side.loss_of_noise > 0.0F && std::isfinite(side.loss_of_noise))) {
        return "the loss of noise is not a usable number";
    }
    return find_basis_fault(side, n_head_kv);
}

std::string find_fault(const RopeParams& rope, uint32_t dim) {
    const bool rotates = rope.pairing != RopeParams::Pairing::kNone;
    if (rope.n_dims > dim || rope.n_dims % 2 != 0 || rotates != (rope.n_dims > 0)) {
        return fmt::format("{} rotated dimensions of {}", rope.n_dims, dim);
    }
    for (const auto& [name, member] : kRopeFactors) {
        if (!std::isfinite(rope.*member)) {
            return fmt::format("{} is not finite", name);
        }
    }
    if (rope.freq_base <= 0.0F || rope.freq_scale <= 0.0F || rope.attn_factor <= 0.0F) {
        return "freq_base, freq_scale and attn_factor must be positive";
    }
    if (!rope.freq_factors.empty() && rope.freq_factors.size() != rope.n_dims / 2) {
        return fmt::format("{} frequency factors for {} dimensions", rope.freq_factors.size(), rope.n_dims);
    }
    if (!std::ranges::all_of(rope.freq_factors, [](float f) { return std::isfinite(f) && f > 0.0F; })) {
        return "a frequency factor is not positive";
    }
    return {};
}

/// Throws Error naming `path`, the layer and the fault.
void validate(const Artifact& artifact, const std::string& path) {
    const auto fail = [&](const std::string& what) {
        throw Error(fmt::format("{}: not a usable artifact: {}; make it again", path, what));
    };
    if (artifact.model_fingerprint.empty() || artifact.layers.empty()) {
        fail("it names no model or no layers");
    }
    std::optional<uint32_t> previous;
    for (const LayerArtifact& layer : artifact.layers) {
        const auto check = [&](std::string_view part, const std::string& fault) {
            if (!fault.empty()) {
                fail(fmt::format("layer {} {}: {}", layer.layer, part, fault));
            }
        };
        if (layer.layer > kMaxLayer || (previous && layer.layer <= *previous)) {
            fail(fmt::format("layer {} is out of order, repeated or too high", layer.layer));
        }
        previous = layer.layer;
        if (layer.n_head_kv < 1 || layer.n_head_kv > kMaxHeads) {
            fail(fmt::format("layer {} has {} KV heads", layer.layer, layer.n_head_kv));
        }
        check("K", find_fault(layer.k, layer.n_head_kv, artifact.kind));
        check("V", find_fault(layer.v, layer.n_head_kv, artifact.kind));
        check("RoPE", find_fault(layer.rope, layer.k.dim));
    }
}

void put_side(GgufWriter& writer, const LayerArtifact& layer, const SideArtifact& side, std::string_view prefix) {
    const auto name = [&](std::string_view field) { return fmt::format("{}.{}", prefix, field); };
    const uint64_t n_sets = layer.n_head_kv / side.joint_heads;
    writer.add_f32_tensor(tensor_name(layer.layer, name("mean")), std::array<uint64_t, 2>{side.dim, layer.n_head_kv},
                          side.mean);
    if (!side.directions.empty()) {
        if (side.heldout_error != 0.0F) {
            writer.set_f32(layer_key(layer.layer, name("heldout_error")), side.heldout_error);
        }
        writer.add_f16_tensor(tensor_name(layer.layer, name("directions")),
                              std::array<uint64_t, 3>{side.width(), side.rank, n_sets}, side.directions);
        return;
    }
    writer.set_f32(layer_key(layer.layer, name("heldout_error")), side.heldout_error);
    if (side.sensitivity != 0.0F) {
        writer.set_f32(layer_key(layer.layer, name("sensitivity")), side.sensitivity);
    }
    if (side.loss_of_noise != 1.0F) {
        writer.set_f32(layer_key(layer.layer, name("loss_of_noise")), side.loss_of_noise);
    }
    writer.add_f16_tensor(tensor_name(layer.layer, name("atoms")), std::array<uint64_t, 2>{side.dim, side.n_atoms},
                          side.atoms);
    writer.add_f32_tensor(tensor_name(layer.layer, name("levels")), std::array<uint64_t, 1>{SideArtifact::kLevels},
                          side.levels);
    if (!side.basis.empty()) {
        writer.add_f16_tensor(tensor_name(layer.layer, name("basis")),
                              std::array<uint64_t, 3>{side.width(), side.width(), n_sets}, side.basis);
        writer.add_f32_tensor(tensor_name(layer.layer, name("variance")), std::array<uint64_t, 2>{side.width(), n_sets},
                              side.variance);
    }
}

void put_rope(GgufWriter& writer, uint32_t layer, const RopeParams& rope) {
    const auto* pairing = std::ranges::find(kPairings, rope.pairing, [](const auto& entry) { return entry.first; });
    writer.set_string(layer_key(layer, "rope.pairing"), pairing->second);
    for (const auto& [name, member] : kRopeCounts) {
        writer.set_u32(layer_key(layer, fmt::format("rope.{}", name)), rope.*member);
    }
    for (const auto& [name, member] : kRopeFactors) {
        writer.set_f32(layer_key(layer, fmt::format("rope.{}", name)), rope.*member);
    }
    if (!rope.freq_factors.empty()) {
        writer.add_f32_tensor(tensor_name(layer, "rope.freq_factors"),
                              std::array<uint64_t, 1>{rope.freq_factors.size()}, rope.freq_factors);
    }
}

/// Takes an artifact's parts out of a GGUF file; a missing part or one of the wrong type or shape is an Error.
class ArtifactReader {
  public:
    explicit ArtifactReader(const std::string& path) : file_(path) {}

    Artifact read() const {
        if (file_.get_string("general.type") != kFileType) {
            fail("general.type is not 'kvcodec'; is it a model?");
        }
        if (const uint64_t version = get_uint("kvcodec.version"); version != kVersion) {
            fail(fmt::format("its version is {}, this program reads version {}", version, kVersion));
        }
        const std::string codec = get_string("kvcodec.codec");
        const auto* kind = std::ranges::find(kKinds, codec, [](const auto& entry) { return entry.second; });
        if (kind == kKinds.end()) {
            fail(fmt::format("its codec is '{}', which this program does not know; it knows '{}' and '{}'", codec,
                             kKinds.front().second, kKinds.back().second));
        }
        Artifact artifact;
        artifact.kind = kind->first;
        artifact.model_name = get_string("kvcodec.model.name");
        artifact.model_fingerprint = get_string("kvcodec.model.fingerprint");
        artifact.architecture = get_string("kvcodec.model.architecture");
        artifact.training_source = get_string("kvcodec.training.source");
        artifact.training_sparsity = get_u32("kvcodec.training.sparsity");
        artifact.training_tokens = get_uint("kvcodec.training.tokens");

        const GgufValue* layers = file_.find_value("kvcodec.layers");
        if (layers == nullptr || layers->count > file_.tensors().size()) {
            fail("kvcodec.layers is missing or names more layers than there are tensors");
        }
        for (uint64_t i = 0; i < layers->count; ++i) {
            const auto layer = layers->uint_at(i);
            if (!layer || *layer > kMaxLayer || (i > 0 && *layer <= artifact.layers.back().layer)) {
                fail("kvcodec.layers is not an ascending list of layers");
            }
            artifact.layers.push_back(read_layer(static_cast<uint32_t>(*layer), artifact.kind));
        }
        return artifact;
    }

  private:
    [[noreturn]] void fail(std::string_view what) const {
        throw Error(fmt::format("{}: not a usable artifact: {}", file_.path(), what));
    }
    template <typename T>
    T require(std::optional<T> value, std::string_view key) const {
        if (!value) {
            fail(fmt::format("{} is missing or of the wrong type", key));
        }
        return *value;
    }
    std::string get_string(std::string_view key) const { return std::string(require(file_.get_string(key), key)); }
    uint64_t get_uint(std::string_view key) const { return require(file_.get_uint(key), key); }
    uint32_t get_u32(std::string_view key) const {
        const uint64_t value = get_uint(key);
        if (value > std::numeric_limits<uint32_t>::max()) {
            fail(fmt::format("{} is {}", key, value));
        }
        return static_cast<uint32_t>(value);
    }
    float get_float(std::string_view key) const { return static_cast<float>(require(file_.get_float(key), key)); }

    void read_if_there(const std::string& key, float& value) const {
        if (file_.find_value(key) != nullptr) {
            value = get_float(key);
        }
    }

    const GgufTensor& tensor(const std::string& name, uint32_t type, uint32_t n_dims) const {
        const GgufTensor* found = file_.find_tensor(name);
        if (found == nullptr || found->type != type || found->n_dims != n_dims) {
            fail(fmt::format("tensor {} is missing or of the wrong type", name));
        }
        return *found;
    }
    /// The reader has checked that the tensor lies in the file, so its size is no larger than that.
    template <typename T>
    std::vector<T> copy(const GgufTensor& from) const {
        std::vector<T> values(from.bytes->size() / sizeof(T));
        if (!values.empty()) {
            std::memcpy(values.data(), from.bytes->data(), from.bytes->size());
        }
        return values;
    }

    LayerArtifact read_layer(uint32_t index, Artifact::Kind kind) const {
        LayerArtifact layer;
        layer.layer = index;
        layer.n_head_kv = get_u32(layer_key(index, "n_head_kv"));
        layer.rope = read_rope(index);
        const bool latent = kind == Artifact::Kind::kLatent;
        layer.k = latent ? read_latent_side(layer, "k") : read_side(layer, "k");
        layer.v = latent ? read_latent_side(layer, "v") : read_side(layer, "v");
        return layer;
    }

    SideArtifact read_latent_side(const LayerArtifact& layer, std::string_view prefix) const {
        const GgufTensor& directions =
            tensor(tensor_name(layer.layer, fmt::format("{}.directions", prefix)), kGgmlF16, 3);
        const GgufTensor& mean = tensor(tensor_name(layer.layer, fmt::format("{}.mean", prefix)), kGgmlF32, 2);
        const uint64_t n_sets = directions.dims[2];
        if (n_sets < 1 || layer.n_head_kv % n_sets != 0 || mean.dims[1] != layer.n_head_kv || mean.dims[0] > kMaxDim ||
            directions.dims[0] != layer.n_head_kv / n_sets * mean.dims[0] || directions.dims[1] > directions.dims[0]) {
            fail(fmt::format("{} or {} has the wrong shape", directions.name, mean.name));
        }
        SideArtifact side;
        side.dim = static_cast<uint32_t>(mean.dims[0]);
        side.rank = static_cast<uint32_t>(directions.dims[1]);
        side.joint_heads = static_cast<uint32_t>(layer.n_head_kv / n_sets);
        side.directions = copy<uint16_t>(directions);
        read_if_there(layer_key(layer.layer, fmt::format("{}.heldout_error", prefix)), side.heldout_error);
        side.mean = copy<float>(mean);
        return side;
    }

    SideArtifact read_side(const LayerArtifact& layer, std::string_view prefix) const {
        const auto name = [&](std::string_view field) {
            return tensor_name(layer.layer, fmt::format("{}.{}", prefix, field));
        };
        const GgufTensor& atoms = tensor(name("atoms"), kGgmlF16, 2);
        const GgufTensor& mean = tensor(name("mean"), kGgmlF32, 2);
        if (atoms.dims[0] > kMaxDim || atoms.dims[1] > kMaxAtoms || mean.dims[0] != atoms.dims[0] ||
            mean.dims[1] != layer.n_head_kv) {
            fail(fmt::format("{} or {} has the wrong shape", atoms.name, mean.name));
        }
        SideArtifact side;
        side.dim = static_cast<uint32_t>(atoms.dims[0]);
        side.n_atoms = static_cast<uint32_t>(atoms.dims[1]);
        side.atoms = copy<uint16_t>(atoms);
        side.mean = copy<float>(mean);
        side.levels = copy<float>(tensor(name("levels"), kGgmlF32, 1));
        side.heldout_error = get_float(layer_key(layer.layer, fmt::format("{}.heldout_error", prefix)));
        read_if_there(layer_key(layer.layer, fmt::format("{}.sensitivity", prefix)), side.sensitivity);
        read_if_there(layer_key(layer.layer, fmt::format("{}.loss_of_noise", prefix)), side.loss_of_noise);
        if (file_.find_tensor(name("basis")) != nullptr || file_.find_tensor(name("variance")) != nullptr) {
            const GgufTensor& basis = tensor(name("basis"), kGgmlF16, 3);
            const GgufTensor& variance = tensor(name("variance"), kGgmlF32, 2);
            const uint64_t n_sets = basis.dims[2];
            side.joint_heads = n_sets == 0 ? 0 : static_cast<uint32_t>(layer.n_head_kv / n_sets);
            const uint64_t width = side.width();
            if (side.joint_heads == 0 || basis.dims != std::array<uint64_t, 4>{width, width, n_sets, 1} ||
                variance.dims != std::array<uint64_t, 4>{width, n_sets, 1, 1}) {
                fail(fmt::format("{} or {} has the wrong shape; make it again", basis.name, variance.name));
            }
            side.basis = copy<uint16_t>(basis);
            side.variance = copy<float>(variance);
        }
        return side;
    }

    RopeParams read_rope(uint32_t layer) const {
        RopeParams rope;
        const std::string pairing_name = get_string(layer_key(layer, "rope.pairing"));
        const auto* pairing =
            std::ranges::find(kPairings, pairing_name, [](const auto& entry) { return entry.second; });
        if (pairing == kPairings.end()) {
            fail(fmt::format("{} is unknown", layer_key(layer, "rope.pairing")));
        }
        rope.pairing = pairing->first;
        for (const auto& [name, member] : kRopeCounts) {
            rope.*member = get_u32(layer_key(layer, fmt::format("rope.{}", name)));
        }
        for (const auto& [name, member] : kRopeFactors) {
            rope.*member = get_float(layer_key(layer, fmt::format("rope.{}", name)));
        }
        if (const std::string name = tensor_name(layer, "rope.freq_factors"); file_.find_tensor(name) != nullptr) {
            rope.freq_factors = copy<float>(tensor(name, kGgmlF32, 1));
        }
        return rope;
    }

    GgufFile file_;
};

}  // namespace

void write_artifact(const Artifact& artifact, const std::string& path) {
    validate(artifact, path);
    GgufWriter writer;
    writer.set_string("general.type", kFileType);
    const auto* kind = std::ranges::find(kKinds, artifact.kind, [](const auto& entry) { return entry.first; });
    const bool latent = artifact.kind == Artifact::Kind::kLatent;
    writer.set_string("general.name",
                      fmt::format("{} KV cache {}", artifact.model_name, latent ? "latents" : "dictionaries"));
    writer.set_u32("kvcodec.version", kVersion);
    writer.set_string("kvcodec.codec", kind->second);
    writer.set_string("kvcodec.model.name", artifact.model_name);
    writer.set_string("kvcodec.model.fingerprint", artifact.model_fingerprint);
    writer.set_string("kvcodec.model.architecture", artifact.architecture);
    writer.set_string("kvcodec.training.source", artifact.training_source);
    writer.set_u32("kvcodec.training.sparsity", artifact.training_sparsity);
    writer.set_u64("kvcodec.training.tokens", artifact.training_tokens);
    std::vector<uint32_t> layers;
    for (const LayerArtifact& layer : artifact.layers) {
        layers.push_back(layer.layer);
        writer.set_u32(layer_key(layer.layer, "n_head_kv"), layer.n_head_kv);
        put_rope(writer, layer.layer, layer.rope);
        put_side(writer, layer, layer.k, "k");
        put_side(writer, layer, layer.v, "v");
    }
    writer.set_u32_array("kvcodec.layers", layers);

    if (const auto folder = std::filesystem::path(path).parent_path(); !folder.empty()) {
        std::error_code error;
        std::filesystem::create_directories(folder, error);
        if (error) {
            throw Error(fmt::format("{}: cannot make its folder: {}; choose another place", path, error.message()));
        }
    }
    writer.write(path);
}

void check_artifact_writable(const std::string& path) {
    std::error_code error;
    const std::filesystem::path folder = std::filesystem::absolute(path).parent_path();
    std::filesystem::create_directories(folder, error);
    if (error || std::filesystem::is_directory(path) || access(folder.c_str(), W_OK) != 0) {
        throw Error(fmt::format("the artifact cannot be written to {}; choose another place with -o", path));
    }
}

Artifact read_artifact(const std::string& path) {
    Artifact artifact = ArtifactReader(path).read();
    validate(artifact, path);
    return artifact;
}

std::string artifact_cache_dir() {
    const auto from_environment = [](const char* name) {
        const char* value = std::getenv(name);
        return std::filesystem::path(value != nullptr ? value : "");
    };
    std::filesystem::path cache = from_environment("XDG_CACHE_HOME");
    if (cache.empty()) {
        const std::filesystem::path home = from_environment("HOME");
        if (home.empty()) {
            throw Error("no cache folder for artifacts: set XDG_CACHE_HOME or HOME, or name the artifact's path");
        }
        cache = home / ".cache";
    }
    return (cache / "kvcodec" / "artifacts").native();
}

std::string default_artifact_path(const std::string& fingerprint) {
    return (std::filesystem::path(artifact_cache_dir()) / (fingerprint + ".kvc.gguf")).native();
}

std::optional<std::string> find_artifact(const std::string& fingerprint) {
    const std::string path = default_artifact_path(fingerprint);
    std::error_code error;
    return std::filesystem::is_regular_file(path, error) ? std::optional(path) : std::nullopt;
}

}  // namespace kvcodec
