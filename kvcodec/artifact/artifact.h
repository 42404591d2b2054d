// The artifact: what is made for one model (dictionaries, means, directions; or low ranks), stored as GGUF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvcodec/codec/rope.h"

namespace kvcodec {

/// K or V of one layer.
struct SideArtifact {
    static constexpr size_t kLevels = 8;

    uint32_t dim = 0;             ///< head_dim, 1 to 1024
    uint32_t n_atoms = 0;         ///< 2 to 32768
    std::vector<uint16_t> atoms;  ///< [n_atoms, dim] IEEE half precision, unit L2 norm
    std::vector<float> mean;      ///< [n_head_kv, dim]; of K: before RoPE
    std::vector<float> levels;    ///< [kLevels] ascending magnitudes in (0, 1]: codebook of the 4-bit coefficients
    /// sqrt(sum ||x - x̂||² / sum ||x||²) over held-out rows, mean removed, at the training sparsity.
    float heldout_error = 0.0F;
    /// Nats of KL divergence that the model's predictions lose for a loss of 1 on this side alone, by a measurement at
    /// a small one. 0: not measured.
    float sensitivity = 0.0F;
    /// KV heads whose vectors are coded together, side by side as one of width() elements.
    uint32_t joint_heads = 1;
    size_t width() const { return size_t{joint_heads} * dim; }
    /// [n_head_kv / joint_heads, width(), width()] IEEE half precision: a vector without its mean (of K: before RoPE)
    /// is the sum over j of y_j times row j; rows are independent. Loss is the squared error of y over its energy.
    /// Training chooses the directions so that loss is near to what the readers of the vectors, queries and the output
    /// projection, see of errors (find_weighted_components); with orthonormal rows it is the relative squared error of
    /// the vector. Empty: none, as in older artifacts.
    std::vector<uint16_t> basis;
    /// [n_head_kv / joint_heads, width()] of y: descending, finite, >= 0. Empty with basis.
    std::vector<float> variance;
    /// Loss for a relative squared error of 1 in the vectors that is alike in all directions.
    float loss_of_noise = 1.0F;

    // Of artifacts of latents, which have none of the above but dim, mean, joint_heads and, where directions come from
    // data, heldout_error: of full latents.
    uint32_t rank = 0;  ///< 1 to width()
    /// [n_head_kv / joint_heads, rank, width()] IEEE half precision: orthonormal rows in order of weight.
    /// Codes are of a vector without its mean (of K: before RoPE) projected on them.
    std::vector<uint16_t> directions;

    bool operator==(const SideArtifact&) const = default;
};

struct LayerArtifact {
    uint32_t layer = 0;  ///< index in the model; layers absent from an artifact pass through
    uint32_t n_head_kv = 0;
    RopeParams rope;  ///< that K was trained under; means nothing for latents, which are before any
    SideArtifact k;
    SideArtifact v;

    /// Of one token, uncompressed.
    size_t f16_bytes() const { return size_t{n_head_kv} * (size_t{k.dim} + v.dim) * sizeof(uint16_t); }

    bool operator==(const LayerArtifact&) const = default;
};

struct Artifact {
    enum class Kind : uint8_t {
        kDictionary,  ///< of `kvcodec train`: dictionaries and directions
        kLatent,      ///< of `kvcodec lowrank`: low ranks (LoRC)
    };
    Kind kind = Kind::kDictionary;
    std::string model_name;
    std::string model_fingerprint;  ///< ModelInfo::fingerprint of the model that it was trained for
    std::string architecture;
    std::string training_source;  ///< what the training text was, for people
    uint32_t training_sparsity = 0;
    uint64_t training_tokens = 0;
    std::vector<LayerArtifact> layers;  ///< in ascending order of `layer`

    bool operator==(const Artifact&) const = default;
};

/// Writes `path` as a whole or not at all, making its folder if needed. Throws Error if that fails or if the artifact
/// would not be accepted by read_artifact.
void write_artifact(const Artifact& artifact, const std::string& path);
/// Throws Error if an artifact could not be written there, before there is one; makes its folder.
void check_artifact_writable(const std::string& path);
/// Throws Error unless the file is complete and every number in it is sane.
Artifact read_artifact(const std::string& path);

/// ${XDG_CACHE_HOME:-~/.cache}/kvcodec/artifacts. Throws Error if neither XDG_CACHE_HOME nor HOME is set.
std::string artifact_cache_dir();
/// Where the artifact of a model with this fingerprint is kept.
std::string default_artifact_path(const std::string& fingerprint);
/// default_artifact_path() if there is such a file.
std::optional<std::string> find_artifact(const std::string& fingerprint);

}  // namespace kvcodec
