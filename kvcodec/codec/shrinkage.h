// Why codes are decoded a little larger than their squared error asks for.
#pragma once

#include <cmath>

namespace kvcodec {

/// A code of least squared error shrinks: it returns 1 - loss of what it was given, plus noise that has nothing to do
/// with it (the centroid condition of Max 1960; the orthogonal residual of a pursuit). Attention adds up many values:
/// there noise averages out and shrinkage stays. For keys it makes scores smaller, so that attention is spread wider.
/// `unbias` says how much of the shrinkage is undone: 0 nothing, 1 all. What serves best was measured as KL divergence
/// (docs/results/shrinkage.md).
constexpr float kUnbiasOfKeys = 0.5F;
constexpr float kUnbiasOfValues = 1.0F;

/// What decoded vectors are multiplied by; loss: expected share of their energy, below 1.
inline float unbias_gain(double loss, float unbias) {
    return static_cast<float>(std::pow(1.0 - loss, -static_cast<double>(unbias)));
}

}  // namespace kvcodec
