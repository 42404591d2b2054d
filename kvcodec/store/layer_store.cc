#include "kvcodec/store/layer_store.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kvcodec/error.h"
#include "kvcodec/half.h"
#include "kvcodec/half_rows.h"

namespace kvcodec {
namespace {

void prefetch(const void* begin, size_t n_bytes, LayerStore::CacheLevel level) {
    constexpr size_t kLineBytes = 64;
    const auto* bytes = static_cast<const std::byte*>(begin);
    for (size_t offset = 0; offset < n_bytes; offset += kLineBytes) {
        if (level == LayerStore::CacheLevel::kFirst) {
            __builtin_prefetch(bytes + offset, 0, 3);
        } else {
            __builtin_prefetch(bytes + offset, 0, 2);
        }
    }
}

// salient: [n] or null.
void encode_rows(const Codec& codec, const float* x, size_t n, const uint8_t* salient, std::byte* codes) {
    if (salient == nullptr) {
        codec.encode(x, n, codes);
    } else {
        codec.encode_mixed(x, n, salient, codes);
    }
}

// Decodes what encode() has just written.
void decode_written(const Codec& codec, const std::vector<std::byte>& codes, size_t n, float* x) {
    if (!codec.is_variable()) {
        codec.decode(codes.data(), 0, n, x);
        return;
    }
    for (size_t first = 0; first < n; first += VariableBlock::kRows) {
        VariableBlock block;
        const size_t size = std::min(VariableBlock::kRows, n - first);
        for (size_t i = 0; i < size; ++i) {
            const std::byte* code = &codes[(first + i) * codec.code_bytes()];
            block.put(i, {code, codec.length(code)});
        }
        codec.decode(block.data(), 0, size, x + first * codec.dim());
    }
}

}  // namespace

static_assert(VariableBlock::kRows == LayerStore::kBlock);

static_assert(CodeArena::kSlackBytes >= Codec::kCodeSlackBytes);

LayerStore::LayerStore(size_t n_cells, size_t k_row, size_t v_row, bool release_memory,
                       std::shared_ptr<CodeArena> arena)
    : n_cells_(n_cells),
      k_row_(k_row),
      v_row_(v_row),
      state_(n_cells),
      dense_blocks_((n_cells + kBlock - 1) / kBlock),
      pool_((k_row + v_row) * sizeof(uint16_t), n_cells, release_memory),
      arena_(std::move(arena)) {}

LayerStore::~LayerStore() {
    give_back_codes();
}

void LayerStore::set_codecs(const LayerGeometry& geometry, LayerCodecs codecs) {
    const auto check = [&](const std::vector<std::shared_ptr<const Codec>>& heads, const Codec& first) {
        for (const auto& codec : heads) {
            if (heads.size() != geometry.n_head_kv || codec->code_bytes() != first.code_bytes() ||
                codec->dim() != first.dim() || codec->space() != first.space() ||
                codec->joint_heads() != first.joint_heads() || codec->is_interleaved() != first.is_interleaved()) {
                throw Error("the codecs of a layer's heads differ in number or size");
            }
        }
        if (geometry.n_head_kv % first.joint_heads() != 0 || (first.joint_heads() > 1 && heads.empty())) {
            throw Error("the heads that a layer's codec takes together are not a part of its heads");
        }
    };
    if (codecs.k != nullptr) {
        check(codecs.k_heads, *codecs.k);
        check(codecs.v_heads, *codecs.v);
    }
    give_back_codes();
    geometry_ = geometry;
    codecs_ = std::move(codecs);
    if (!has_codecs()) {
        return;
    }
    for (const Side side : {Side::kK, Side::kV}) {
        if (codec(side).is_variable()) {
            (side == Side::kK ? variable_k_ : variable_v_).resize(dense_blocks_.size() * geometry.n_head_kv);
        } else {
            (side == Side::kK ? codes_k_ : codes_v_).resize(dense_blocks_.size());
        }
        const bool codes_single_rows = codec(side).group_rows() == 1 && !codec(side).is_adaptive();
        remembered(side) =
            RememberedRows(codes_per_cell(side) * codec(side).code_bytes(), codes_single_rows ? n_cells_ : 0);
    }
}

void LayerStore::reserve_codes(size_t cell) {
    for (const Side side : {Side::kK, Side::kV}) {
        std::vector<std::byte*>& blocks = side == Side::kK ? codes_k_ : codes_v_;
        if (!codec(side).is_variable() && blocks[cell / kBlock] == nullptr) {
            blocks[cell / kBlock] = arena_->take(block_bytes(side));
        }
    }
}

void LayerStore::give_back_codes() {
    for (const Side side : {Side::kK, Side::kV}) {
        for (std::byte*& block : side == Side::kK ? codes_k_ : codes_v_) {
            if (block != nullptr) {
                arena_->give_back(std::exchange(block, nullptr), block_bytes(side));
            }
        }
    }
}

std::byte* LayerStore::code_block(Side side, size_t block, size_t head) const {
    std::byte* const of_heads = (side == Side::kK ? codes_k_ : codes_v_)[block];
    const Codec& codec = this->codec(side);
    return of_heads == nullptr ? nullptr : of_heads + head / codec.joint_heads() * kBlock * codec.code_bytes();
}

const std::byte* LayerStore::codes(Side side, size_t block, size_t head) const {
    return codec(side).is_variable() ? variable_block(side, block * kBlock, head).data()
                                     : code_block(side, block, head);
}

void LayerStore::get_code(Side side, size_t cell, size_t head, std::vector<std::byte>& code) const {
    if (codec(side).is_variable()) {
        const std::span<const std::byte> written = variable_block(side, cell, head).code(cell % kBlock);
        code.assign(written.begin(), written.end());
        return;
    }
    code.resize(codec(side).code_bytes());
    codec(side).layout().get(code_block(side, cell / kBlock, head), cell % kBlock, code.data());
}

void LayerStore::put_code(Side side, size_t cell, size_t head, std::span<const std::byte> code) {
    if (codec(side).is_variable()) {
        variable_block(side, cell, head).put(cell % kBlock, code);
    } else {
        codec(side).layout().put(code.data(), cell % kBlock, code_block(side, cell / kBlock, head));
    }
}

void LayerStore::prefetch_codes(Side side, size_t block, size_t head, CacheLevel level) const {
    if (const std::byte* first = codes(side, block, head)) {
        prefetch(first,
                 codec(side).is_variable() ? variable_block(side, block * kBlock, head).resident_bytes()
                                           : kBlock * codec(side).code_bytes(),
                 level);
    }
}

void LayerStore::prefetch_dense(Side side, size_t block, size_t head, CacheLevel level) const {
    if (dense_blocks_[block] == nullptr) {
        return;
    }
    const size_t dim = side == Side::kK ? geometry_.dim_k : geometry_.dim_v;
    for (size_t cell = block * kBlock; cell < std::min((block + 1) * kBlock, n_cells_); ++cell) {
        if (is_dense(cell)) {
            prefetch(dense_row(side, cell) + head * dim, dim * sizeof(uint16_t), level);
        }
    }
}

uint16_t* LayerStore::make_dense(Side side, size_t cell) {
    if (is_coded(cell)) {
        free_row(cell);
    }
    forget_evicted(cell);
    std::unique_ptr<DenseBlock>& block = dense_blocks_[cell / kBlock];
    if (block == nullptr) {
        block = std::make_unique<DenseBlock>();
    }
    uint32_t& slot = block->slot[cell % kBlock];
    if (!is_dense(cell)) {
        slot = pool_.acquire();
        ++block->n_cells;
        std::memset(pool_.row(slot), 0, pool_.row_bytes());
    }
    state_[cell] |= side == Side::kK ? kDenseK : kDenseV;
    auto* row = reinterpret_cast<uint16_t*>(pool_.row(slot));
    return side == Side::kK ? row : row + k_row_;
}

void LayerStore::write(Side side, size_t cell, const float* row) {
    narrow(row, row_length(side), make_dense(side, cell));
}

void LayerStore::write_half(Side side, size_t cell, const uint16_t* row) {
    std::memcpy(make_dense(side, cell), row, row_length(side) * sizeof(uint16_t));
}

const uint16_t* LayerStore::dense_row(Side side, size_t cell) const {
    const auto* row = reinterpret_cast<const uint16_t*>(pool_.row(dense_blocks_[cell / kBlock]->slot[cell % kBlock]));
    return side == Side::kK ? row : row + k_row_;
}

// What drop() does, except that evicted heads stay evicted.
void LayerStore::free_row(size_t cell) {
    if (is_dense(cell)) {
        std::unique_ptr<DenseBlock>& block = dense_blocks_[cell / kBlock];
        pool_.release(block->slot[cell % kBlock]);
        if (--block->n_cells == 0) {
            block.reset();
        }
    }
    if (is_coded(cell)) {
        --n_coded_;
    }
    if (!shift_.empty()) {
        shift_[cell] = 0;
    }
    state_[cell] &= kEmptied;
}

void LayerStore::forget_evicted(size_t cell) {
    for (size_t head = 0; !evicted_.empty() && head < geometry_.n_head_kv; ++head) {
        evicted_[cell / kBlock * geometry_.n_head_kv + head] &= ~(uint64_t{1} << (cell % kBlock));
    }
    if (is_emptied(cell)) {
        state_[cell] &= static_cast<uint8_t>(~kEmptied);
        --n_emptied_;
    }
}

void LayerStore::drop(size_t cell) {
    free_row(cell);
    forget_evicted(cell);
}

void LayerStore::evict(size_t cell, size_t head) {
    if (evicted_.empty()) {
        evicted_.resize(dense_blocks_.size() * geometry_.n_head_kv);
    }
    evicted_[cell / kBlock * geometry_.n_head_kv + head] |= uint64_t{1} << (cell % kBlock);
    for (size_t other = 0; other < geometry_.n_head_kv; ++other) {
        if (!is_evicted(cell, other)) {
            return;
        }
    }
    free_row(cell);
    n_emptied_ += is_emptied(cell) ? 0 : 1;
    state_[cell] = kEmptied;
}

void LayerStore::clear() {
    std::fill(state_.begin(), state_.end(), uint8_t{0});
    shift_ = {};
    for (auto& block : dense_blocks_) {
        block.reset();
    }
    pool_.clear();
    evicted_ = {};
    n_coded_ = 0;
    n_emptied_ = 0;
    give_back_codes();
    if (has_codecs()) {
        codecs_.k->forget();
        codecs_.v->forget();
    }
    std::ranges::for_each(variable_k_, &VariableBlock::clear);
    std::ranges::for_each(variable_v_, &VariableBlock::clear);
}

// Dense rows x [cells, dim] of one head without the mean: what the codec is given.
void LayerStore::residuals(Side side, size_t head, std::span<const uint32_t> cells, const int32_t* positions,
                           float* x) const {
    const size_t dim = side == Side::kK ? geometry_.dim_k : geometry_.dim_v;
    for (size_t i = 0; i < cells.size(); ++i) {
        widen(dense_row(side, cells[i]) + head * dim, dim, x + i * dim);
    }
    if (side == Side::kK && (!codecs_.k_mean.empty() || codecs_.rope_tables != nullptr)) {
        std::vector<int32_t> position(cells.size());
        if (codecs_.need_positions()) {
            std::transform(cells.begin(), cells.end(), position.begin(),
                           [&](uint32_t cell) { return positions[cell]; });
        }
        if (!codecs_.k_mean.empty()) {
            codecs_.k_mean.subtract(head, position.data(), cells.size(), x, dim);
        }
        if (codecs_.rope_tables != nullptr) {
            codecs_.rope_tables->unrotate(position.data(), cells.size(), x, dim);
        }
    }
    if (const std::vector<float>& means = plain_mean(side); !means.empty()) {
        const float* mean = &means[head * dim];
        for (size_t i = 0; i < cells.size(); ++i) {
            for (size_t j = 0; j < dim; ++j) {
                x[i * dim + j] -= mean[j];
            }
        }
    }
}

// The same of all heads that are coded together, the first of them given: [cells, heads, dim].
std::vector<float> LayerStore::joint_residuals(Side side, size_t head, std::span<const uint32_t> cells,
                                               const int32_t* positions) const {
    const size_t dim = codec(side).dim(), n_joint = codec(side).joint_heads();
    std::vector<float> x(cells.size() * n_joint * dim);
    if (n_joint == 1) {
        residuals(side, head, cells, positions, x.data());
        return x;
    }
    std::vector<float> of_head(cells.size() * dim);
    for (size_t i = 0; i < n_joint; ++i) {
        residuals(side, head + i, cells, positions, of_head.data());
        for (size_t cell = 0; cell < cells.size(); ++cell) {
            std::copy_n(&of_head[cell * dim], dim, &x[(cell * n_joint + i) * dim]);
        }
    }
    return x;
}

std::vector<std::byte> LayerStore::encode_task(const EncodeTask& task, const int32_t* positions,
                                               std::span<const uint8_t> salient) const {
    std::vector<float> x;
    std::vector<uint8_t> salient_of_task;
    for (size_t head = task.first_head; head < task.end_head; head += codec(task.side).joint_heads()) {
        const std::vector<float> of_head = joint_residuals(task.side, head, task.cells, positions);
        x.insert(x.end(), of_head.begin(), of_head.end());
        if (!salient.empty()) {
            const std::span<const uint8_t> row = salient.subspan(head * (salient.size() / geometry_.n_head_kv));
            salient_of_task.insert(salient_of_task.end(), row.begin() + static_cast<std::ptrdiff_t>(task.first_cell),
                                   row.begin() + static_cast<std::ptrdiff_t>(task.first_cell + task.cells.size()));
        }
    }
    const Codec& codec = this->codec(task.side, task.first_head);
    const size_t n = x.size() / (codec.dim() * codec.joint_heads());
    std::vector<std::byte> codes(n * codec.code_bytes());
    encode_rows(codec, x.data(), n, salient_of_task.empty() ? nullptr : salient_of_task.data(), codes.data());
    return codes;
}

std::vector<std::byte> LayerStore::encode_or_recall(const EncodeTask& task, const int32_t* positions,
                                                    std::span<const uint8_t> salient) const {
    if (remembered(task.side).empty()) {
        return encode_task(task, positions, salient);
    }
    const size_t step = codec(task.side).joint_heads(), bytes = codec(task.side).code_bytes();
    const size_t n_cells = task.cells.size(), n_codes = (task.end_head - task.first_head) / step;
    std::vector<std::byte> codes(n_codes * n_cells * bytes);
    std::vector<uint32_t> fresh;
    std::vector<size_t> place;  // of the fresh cells
    for (size_t i = 0; i < n_cells; ++i) {
        const auto known = remembered(task.side).find({dense_row(task.side, task.cells[i]), row_length(task.side)});
        for (size_t c = 0; known && c < n_codes; ++c) {
            std::ranges::copy(known->subspan((task.first_head / step + c) * bytes, bytes),
                              codes.begin() + static_cast<std::ptrdiff_t>((c * n_cells + i) * bytes));
        }
        if (!known) {
            fresh.push_back(task.cells[i]);
            place.push_back(i);
        }
    }
    if (!fresh.empty()) {
        EncodeTask of_fresh = task;
        of_fresh.cells = fresh;
        // Codecs of mixed precision code in groups: nothing of theirs is remembered.
        const std::vector<std::byte> encoded = encode_task(of_fresh, positions, {});
        for (size_t c = 0; c < n_codes; ++c) {
            for (size_t i = 0; i < fresh.size(); ++i) {
                std::copy_n(encoded.begin() + static_cast<std::ptrdiff_t>((c * fresh.size() + i) * bytes), bytes,
                            codes.begin() + static_cast<std::ptrdiff_t>((c * n_cells + place[i]) * bytes));
            }
        }
    }
    return codes;
}

void LayerStore::put_codes(Side side, size_t head, std::span<const uint32_t> cells, std::span<const std::byte> codes) {
    const size_t code_bytes = codec(side).code_bytes();
    for (size_t i = 0; i < cells.size(); ++i) {
        const std::byte* code = &codes[i * code_bytes];
        put_code(side, cells[i], head, {code, codec(side).length(code)});
    }
}

// Lets an adaptive codec learn from the rows that it could not code well enough, cell by cell: no head comes before the
// others. Adaptive codecs code heads one by one.
void LayerStore::adopt_marked(const EncodeTask& task, const int32_t* positions, std::span<std::byte> codes) const {
    const Codec& adaptive = codec(task.side, task.first_head);
    for (size_t i = 0; i < task.cells.size(); ++i) {
        for (size_t head = task.first_head; head < task.end_head; ++head) {
            std::byte* code = &codes[((head - task.first_head) * task.cells.size() + i) * adaptive.code_bytes()];
            if (adaptive.is_marked(code)) {
                const std::vector<float> x = joint_residuals(task.side, head, task.cells.subspan(i, 1), positions);
                adaptive.encode(x.data(), 1, code);  // what was adopted since may be enough
                if (adaptive.is_marked(code)) {
                    adaptive.adopt(x.data(), code);
                }
            }
        }
    }
}

std::vector<Distortion> LayerStore::distortion(Side side, std::span<const uint32_t> cells, const int32_t* positions,
                                               const uint8_t* salient) const {
    const size_t dim = codec(side).dim(), n_joint = codec(side).joint_heads();
    std::vector<std::byte> codes(cells.size() * codec(side).code_bytes() + Codec::kCodeSlackBytes);
    std::vector<float> x(cells.size() * dim), decoded(x.size());
    std::vector<Distortion> sums(cells.size());
    for (size_t head = 0; head < geometry_.n_head_kv; ++head) {
        if (head % n_joint == 0) {
            encode_rows(codec(side, head), joint_residuals(side, head, cells, positions).data(), cells.size(),
                        salient == nullptr ? nullptr : salient + head * cells.size(), codes.data());
        }
        residuals(side, head, cells, positions, x.data());
        decode_written(codec(side, head), codes, cells.size(), decoded.data());
        if (side == Side::kK && codecs_.rope_tables != nullptr) {  // YaRN's magnitude belongs to all three sums
            std::vector<int32_t> position(cells.size());
            std::ranges::transform(cells, position.begin(), [&](uint32_t cell) { return positions[cell]; });
            codecs_.rope_tables->rotate(position.data(), cells.size(), x.data(), dim);
            codecs_.rope_tables->rotate(position.data(), cells.size(), decoded.data(), dim);
        }
        for (size_t cell = 0; cell < cells.size(); ++cell) {
            const uint16_t* row = dense_row(side, cells[cell]) + head * dim;
            for (size_t i = 0; i < dim; ++i) {
                const auto square = [](double value) { return value * value; };
                const size_t at = cell * dim + i;
                sums[cell] += {square(x[at] - decoded[at]), square(x[at]), square(half_to_float(row[i]))};
            }
        }
    }
    return sums;
}

size_t LayerStore::group_cells() const {
    return has_codecs() ? std::max(codecs_.k->group_rows(), codecs_.v->group_rows()) : 1;
}

size_t LayerStore::complete_groups(std::span<uint32_t> cells) const {
    const size_t group = group_cells();
    size_t n_complete = 0;
    for (size_t i = 0, run = 1; i < cells.size(); i += run) {
        for (run = 1; i + run < cells.size() && cells[i + run] / group == cells[i] / group;) {
            ++run;
        }
        if (run == group) {
            const auto first = cells.begin() + static_cast<std::ptrdiff_t>(i);
            std::rotate(cells.begin() + static_cast<std::ptrdiff_t>(n_complete), first,
                        first + static_cast<std::ptrdiff_t>(run));
            n_complete += run;
        }
    }
    return n_complete;
}

void LayerStore::encode(std::span<const uint32_t> cells, const int32_t* positions, Team& team, const uint8_t* salient) {
    const std::span<const uint8_t> all_salient(salient, salient == nullptr ? 0 : geometry_.n_head_kv * cells.size());
    // One task codes cells of one side and the heads that share a codec. The more, the faster some codecs are.
    constexpr size_t kMostRows = 2048;
    // Two for each member, as they differ in length, unless codecs lose more by that than an idle member does.
    const bool in_large_batches = codecs_.k->prepares_batches() && codecs_.v->prepares_batches();
    const size_t n_wanted = (in_large_batches ? 1 : 2) * team.size();
    const size_t n_heads = geometry_.n_head_kv;
    const size_t group = group_cells();
    std::vector<EncodeTask> of_all;
    for (const Side side : {Side::kK, Side::kV}) {
        for (size_t head = 0; head < n_heads; head += codec(side).joint_heads()) {
            if (head > 0 && &codec(side, head) == &codec(side, of_all.back().first_head)) {
                of_all.back().end_head = head + codec(side).joint_heads();
            } else {
                of_all.push_back({side, head, head + codec(side).joint_heads(), 0, cells});
            }
        }
    }
    size_t most_heads = 1;
    for (const EncodeTask& task : of_all) {
        most_heads = std::max(most_heads, task.end_head - task.first_head);
    }
    const size_t n_groups = cells.size() / group;
    const size_t batch = group * std::clamp<size_t>((n_groups * of_all.size() + n_wanted - 1) / n_wanted, 1,
                                                    std::max<size_t>(1, kMostRows / (group * most_heads)));
    std::vector<EncodeTask> tasks;
    for (size_t first = 0; first < cells.size(); first += batch) {
        for (EncodeTask task : of_all) {
            task.first_cell = first;
            task.cells = cells.subspan(first, std::min(batch, cells.size() - first));
            tasks.push_back(task);
        }
    }
    std::ranges::for_each(cells, [&](uint32_t cell) { reserve_codes(cell); });
    std::vector<std::vector<std::byte>> codes(tasks.size());
    const auto put = [&](size_t i) {
        const EncodeTask& task = tasks[i];
        const size_t step = codec(task.side).joint_heads(), bytes = task.cells.size() * codec(task.side).code_bytes();
        for (size_t head = task.first_head; head < task.end_head; head += step) {
            put_codes(task.side, head, task.cells,
                      std::span(codes[i]).subspan((head - task.first_head) / step * bytes, bytes));
        }
    };
    std::atomic<size_t> next = 0;
    team.run([&](size_t) {
        for (size_t i = next++; i < tasks.size(); i = next++) {
            codes[i] = encode_or_recall(tasks[i], positions, all_salient);
            if (!codec(tasks[i].side).is_variable()) {
                put(i);
                std::vector<std::byte>().swap(codes[i]);  // = {} would keep the memory
            }
        }
    });
    for (size_t i = 0; i < tasks.size(); ++i) {  // codes that go into blocks which tasks share
        if (codec(tasks[i].side).is_adaptive()) {
            adopt_marked(tasks[i], positions, codes[i]);
        }
        if (!codes[i].empty()) {
            put(i);
        }
    }
    for (const uint32_t cell : cells) {
        free_row(cell);
        state_[cell] = kCoded;
        ++n_coded_;
    }
}

void LayerStore::decode_run(Side side, size_t block, size_t head, size_t first, size_t n, const int32_t* positions,
                            float* x) const {
    const size_t dim = codec(side).dim();
    const size_t cell = block * kBlock + first;
    if (codec(side).is_interleaved()) {
        std::vector<std::byte> codes(n * codec(side).code_bytes() + Codec::kCodeSlackBytes);
        codec(side).layout().get(code_block(side, block, head), first, n, codes.data());
        codec(side, head).decode(codes.data(), 0, n, x);
    } else {
        codec(side, head).decode(codes(side, block, head), first, n, x);
    }
    rows_rebuilt_.fetch_add(n, std::memory_order_relaxed);
    const std::vector<float>& means = plain_mean(side);
    const float* mean = means.empty() ? nullptr : &means[head * dim];
    if (side == Side::kK && codecs_.rope_tables != nullptr) {
        codecs_.rope_tables->rotate(positions + cell, n, x, dim, mean);  // to where a shift has moved the cell
        return;
    }
    if (mean != nullptr) {
        for (size_t i = 0; i < n; ++i) {
            for (size_t j = 0; j < dim; ++j) {
                x[i * dim + j] += mean[j];
            }
        }
    }
    if (side == Side::kK) {
        for (size_t i = 0, run = 1; i < n; i += run) {
            for (run = 1; i + run < n && shift(cell + i + run) == shift(cell + i);) {
                ++run;
            }
            if (shift(cell + i) != 0) {
                shift_rope_.shift(x + i * dim, shift(cell + i), run);
            }
        }
        if (!codecs_.k_mean.empty()) {
            codecs_.k_mean.add(head, codecs_.k_mean.rotates() ? positions + cell : nullptr, n, x, dim);
        }
    }
}

void LayerStore::gather(Side side, size_t block, size_t head, std::span<const uint16_t> rows, const int32_t* positions,
                        float* x) const {
    const size_t dim = side == Side::kK ? geometry_.dim_k : geometry_.dim_v;
    for (size_t i = 0; i < rows.size();) {
        const size_t cell = block * kBlock + rows[i];
        size_t run = 1;
        if (is_coded(cell)) {
            while (i + run < rows.size() && rows[i + run] == rows[i] + run && is_coded(cell + run)) {
                ++run;
            }
            decode_run(side, block, head, rows[i], run, positions, x + i * dim);
        } else if (is_dense(cell)) {
            constexpr size_t kAhead = 8;  // dense rows lie scattered: the processor does not see the next one coming
            if (i + kAhead < rows.size() && is_dense(block * kBlock + rows[i + kAhead])) {
                prefetch(dense_row(side, block * kBlock + rows[i + kAhead]) + head * dim, dim * sizeof(uint16_t),
                         CacheLevel::kFirst);
            }
            widen(dense_row(side, cell) + head * dim, dim, x + i * dim);
        } else {
            std::fill_n(x + i * dim, dim, 0.0F);
        }
        i += run;
    }
    const uint64_t evicted = evicted_rows(block, head);
    for (size_t i = 0; evicted != 0 && i < rows.size(); ++i) {
        if (((evicted >> rows[i]) & 1) != 0) {
            std::fill_n(x + i * dim, dim, 0.0F);
        }
    }
}

void LayerStore::read(Side side, size_t cell, const int32_t* positions, uint16_t* row) const {
    if (is_dense(cell)) {
        std::memcpy(row, dense_row(side, cell), row_length(side) * sizeof(uint16_t));
    } else if (is_coded(cell)) {
        const size_t dim = codec(side).dim();
        std::vector<float> x(dim);
        for (size_t head = 0; head < geometry_.n_head_kv; ++head) {
            decode_run(side, cell / kBlock, head, cell % kBlock, 1, positions, x.data());
            narrow(x.data(), dim, row + head * dim);
        }
    } else {
        std::fill_n(row, row_length(side), uint16_t{0});
    }
    const size_t dim = side == Side::kK ? geometry_.dim_k : geometry_.dim_v;
    for (size_t head = 0; head < geometry_.n_head_kv; ++head) {
        if (is_evicted(cell, head)) {
            std::fill_n(row + head * dim, dim, uint16_t{0});
        }
    }
}

void LayerStore::read_out(Side side, size_t cell, const int32_t* positions, uint16_t* row) {
    read(side, cell, positions, row);
    // Of keys that are coded after RoPE, a shift says what the code does not.
    const bool is_shifted = side == Side::kK && codecs_.rope_tables == nullptr && shift(cell) != 0;
    bool is_evicted_in_part = false;
    for (size_t head = 0; head < geometry_.n_head_kv; ++head) {
        is_evicted_in_part |= is_evicted(cell, head);
    }
    if (!is_coded(cell) || is_shifted || is_evicted_in_part || !remembered(side).has_room()) {
        return;
    }
    const size_t step = codec(side).joint_heads(), bytes = codec(side).code_bytes();
    std::vector<std::byte> codes(codes_per_cell(side) * bytes), code;
    for (size_t head = 0; head < geometry_.n_head_kv; head += step) {
        get_code(side, cell, head, code);
        std::ranges::copy(code, codes.begin() + static_cast<std::ptrdiff_t>(head / step * bytes));
    }
    remembered(side).remember({row, row_length(side)}, codes);
}

void LayerStore::shift_key(size_t cell, int32_t delta, const Rope& rope) {
    if (is_coded(cell)) {
        if (shift_.empty()) {
            shift_.resize(n_cells_);
            shift_rope_ = rope;
        }
        shift_[cell] += delta;
    } else if (is_dense(cell)) {
        auto* row = const_cast<uint16_t*>(dense_row(Side::kK, cell));
        std::vector<float> x(rope.head_dim());
        for (size_t first = 0; first < k_row_; first += x.size()) {
            widen(row + first, x.size(), x.data());
            rope.shift(x.data(), delta);
            narrow(x.data(), x.size(), row + first);
        }
    }
}

// Whether some cell of the group is decoded with the code of this one.
bool LayerStore::is_in_coded_group(size_t cell) const {
    if (!has_codecs()) {
        return false;
    }
    const size_t group = group_cells();
    const auto first = state_.begin() + static_cast<std::ptrdiff_t>(cell / group * group);
    return std::any_of(first, first + static_cast<std::ptrdiff_t>(group),
                       [](uint8_t state) { return (state & kCoded) != 0; });
}

void LayerStore::copy_cell(size_t from, size_t to) {
    if (from == to) {
        return;
    }
    drop(to);
    if (is_in_coded_group(from)) {
        reserve_codes(to);
        std::vector<std::byte> code;
        for (size_t head = 0; head < geometry_.n_head_kv; ++head) {  // joint codes are copied more than once
            for (const Side side : {Side::kK, Side::kV}) {
                get_code(side, from, head, code);
                put_code(side, to, head, code);
            }
        }
    }
    if (is_coded(from)) {
        state_[to] = kCoded;
        ++n_coded_;
        if (!shift_.empty()) {
            shift_[to] = shift_[from];
        }
    } else if (is_dense(from)) {
        const uint8_t state = state_[from];
        write_half(Side::kK, to, dense_row(Side::kK, from));
        write_half(Side::kV, to, dense_row(Side::kV, from));
        state_[to] = state;
    }
    for (size_t head = 0; head < geometry_.n_head_kv; ++head) {
        if (is_evicted(from, head)) {
            evict(to, head);
        }
    }
}

size_t LayerStore::resident_bytes() const {
    size_t bytes = pool_.resident_bytes() + (codes_k_.size() + codes_v_.size()) * sizeof(std::byte*) + state_.size() +
                   shift_.size() * sizeof(int32_t) + evicted_.size() * sizeof(uint64_t) +
                   dense_blocks_.size() * sizeof(dense_blocks_[0]);
    for (const auto& block : dense_blocks_) {
        bytes += block == nullptr ? 0 : sizeof(DenseBlock);
    }
    const auto n_blocks = [](const std::vector<std::byte*>& blocks) {
        return blocks.size() - static_cast<size_t>(std::ranges::count(blocks, nullptr));
    };
    if (has_codecs()) {
        bytes += n_blocks(codes_k_) * block_bytes(Side::kK) + n_blocks(codes_v_) * block_bytes(Side::kV);
    }
    bytes += remembered_k_.resident_bytes() + remembered_v_.resident_bytes();
    for (const auto* blocks : {&variable_k_, &variable_v_}) {
        bytes += blocks->size() * sizeof(VariableBlock);
        for (const VariableBlock& block : *blocks) {
            bytes += block.resident_bytes();
        }
    }
    return bytes;
}

// visit(code) for each coded row of one side whose length is its own.
template <typename Visit>
void LayerStore::for_each_code(Side side, const Visit& visit) const {
    for (size_t cell = 0; cell < n_cells_; ++cell) {
        for (size_t head = 0; is_coded(cell) && head < geometry_.n_head_kv; ++head) {
            visit(variable_block(side, cell, head).code(cell % kBlock));
        }
    }
}

double LayerStore::mean_bytes_per_token() const {
    double bytes = 0;
    for (const Side side : {Side::kK, Side::kV}) {
        const auto longest = static_cast<double>(codes_per_cell(side) * codec(side).code_bytes());
        if (!codec(side).is_variable()) {
            bytes += longest;
            continue;
        }
        const auto places = static_cast<double>(geometry_.n_head_kv) * VariableBlock::kBytesBesideCode;
        double sum = 0;
        for_each_code(side, [&](std::span<const std::byte> code) { sum += static_cast<double>(code.size()); });
        bytes += places + (n_coded_ == 0 ? longest : sum / static_cast<double>(n_coded_));
    }
    return bytes;
}

std::optional<double> LayerStore::mean_nonzeros(Side side) const {
    if (!has_codecs() || n_coded_ == 0) {
        return std::nullopt;
    }
    if (!codec(side).is_variable()) {
        return static_cast<double>(codec(side).nonzeros());
    }
    double sum = 0;
    for_each_code(side, [&](std::span<const std::byte> code) {
        sum += static_cast<double>(codec(side).nonzeros_of(code.data()));
    });
    return sum / static_cast<double>(n_coded_ * geometry_.n_head_kv);
}

size_t LayerStore::code_bytes_per_token() const {
    if (!has_codecs()) {
        return pool_.row_bytes();
    }
    return codes_per_cell(Side::kK) * codecs_.k->code_bytes() + codes_per_cell(Side::kV) * codecs_.v->code_bytes();
}

double LayerStore::used_bytes_per_token(double salient_share) const {
    const auto bytes = [&](bool salient) {
        const size_t bits = codes_per_cell(Side::kK) * codecs_.k->row_bits(salient) +
                            codes_per_cell(Side::kV) * codecs_.v->row_bits(salient);
        return static_cast<double>(bits) / 8;
    };
    return bytes(false) + salient_share * (bytes(true) - bytes(false));
}

std::optional<double> LayerStore::salient_share() const {
    size_t n_salient = 0;
    std::vector<std::byte> code;
    for (size_t cell = 0; cell < n_cells_; ++cell) {
        for (size_t head = 0; is_coded(cell) && head < geometry_.n_head_kv; ++head) {
            get_code(Side::kK, cell, head, code);
            n_salient += codecs_.k->is_salient(code.data()) ? 1 : 0;  // V is marked alike
        }
    }
    return n_coded_ == 0
               ? std::nullopt
               : std::optional(static_cast<double>(n_salient) / static_cast<double>(n_coded_ * geometry_.n_head_kv));
}

}  // namespace kvcodec
