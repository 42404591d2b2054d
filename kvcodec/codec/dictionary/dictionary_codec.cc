#include "kvcodec/codec/dictionary/dictionary_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "kvcodec/codec/shrinkage.h"
#include "kvcodec/error.h"
#include "kvcodec/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/codec/dictionary/dictionary_codec.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "kvcodec/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcodec {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void energies(const float* x, size_t n, size_t dim, double* energy) {
    for (size_t i = 0; i < n; ++i) {
        energy[i] = energy_of(x + i * dim, dim);
    }
}

// Half-precision atom elements widened to the lanes of D.
template <class D>
HWY_INLINE hn::Vec<D> load_half(D d, const uint16_t* half) {
    const hn::Rebind<hwy::float16_t, D> dh;
    return hn::PromoteTo(d, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(half)));
}

void widen_atoms(const uint16_t* half, size_t n, float* wide) {
    const hn::ScalableTag<float> d;
    const size_t width = hn::Lanes(d);
    size_t i = 0;
    for (; i + width <= n; i += width) {
        hn::StoreU(load_half(d, half + i), d, wide + i);
    }
    for (; i < n; ++i) {
        wide[i] = half_to_float(half[i]);
    }
}

// x += factor * atom, elements [begin, end).
HWY_INLINE void add_atom(const uint16_t* atom, float factor, size_t begin, size_t end, float* x) {
    const hn::ScalableTag<float> d;
    const size_t width = hn::Lanes(d);
    const auto f = hn::Set(d, factor);
    size_t i = begin;
    for (; i + width <= end; i += width) {
        hn::StoreU(hn::MulAdd(f, load_half(d, atom + i), hn::LoadU(d, x + i)), d, x + i);
    }
    for (; i < end; ++i) {
        x[i] += factor * half_to_float(atom[i]);
    }
}

// x[kVectors vectors] = sum_i coefficient_i * atom_i, of elements from `atoms` and x on.
template <size_t kVectors>
HWY_INLINE void decode_elements(const uint16_t* atoms, const uint32_t* offset, const float* coefficient,
                                size_t sparsity, float* HWY_RESTRICT x) {
    const hn::ScalableTag<float> d;
    hn::Vec<decltype(d)> sum[kVectors];
    for (size_t v = 0; v < kVectors; ++v) {
        sum[v] = hn::Zero(d);
    }
    for (size_t i = 0; i < sparsity; ++i) {
        const auto factor = hn::Set(d, coefficient[i]);
        for (size_t v = 0; v < kVectors; ++v) {
            sum[v] = hn::MulAdd(factor, load_half(d, atoms + offset[i] + v * hn::Lanes(d)), sum[v]);
        }
    }
    for (size_t v = 0; v < kVectors; ++v) {
        hn::StoreU(sum[v], d, x + v * hn::Lanes(d));
    }
}

void decode_rows(const uint16_t* atoms, size_t dim, const uint32_t* offset, const float* coefficient, size_t stride,
                 size_t sparsity, size_t n, float* x) {
    constexpr size_t kVectors = 4;
    const size_t width = hn::Lanes(hn::ScalableTag<float>());
    for (size_t row = 0; row < n; ++row, offset += stride, coefficient += stride, x += dim) {
        size_t element = 0;
        for (; element + kVectors * width <= dim; element += kVectors * width) {
            decode_elements<kVectors>(atoms + element, offset, coefficient, sparsity, x + element);
        }
        for (; element + width <= dim; element += width) {
            decode_elements<1>(atoms + element, offset, coefficient, sparsity, x + element);
        }
        for (; element < dim; ++element) {
            x[element] = 0.0F;
            for (size_t i = 0; i < sparsity; ++i) {
                x[element] += coefficient[i] * half_to_float(atoms[offset[i] + element]);
            }
        }
    }
}

// table[atom, lanes] = q . atom. q is transposed to [dim, lanes]; kAtoms atoms share its loads.
template <class D, size_t kAtoms>
HWY_INLINE void prepare_atoms(D d, const float* wide, size_t dim, const float* q, size_t lanes, float* table) {
    hn::Vec<D> sum[kAtoms];
    for (size_t a = 0; a < kAtoms; ++a) {
        sum[a] = hn::Zero(d);
    }
    for (size_t i = 0; i < dim; ++i) {
        const auto lane = hn::LoadU(d, q + i * lanes);
        for (size_t a = 0; a < kAtoms; ++a) {
            sum[a] = hn::MulAdd(hn::Set(d, wide[a * dim + i]), lane, sum[a]);
        }
    }
    for (size_t a = 0; a < kAtoms; ++a) {
        hn::StoreU(sum[a], d, table + a * lanes);
    }
}

