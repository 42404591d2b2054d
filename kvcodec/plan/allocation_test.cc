#include "kvcodec/plan/allocation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace kvcodec {
namespace {

struct Sum {
    size_t bytes = 0;
    double loss = 0;
};

Sum sum_of(const std::vector<std::vector<Offer>>& items, const std::vector<size_t>& chosen) {
    Sum sum;
    for (size_t i = 0; i < items.size(); ++i) {
        sum.bytes += items[i].at(chosen[i]).bytes;
        sum.loss += items[i][chosen[i]].loss;
    }
    return sum;
}

// The least loss within the budget, by trying everything.
double best_loss(const std::vector<std::vector<Offer>>& items, size_t budget, size_t first = 0) {
    if (first == items.size()) {
        return 0;
    }
    double best = std::numeric_limits<double>::infinity();
    for (const Offer& offer : items[first]) {
        if (offer.bytes <= budget) {
            best = std::min(best, offer.loss + best_loss(items, budget - offer.bytes, first + 1));
        }
    }
    return best;
}

TEST(Allocation, GivesBytesToWhoeverLosesMostWithoutThem) {
    const std::vector<Offer> offers = {{2, 1.0}, {4, 0.25}, {6, 0.06}};
    std::vector<Offer> fragile = offers;
    for (Offer& offer : fragile) {
        offer.loss *= 10;
    }
    EXPECT_EQ(allocate(std::vector{offers, fragile}, 8), (std::vector<size_t>{0, 2}));
    EXPECT_EQ(allocate(std::vector{offers, fragile}, 9), (std::vector<size_t>{0, 2}));
    EXPECT_EQ(allocate(std::vector{offers, fragile}, 10), (std::vector<size_t>{1, 2}));
    EXPECT_EQ(allocate(std::vector{offers, fragile}, 1000), (std::vector<size_t>{2, 2}));
}

TEST(Allocation, TakesTheSmallestOffersWhereTheBudgetIsTooSmall) {
    EXPECT_EQ(allocate(std::vector<std::vector<Offer>>{{{5, 1}, {3, 2}}, {{9, 0}}}, 2), (std::vector<size_t>{1, 0}));
    EXPECT_TRUE(allocate({}, 10).empty());
}

TEST(Allocation, LeavesOutOffersThatAreNoUse) {
    // More bytes for more loss; as many bytes for more; above the line between its neighbours.
    const std::vector<std::vector<Offer>> items = {{{2, 1}, {3, 1.5}, {4, 0.9}, {2, 2}, {6, 0}}};
    EXPECT_EQ(allocate(items, 3), std::vector<size_t>{0});
    EXPECT_EQ(allocate(items, 6), std::vector<size_t>{4});
}

TEST(Allocation, IsCloseToTheBestOfAll) {
    std::mt19937 random(1);
    std::uniform_real_distribution<double> weight(0.1, 10.0);
    for (size_t round = 0; round < 200; ++round) {
        std::vector<std::vector<Offer>> items(2 + random() % 4);
        double widest = 0;
        for (std::vector<Offer>& offers : items) {
            const double w = weight(random);
            for (size_t bits = 1; bits <= 4; ++bits) {
                offers.push_back({bits * 4 + random() % 3, w * std::pow(4.0, -static_cast<double>(bits))});
            }
            widest = std::max(widest, offers.front().loss - offers.back().loss);
        }
        const size_t budget = items.size() * (6 + random() % 14);
        const std::vector<size_t> chosen = allocate(items, budget);
        const double best = best_loss(items, budget);
        if (best == std::numeric_limits<double>::infinity()) {
            continue;
        }
        const Sum sum = sum_of(items, chosen);
        EXPECT_LE(sum.bytes, budget);
        EXPECT_GE(sum.loss, best - 1e-12);
        EXPECT_LE(sum.loss, best + widest);  // the choice misses by less than one item's step
    }
}

}  // namespace
}  // namespace kvcodec
