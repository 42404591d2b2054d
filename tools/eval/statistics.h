// The arithmetic behind every number of an evaluation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvcodec {

/// A number and its standard error.
struct Estimate {
    double value = 0;
    double error = 0;
};

/// Mean of independent values; error 0 for fewer than two.
Estimate mean_of(std::span<const float> values);
/// Share of trues, with the binomial standard error.
Estimate share_of(size_t n_true, size_t n);
/// The q-quantile (0 to 1) by linear interpolation; 0 for no values.
double quantile(std::vector<float> values, double q);

/// One prediction of two models: of the reference p and of what is measured q, over one vocabulary.
struct TokenDivergence {
    float kld = 0;  ///< sum p (ln p - ln q), >= 0 up to rounding
    bool same_top = false;
    float nll_p = 0;  ///< -ln p(next token)
    float nll_q = 0;
};

/// Logits [n_vocab] of both; `next`: the token that followed.
TokenDivergence divergence(const float* logits_p, const float* logits_q, size_t n_vocab, int32_t next);

/// Predictions gathered one by one.
struct DivergenceSeries {
    std::vector<float> kld;
    std::vector<float> nll_p;
    std::vector<float> nll_q;
    size_t n_same_top = 0;

    void add(const TokenDivergence& token);
    size_t size() const { return kld.size(); }
};

/// exp(mean nll_q - mean nll_p), the ratio of perplexities, with the error of paired differences.
Estimate perplexity_ratio(const DivergenceSeries& series);

/// Wilson's 95 % interval of a share.
struct Interval {
    double low = 0;
    double high = 0;
};
Interval wilson_interval(size_t n_true, size_t n);

/// McNemar's exact two-sided test: the probability that `only_a` against `only_b` discordant pairs, or a more uneven
/// split, arises when both are equally good.
double mcnemar_p(size_t only_a, size_t only_b);

/// y = intercept + slope * x by least squares; needs two different x.
struct Line {
    double intercept = 0;
    double slope = 0;
};
Line fit_line(std::span<const double> x, std::span<const double> y);

}  // namespace kvcodec