template <class D>
HWY_INLINE void prepare_column(D d, const float* wide, size_t n_atoms, size_t dim, const float* q, size_t lanes,
                               float* table) {
    size_t atom = 0;
    for (; atom + 8 <= n_atoms; atom += 8) {
        prepare_atoms<D, 8>(d, wide + atom * dim, dim, q, lanes, table + atom * lanes);
    }
    for (; atom < n_atoms; ++atom) {
        prepare_atoms<D, 1>(d, wide + atom * dim, dim, q, lanes, table + atom * lanes);
    }
}

void prepare_table(const uint16_t* atoms, size_t n_atoms, size_t dim, const float* q_transposed, size_t lanes,
                   float* scratch, float* table) {
    const hn::ScalableTag<float> wide_tag;
    const hn::CappedTag<float, 4> narrow_tag;
    widen_atoms(atoms, n_atoms * dim, scratch);
    size_t lane = 0;
    for (; lane + hn::Lanes(wide_tag) <= lanes; lane += hn::Lanes(wide_tag)) {
        prepare_column(wide_tag, scratch, n_atoms, dim, q_transposed + lane, lanes, table + lane);
    }
    for (; lane < lanes; lane += hn::Lanes(narrow_tag)) {
        prepare_column(narrow_tag, scratch, n_atoms, dim, q_transposed + lane, lanes, table + lane);
    }
}

// sum[chain, v] += coefficient_i * table[index_i, lanes] for kNonzeros nonzeros. Two chains hide the latency of the
// additions.
template <size_t kNonzeros, class D, size_t kVectors>
HWY_INLINE void score_nonzeros(D d, const float* HWY_RESTRICT table, const uint32_t* HWY_RESTRICT offset,
                               const float* HWY_RESTRICT coefficient, hn::Vec<D> (&sum)[2][kVectors]) {
    for (size_t i = 0; i < kNonzeros; ++i) {
        const float* entry = table + offset[i];
        const auto factor = hn::Set(d, coefficient[i]);
        for (size_t v = 0; v < kVectors; ++v) {
            sum[i % 2][v] = hn::MulAdd(factor, hn::LoadU(d, entry + v * hn::Lanes(d)), sum[i % 2][v]);
        }
    }
}

// s[row, lanes] = sum_i coefficient_i * table[index_i, lanes], kVectors vectors of lanes at a time.
template <class D, size_t kVectors>
HWY_INLINE void score_lanes(D d, const float* HWY_RESTRICT table, const uint32_t* HWY_RESTRICT offset,
                            const float* HWY_RESTRICT coefficient, size_t stride, size_t sparsity, size_t n,
                            size_t lanes, float* HWY_RESTRICT s) {
    for (size_t row = 0; row < n; ++row, offset += stride, coefficient += stride) {
        hn::Vec<D> sum[2][kVectors];
        for (size_t v = 0; v < kVectors; ++v) {
            sum[0][v] = hn::Zero(d);
            sum[1][v] = hn::Zero(d);
        }
        size_t i = 0;
        for (; i + 8 <= sparsity; i += 8) {
            score_nonzeros<8>(d, table, offset + i, coefficient + i, sum);
        }
        for (; i < sparsity; i += 2) {
            score_nonzeros<2>(d, table, offset + i, coefficient + i, sum);
        }
        for (size_t v = 0; v < kVectors; ++v) {
            hn::StoreU(sum[0][v] + sum[1][v], d, s + row * lanes + v * hn::Lanes(d));
        }
    }
}

// acc[index_i, lanes] += coefficient_i * p[lanes] for kNonzeros nonzeros.
template <size_t kNonzeros, class D, size_t kVectors>
HWY_INLINE void accumulate_nonzeros(D d, const hn::Vec<D> (&p)[kVectors], const uint32_t* HWY_RESTRICT offset,
                                    const float* HWY_RESTRICT coefficient, float* acc) {
    for (size_t i = 0; i < kNonzeros; ++i) {
        float* entry = acc + offset[i];
        const auto factor = hn::Set(d, coefficient[i]);
        for (size_t v = 0; v < kVectors; ++v) {
            hn::StoreU(hn::MulAdd(factor, p[v], hn::LoadU(d, entry + v * hn::Lanes(d))), d, entry + v * hn::Lanes(d));
        }
    }
}

