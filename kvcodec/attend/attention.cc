#include "kvcodec/attend/attention.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <optional>

#include "kvcodec/attend/gemm.h"
#include "kvcodec/attend/short_gemm.h"
#include "kvcodec/attend/softmax.h"
#include "kvcodec/attend/tile.h"

namespace kvcodec {
namespace {

constexpr size_t kBlock = LayerStore::kBlock;

// Softmax state of some lanes: the maximum score, the sum of weights, and the weight that went to coded rows.
struct Running {
    float* max;
    float* sum;
    float* dense;  // the part of `sum` that fell on dense rows

    static size_t floats(size_t lanes) { return 3 * Arena::round_up(lanes); }
    /// `count` lanes are in use; the others get no weight: kernels need not work for zeros.
    void reset(size_t count, size_t lanes) const {
        std::fill_n(max, count, -INFINITY);
        std::fill_n(max + count, lanes - count, std::numeric_limits<float>::max());
        std::fill_n(sum, lanes, 0.0F);
        std::fill_n(dense, lanes, 0.0F);
    }
};

Running take_running(Arena& arena, size_t lanes) {
    float* max = arena.take(lanes);
    float* sum = arena.take(lanes);
    return {max, sum, arena.take(lanes)};
}

// One thread's clock: each lap goes to the part that has just ended. Without `times` it does nothing.
class PartClock {
  public:
    explicit PartClock(AttentionTimes* times) : times_(times) { lap(AttentionTimes::kParts); }
    ~PartClock() {
        for (size_t part = 0; times_ != nullptr && part < AttentionTimes::kParts; ++part) {
            times_->ns[part] += ns_[part];
        }
    }
    PartClock(const PartClock&) = delete;
    PartClock& operator=(const PartClock&) = delete;

    /// kParts: the time since the last lap belongs to no part.
    void lap(AttentionTimes::Part part) {
        if (times_ == nullptr) {
            return;
        }
        const auto now = std::chrono::steady_clock::now();
        if (part != AttentionTimes::kParts) {
            ns_[part] += std::chrono::duration_cast<std::chrono::nanoseconds>(now - last_).count();
        }
        last_ = now;
    }

