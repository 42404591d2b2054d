#include "kvcodec/codec/baseline/turboquant_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "kvcodec/error.h"
#include "kvcodec/half.h"

namespace kvcodec {
namespace {

/// The density of |x|, not normalised, for one coordinate x of a random unit vector.
class SphereDensity {
  public:
    explicit SphereDensity(size_t dim) : exponent_((static_cast<double>(dim) - 3) / 2), mass_(kSteps + 1) {
        for (size_t i = 0; i < kSteps; ++i) {
            const double middle = (static_cast<double>(i) + 0.5) / kSteps;
            mass_[i + 1] = mass_[i] + std::pow(1 - middle * middle, exponent_) / kSteps;
        }
    }

    /// Integral of the density over [0, x].
    double mass(double x) const {
        const double at = x * kSteps;
        const size_t i = std::min(static_cast<size_t>(at), kSteps - 1);
        return std::lerp(mass_[i], mass_[i + 1], at - static_cast<double>(i));
    }
    /// Where mass() is this share of the whole.
    double quantile(double share) const {
        const auto it = std::ranges::lower_bound(mass_, share * mass_.back());
        return static_cast<double>(it - mass_.begin()) / kSteps;
    }
    /// Mean over [low, high].
    double centroid(double low, double high) const {
        const auto tail = [&](double x) { return std::pow(1 - x * x, exponent_ + 1) / (2 * (exponent_ + 1)); };
        return (tail(low) - tail(high)) / (mass(high) - mass(low));
    }

  private:
    static constexpr size_t kSteps = size_t{1} << 16;
    double exponent_;
    std::vector<double> mass_;
};

/// Rows [dim, dim] of a random orthogonal matrix: Gram-Schmidt on Gaussian rows, done twice for the sake of rounding.
std::vector<float> random_rotation(size_t dim) {
    std::mt19937_64 rng(0x7471);
    std::normal_distribution<double> normal;
    std::vector<double> rows(dim * dim);
    std::ranges::generate(rows, [&] { return normal(rng); });
    for (size_t i = 0; i < dim; ++i) {
        double* row = &rows[i * dim];
        for (size_t before = 0; before < 2 * i; ++before) {
            const double* other = &rows[before % i * dim];
            const double product = std::inner_product(row, row + dim, other, 0.0);
            for (size_t j = 0; j < dim; ++j) {
                row[j] -= product * other[j];
            }
        }
        const double norm = std::sqrt(std::inner_product(row, row + dim, row, 0.0));
        std::transform(row, row + dim, row, [&](double v) { return v / norm; });
    }
    return {rows.begin(), rows.end()};
}

/// out = sum of weights[i] * rows[i].
void combine(const std::vector<float>& rows, const std::vector<float>& weights, float* out) {
    const size_t dim = weights.size();
    std::fill_n(out, dim, 0.0F);
    for (size_t i = 0; i < dim; ++i) {
        const float* row = &rows[i * dim];
        for (size_t j = 0; j < dim; ++j) {
            out[j] += weights[i] * row[j];
        }
    }
}

}  // namespace

std::vector<float> sphere_levels(size_t dim, unsigned bits) {
    constexpr int kMostIterations = 20'000;
    constexpr double kSettled = 1e-10;
    const SphereDensity density(dim);
    // The density is even and log-concave, so the best quantiser is unique and symmetric: half of it is enough.
    std::vector<double> level(size_t{1} << (bits - 1));
    for (size_t i = 0; i < level.size(); ++i) {
        level[i] = density.quantile((static_cast<double>(i) + 0.5) / static_cast<double>(level.size()));
    }
    double change = 1;
    for (int iteration = 0; iteration < kMostIterations && change > kSettled; ++iteration) {
        change = 0;
        double low = 0;
        for (size_t i = 0; i < level.size(); ++i) {
            const double high = i + 1 < level.size() ? (level[i] + level[i + 1]) / 2 : 1;
            const double moved = density.centroid(low, high);
            change = std::max(change, std::abs(moved - level[i]));
            level[i] = moved;
            low = high;
        }
    }
    std::vector<float> levels(level.rbegin(), level.rend());
    std::ranges::transform(levels, levels.begin(), std::negate<>());
    levels.insert(levels.end(), level.begin(), level.end());
    return levels;
}

TurboQuantCodec::TurboQuantCodec(size_t dim, unsigned bits) : BaselineCodec(dim, bits) {
    if (bits < 1 || bits > 4) {
        throw Error(fmt::format("the turboquant codec has 1 to 4 bits an element, not {}", bits));
    }
    if (dim < 3) {
        throw Error(fmt::format("the turboquant codec needs a head size of at least 3, not {}", dim));
    }
    rotation_ = random_rotation(dim);
    transposed_.resize(dim * dim);
    for (size_t i = 0; i < dim; ++i) {
        for (size_t j = 0; j < dim; ++j) {
            transposed_[j * dim + i] = rotation_[i * dim + j];
        }
    }
    levels_ = sphere_levels(dim, bits);
    for (size_t i = 0; i + 1 < levels_.size(); ++i) {
        thresholds_.push_back((levels_[i] + levels_[i + 1]) / 2);
    }
}

std::string TurboQuantCodec::describe() const {
    return fmt::format("TurboQuant-mse {} bits", bits());
}

size_t TurboQuantCodec::fixed_bytes() const {
    return (rotation_.size() + transposed_.size() + levels_.size() + thresholds_.size()) * sizeof(float);
}

void TurboQuantCodec::encode(const float* x, size_t n, std::byte* codes) const {
    std::vector<float> unit(dim());
    std::vector<float> y(dim());
    std::vector<uint8_t> index(dim());
    for (size_t row = 0; row < n; ++row, x += dim(), codes += code_bytes()) {
        std::transform(x, x + dim(), unit.begin(), to_finite_half_range);
        const double norm = std::sqrt(std::inner_product(unit.begin(), unit.end(), unit.begin(), 0.0));
        const uint16_t half_norm = float_to_half(to_finite_half_range(static_cast<float>(norm)));
        if (norm > 0) {
            std::ranges::transform(unit, unit.begin(), [&](float v) { return static_cast<float>(v / norm); });
        }
        combine(transposed_, unit, y.data());
        std::ranges::transform(y, index.begin(), [&](float v) {
            return static_cast<uint8_t>(std::ranges::upper_bound(thresholds_, v) - thresholds_.begin());
        });
        std::memcpy(codes, &half_norm, sizeof half_norm);
        pack_indices(index.data(), dim(), bits(), codes + sizeof half_norm);
    }
}

void TurboQuantCodec::decode(const std::byte* codes, size_t first, size_t n, float* x) const {
    std::vector<float> y(dim());
    std::vector<uint8_t> index(dim());
    codes += first * code_bytes();
    for (size_t row = 0; row < n; ++row, x += dim(), codes += code_bytes()) {
        uint16_t half_norm = 0;
        std::memcpy(&half_norm, codes, sizeof half_norm);
        const float norm = half_to_float(half_norm);
        unpack_indices(codes + sizeof half_norm, dim(), bits(), index.data());
        std::ranges::transform(index, y.begin(), [&](uint8_t i) { return norm * levels_[i]; });
        combine(rotation_, y, x);
    }
}

}  // namespace kvcodec
