#include "kvcodec/evict/evictor.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>

#include "kvcodec/evict/attention_mass.h"
#include "kvcodec/evict/eviction_policy.h"

namespace kvcodec {

Evictor::Evictor(const EvictionSettings& settings, const LayerGeometry& geometry)
    : settings_(settings), geometry_(geometry), decided_(geometry.n_cells) {
    if (settings.method == EvictionSettings::Method::kH2o) {
        mass_.resize(geometry.n_head_kv * geometry.n_cells);
    }
}

// The order of positions is the order of age; a model that rotates no keys tells none, and its cells count as written
// one after the other. Cells that a saved state brought back empty have no place in that order: they come first, and
// only count.
void Evictor::find_cells(const LayerStore& store, const AttentionCall& call) {
    constexpr uint16_t kHalfMinusInfinity = 0xFC00;
    const uint16_t* mask = call.mask == nullptr ? nullptr : call.mask + (call.n_tokens - 1) * call.mask_stride;
    const auto position = [&](uint32_t cell) { return call.positions == nullptr ? -1 : call.positions[cell]; };
    const auto age = [&](uint32_t cell) {
        return position(cell) >= 0 ? static_cast<size_t>(position(cell)) : cell - call.first_cell;
    };
    cells_.clear();
    for (size_t i = 0; i < call.n_cells; ++i) {
        const size_t cell = call.first_cell + i;
        if ((mask == nullptr || mask[i] != kHalfMinusInfinity) && (store.is_whole(cell) || store.is_emptied(cell))) {
            cells_.push_back(static_cast<uint32_t>(cell));
        }
    }
    const bool told = std::any_of(cells_.begin(), cells_.end(), [&](uint32_t cell) { return position(cell) >= 0; });
    const auto placed = std::stable_partition(cells_.begin(), cells_.end(), [&](uint32_t cell) {
        return told && store.is_emptied(cell) && position(cell) < 0;
    });
    std::stable_sort(placed, cells_.end(), [&](uint32_t a, uint32_t b) { return age(a) < age(b); });
    const auto first = std::find_if(placed, cells_.end(), [&](uint32_t cell) { return age(cell) >= settings_.sinks; });
    n_unplaced_ = static_cast<size_t>(placed - cells_.begin());
    n_sinks_ = static_cast<size_t>(first - placed);
}

size_t Evictor::capacity() const {
    const size_t mean = capacity_of(settings_.budget, cells_.size());
    return settings_.method == EvictionSettings::Method::kPyramidKv
               ? pyramidkv_capacity(mean, cells_.size(), kObservationWindow, settings_.layer, settings_.n_layers)
               : mean;
}

std::span<const uint32_t> Evictor::observe(LayerStore& store, const AttentionCall& call, Team& team) {
    const bool h2o = settings_.method == EvictionSettings::Method::kH2o;
    if (call.n_cells == 0 || (!h2o && call.n_tokens < kObservationWindow)) {
        return {};
    }
    const size_t stride = h2o ? geometry_.n_cells : call.n_cells;
    if (!h2o) {
        mass_.assign(geometry_.n_head_kv * stride, 0.0F);
    }
    float* mass = mass_.data() + (h2o ? call.first_cell : 0);
    add_attention_mass(store, call, h2o ? 0 : call.n_tokens - kObservationWindow, mass, stride, team);

    find_cells(store, call);
    const auto undecided =
        std::count_if(cells_.begin(), cells_.end(), [&](uint32_t cell) { return decided_[cell] == 0; });
    if (h2o && static_cast<size_t>(undecided) < kCellsBetweenDecisions) {
        return {};
    }
    const std::span<const uint32_t> placed = std::span(cells_).subspan(n_unplaced_);
    std::vector<std::vector<uint32_t>> evicted(geometry_.n_head_kv);
    std::atomic<size_t> next = 0;
    team.run([&](size_t) {
        std::vector<float> received(placed.size());
        std::vector<uint8_t> kept(placed.size());
        for (size_t head = next++; head < geometry_.n_head_kv; head = next++) {
            for (size_t i = 0; i < placed.size(); ++i) {
                received[i] = mass[head * stride + placed[i] - call.first_cell];
                kept[i] = store.is_evicted(placed[i], head) ? 0 : 1;
            }
            const HeadCells cells{received, kept, n_sinks_};
            evicted[head] =
                h2o ? evicted_by_h2o(cells, capacity()) : evicted_by_snapkv(cells, kObservationWindow, capacity());
        }
    });
    for (size_t head = 0; head < geometry_.n_head_kv; ++head) {
        for (const uint32_t i : evicted[head]) {
            store.evict(placed[i], head);
        }
    }
    store.trim();
    for (const uint32_t cell : cells_) {
        decided_[cell] = 1;
    }
    return cells_;
}

void Evictor::forget(size_t cell) {
    decided_[cell] = 0;
    for (size_t at = cell; at < mass_.size() && settings_.method == EvictionSettings::Method::kH2o;
         at += geometry_.n_cells) {
        mass_[at] = 0;
    }
}

void Evictor::copy_cell(size_t from, size_t to) {
    decided_[to] = decided_[from];
    for (size_t first = 0; first < mass_.size() && settings_.method == EvictionSettings::Method::kH2o;
         first += geometry_.n_cells) {
        mass_[first + to] = mass_[first + from];
    }
}

void Evictor::clear() {
    std::fill(decided_.begin(), decided_.end(), uint8_t{0});
    std::fill(mass_.begin(), mass_.end(), 0.0F);
}

Evictor::Rows Evictor::rows(const LayerStore& store) const {
    Rows rows;
    for (size_t cell = 0; cell < decided_.size(); ++cell) {
        for (size_t head = 0; decided_[cell] != 0 && head < geometry_.n_head_kv; ++head) {
            ++rows.decided;
            rows.kept += store.is_evicted(cell, head) ? 0 : 1;
        }
    }
    return rows;
}

double Evictor::share(const LayerStore& store) const {
    const Rows counted = rows(store);
    return counted.decided == 0 ? settings_.budget
                                : static_cast<double>(counted.kept) / static_cast<double>(counted.decided);
}

std::string Evictor::describe() const {
    constexpr const char* kNames[] = {"h2o", "snapkv", "pyramidkv"};
    return fmt::format("{}, {:.4g} % of rows kept", kNames[static_cast<size_t>(settings_.method)],
                       100 * settings_.budget);
}

size_t Evictor::resident_bytes() const {
    return mass_.size() * sizeof(float) + decided_.size() + cells_.capacity() * sizeof(uint32_t);
}

}  // namespace kvcodec
