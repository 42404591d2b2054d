#include "tools/eval/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace kvcodec {

Estimate mean_of(std::span<const float> values) {
    if (values.empty()) {
        return {};
    }
    const auto n = static_cast<double>(values.size());
    const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
    double squares = 0;
    for (const double value : values) {
        squares += (value - mean) * (value - mean);
    }
    return {mean, values.size() < 2 ? 0.0 : std::sqrt(squares / (n - 1) / n)};
}

Estimate share_of(size_t n_true, size_t n) {
    if (n == 0) {
        return {};
    }
    const double share = static_cast<double>(n_true) / static_cast<double>(n);
    return {share, std::sqrt(share * (1 - share) / static_cast<double>(std::max<size_t>(n - 1, 1)))};
}

double quantile(std::vector<float> values, double q) {
    if (values.empty()) {
        return 0;
    }
    std::ranges::sort(values);
    const double at = q * static_cast<double>(values.size() - 1);
    const auto low = static_cast<size_t>(at);
    const size_t high = std::min(low + 1, values.size() - 1);
    return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

TokenDivergence divergence(const float* logits_p, const float* logits_q, size_t n_vocab, int32_t next) {
    const float* const top_p = std::max_element(logits_p, logits_p + n_vocab);
    const float* const top_q = std::max_element(logits_q, logits_q + n_vocab);
    // With u = p's logit - its maximum and w = q's: kld = sum e^u (u - w) / sum e^u - ln sum e^u + ln sum e^w.
    double sum_p = 0;
    double sum_q = 0;
    double cross = 0;
    for (size_t i = 0; i < n_vocab; ++i) {
        const float u = logits_p[i] - *top_p;
        const float w = logits_q[i] - *top_q;
        const float e = std::exp(u);
        sum_p += e;
        sum_q += std::exp(w);
        cross += static_cast<double>(e) * static_cast<double>(u - w);
    }
    const double log_p = std::log(sum_p);
    const double log_q = std::log(sum_q);
    TokenDivergence result;
    result.kld = static_cast<float>(cross / sum_p - log_p + log_q);
    result.same_top = top_p - logits_p == top_q - logits_q;
    result.nll_p = static_cast<float>(log_p - (logits_p[next] - *top_p));
    result.nll_q = static_cast<float>(log_q - (logits_q[next] - *top_q));
    return result;
}

void DivergenceSeries::add(const TokenDivergence& token) {
    kld.push_back(token.kld);
    nll_p.push_back(token.nll_p);
    nll_q.push_back(token.nll_q);
    n_same_top += token.same_top ? 1 : 0;
}

Estimate perplexity_ratio(const DivergenceSeries& series) {
    std::vector<float> differences(series.size());
    std::ranges::transform(series.nll_q, series.nll_p, differences.begin(), std::minus<>());
    const Estimate mean = mean_of(differences);
    const double ratio = std::exp(mean.value);
    return {ratio, ratio * mean.error};
}

Interval wilson_interval(size_t n_true, size_t n) {
    if (n == 0) {
        return {0, 1};
    }
    constexpr double kZ = 1.959963984540054;
    const auto count = static_cast<double>(n);
    const double share = static_cast<double>(n_true) / count;
    const double centre = (share + kZ * kZ / (2 * count)) / (1 + kZ * kZ / count);
    const double half =
        kZ / (1 + kZ * kZ / count) * std::sqrt(share * (1 - share) / count + kZ * kZ / (4 * count * count));
    return {std::max(0.0, centre - half), std::min(1.0, centre + half)};
}

double mcnemar_p(size_t only_a, size_t only_b) {
    const size_t n = only_a + only_b;
    const size_t fewer = std::min(only_a, only_b);
    const auto log_factorial = [](size_t i) { return std::lgamma(static_cast<double>(i) + 1); };
    double tail = 0;
    for (size_t i = 0; i <= fewer; ++i) {
        tail += std::exp(log_factorial(n) - log_factorial(i) - log_factorial(n - i) -
                         static_cast<double>(n) * std::log(2.0));
    }
    return std::min(1.0, 2 * tail);
}

Line fit_line(std::span<const double> x, std::span<const double> y) {
    const auto n = static_cast<double>(x.size());
    const double mean_x = std::accumulate(x.begin(), x.end(), 0.0) / n;
    const double mean_y = std::accumulate(y.begin(), y.end(), 0.0) / n;
    double xx = 0;
    double xy = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        xx += (x[i] - mean_x) * (x[i] - mean_x);
        xy += (x[i] - mean_x) * (y[i] - mean_y);
    }
    const double slope = xx > 0 ? xy / xx : 0.0;
    return {mean_y - slope * mean_x, slope};
}

}  // namespace kvcodec
