// The dictionary codec (KV-Dict / Lexico, arXiv 2412.08890): a vector is a sparse combination of atoms.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kvcodec/codec/codec.h"
#include "kvcodec/codec/dictionary/omp.h"
#include "kvcodec/codec/dictionary/packing.h"

namespace kvcodec {

struct DictionarySettings {
    OmpOptions omp;
    CoefficientFormat format = CoefficientFormat::kSigned4;
    CodeLayout layout = CodeLayout::kPacked;
    float unbias = 0.0F;  ///< see shrinkage.h; each vector's own loss decides on its gain
    /// Vectors that miss the error threshold with all of omp.sparsity atoms become atoms themselves, until there are so
    /// many (Lexico's adaptive dictionary). 0: none. Needs a threshold and the packed layout.
    size_t adaptive_atoms = 0;
};

/// Codes have as many nonzeros as the error threshold asks for where there is one (omp.relative_error), and lengths
/// that follow: one byte for the count, then a packed code for so many. Without, or in the published layout, all have
/// the same length.
///
/// Atoms that were adopted belong to this codec, and with it to one cache.
///
/// Code space is the dictionary: M = n_atoms and those that were adopted. A query meets a cached vector in at most s
/// loads of `lanes` floats, from the table q D; values are accumulated per atom and expanded by D once a step.
class DictionaryCodec final : public Codec {
  public:
    /// atoms: half precision [n_atoms, dim], unit L2 norm; levels: see Packing.
    DictionaryCodec(std::span<const uint16_t> atoms, size_t n_atoms, size_t dim, std::span<const float> levels,
                    const DictionarySettings& settings);

    std::string describe() const override;
    size_t dim() const override { return dim_; }
    size_t code_bytes() const override { return packing_.code_bytes() + (is_variable() ? 1 : 0); }
    bool is_variable() const override { return !packings_.empty(); }
    size_t length(const std::byte* code) const override;
    size_t nonzeros_of(const std::byte* code) const override;
    bool is_adaptive() const override { return settings_.adaptive_atoms != 0; }
    bool is_marked(const std::byte* code) const override;
    void adopt(const float* x, std::byte* code) const override;
    void forget() const override;
    size_t adopted_bytes() const override { return extension_->n_adopted * dim_ * sizeof(uint16_t); }
    size_t fixed_bytes() const override;
    size_t space() const override { return n_used(); }
    size_t nonzeros() const override { return packing_.sparsity(); }

    bool prepares_batches() const override { return true; }
    void encode(const float* x, size_t n, std::byte* codes) const override;
    void decode(const std::byte* codes, size_t first, size_t n, float* x) const override;
    void prepare(const float* q, size_t lanes, size_t begin, size_t end, float* table) const override;
    void score(const float* table, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
               float* s) const override;
    void accumulate(const float* p, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                    float* acc) const override;
    void finish(const float* acc, size_t lanes, size_t begin, size_t end, float* out) const override;

  private:
    void encode_batch(const float* x, size_t n, std::byte* codes) const;
    template <typename Work>
    void for_unpacked(const std::byte* codes, std::span<const uint16_t> rows, uint32_t scale, const Work& work) const;

    /// Atoms in use: the dictionary's and those adopted.
    size_t n_used() const { return n_atoms_ + extension_->n_adopted; }
    const uint16_t* atoms() const { return extension_->atoms.get(); }

    /// Adopted atoms follow the dictionary's in one array, so that kernels need not tell them apart.
    struct Extension {
        std::unique_ptr<uint16_t[]> atoms;  // [n_atoms + adaptive_atoms, dim]; untouched memory costs nothing
        size_t n_adopted = 0;
    };
    std::unique_ptr<Extension> extension_;
    size_t n_atoms_;
    size_t dim_;
    DictionarySettings settings_;
    Packing packing_;                // of the most nonzeros
    std::vector<Packing> packings_;  // of 1, 2, ... nonzeros, where codes are variable
};

}  // namespace kvcodec