// acc[index_i, lanes] += coefficient_i * p[row, lanes].
template <class D, size_t kVectors>
HWY_INLINE void accumulate_lanes(D d, const float* HWY_RESTRICT p, const uint32_t* HWY_RESTRICT offset,
                                 const float* HWY_RESTRICT coefficient, size_t stride, size_t sparsity, size_t n,
                                 size_t lanes, float* acc) {
    for (size_t row = 0; row < n; ++row, offset += stride, coefficient += stride) {
        hn::Vec<D> weight[kVectors];
        for (size_t v = 0; v < kVectors; ++v) {
            weight[v] = hn::LoadU(d, p + row * lanes + v * hn::Lanes(d));
        }
        size_t i = 0;
        for (; i + 8 <= sparsity; i += 8) {
            accumulate_nonzeros<8>(d, weight, offset + i, coefficient + i, acc);
        }
        for (; i < sparsity; ++i) {
            accumulate_nonzeros<1>(d, weight, offset + i, coefficient + i, acc);
        }
    }
}

// Splits `lanes` into full vectors (two at a time where possible) and a rest of four.
template <class Work>
HWY_INLINE void for_lanes(size_t lanes, const Work& work) {
    const hn::ScalableTag<float> wide;
    const hn::CappedTag<float, 8> half;
    const hn::CappedTag<float, 4> narrow;
    size_t lane = 0;
    for (; lane + 2 * hn::Lanes(wide) <= lanes; lane += 2 * hn::Lanes(wide)) {
        work(wide, std::integral_constant<size_t, 2>(), lane);
    }
    for (; lane + hn::Lanes(wide) <= lanes; lane += hn::Lanes(wide)) {
        work(wide, std::integral_constant<size_t, 1>(), lane);
    }
    for (; lane + hn::Lanes(half) <= lanes; lane += hn::Lanes(half)) {
        work(half, std::integral_constant<size_t, 1>(), lane);
    }
    for (; lane < lanes; lane += hn::Lanes(narrow)) {
        work(narrow, std::integral_constant<size_t, 1>(), lane);
    }
}

void score_rows(const float* table, const uint32_t* offset, const float* coefficient, size_t stride, size_t sparsity,
                size_t n, size_t lanes, float* s) {
    for_lanes(lanes, [&](auto d, auto vectors, size_t lane) HWY_ATTR {
        score_lanes<decltype(d), decltype(vectors)::value>(d, table + lane, offset, coefficient, stride, sparsity, n,
                                                           lanes, s + lane);
    });
}

void accumulate_rows(const float* p, const uint32_t* offset, const float* coefficient, size_t stride, size_t sparsity,
                     size_t n, size_t lanes, float* acc) {
    for_lanes(lanes, [&](auto d, auto vectors, size_t lane) HWY_ATTR {
        accumulate_lanes<decltype(d), decltype(vectors)::value>(d, p + lane, offset, coefficient, stride, sparsity, n,
                                                                lanes, acc + lane);
    });
}

