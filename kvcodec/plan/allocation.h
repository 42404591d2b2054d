// Who gets how many bytes: the best choice among ways to code many things within one budget.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace kvcodec {

/// One way to code something: what it takes and what is lost.
struct Offer {
    size_t bytes = 0;
    double loss = 0;
};

/// The index of one offer for each item, so that the sum of losses is least among choices from the items' lower convex
/// hulls (Shoham and Gersho 1988); what is then left of the budget goes to the items that gain most by it. Where even
/// the smallest offers exceed the budget: those. Every item needs an offer.
std::vector<size_t> allocate(std::span<const std::vector<Offer>> items, size_t budget);

}  // namespace kvcodec
