// Rotary position embedding as ggml's ROPE computes it: the rotation R_t that a key at position t went through.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvcodec {

/// Parameters of a ROPE (fields as in ggml's op_params; see ggml_rope_ext).
struct RopeParams {
    enum class Pairing : uint8_t {
        kNone,      ///< no rotation at all
        kAdjacent,  ///< pairs (2i, 2i+1): ggml mode 0, "norm"
        kHalves,    ///< pairs (i, i + n_dims/2): ggml mode 2, "neox"
    };
    Pairing pairing = Pairing::kNone;
    uint32_t n_dims = 0;  ///< rotated leading dimensions; the rest pass through
    uint32_t n_ctx_orig = 0;
    float freq_base = 10000.0F;
    float freq_scale = 1.0F;
    float ext_factor = 0.0F;
    float attn_factor = 1.0F;
    float beta_fast = 32.0F;
    float beta_slow = 1.0F;
    std::vector<float> freq_factors;  ///< [n_dims/2] or empty

    bool operator==(const RopeParams&) const = default;
};

/// R_t for any t. Angles are linear in t, so R_t is a table of angular frequencies and one magnitude.
class Rope {
  public:
    Rope() = default;
    Rope(const RopeParams& params, size_t head_dim);

    const RopeParams& params() const { return params_; }
    size_t head_dim() const { return head_dim_; }
    size_t n_pairs() const { return omega_.size(); }
    bool rotates() const { return !omega_.empty(); }
    /// Angle per position of pair i, radians.
    double omega(size_t i) const { return omega_[i]; }
    /// Elements of pair i.
    size_t first(size_t i) const { return params_.pairing == RopeParams::Pairing::kAdjacent ? 2 * i : i; }
    size_t second(size_t i) const {
        return params_.pairing == RopeParams::Pairing::kAdjacent ? 2 * i + 1 : i + omega_.size();
    }
    /// Factor that the rotation applies to the rotated elements (YaRN); 1 for plain RoPE.
    float magnitude() const { return magnitude_; }

    /// x [head_dim] <- R_t x in place, magnitude included.
    void rotate(float* x, int64_t t) const;
    /// x [head_dim] <- R_t^-1 x in place, magnitude included.
    void unrotate(float* x, int64_t t) const;
    /// x [n, head_dim] <- rotation by t without the magnitude: moves n rotated keys by t positions.
    void shift(float* x, int64_t t, size_t n = 1) const;

  private:
    void turn(float* x, int64_t t, float factor, size_t n = 1) const;

    RopeParams params_;
    size_t head_dim_ = 0;
    std::vector<double> omega_;
    float magnitude_ = 1.0F;
};

}  // namespace kvcodec