// out[lane, begin..end) += sum_atoms acc[atom, lane] * atom: four lanes x four vectors of the output stay in registers.
void finish_rows(const uint16_t* atoms, size_t n_atoms, size_t dim, const float* acc, size_t lanes, size_t begin,
                 size_t end, float* out) {
    const hn::ScalableTag<float> d;
    using V = hn::Vec<decltype(d)>;
    const size_t width = hn::Lanes(d);
    for (size_t lane = 0; lane < lanes; lane += 4) {
        size_t i = begin;
        for (; i + 2 * width <= end; i += 2 * width) {
            V sum[4][2];
            for (size_t r = 0; r < 4; ++r) {
                sum[r][0] = hn::LoadU(d, out + (lane + r) * dim + i);
                sum[r][1] = hn::LoadU(d, out + (lane + r) * dim + i + width);
            }
            for (size_t atom = 0; atom < n_atoms; ++atom) {
                const V a = load_half(d, atoms + atom * dim + i);
                const V b = load_half(d, atoms + atom * dim + i + width);
                for (size_t r = 0; r < 4; ++r) {
                    const V factor = hn::Set(d, acc[atom * lanes + lane + r]);
                    sum[r][0] = hn::MulAdd(factor, a, sum[r][0]);
                    sum[r][1] = hn::MulAdd(factor, b, sum[r][1]);
                }
            }
            for (size_t r = 0; r < 4; ++r) {
                hn::StoreU(sum[r][0], d, out + (lane + r) * dim + i);
                hn::StoreU(sum[r][1], d, out + (lane + r) * dim + i + width);
            }
        }
        if (i < end) {
            for (size_t atom = 0; atom < n_atoms; ++atom) {
                for (size_t r = 0; r < 4; ++r) {
                    add_atom(atoms + atom * dim, acc[atom * lanes + lane + r], i, end, out + (lane + r) * dim);
                }
            }
        }
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvcodec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcodec {
namespace {

HWY_EXPORT(energies);
HWY_EXPORT(widen_atoms);
HWY_EXPORT(decode_rows);
HWY_EXPORT(prepare_table);
HWY_EXPORT(score_rows);
HWY_EXPORT(accumulate_rows);
HWY_EXPORT(finish_rows);

// A vector that is hardly met at all is not blown up.
constexpr double kMostLoss = 0.5;

float gain_of(double energy, float residual_energy, float unbias) {
    if (unbias == 0.0F) {
        return 1.0F;
    }
    const bool usable = energy > 0.0 && residual_energy >= 0.0F;
    return usable ? unbias_gain(std::min(kMostLoss, residual_energy / energy), unbias) : 1.0F;
}

// Of the count of a variable code: the row missed the threshold.
constexpr std::byte kMark{0x80};

// Rows unpacked at a time: their nonzeros stay in the first-level cache.
constexpr size_t kChunkRows = 64;

struct Unpacked {
    std::vector<uint32_t> offset;
    std::vector<float> coefficient;
};

Unpacked& unpacked_scratch(size_t stride) {
    thread_local Unpacked scratch;
    if (scratch.offset.size() < kChunkRows * stride) {
        scratch.offset.resize(kChunkRows * stride);
        scratch.coefficient.resize(kChunkRows * stride);
    }
    return scratch;
}

float* float_scratch(size_t size) {
    thread_local std::vector<float> scratch;
    if (scratch.size() < size) {
        scratch.resize(size);
    }
    return scratch.data();
}

}  // namespace

DictionaryCodec::DictionaryCodec(std::span<const uint16_t> atoms, size_t n_atoms, size_t dim,
                                 std::span<const float> levels, const DictionarySettings& settings)
    : extension_(std::make_unique<Extension>()),
      n_atoms_(n_atoms),
      dim_(dim),
      settings_(settings),
      packing_(n_atoms + settings.adaptive_atoms, settings.omp.sparsity, settings.format, settings.layout, levels) {
    if (settings.omp.sparsity < 1 || settings.omp.sparsity > kMaxSparsity) {
        throw Error(fmt::format("sparsity {} is out of range; choose 1 to {}", settings.omp.sparsity, kMaxSparsity));
    }
    const bool variable = settings.omp.relative_error > 0.0F && settings.layout == CodeLayout::kPacked;
    if (settings.adaptive_atoms != 0 && (!variable || n_atoms + settings.adaptive_atoms > kMaxAtoms)) {
        throw Error(fmt::format("adaptive atoms need an error threshold, the packed layout and at most {} atoms in all",
                                kMaxAtoms));
    }
    extension_->atoms.reset(new uint16_t[(n_atoms + settings.adaptive_atoms) * dim]);
    std::copy_n(atoms.begin(), n_atoms * dim, extension_->atoms.get());
    for (size_t count = 1; variable && count <= settings.omp.sparsity; ++count) {
        packings_.emplace_back(n_atoms + settings.adaptive_atoms, count, settings.format, settings.layout, levels);
    }
}

size_t DictionaryCodec::fixed_bytes() const {
    size_t bytes = n_atoms_ * dim_ * sizeof(uint16_t) + packing_.resident_bytes();
    for (const Packing& packing : packings_) {
        bytes += packing.resident_bytes();
    }
    return bytes;
}

void DictionaryCodec::forget() const {
    if (is_adaptive()) {  // others may be in use by another cache
        extension_->n_adopted = 0;
    }
}

bool DictionaryCodec::is_marked(const std::byte* code) const {
    return is_adaptive() && (code[0] & kMark) != std::byte{0};
}

void DictionaryCodec::adopt(const float* x, std::byte* code) const {
    code[0] &= ~kMark;
    const auto norm = static_cast<float>(std::sqrt(std::inner_product(x, x + dim_, x, 0.0)));
    if (extension_->n_adopted == settings_.adaptive_atoms || !(norm > 0.0F) || !std::isfinite(norm)) {
        return;
    }
    const auto index = static_cast<uint16_t>(n_used());
    std::transform(x, x + dim_, extension_->atoms.get() + index * dim_,
                   [norm](float v) { return float_to_half(v / norm); });
    ++extension_->n_adopted;
    code[0] = std::byte{1};
    packings_[0].pack(&index, &norm, 1, code + 1);
}

size_t DictionaryCodec::length(const std::byte* code) const {
    const size_t count = nonzeros_of(code);
    return !is_variable() ? code_bytes() : count == 0 ? 1 : 1 + packings_[count - 1].code_bytes();
}

size_t DictionaryCodec::nonzeros_of(const std::byte* code) const {
    return is_variable() ? std::min(static_cast<size_t>(code[0] & ~kMark), packings_.size()) : nonzeros();
}

std::string DictionaryCodec::describe() const {
    const char* format = settings_.layout == CodeLayout::kPublished        ? "published layout"
                         : settings_.format == CoefficientFormat::kSigned4 ? "4-bit coefficients"
                                                                           : "fp8 coefficients";
    const std::string more = is_adaptive() ? fmt::format("+{}", settings_.adaptive_atoms) : "";
    return settings_.omp.relative_error > 0.0F
               ? fmt::format("dictionary N={}{} s<={} to an error of {:.3g}, {}", n_atoms_, more,
                             settings_.omp.sparsity, settings_.omp.relative_error, format)
               : fmt::format("dictionary N={} s={}, {}", n_atoms_, settings_.omp.sparsity, format);
}

void DictionaryCodec::encode_batch(const float* x, size_t n, std::byte* codes) const {
    const size_t sparsity = settings_.omp.sparsity, stride = gram_stride(sparsity);
    thread_local std::vector<float> wide;
    wide.resize(n_used() * dim_);
    HWY_DYNAMIC_DISPATCH(widen_atoms)(atoms(), n_used() * dim_, wide.data());
    std::vector<uint16_t> index(n * sparsity);
    std::vector<float> coefficient(n * sparsity);
    std::vector<uint8_t> count(n);
    std::vector<float> residual(n);
    std::vector<double> energy(n);
    if (settings_.unbias != 0.0F || is_adaptive()) {
        HWY_DYNAMIC_DISPATCH(energies)(x, n, dim_, energy.data());
    }
    const bool inside = settings_.format == CoefficientFormat::kSigned4 && settings_.layout == CodeLayout::kPacked;
    std::vector<float> gram(inside ? n * sparsity * stride : 0);
    OmpOptions options = settings_.omp;
    options.refine = false;  // coefficients have a few bits
    omp_encode(wide.data(), n_used(), dim_, x, n, options, index.data(), coefficient.data(), count.data(),
               residual.data(), inside ? gram.data() : nullptr);
    for (size_t i = 0; i < n; ++i) {
        const float gain = gain_of(energy[i], residual[i], settings_.unbias);
        for (size_t k = 0; k < count[i]; ++k) {
            coefficient[i * sparsity + k] *= gain;
        }
        std::byte* code = codes + i * code_bytes();
        const Packing* packing = &packing_;
        if (is_variable()) {
            const auto threshold = static_cast<double>(settings_.omp.relative_error);
            const bool missed = is_adaptive() && count[i] == sparsity &&
                                static_cast<double>(residual[i]) > threshold * threshold * energy[i];
            *code++ = static_cast<std::byte>(count[i]) | (missed ? kMark : std::byte{0});
            if (count[i] == 0) {
                continue;
            }
            packing = &packings_[count[i] - 1U];
        }
        packing->pack(&index[i * sparsity], &coefficient[i * sparsity], count[i], code,
                      inside ? SupportGram{&gram[i * sparsity * stride], stride} : SupportGram{});
    }
}

void DictionaryCodec::encode(const float* x, size_t n, std::byte* codes) const {
    constexpr size_t kGramElements = size_t{1} << 19;  // bounds the memory
    const size_t batch =
        std::max<size_t>(64, kGramElements / (settings_.omp.sparsity * gram_stride(settings_.omp.sparsity)));
    for (size_t first = 0; first < n; first += batch) {
        encode_batch(x + first * dim_, std::min(batch, n - first), codes + first * code_bytes());
    }
}

// Calls work(packing, first, n) for rows [first, first + n) whose nonzeros scratch then holds, packed alike.
template <typename Work>
void DictionaryCodec::for_unpacked(const std::byte* codes, std::span<const uint16_t> rows, uint32_t scale,
                                   const Work& work) const {
    Unpacked& scratch = unpacked_scratch(packing_.stride());
    if (!is_variable()) {
        for (size_t first = 0; first < rows.size(); first += kChunkRows) {
            const auto part = rows.subspan(first, std::min(kChunkRows, rows.size() - first));
            packing_.unpack(codes, part, scale, scratch.offset.data(), scratch.coefficient.data());
            work(packing_, first, part.size(), scratch);
        }
        return;
    }
    constexpr uint16_t kOnly = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
        uint16_t place = 0;
        std::memcpy(&place, codes + rows[i] * sizeof(place), sizeof(place));
        const size_t count = nonzeros_of(codes + place);
        const Packing& packing = packings_[std::max<size_t>(count, 1) - 1];
        if (count != 0) {
            packing.unpack(codes + place + 1, {&kOnly, 1}, scale, scratch.offset.data(), scratch.coefficient.data());
        } else {
            std::fill_n(scratch.offset.begin(), packing.stride(), 0U);
            std::fill_n(scratch.coefficient.begin(), packing.stride(), 0.0F);
        }
        work(packing, i, 1, scratch);
    }
}

void DictionaryCodec::decode(const std::byte* codes, size_t first, size_t n, float* x) const {
    std::array<uint16_t, kChunkRows> all_rows;
    for (size_t done = 0; done < n; done += kChunkRows) {
        const std::span<uint16_t> rows(all_rows.data(), std::min(kChunkRows, n - done));
        // Of a fixed length: counted from where the chunk begins, because there may be more than 16 bits count.
        const size_t origin = is_variable() ? 0 : first + done;
        std::iota(rows.begin(), rows.end(), static_cast<uint16_t>(first + done - origin));
        for_unpacked(codes + origin * code_bytes(), rows, static_cast<uint32_t>(dim_),
                     [&](const Packing& packing, size_t begin, size_t size, const Unpacked& scratch) {
                         HWY_DYNAMIC_DISPATCH(decode_rows)
                         (atoms(), dim_, scratch.offset.data(), scratch.coefficient.data(), packing.stride(),
                          packing.sparsity(), size, x + (done + begin) * dim_);
                     });
    }
}

void DictionaryCodec::prepare(const float* q, size_t lanes, size_t begin, size_t end, float* table) const {
    // Atoms are widened a few at a time, so that they and the queries stay in the first-level cache.
    constexpr size_t kAtomsAtOnce = 32;
    float* transposed = float_scratch((lanes + kAtomsAtOnce) * dim_);
    float* wide = transposed + lanes * dim_;
    for (size_t lane = 0; lane < lanes; ++lane) {
        for (size_t i = 0; i < dim_; ++i) {
            transposed[i * lanes + lane] = q[lane * dim_ + i];
        }
    }
    const size_t used_end = std::min(end, n_used());
    for (size_t first = begin; first < used_end; first += kAtomsAtOnce) {
        HWY_DYNAMIC_DISPATCH(prepare_table)
        (atoms() + first * dim_, std::min(kAtomsAtOnce, used_end - first), dim_, transposed, lanes, wide,
         table + first * lanes);
    }
}

void DictionaryCodec::score(const float* table, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                            float* s) const {
    for_unpacked(codes, rows, static_cast<uint32_t>(lanes),
                 [&](const Packing& packing, size_t first, size_t size, const Unpacked& scratch) {
                     HWY_DYNAMIC_DISPATCH(score_rows)
                     (table, scratch.offset.data(), scratch.coefficient.data(), packing.stride(), packing.sparsity(),
                      size, lanes, s + first * lanes);
                 });
}

void DictionaryCodec::accumulate(const float* p, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                                 float* acc) const {
    for_unpacked(codes, rows, static_cast<uint32_t>(lanes),
                 [&](const Packing& packing, size_t first, size_t size, const Unpacked& scratch) {
                     HWY_DYNAMIC_DISPATCH(accumulate_rows)
                     (p + first * lanes, scratch.offset.data(), scratch.coefficient.data(), packing.stride(),
                      packing.sparsity(), size, lanes, acc);
                 });
}

void DictionaryCodec::finish(const float* acc, size_t lanes, size_t begin, size_t end, float* out) const {
    HWY_DYNAMIC_DISPATCH(finish_rows)(atoms(), n_used(), dim_, acc, lanes, begin, end, out);
}

}  // namespace kvcodec
#endif
