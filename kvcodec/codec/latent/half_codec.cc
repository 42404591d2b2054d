#include "kvcodec/codec/latent/half_codec.h"

#include <algorithm>
#include <vector>

#include "kvcodec/attend/gemm.h"
#include "kvcodec/half_rows.h"

namespace kvcodec {

namespace {

constexpr float kLargestHalf = 65504.0F;
/// Rows widened at a time: they stay in the first-level cache.
constexpr size_t kChunk = 16;

const uint16_t* halves(const std::byte* codes) {
    return reinterpret_cast<const uint16_t*>(codes);
}

/// use(first, n, x [n, dim]) for chunks of the listed rows.
template <typename Use>
void for_chunks(const std::byte* codes, std::span<const uint16_t> rows, size_t dim, const Use& use) {
    std::vector<float> x(std::min(kChunk, rows.size()) * dim);
    for (size_t first = 0; first < rows.size(); first += kChunk) {
        const size_t n = std::min(kChunk, rows.size() - first);
        for (size_t i = 0; i < n; ++i) {
            widen(halves(codes) + rows[first + i] * dim, dim, &x[i * dim]);
        }
        use(first, n, x.data());
    }
}

}  // namespace

void HalfCodec::encode(const float* x, size_t n, std::byte* codes) const {
    std::vector<float> clamped(n * dim_);
    std::transform(x, x + clamped.size(), clamped.begin(),
                   [](float value) { return std::clamp(value, -kLargestHalf, kLargestHalf); });
    narrow(clamped.data(), clamped.size(), reinterpret_cast<uint16_t*>(codes));
}

void HalfCodec::decode(const std::byte* codes, size_t first, size_t n, float* x) const {
    widen(halves(codes) + first * dim_, n * dim_, x);
}

void HalfCodec::prepare(const float* q, size_t lanes, size_t begin, size_t end, float* table) const {
    for (size_t i = begin; i < end; ++i) {
        for (size_t lane = 0; lane < lanes; ++lane) {
            table[i * lanes + lane] = q[lane * dim_ + i];
        }
    }
}

void HalfCodec::score(const float* table, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                      float* s) const {
    for_chunks(codes, rows, dim_, [&](size_t first, size_t n, const float* x) {
        gemm_scores(x, n, dim_, table, lanes, s + first * lanes);
    });
}

void HalfCodec::accumulate(const float* p, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                           float* acc) const {
    for_chunks(codes, rows, dim_,
               [&](size_t first, size_t n, const float* x) { gemm_values(x, n, dim_, p + first * lanes, lanes, acc); });
}

void HalfCodec::finish(const float* acc, size_t lanes, size_t begin, size_t end, float* out) const {
    for (size_t lane = 0; lane < lanes; ++lane) {
        for (size_t i = begin; i < end; ++i) {
            out[lane * dim_ + i] += acc[i * lanes + lane];
        }
    }
}

}  // namespace kvcodec
