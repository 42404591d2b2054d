#include "kvcodec/codec/latent/latent_codec.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "kvcodec/attend/gemm.h"
#include "kvcodec/codec/latent/half_codec.h"
#include "kvcodec/codec/scalar/scalar_codec.h"
#include "kvcodec/error.h"

namespace kvcodec {

namespace {

/// Place of each latent, these being in order of weight. The scalar codec mixes the elements of blocks and has one
/// scale for all: no block must have more of the weight than another.
std::vector<size_t> balanced_places(size_t rank) {
    struct Block {
        size_t begin;
        size_t size;
        size_t used = 0;
    };
    std::vector<Block> blocks;
    for (size_t begin = 0; begin < rank; begin += blocks.back().size) {
        blocks.push_back({begin, std::bit_floor(rank - begin)});
    }
    std::vector<size_t> places;
    for (size_t i = 0; i < rank; ++i) {
        Block& emptiest = *std::ranges::min_element(blocks, {}, [](const Block& block) {
            return (static_cast<double>(block.used) + 0.5) / static_cast<double>(block.size);
        });
        places.push_back(emptiest.begin + emptiest.used++);
    }
    return places;
}

/// from [rows, columns] to [columns, rows].
std::vector<float> transposed(const float* from, size_t rows, size_t columns) {
    std::vector<float> to(rows * columns);
    for (size_t row = 0; row < rows; ++row) {
        for (size_t column = 0; column < columns; ++column) {
            to[column * rows + row] = from[row * columns + column];
        }
    }
    return to;
}

}  // namespace

LatentSpace::LatentSpace(std::span<const float> directions, size_t n_heads, size_t dim, unsigned bits, float unbias)
    : n_heads_(n_heads), dim_(dim) {
    const size_t width = n_heads * dim;
    const size_t rank = width == 0 ? 0 : directions.size() / width;
    if (rank == 0 || rank * width != directions.size() || rank > width || rank % kRankMultiple != 0 || dim % 4 != 0) {
        throw Error("latents need a rank that is a multiple of " + std::to_string(kRankMultiple) + " up to " +
                    std::to_string(width) + " and heads of a multiple of 4, not " + std::to_string(rank) +
                    " and heads of " + std::to_string(dim));
    }
    std::vector<size_t> places(rank);
    if (bits == kHalfBits) {
        latents_ = std::make_shared<const HalfCodec>(rank);
        for (size_t i = 0; i < rank; ++i) {
            places[i] = i;
        }
    } else if (rank > ScalarFormat::kMaxDim) {
        throw Error("latents of rank " + std::to_string(rank) +
                    " are kept in f16 only; give bits=16, or take ranks by head");
    } else {
        const auto scalar = std::make_shared<const ScalarCodec>(rank, bits, unbias);
        scalar_ = scalar.get();
        latents_ = scalar;
        places = balanced_places(rank);
    }
    directions_.resize(directions.size());
    for (size_t i = 0; i < rank; ++i) {
        for (size_t head = 0; head < n_heads; ++head) {
            std::copy_n(&directions[i * width + head * dim], dim, &directions_[(head * rank + places[i]) * dim]);
        }
    }
    if (scalar_ != nullptr) {
        for (size_t head = 0; head < n_heads; ++head) {
            float* of_head = &directions_[head * rank * dim];
            scalar_->prepare(transposed(of_head, rank, dim).data(), dim, 0, rank, of_head);
        }
    }
}

void LatentSpace::read(const std::byte* codes, size_t first, size_t n, float* y) const {
    if (scalar_ == nullptr) {
        latents_->decode(codes, first, n, y);
    } else {
        scalar_->decode_rotated(codes, first, n, y);
    }
}

size_t LatentSpace::code_bytes(size_t rank, unsigned bits) {
    return bits == kHalfBits ? rank * sizeof(uint16_t) : ScalarCodec::bytes_of(rank, bits);
}

LatentCodec::LatentCodec(std::shared_ptr<const LatentSpace> space, size_t head, bool before_rope)
    : shared_(std::move(space)), head_(head), before_rope_(before_rope) {}

std::string LatentCodec::describe() const {
    return "latents, rank " + std::to_string(shared_->rank()) +
           (shared_->n_heads() > 1 ? " of " + std::to_string(shared_->n_heads()) + " heads" : "") +
           (before_rope_ ? " before RoPE, " : ", ") + shared_->latents().describe();
}

size_t LatentCodec::fixed_bytes() const {
    return shared_->directions(head_).size() * sizeof(float) + shared_->latents().fixed_bytes() / shared_->n_heads();
}

void LatentCodec::encode(const float* x, size_t n, std::byte* codes) const {
    const size_t rank = shared_->rank(), dim = shared_->dim(), n_heads = shared_->n_heads();
    const size_t columns = (n + 3) / 4 * 4;
    std::vector<float> of_head(dim * columns), share(rank * columns), sum(rank * columns);  // [.., columns]
    for (size_t head = 0; head < n_heads; ++head) {
        for (size_t row = 0; row < n; ++row) {
            for (size_t i = 0; i < dim; ++i) {
                of_head[i * columns + row] = x[(row * n_heads + head) * dim + i];
            }
        }
        gemm_scores(shared_->directions(head).data(), rank, dim, of_head.data(), columns, share.data());
        std::ranges::transform(sum, share, sum.begin(), std::plus<>());
    }
    std::vector<float> latents(columns * rank);
    shared_->latents().finish(sum.data(), columns, 0, rank, latents.data());
    shared_->latents().encode(latents.data(), n, codes);
}

void LatentCodec::decode(const std::byte* codes, size_t first, size_t n, float* x) const {
    std::vector<float> latents(n * shared_->rank());
    shared_->read(codes, first, n, latents.data());
    gemm_scores(latents.data(), n, shared_->rank(), shared_->directions(head_).data(), dim(), x);
}

void LatentCodec::prepare(const float* q, size_t lanes, size_t begin, size_t end, float* table) const {
    const std::vector<float> columns = transposed(q, lanes, dim());
    gemm_scores(shared_->directions(head_).data() + begin * dim(), end - begin, dim(), columns.data(), lanes,
                table + begin * lanes);
}

void LatentCodec::score(const float* table, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                        float* s) const {
    shared_->latents().score(table, lanes, codes, rows, s);
}

void LatentCodec::accumulate(const float* p, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                             float* acc) const {
    shared_->latents().accumulate(p, lanes, codes, rows, acc);
}

void LatentCodec::finish(const float* acc, size_t lanes, size_t begin, size_t end, float* out) const {
    const size_t rank = shared_->rank(), n = end - begin;
    std::vector<float> slice(rank * n), sums(n * lanes);
    for (size_t i = 0; i < rank; ++i) {
        std::copy_n(shared_->directions(head_).data() + i * dim() + begin, n, &slice[i * n]);
    }
    gemm_values(slice.data(), rank, n, acc, lanes, sums.data());
    for (size_t lane = 0; lane < lanes; ++lane) {
        for (size_t i = 0; i < n; ++i) {
            out[lane * dim() + begin + i] += sums[i * lanes + lane];
        }
    }
}

}  // namespace kvcodec
