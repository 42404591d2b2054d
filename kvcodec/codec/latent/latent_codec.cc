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
    const size_t multiple = bits == kHalfBits ? 4 : 16;
    if (rank == 0 || rank * width != directions.size() || rank > width || rank % kRankMultiple != 0 ||
        dim % multiple != 0) {
        throw Error("latents need a rank that is a multiple of " + std::to_string(kRankMultiple) + " up to " +
                    std::to_string(width) + " and heads of a multiple of " + std::to_string(multiple) + ", not " +
                    std::to_string(rank) + " and heads of " + std::to_string(dim));
    }
    if (bits == kHalfBits) {
        latents_ = std::make_shared<const HalfCodec>(rank);
        set_analysis(directions);
        return;
    }
    if (rank > ScalarFormat::kMaxDim) {
        throw Error("latents of rank " + std::to_string(rank) +
                    " are kept in f16 only; give bits=16, or take ranks by head");
    }
    const auto scalar = std::make_shared<const ScalarCodec>(rank, bits, unbias);
    scalar_ = scalar.get();
    latents_ = scalar;
    std::vector<float> rotated(directions.size());
    const std::vector<size_t> places = balanced_places(rank);
    for (size_t i = 0; i < rank; ++i) {
        std::copy_n(&directions[i * width], width, &rotated[places[i] * width]);
    }
    scalar_->prepare(transposed(rotated.data(), rank, width).data(), width, 0, rank, rotated.data());
    synthesis_ = Synthesis(rotated, rank, width);
    // Rounded rows D are nearly orthonormal: to first order, what undoes them is 2 D - D D^T D.
    for (size_t j = 0; j < rank; ++j) {
        for (size_t i = 0; i < width; ++i) {
            rotated[j * width + i] = synthesis_.at(j, i);
        }
    }
    std::vector<float> product(rank * rank), twice(rotated.size());
    gemm_scores(rotated.data(), rank, width, transposed(rotated.data(), rank, width).data(), rank, product.data());
    gemm_scores(product.data(), rank, rank, rotated.data(), width, twice.data());
    std::ranges::transform(rotated, twice, rotated.begin(), [](float row, float again) { return 2 * row - again; });
    set_analysis(rotated);
}

/// rows: [rank, n_heads * dim].
void LatentSpace::set_analysis(std::span<const float> rows) {
    const size_t width = n_heads_ * dim_;
    analysis_.resize(rows.size());
    for (size_t i = 0; i < rank(); ++i) {
        for (size_t head = 0; head < n_heads_; ++head) {
            std::copy_n(&rows[i * width + head * dim_], dim_, &analysis_[(head * rank() + i) * dim_]);
        }
    }
}

size_t LatentSpace::fixed_bytes() const {
    return analysis_.size() * sizeof(float) + synthesis_.bytes() + latents_->fixed_bytes();
}

size_t LatentSpace::code_bytes(size_t rank, unsigned bits) {
    return bits == kHalfBits ? rank * sizeof(uint16_t) : ScalarCodec::bytes_of(rank, bits);
}

void LatentSpace::encode(const float* x, size_t n, std::byte* codes) const {
    const size_t columns = (n + 3) / 4 * 4;
    std::vector<float> of_head(dim_ * columns), share(rank() * columns), sum(rank() * columns);  // [.., columns]
    for (size_t head = 0; head < n_heads_; ++head) {
        for (size_t row = 0; row < n; ++row) {
            for (size_t i = 0; i < dim_; ++i) {
                of_head[i * columns + row] = x[(row * n_heads_ + head) * dim_ + i];
            }
        }
        gemm_scores(analysis(head), rank(), dim_, of_head.data(), columns, share.data());
        std::ranges::transform(sum, share, sum.begin(), std::plus<>());
    }
    std::vector<float> latents(columns * rank());
    latents_->finish(sum.data(), columns, 0, rank(), latents.data());
    latents_->encode(latents.data(), n, codes);
}

void LatentSpace::decode(size_t head, const std::byte* codes, size_t first, size_t n, float* x) const {
    if (scalar_ == nullptr) {
        std::vector<float> latents(n * rank());
        latents_->decode(codes, first, n, latents.data());
        gemm_scores(latents.data(), n, rank(), analysis(head), dim_, x);
        return;
    }
    static_assert(ScalarFormat::kMaxDim <= Synthesis::kMaxRows);
    constexpr size_t kChunk = 16;  // levels stay in the first-level cache
    alignas(64) std::array<int8_t, kChunk * ScalarFormat::kMaxDim> levels;
    std::array<float, kChunk> scale;
    for (size_t begin = 0; begin < n; begin += kChunk) {
        const size_t size = std::min(kChunk, n - begin);
        scalar_->unpack(codes, first + begin, size, levels.data(), scale.data());
        synthesis_.rebuild(levels.data(), scalar_->level_stride(), scale.data(), size, {head * dim_, dim_},
                           x + begin * dim_);
    }
}

void LatentSpace::prepare(size_t head, const float* q, size_t lanes, size_t begin, size_t end, float* table) const {
    if (scalar_ == nullptr) {
        gemm_scores(analysis(head) + begin * dim_, end - begin, dim_, transposed(q, lanes, dim_).data(), lanes,
                    table + begin * lanes);
    } else {
        synthesis_.prepare(q, lanes, begin, end, {head * dim_, dim_}, table);
    }
}

void LatentSpace::finish(size_t head, const float* acc, size_t lanes, size_t begin, size_t end, float* out) const {
    if (scalar_ != nullptr) {
        synthesis_.expand(acc, lanes, begin, end, {head * dim_, dim_}, out);
        return;
    }
    const size_t n = end - begin;
    std::vector<float> slice(rank() * n), sums(n * lanes);
    for (size_t i = 0; i < rank(); ++i) {
        std::copy_n(analysis(head) + i * dim_ + begin, n, &slice[i * n]);
    }
    gemm_values(slice.data(), rank(), n, acc, lanes, sums.data());
    for (size_t lane = 0; lane < lanes; ++lane) {
        for (size_t i = 0; i < n; ++i) {
            out[lane * dim_ + begin + i] += sums[i * lanes + lane];
        }
    }
}

LatentCodec::LatentCodec(std::shared_ptr<const LatentSpace> space, size_t head, bool before_rope)
    : shared_(std::move(space)), head_(head), before_rope_(before_rope) {}

std::string LatentCodec::describe() const {
    return "latents, rank " + std::to_string(shared_->rank()) +
           (shared_->n_heads() > 1 ? " of " + std::to_string(shared_->n_heads()) + " heads" : "") +
           (before_rope_ ? " before RoPE, " : ", ") + shared_->latents().describe();
}

}  // namespace kvcodec
