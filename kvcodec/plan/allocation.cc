#include "kvcodec/plan/allocation.h"

#include <algorithm>
#include <numeric>
#include <queue>

namespace kvcodec {

namespace {

// Loss saved by a byte between two offers.
double slope(const Offer& small, const Offer& large) {
    return (small.loss - large.loss) / static_cast<double>(large.bytes - small.bytes);
}

// Indices of the offers on the lower convex hull, by bytes: each step saves less by a byte than the one before.
std::vector<size_t> lower_hull(const std::vector<Offer>& offers) {
    std::vector<size_t> order(offers.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::sort(order, [&](size_t a, size_t b) {
        return offers[a].bytes != offers[b].bytes ? offers[a].bytes < offers[b].bytes : offers[a].loss < offers[b].loss;
    });
    std::vector<size_t> hull;
    for (const size_t i : order) {
        if (!hull.empty() && offers[i].loss >= offers[hull.back()].loss) {
            continue;
        }
        while (hull.size() >= 2 &&
               slope(offers[hull[hull.size() - 2]], offers[hull.back()]) <= slope(offers[hull.back()], offers[i])) {
            hull.pop_back();
        }
        hull.push_back(i);
    }
    return hull;
}

}  // namespace

std::vector<size_t> allocate(std::span<const std::vector<Offer>> items, size_t budget) {
    struct Step {
        double saved_by_byte = 0;
        size_t item = 0;
        size_t to = 0;  // in the item's hull
        bool operator<(const Step& other) const { return saved_by_byte < other.saved_by_byte; }
    };
    std::vector<std::vector<size_t>> hulls;
    std::vector<size_t> chosen;
    std::priority_queue<Step> steps;
    size_t bytes = 0;
    const auto push = [&](size_t item, size_t to) {
        if (to < hulls[item].size()) {
            steps.push({slope(items[item][hulls[item][to - 1]], items[item][hulls[item][to]]), item, to});
        }
    };
    for (const std::vector<Offer>& offers : items) {
        hulls.push_back(lower_hull(offers));
        chosen.push_back(hulls.back().front());
        bytes += offers[chosen.back()].bytes;
        push(hulls.size() - 1, 1);
    }
    while (!steps.empty()) {
        const Step step = steps.top();
        steps.pop();
        const std::vector<Offer>& offers = items[step.item];
        const size_t to = hulls[step.item][step.to];
        const size_t more = offers[to].bytes - offers[chosen[step.item]].bytes;
        if (bytes + more <= budget) {
            bytes += more;
            chosen[step.item] = to;
            push(step.item, step.to + 1);
        }
    }
    return chosen;
}

}  // namespace kvcodec