  private:
    AttentionTimes* times_;
    std::chrono::steady_clock::time_point last_;
    std::array<int64_t, AttentionTimes::kParts> ns_{};
};

// Whether every row touches all of code space.
bool is_dense(const Codec& codec) {
    return codec.space() > 0 && codec.nonzeros() == codec.space();
}

// What attention must know of a block of cells before it comes to it.
struct Block {
    SeenCells seen;
    bool is_plain = false;
    size_t work = 0;  // a measure of the time that it takes
};

// Items are (head, block), block by block; member i is to work on items [begin[i], begin[i + 1]), about as long as any
// other.
std::vector<size_t> split_items(std::span<const Block> blocks, size_t n_heads, size_t n_members) {
    size_t work = 0;
    for (const Block& block : blocks) {
        work += block.work;
    }
    std::vector<size_t> begin(n_members + 1, 0);
    begin[n_members] = n_heads * blocks.size();
    size_t item = 0, before = 0;
    for (size_t member = 1; member < n_members; ++member) {
        for (; before * n_members < member * n_heads * work; ++item) {
            before += blocks[item % blocks.size()].work;
        }
        begin[member] = item;
    }
    return begin;
}

void add_weights(const float* p, size_t m, size_t lanes, float* total) {
    for (size_t i = 0; i < m; ++i) {
        for (size_t lane = 0; lane < lanes; ++lane) {
            total[lane] += p[i * lanes + lane];
        }
    }
}

}  // namespace

Attention::Attention(int crossover, AttentionTimes* times)
    : crossover_(crossover), times_(times), in_shorts_(ShortGemm::pays()) {}

bool Attention::in_code_space(const LayerStore& store, const AttentionCall& call) const {
    const LayerGeometry& g = store.geometry();
    const size_t lanes = pad_lanes(call.n_head / g.n_head_kv * call.n_tokens);
    if (!store.has_codecs()) {
        return false;
    }
    const Codec& k = *store.codecs().k;
    const Codec& v = *store.codecs().v;
    if (v.space() == 0 || (k.space() == 0 && !k.before_rope()) || lanes > kMaxCodeLanes || call.n_cells == 0 ||
        (store.coded_cells() == 0 && crossover_ < 0)) {
        return false;
    }
    if (crossover_ >= 0) {
        return call.n_cells >= static_cast<size_t>(crossover_);
    }
    if ((k.space() == 0 || is_dense(k)) && is_dense(v)) {
        // Tables are as small as the queries, only the extra barriers cost.
        constexpr size_t kFewCells = 512;
        return call.n_cells >= kFewCells;
    }
    // Multiply-adds of either way. A sparse one costs about four dense ones: it is a load, an add and a store.
    constexpr size_t kSparseCost = 4;
    const size_t tables = (k.space() * g.dim_k + v.space() * g.dim_v) * lanes;
    const size_t coded_row = (k.nonzeros() + v.nonzeros()) * lanes * kSparseCost;
    const size_t rebuilt_row = k.nonzeros() * g.dim_k + v.nonzeros() * g.dim_v + (g.dim_k + g.dim_v) * lanes;
    return call.n_cells * rebuilt_row > call.n_cells * coded_row + tables;
}

void Attention::run(const LayerStore& store, const AttentionCall& call, Team& team) {
    if (in_code_space(store, call)) {
        run_code_space(store, call, team);
    } else {
        run_blocks(store, call, team);
    }
}

void Attention::run_code_space(const LayerStore& store, const AttentionCall& call, Team& team) {
    const LayerGeometry& geometry = store.geometry();
    const LayerCodecs& codecs = store.codecs();
    const size_t n_heads = geometry.n_head_kv;
    const size_t group = call.n_head / n_heads;
    const size_t lanes = pad_lanes(group * call.n_tokens);
    const size_t n_blocks = (call.n_cells + kBlock - 1) / kBlock;
    const size_t n_members = team.size();
    const size_t space_k = codecs.k->space();
    const size_t space_v = codecs.v->space();
    const bool has_k_mean = !codecs.k_mean.empty();
    const bool rebuilds_k = space_k == 0;  // codes before RoPE
    const auto lanes_of = [&](size_t head) { return Lanes{head * group, group, 0, call.n_tokens, lanes}; };

    struct Head {
        float* q;           // [lanes, dim_k], scaled
        float* transposed;  // [dim_k, lanes]
        float* table;       // [space_k, lanes]
        float* mean;        // prepared mean of K
        float* out;         // [lanes, dim_v]
        // Of each lane, when all members' shares are one:
        float* coded_weight;   // what of the softmax fell on codes
        float* output_factor;  // what turns accumulated values into the output
    };
    struct Partial {  // one member's share of one head
        Running running;
        float* acc;    // [space_v, lanes]
        float* dense;  // [dim_v, lanes]
    };
    const size_t mean_floats = has_k_mean ? codecs.k_mean.prepared_floats(lanes) : 0;
    const size_t head_floats = Arena::round_up(lanes * geometry.dim_k) * 2 + Arena::round_up(space_k * lanes) +
                               Arena::round_up(mean_floats) + Arena::round_up(lanes * geometry.dim_v) +
                               2 * Arena::round_up(lanes);
    const size_t partial_floats =
        Running::floats(lanes) + Arena::round_up(space_v * lanes) + Arena::round_up(geometry.dim_v * lanes);
    const size_t rounded_bytes = codecs.k->rounded_bytes(lanes);
    const size_t rounded_floats = (rounded_bytes + sizeof(float) - 1) / sizeof(float);
    const size_t member_floats = 2 * Arena::round_up(kBlock * lanes) + Arena::round_up(rounded_floats) +
                                 Arena::round_up(kBlock * std::max(geometry.dim_k, geometry.dim_v)) +
                                 Arena::round_up(lanes);
    const size_t n_partials = n_heads + n_members;
    Arena arena(aligned(scratch_, n_heads * head_floats + n_partials * partial_floats + n_members * member_floats));
    std::vector<Head> heads;
    for (size_t head = 0; head < n_heads; ++head) {
        float* q = arena.take(lanes * geometry.dim_k);
        float* transposed = arena.take(lanes * geometry.dim_k);
        float* table = arena.take(space_k * lanes);
        float* mean = arena.take(mean_floats);
        float* out = arena.take(lanes * geometry.dim_v);
        float* coded_weight = arena.take(lanes);
        heads.push_back({q, transposed, table, mean, out, coded_weight, arena.take(lanes)});
    }
    std::vector<Partial> partials;
    for (size_t i = 0; i < n_partials; ++i) {
        const Running running = take_running(arena, lanes);
        float* acc = arena.take(space_v * lanes);
        partials.push_back({running, acc, arena.take(geometry.dim_v * lanes)});
    }
    std::vector<float*> member_scratch;
    for (size_t i = 0; i < n_members; ++i) {
        member_scratch.push_back(arena.take(member_floats));
    }
    const bool full_k = is_dense(*codecs.k), full_v = is_dense(*codecs.v);
    // A dense row costs as much as so many rows of codes, with few lanes.
    const size_t dense_work = full_k && full_v ? 4 : 2;
    std::vector<Block> blocks(n_blocks);

    team.run([&](size_t member) {
        PartClock clock(times_);
        // 1. Queries and tables. Every member fills its slice of every head's table.
        const auto slice = [&](size_t n, size_t multiple) {
            const size_t units = (n + multiple - 1) / multiple;
            return std::pair(std::min(n, member * units / n_members * multiple),
                             std::min(n, (member + 1) * units / n_members * multiple));
        };
        for (size_t head = member; head < n_heads; head += n_members) {
            const Lanes lane_set = lanes_of(head);
            std::fill_n(heads[head].q, lanes * geometry.dim_k, 0.0F);
            for (size_t lane = 0; lane < lane_set.count(); ++lane) {
                const float* q = lane_set.q(call, lane);
                for (size_t i = 0; i < geometry.dim_k; ++i) {
                    heads[head].q[lane * geometry.dim_k + i] = q[i] * call.scale;
                }
            }
            for (size_t lane = 0; lane < lanes; ++lane) {
                for (size_t i = 0; i < geometry.dim_k; ++i) {
                    heads[head].transposed[i * lanes + lane] = heads[head].q[lane * geometry.dim_k + i];
                }
            }
            if (has_k_mean) {
                codecs.k_mean.prepare(head, heads[head].q, lanes, heads[head].mean);
            }
        }
        for (size_t b = member * n_blocks / n_members; b < (member + 1) * n_blocks / n_members; ++b) {
            const size_t first = b * kBlock;
            Block& block = blocks[b];
            block.seen = SeenCells::of(call, 0, call.n_tokens, first, std::min(kBlock, call.n_cells - first));
            block.is_plain = store.is_plain(call.first_cell / kBlock + b);
            block.work = block.seen.any == 0 ? 0 : block.is_plain ? 1 : dense_work;
        }
        team.barrier();
        // Member i works on items [begin[i], begin[i + 1]) of (head, block); its share of head h is partial i + h.
        const std::vector<size_t> begin = split_items(blocks, n_heads, n_members);
        const auto shares = [&](size_t head, const auto& use) {
            for (size_t i = 0; i < n_members; ++i) {
                if (begin[i] < (head + 1) * n_blocks && begin[i + 1] > head * n_blocks) {
                    use(partials[i + head]);
                }
            }
        };
        // So far ahead that memory answers in time: some tens of KiB, which the second level of caches holds.
        constexpr size_t kItemsAhead = 8;
        const auto prefetch = [&](size_t item) {
            if (item >= begin[member + 1]) {
                return;
            }
            const size_t block = call.first_cell / kBlock + item % n_blocks;
            for (const Side side : {Side::kK, Side::kV}) {
                store.prefetch_codes(side, block, item / n_blocks, LayerStore::CacheLevel::kSecond);
                store.prefetch_dense(side, block, item / n_blocks, LayerStore::CacheLevel::kSecond);
            }
        };
        for (size_t i = 0; i < kItemsAhead; ++i) {
            prefetch(begin[member] + i);
        }
        const auto [table_begin, table_end] = slice(space_k, 16);
        for (size_t head = 0; head < n_heads && table_begin < table_end; ++head) {
            codecs.k_of(head).prepare(heads[head].q, lanes, table_begin, table_end, heads[head].table);
        }
        clock.lap(AttentionTimes::kTables);
        team.barrier();
        clock.lap(AttentionTimes::kParts);

        // 2. Scores, weights and values of this member's blocks.
        Arena own(member_scratch[member]);
        float* s = own.take(kBlock * lanes);
        float* bias_memory = own.take(kBlock * lanes);
        float* rows_memory = own.take(kBlock * std::max(geometry.dim_k, geometry.dim_v));
        float* correction = own.take(lanes);
        auto* rounded = reinterpret_cast<std::byte*>(own.take(rounded_floats));
        const size_t first_head = begin[member] / n_blocks;
        for (size_t head = first_head; head < n_heads && begin[member + 1] > head * n_blocks; ++head) {
            const Lanes lane_set = lanes_of(head);
            const Partial& partial = partials[member + head];
            partial.running.reset(lane_set.count(), lanes);
            std::fill_n(partial.acc, space_v * lanes, 0.0F);
            std::fill_n(partial.dense, geometry.dim_v * lanes, 0.0F);
            if (rounded_bytes != 0) {
                codecs.k_of(head).round(heads[head].table, lanes, rounded);
            }
            BlockMask mask(call, lane_set, bias_memory);
            const size_t last = std::min(begin[member + 1], (head + 1) * n_blocks) - head * n_blocks;
            for (size_t b = std::max(begin[member], head * n_blocks) - head * n_blocks; b < last; ++b) {
                const size_t first = b * kBlock;
                const size_t first_cell = call.first_cell + first;
                const size_t block = first_cell / kBlock;
                if (!mask.look(blocks[b].seen, first, std::min(kBlock, call.n_cells - first),
                               store.evicted_rows(block, head))) {
                    continue;
                }
                const std::span<uint16_t> rows = mask.rows();
                const auto in_code_space = [&](uint16_t row) {
                    return store.is_coded(first_cell + row) && (store.shift(first_cell + row) == 0 || rebuilds_k);
                };
                const auto coded_end =
                    blocks[b].is_plain ? rows.end() : std::stable_partition(rows.begin(), rows.end(), in_code_space);
                prefetch(head * n_blocks + b + kItemsAhead);
                // Nearer still, but for rows that touch all of code space: the processor sees that these are read in
                // order.
                if (!full_v) {
                    store.prefetch_codes(Side::kV, block, head, LayerStore::CacheLevel::kFirst);
                }
                if (!full_k && b + 1 < last) {
                    store.prefetch_codes(Side::kK, block + 1, head, LayerStore::CacheLevel::kFirst);
                }
                const std::span<const uint16_t> coded(rows.begin(), coded_end);
                const std::span<const uint16_t> dense(coded_end, rows.end());
                if (!coded.empty() && rebuilds_k) {
                    store.gather(Side::kK, block, head, coded, call.positions, rows_memory);
                    gemm_scores(rows_memory, coded.size(), geometry.dim_k, heads[head].transposed, lanes, s);
                    clock.lap(AttentionTimes::kScore);
                } else if (!coded.empty()) {
                    const std::byte* codes = store.codes(Side::kK, block, head);
                    if (rounded_bytes != 0) {
                        codecs.k_of(head).score_rounded(rounded, lanes, codes, coded, s);
                    } else {
                        codecs.k_of(head).score(heads[head].table, lanes, codes, coded, s);
                    }
                    if (has_k_mean) {
                        std::array<int32_t, kBlock> gathered;
                        const int32_t* position = call.positions;  // null where codecs need none
                        if (codecs.k_mean.rotates()) {
                            position += first_cell;
                            if (coded.size() < kBlock) {
                                std::ranges::transform(coded, gathered.begin(),
                                                       [&](uint16_t row) { return position[row]; });
                                position = gathered.data();
                            }
                        }
                        codecs.k_mean.score(heads[head].mean, lanes, position, coded.size(), s);
                    }
                    clock.lap(AttentionTimes::kScore);
                }
                if (!dense.empty()) {
                    store.gather(Side::kK, block, head, dense, call.positions, rows_memory);
                    gemm_scores(rows_memory, dense.size(), geometry.dim_k, heads[head].transposed, lanes,
                                s + coded.size() * lanes);
                    clock.lap(AttentionTimes::kDense);
                }
                const float* bias = mask.bias();
                if (bias != nullptr || call.softcap != 0) {
                    scale_and_mask(s, rows.size(), lanes, 1.0F, call.softcap, bias);
                }
                if (softmax_step(s, rows.size(), lanes, partial.running.max, partial.running.sum, correction)) {
                    scale_lanes(partial.acc, space_v, lanes, correction);
                    scale_lanes(partial.dense, geometry.dim_v, lanes, correction);
                    scale_lanes(partial.running.dense, 1, lanes, correction);
                }
                clock.lap(AttentionTimes::kSoftmax);
                if (!coded.empty()) {
                    codecs.v_of(head).accumulate(s, lanes, store.codes(Side::kV, block, head), coded, partial.acc);
                    clock.lap(AttentionTimes::kAccumulate);
                }
                if (!dense.empty()) {
                    store.gather(Side::kV, block, head, dense, call.positions, rows_memory);
                    gemm_values(rows_memory, dense.size(), geometry.dim_v, s + coded.size() * lanes, lanes,
                                partial.dense);
                    add_weights(s + coded.size() * lanes, dense.size(), lanes, partial.running.dense);
                    clock.lap(AttentionTimes::kDense);
                }
            }
        }
        team.barrier();
        clock.lap(AttentionTimes::kParts);

        // 3. Each head's shares become one: scaled to the common maximum, summed into the first.
        for (size_t head = member; head < n_heads; head += n_members) {
            const Lanes lane_set = lanes_of(head);
            std::vector<float> top(lanes, -INFINITY);
            shares(head, [&](const Partial& share) {
                for (size_t lane = 0; lane < lanes; ++lane) {
                    top[lane] = std::max(top[lane], share.running.max[lane]);
                }
            });
            const Partial* first_share = nullptr;
            shares(head, [&](const Partial& share) {
                std::vector<float> factor(lanes);
                for (size_t lane = 0; lane < lanes; ++lane) {
                    factor[lane] =
                        share.running.max[lane] == -INFINITY ? 0.0F : std::exp(share.running.max[lane] - top[lane]);
                }
                scale_lanes(share.acc, space_v, lanes, factor.data());
                scale_lanes(share.dense, geometry.dim_v, lanes, factor.data());
                scale_lanes(share.running.sum, 1, lanes, factor.data());
                scale_lanes(share.running.dense, 1, lanes, factor.data());
                if (first_share == nullptr) {
                    first_share = &share;
                    return;
                }
                const auto add = [](const float* from, size_t n, float* to) {
                    for (size_t i = 0; i < n; ++i) {
                        to[i] += from[i];
                    }
                };
                add(share.acc, space_v * lanes, first_share->acc);
                add(share.dense, geometry.dim_v * lanes, first_share->dense);
                add(share.running.sum, lanes, first_share->running.sum);
                add(share.running.dense, lanes, first_share->running.dense);
            });
            for (size_t lane = 0; lane < lane_set.count(); ++lane) {
                float& sum = first_share->running.sum[lane];
                heads[head].coded_weight[lane] = sum - first_share->running.dense[lane];
                const float factor = join_sink(call, lane_set, lane, top[lane], sum);
                heads[head].output_factor[lane] = sum > 0 ? factor / sum : 0.0F;
            }
        }
        team.barrier();

        // 4. Expansion out of code space; every member does its slice of head_dim of every head.
        const auto [dim_begin, dim_end] = slice(geometry.dim_v, 16);
        for (size_t head = 0; head < n_heads && dim_begin < dim_end; ++head) {
            const Lanes lane_set = lanes_of(head);
            const Partial* total = nullptr;
            shares(head, [&](const Partial& share) { total = total == nullptr ? &share : total; });
            float* out = heads[head].out;
            for (size_t lane = 0; lane < lanes; ++lane) {
                const float coded = lane < lane_set.count() ? heads[head].coded_weight[lane] : 0.0F;
                for (size_t i = dim_begin; i < dim_end; ++i) {
                    const float mean = codecs.v_mean.empty() ? 0.0F : codecs.v_mean[head * geometry.dim_v + i];
                    out[lane * geometry.dim_v + i] = total->dense[i * lanes + lane] + coded * mean;
                }
            }
            codecs.v_of(head).finish(total->acc, lanes, dim_begin, dim_end, out);
            for (size_t lane = 0; lane < lane_set.count(); ++lane) {
                float* to = lane_set.out(call, lane);
                for (size_t i = dim_begin; i < dim_end; ++i) {
                    to[i] = out[lane * geometry.dim_v + i] * heads[head].output_factor[lane];
                }
            }
        }
        clock.lap(AttentionTimes::kCombine);
    });
}

void Attention::run_blocks(const LayerStore& store, const AttentionCall& call, Team& team) {
    // Lanes of one tile: enough that decoding a block is a small share, few enough that the tile stays in level 2.
    constexpr size_t kTileLanes = 384;
    const LayerGeometry& geometry = store.geometry();
    const size_t group = call.n_head / geometry.n_head_kv;
    const size_t per_member = (call.n_tokens * geometry.n_head_kv + team.size() - 1) / team.size();
    const size_t tile_tokens = std::clamp<size_t>(std::min(kTileLanes / group, per_member), 1, call.n_tokens);
    const size_t n_tiles = (call.n_tokens + tile_tokens - 1) / tile_tokens;
    const size_t max_lanes = pad_lanes(group * tile_tokens);
    const size_t max_dim = std::max(geometry.dim_k, geometry.dim_v);
    const bool in_shorts = in_shorts_ && max_lanes % ShortGemm::kLaneMultiple == 0;
    const size_t short_floats = in_shorts ? ShortGemm::floats(kBlock, max_dim, max_lanes) : 0;
    const size_t member_floats = short_floats + Arena::round_up(max_lanes * geometry.dim_k) +
                                 Arena::round_up(max_lanes * geometry.dim_v) + 2 * Arena::round_up(kBlock * max_lanes) +
                                 Arena::round_up(kBlock * max_dim) + Running::floats(max_lanes) +
                                 Arena::round_up(max_lanes);
    float* memory = aligned(scratch_, member_floats * team.size());

    std::atomic<size_t> next = 0;
    team.run([&](size_t member) {
        PartClock clock(times_);
        Arena arena(memory + member * member_floats);
        float* q = arena.take(max_lanes * geometry.dim_k);    // [dim_k, lanes]
        float* out = arena.take(max_lanes * geometry.dim_v);  // [dim_v, lanes]
        float* s = arena.take(kBlock * max_lanes);
        float* bias_memory = arena.take(kBlock * max_lanes);
        float* rows_memory = arena.take(kBlock * max_dim);
        std::optional<ShortGemm> short_gemm;
        if (in_shorts) {
            short_gemm.emplace(arena, kBlock, max_dim, max_lanes, true);
        }
        const Running running = take_running(arena, max_lanes);
        float* correction = arena.take(max_lanes);
        for (size_t task = next++; task < n_tiles * geometry.n_head_kv; task = next++) {
            const size_t head = task % geometry.n_head_kv;
            const size_t first_token = (n_tiles - 1 - task / geometry.n_head_kv) * tile_tokens;
            const size_t n_tokens = std::min(tile_tokens, call.n_tokens - first_token);
            const Lanes lane_set{head * group, group, first_token, n_tokens, pad_lanes(group * n_tokens)};
            const size_t lanes = lane_set.padded;
            running.reset(lane_set.count(), lanes);
            std::fill_n(q, geometry.dim_k * lanes, 0.0F);
            std::fill_n(out, geometry.dim_v * lanes, 0.0F);
            for (size_t lane = 0; lane < lane_set.count(); ++lane) {
                const float* from = lane_set.q(call, lane);
                for (size_t i = 0; i < geometry.dim_k; ++i) {
                    q[i * lanes + lane] = from[i] * call.scale;
                }
            }
            const bool short_tile = short_gemm && lanes % ShortGemm::kLaneMultiple == 0;
            if (short_tile) {
                short_gemm->set_queries(q, geometry.dim_k, lanes);
            }
            BlockMask mask(call, lane_set, bias_memory);
            for (size_t first = 0; first < call.n_cells; first += kBlock) {
                const size_t block = (call.first_cell + first) / kBlock;
                if (!mask.look(first, std::min(kBlock, call.n_cells - first), store.evicted_rows(block, head))) {
                    continue;
                }
                const std::span<const uint16_t> rows = mask.rows();
                store.gather(Side::kK, block, head, rows, call.positions, rows_memory);
                if (short_tile) {
                    short_gemm->scores(rows_memory, rows.size(), geometry.dim_k, lanes, s);
                } else {
                    gemm_scores(rows_memory, rows.size(), geometry.dim_k, q, lanes, s);
                }
                const float* bias = mask.bias();
                if (bias != nullptr || call.softcap != 0) {
                    scale_and_mask(s, rows.size(), lanes, 1.0F, call.softcap, bias);
                }
                if (softmax_step(s, rows.size(), lanes, running.max, running.sum, correction)) {
                    scale_lanes(out, geometry.dim_v, lanes, correction);
                }
                store.gather(Side::kV, block, head, rows, call.positions, rows_memory);
                if (short_tile) {
                    short_gemm->values(rows_memory, rows.size(), geometry.dim_v, s, lanes, out);
                } else {
                    gemm_values(rows_memory, rows.size(), geometry.dim_v, s, lanes, out);
                }
            }
            for (size_t lane = 0; lane < lane_set.count(); ++lane) {
                float sum = running.sum[lane];
                const float factor = join_sink(call, lane_set, lane, running.max[lane], sum);
                const float scale = sum > 0 ? factor / sum : 0.0F;
                float* to = lane_set.out(call, lane);
                for (size_t i = 0; i < geometry.dim_v; ++i) {
                    to[i] = out[i * lanes + lane] * scale;
                }
            }
        }
        clock.lap(AttentionTimes::kBlocks);
    });
}

}  // namespace kvcodec
