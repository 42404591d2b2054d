#include "kvcodec/codec/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "kvcodec/error.h"

namespace kvcodec {
namespace {

/// Pair index at which a wave turns `turns` times over the original context (YaRN, arXiv 2309.00071, section 3.2).
/// In float like the host, because the result is rounded to a whole pair.
float yarn_correction_pair(const RopeParams& p, float turns) {
    const float wavelength_ratio = static_cast<float>(p.n_ctx_orig) / (turns * 2.0F * std::numbers::pi_v<float>);
    return static_cast<float>(p.n_dims) * std::log(wavelength_ratio) / (2.0F * std::log(p.freq_base));
}

/// Share of the unscaled frequency in each pair's YaRN mix, [n_dims/2].
std::vector<double> yarn_mix(const RopeParams& p) {
    const float low = std::max(0.0F, std::floor(yarn_correction_pair(p, p.beta_fast)));
    const float high = std::min(static_cast<float>(p.n_dims) - 1.0F, std::ceil(yarn_correction_pair(p, p.beta_slow)));
    std::vector<double> mix(p.n_dims / 2);
    for (size_t i = 0; i < mix.size(); ++i) {
        const double ramp = (static_cast<double>(i) - low) / std::max(0.001F, high - low);
        mix[i] = (1.0 - std::clamp(ramp, 0.0, 1.0)) * p.ext_factor;
    }
    return mix;
}

void validate(const RopeParams& p, size_t head_dim) {
    if (p.n_dims == 0 || p.n_dims % 2 != 0 || p.n_dims > head_dim) {
        throw Error("RoPE over " + std::to_string(p.n_dims) + " dimensions does not fit a head of " +
                    std::to_string(head_dim));
    }
    if (!p.freq_factors.empty() && p.freq_factors.size() < p.n_dims / 2) {
        throw Error("RoPE needs " + std::to_string(p.n_dims / 2) + " frequency factors, got " +
                    std::to_string(p.freq_factors.size()));
    }
}

}  // namespace

Rope::Rope(const RopeParams& params, size_t head_dim) : params_(params), head_dim_(head_dim) {
    if (params_.pairing == RopeParams::Pairing::kNone) {
        return;
    }
    validate(params_, head_dim_);
    const bool yarn = params_.ext_factor != 0.0F;
    const std::vector<double> mix = yarn ? yarn_mix(params_) : std::vector<double>(params_.n_dims / 2, 0.0);
    // The host rounds this ratio to float and then multiplies by it pair after pair. At position 131072 the rounding
    // alone is several milliradians, so the powers are taken of the rounded ratio.
    const double ratio = std::pow(params_.freq_base, -2.0F / static_cast<float>(params_.n_dims));
    omega_.resize(params_.n_dims / 2);
    for (size_t i = 0; i < omega_.size(); ++i) {
        const double factor = params_.freq_factors.empty() ? 1.0 : params_.freq_factors[i];
        const double unscaled = std::pow(ratio, static_cast<double>(i)) / factor;
        omega_[i] = unscaled * (params_.freq_scale * (1.0 - mix[i]) + mix[i]);
    }
    magnitude_ = params_.attn_factor * (yarn ? 1.0F + 0.1F * std::log(1.0F / params_.freq_scale) : 1.0F);
    const bool finite = std::all_of(omega_.begin(), omega_.end(), [](double w) { return std::isfinite(w); });
    if (!finite || !std::isfinite(magnitude_) || magnitude_ == 0.0F) {
        throw Error("RoPE parameters give no finite rotation: check frequency base, scale and factors");
    }
}

void Rope::rotate(float* x, int64_t t) const {
    turn(x, t, magnitude_);
}

void Rope::unrotate(float* x, int64_t t) const {
    turn(x, -t, 1.0F / magnitude_);
}

void Rope::shift(float* x, int64_t t, size_t n) const {
    turn(x, t, 1.0F, n);
}

void Rope::turn(float* x, int64_t t, float factor, size_t n) const {
    for (size_t i = 0; i < omega_.size(); ++i) {
        const double angle = omega_[i] * static_cast<double>(t);
        const double c = std::cos(angle) * factor;
        const double s = std::sin(angle) * factor;
        for (float* row = x; row != x + n * head_dim_; row += head_dim_) {
            const double x0 = row[first(i)];
            const double x1 = row[second(i)];
            row[first(i)] = static_cast<float>(x0 * c - x1 * s);
            row[second(i)] = static_cast<float>(x0 * s + x1 * c);
        }
    }
}

}  // namespace kvcodec
