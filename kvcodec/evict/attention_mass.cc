#include "kvcodec/evict/attention_mass.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "kvcodec/attend/gemm.h"
#include "kvcodec/attend/softmax.h"
#include "kvcodec/attend/tile.h"

namespace kvcodec {
namespace {

constexpr size_t kBlock = LayerStore::kBlock;

// Queries of one KV head and some tokens, and their softmax.
struct Tile {
    Lanes lanes;
    size_t head;
    std::vector<float> q;       // [dim_k, lanes], scaled
    std::vector<float> max;     // [lanes] largest score
    std::vector<float> weight;  // [lanes] 1 / sum of exp(score - max); 0 for lanes that see nothing and for padding
};

// What one thread needs to go through blocks.
struct Scratch {
    Scratch(size_t lanes, size_t dim)
        : bias(kBlock * lanes), s(kBlock * lanes), rows(kBlock * dim), max(lanes), sum(lanes), correction(lanes) {}
    std::vector<float> bias;
    std::vector<float> s;  // [rows, lanes]
    std::vector<float> rows;
    std::vector<float> max;
    std::vector<float> sum;
    std::vector<float> correction;
};

Tile make_tile(const AttentionCall& call, size_t head, size_t group, size_t first_token, size_t n_tokens,
               size_t dim_k) {
    const size_t lanes = pad_lanes(group * n_tokens);
    Tile tile{{head * group, group, first_token, n_tokens, lanes},
              head,
              std::vector<float>(dim_k * lanes),
              std::vector<float>(lanes),
              std::vector<float>(lanes)};
    for (size_t lane = 0; lane < tile.lanes.count(); ++lane) {
        const float* from = tile.lanes.q(call, lane);
        for (size_t i = 0; i < dim_k; ++i) {
            tile.q[i * lanes + lane] = from[i] * call.scale;
        }
    }
    return tile;
}

// Scores [rows, lanes] of the cells [first, first + kBlock) that the tile sees, in scratch.s; their rows in the block.
std::span<const uint16_t> score_block(const LayerStore& store, const AttentionCall& call, const Tile& tile,
                                      size_t first, BlockMask& mask, Scratch& scratch) {
    const size_t block = (call.first_cell + first) / kBlock;
    if (!mask.look(first, std::min(kBlock, call.n_cells - first), store.evicted_rows(block, tile.head))) {
        return {};
    }
    const std::span<const uint16_t> rows = mask.rows();
    const size_t lanes = tile.lanes.padded;
    store.gather(Side::kK, block, tile.head, rows, call.positions, scratch.rows.data());
    gemm_scores(scratch.rows.data(), rows.size(), store.geometry().dim_k, tile.q.data(), lanes, scratch.s.data());
    const float* bias = mask.bias();
    if (bias != nullptr || call.softcap != 0) {
        scale_and_mask(scratch.s.data(), rows.size(), lanes, 1.0F, call.softcap, bias);
    }
    return rows;
}

// Fills the tile's max and weight.
void normalize(const LayerStore& store, const AttentionCall& call, Tile& tile, Scratch& scratch) {
    const size_t lanes = tile.lanes.padded;
    std::fill_n(tile.max.data(), lanes, -INFINITY);
    std::fill_n(scratch.sum.data(), lanes, 0.0F);
    BlockMask mask(call, tile.lanes, scratch.bias.data());
    for (size_t first = 0; first < call.n_cells; first += kBlock) {
        const auto rows = score_block(store, call, tile, first, mask, scratch);
        if (rows.empty()) {
            continue;
        }
        softmax_step(scratch.s.data(), rows.size(), lanes, tile.max.data(), scratch.sum.data(),
                     scratch.correction.data());
    }
    for (size_t lane = 0; lane < tile.lanes.count(); ++lane) {
        float sum = scratch.sum[lane];
        const float factor = join_sink(call, tile.lanes, lane, tile.max[lane], sum);
        tile.weight[lane] = sum > 0 ? factor / sum : 0.0F;
    }
}

}  // namespace

void add_attention_mass(const LayerStore& store, const AttentionCall& call, size_t first_token, float* mass,
                        size_t stride, Team& team) {
    // As for attention by blocks: a tile of queries stays in level 2.
    constexpr size_t kTileLanes = 384;
    const LayerGeometry& geometry = store.geometry();
    const size_t n_heads = geometry.n_head_kv;
    const size_t group = call.n_head / n_heads;
    const size_t n_tokens = call.n_tokens - first_token;
    const size_t per_member = (n_tokens * n_heads + team.size() - 1) / team.size();
    const size_t tile_tokens = std::clamp<size_t>(std::min(kTileLanes / group, per_member), 1, n_tokens);
    const size_t n_tiles = (n_tokens + tile_tokens - 1) / tile_tokens;  // of one head
    const size_t n_blocks = (call.n_cells + kBlock - 1) / kBlock;
    std::vector<Tile> tiles(n_heads * n_tiles);
    std::atomic<size_t> next_tile = 0;
    std::atomic<size_t> next_block = 0;
    team.run([&](size_t) {
        Scratch scratch(pad_lanes(group * tile_tokens), geometry.dim_k);
        for (size_t task = next_tile++; task < tiles.size(); task = next_tile++) {
            const size_t token = task % n_tiles * tile_tokens;
            tiles[task] = make_tile(call, task / n_tiles, group, first_token + token,
                                    std::min(tile_tokens, n_tokens - token), geometry.dim_k);
            normalize(store, call, tiles[task], scratch);
        }
        team.barrier();
        // A block of one head belongs to one thread, so that nobody else adds to its mass.
        for (size_t task = next_block++; task < n_heads * n_blocks; task = next_block++) {
            const size_t head = task / n_blocks;
            const size_t first = task % n_blocks * kBlock;
            for (size_t t = head * n_tiles; t < (head + 1) * n_tiles; ++t) {
                const Tile& tile = tiles[t];
                const size_t lanes = tile.lanes.padded;
                BlockMask mask(call, tile.lanes, scratch.bias.data());
                const auto rows = score_block(store, call, tile, first, mask, scratch);
                if (rows.empty()) {
                    continue;
                }
                std::copy(tile.max.begin(), tile.max.end(), scratch.max.begin());
                softmax_step(scratch.s.data(), rows.size(), lanes, scratch.max.data(), scratch.sum.data(),
                             scratch.correction.data());
                for (size_t i = 0; i < rows.size(); ++i) {
                    float sum = 0;
                    for (size_t lane = 0; lane < lanes; ++lane) {
                        sum += scratch.s[i * lanes + lane] * tile.weight[lane];
                    }
                    mass[head * stride + first + rows[i]] += sum;
                }
            }
        }
    });
}

}  // namespace kvcodec
