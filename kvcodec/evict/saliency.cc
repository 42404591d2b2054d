#include "kvcodec/evict/saliency.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kvcodec/evict/attention_mass.h"

namespace kvcodec {

std::vector<size_t> probe_tokens(size_t n_tokens, std::mt19937& rng) {
    constexpr size_t kPart = 20;
    const size_t n = n_tokens / kPart;
    const size_t n_older = n_tokens - std::max<size_t>(n, 1);
    std::vector<size_t> older(n_older);
    std::iota(older.begin(), older.end(), size_t{0});
    std::vector<size_t> tokens(n_tokens - n_older);
    std::iota(tokens.begin(), tokens.end(), n_older);
    std::sample(older.begin(), older.end(), std::back_inserter(tokens), n, rng);
    return tokens;
}

std::vector<float> normalized_attention(const LayerStore& store, const AttentionCall& call,
                                        std::span<const size_t> tokens, Team& team) {
    constexpr uint16_t kHalfMinusInfinity = 0xFC00;
    const LayerGeometry& geometry = store.geometry();
    // The probes alone, as a call of their own.
    std::vector<float> q(call.n_head * tokens.size() * geometry.dim_k);
    std::vector<uint16_t> mask(call.mask == nullptr ? 0 : tokens.size() * call.n_cells);
    AttentionCall probes = call;
    probes.q = q.data();
    probes.q_token_stride = geometry.dim_k;
    probes.q_head_stride = tokens.size() * geometry.dim_k;
    probes.n_tokens = tokens.size();
    probes.mask = call.mask == nullptr ? nullptr : mask.data();
    probes.mask_stride = call.n_cells;
    for (size_t i = 0; i < tokens.size(); ++i) {
        for (size_t head = 0; head < call.n_head; ++head) {
            std::copy_n(call.q + head * call.q_head_stride + tokens[i] * call.q_token_stride, geometry.dim_k,
                        &q[head * probes.q_head_stride + i * geometry.dim_k]);
        }
        if (call.mask != nullptr) {
            std::copy_n(call.mask + tokens[i] * call.mask_stride, call.n_cells, &mask[i * call.n_cells]);
        }
    }
    std::vector<float> received(geometry.n_head_kv * call.n_cells);
    add_attention_mass(store, probes, 0, received.data(), call.n_cells, team);
    for (size_t cell = 0; cell < call.n_cells; ++cell) {
        size_t n_seeing = tokens.size();
        for (size_t at = cell; at < mask.size(); at += call.n_cells) {
            n_seeing -= mask[at] == kHalfMinusInfinity ? 1 : 0;
        }
        for (size_t at = cell; n_seeing != 0 && at < received.size(); at += call.n_cells) {
            received[at] /= static_cast<float>(n_seeing);
        }
    }
    return received;
}

std::vector<uint8_t> SalientRows::choose(const LayerStore& store, std::span<const AttentionCall> calls,
                                         std::span<const uint32_t> cells, Team& team) {
    constexpr double kRounding = 1e-9;
    const size_t n_heads = store.geometry().n_head_kv;
    std::vector<float> saliency(n_heads * cells.size());
    for (const AttentionCall& call : calls) {
        const auto is_inside = [&](uint32_t cell) {
            return cell >= call.first_cell && cell < call.first_cell + call.n_cells;
        };
        if (std::none_of(cells.begin(), cells.end(), is_inside)) {
            continue;
        }
        const std::vector<float> received = normalized_attention(store, call, probe_tokens(call.n_tokens, rng_), team);
        for (size_t i = 0; i < saliency.size(); ++i) {
            const uint32_t cell = cells[i % cells.size()];
            if (is_inside(cell)) {
                saliency[i] = received[i / cells.size() * call.n_cells + cell - call.first_cell];
            }
        }
    }
    owed_ += share_ * static_cast<double>(cells.size());
    const double n_salient = std::floor(owed_ + kRounding);
    owed_ -= n_salient;
    std::vector<uint8_t> salient(saliency.size());
    std::vector<uint32_t> order(cells.size());
    for (size_t first = 0; first < saliency.size(); first += cells.size()) {
        std::iota(order.begin(), order.end(), 0U);
        const auto last = order.begin() + static_cast<std::ptrdiff_t>(n_salient);
        std::nth_element(order.begin(), last, order.end(), [&](uint32_t a, uint32_t b) {
            return saliency[first + a] > saliency[first + b] || (saliency[first + a] == saliency[first + b] && a < b);
        });
        std::for_each(order.begin(), last, [&](uint32_t i) { salient[first + i] = 1; });
    }
    return salient;
}

}  // namespace kvcodec
