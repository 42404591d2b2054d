// The cached keys and values of one layer: dense rows of recent cells, codes of the others.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvcodec/codec/codec.h"
#include "kvcodec/codec/mean/rotating_mean.h"
#include "kvcodec/codec/rope.h"
#include "kvcodec/codec/variable_block.h"
#include "kvcodec/store/code_arena.h"
#include "kvcodec/store/dense_pool.h"
#include "kvcodec/store/remembered_rows.h"
#include "kvcodec/threads.h"

namespace kvcodec {

/// Sizes of one layer's cache. n_cells counts all streams and is a multiple of LayerStore::kBlock.
struct LayerGeometry {
    size_t n_cells = 0;
    size_t n_head_kv = 0;
    size_t dim_k = 0;
    size_t dim_v = 0;
};

/// What turns the rows of one layer into codes. K: mean (rotated with position), then codec; where codes are of keys
/// before RoPE: rotation undone, then plain mean, then codec. V: plain mean, then codec. Without codecs all rows stay
/// dense.
struct LayerCodecs {
    std::shared_ptr<const Codec> k;
    std::shared_ptr<const Codec> v;
    RotatingMean k_mean;
    std::vector<float> v_mean;  ///< [n_head_kv, dim_v] or empty
    Rope rope;
    std::vector<std::shared_ptr<const Codec>> k_heads = {};   ///< [n_head_kv], the first is k; empty: k serves all
    std::vector<std::shared_ptr<const Codec>> v_heads = {};   ///< the same for v
    std::shared_ptr<const RopeTables> rope_tables = nullptr;  ///< where k is before RoPE and there is any
    std::vector<float> k_plain_mean = {};                     ///< [n_head_kv, dim_k] before RoPE, instead of k_mean

    const Codec& k_of(size_t head) const { return k_heads.empty() ? *k : *k_heads[head]; }
    const Codec& v_of(size_t head) const { return v_heads.empty() ? *v : *v_heads[head]; }
    /// Whether codes of K cannot be made or read without positions.
    bool need_positions() const { return k_mean.rotates() || rope_tables != nullptr; }
};

enum class Side : uint8_t { kK, kV };

/// Sums over vectors.
struct Distortion {
    double miss = 0;      ///< ||x - x̂||²
    double residual = 0;  ///< ||x - mean||²
    double energy = 0;    ///< ||x||²

    void operator+=(const Distortion& other) {
        miss += other.miss;
        residual += other.residual;
        energy += other.energy;
    }
};

/// State is kept per cell, storage per block of kBlock cells: codes of (block, head) are contiguous, so that attention
/// streams through them. A cell is dense (row in a pool) or coded, K and V together; an empty cell is neither.
/// Single heads of a cell may be evicted: they are not attended to and read as zero until the cell is overwritten.
/// Positions are passed in: they are the same for all layers of a cache.
class LayerStore {
  public:
    static constexpr size_t kBlock = 64;

    /// row lengths in elements: K row = n_head_kv * dim_k. arena: of codes; the layers of a cache share one.
    LayerStore(size_t n_cells, size_t k_row, size_t v_row, bool release_memory,
               std::shared_ptr<CodeArena> arena = std::make_shared<CodeArena>());
    ~LayerStore();
    LayerStore(const LayerStore&) = delete;
    LayerStore& operator=(const LayerStore&) = delete;

    /// Must come before encode() and evict(), and after the geometry is known.
    void set_codecs(const LayerGeometry& geometry, LayerCodecs codecs);
    bool has_codecs() const { return codecs_.k != nullptr; }
    const LayerCodecs& codecs() const { return codecs_; }
    const LayerGeometry& geometry() const { return geometry_; }

    /// Overwrites one side of a cell with a dense row (float or half precision).
    void write(Side side, size_t cell, const float* row);
    void write_half(Side side, size_t cell, const uint16_t* row);

    bool is_dense(size_t cell) const { return (state_[cell] & (kDenseK | kDenseV)) != 0; }
    bool is_whole(size_t cell) const { return (state_[cell] & (kDenseK | kDenseV)) == (kDenseK | kDenseV); }
    bool is_coded(size_t cell) const { return (state_[cell] & kCoded) != 0; }
    /// Whether all cells of the block are coded, and no key is shifted.
    bool is_plain(size_t block) const {
        const size_t first = block * kBlock;
        if (first + kBlock > n_cells_) {
            return false;
        }
        uint8_t all = kCoded;
        int32_t shifted = 0;
        for (size_t i = 0; i < kBlock; ++i) {  // no early exit, so that the compiler makes vectors of it
            all &= state_[first + i];
        }
        for (size_t i = 0; i < kBlock && !shift_.empty(); ++i) {
            shifted |= shift_[first + i];
        }
        return all == kCoded && shifted == 0;
    }
    /// Positions that a coded key was shifted by since it was coded.
    int32_t shift(size_t cell) const { return shift_.empty() ? 0 : shift_[cell]; }
    /// Half-precision row of a dense cell.
    const uint16_t* dense_row(Side side, size_t cell) const;

    /// Codes of the kBlock rows of one block and head, or of the heads that are coded together with it, as
    /// Codec::layout() has them; null where none was written.
    const std::byte* codes(Side side, size_t block, size_t head) const;
    enum class CacheLevel { kFirst, kSecond };
    /// Asks for these codes to be brought into the processor's caches; hardware loses the stream between blocks.
    void prefetch_codes(Side side, size_t block, size_t head, CacheLevel level) const;
    /// The same for the rows of dense cells.
    void prefetch_dense(Side side, size_t block, size_t head, CacheLevel level) const;

    /// Cells that are coded together: the larger group_rows() of the two codecs. An overwritten cell of a coded group
    /// turns dense and the others stay as they are: their codes are not touched before all of the group is coded anew.
    size_t group_cells() const;
    /// Moves the cells of complete groups to the front, both parts in order, and returns how many they are. cells:
    /// ascending, none twice.
    size_t complete_groups(std::span<uint32_t> cells) const;

    /// Codes whole dense cells (is_whole), complete groups in order, and frees their rows. positions: by cell; may be
    /// null unless codecs().need_positions(). salient: null or [n_head_kv, cells], rows that get more bits from a codec
    /// of mixed precision. Of equally good codes, which one is taken may depend on the number of cells and of threads.
    void encode(std::span<const uint32_t> cells, const int32_t* positions, Team& team,
                const uint8_t* salient = nullptr);

    /// What coding one side of these cells would lose, for each of them summed over heads; nothing changes. Arguments
    /// are as encode() takes them. Of adaptive codecs: before they adopt.
    std::vector<Distortion> distortion(Side side, std::span<const uint32_t> cells, const int32_t* positions,
                                       const uint8_t* salient = nullptr) const;

    /// x[i, dim] of one head for the listed rows (offsets within the block): dense rows widened, codes decoded. Empty
    /// cells read as zero.
    void gather(Side side, size_t block, size_t head, std::span<const uint16_t> rows, const int32_t* positions,
                float* x) const;
    /// One whole row [n_head_kv * dim] in half precision, from whatever state it is in.
    void read(Side side, size_t cell, const int32_t* positions, uint16_t* row) const;
    /// read(), for a program that may write the row back: then encode() gives a coded one the code that it has now, as
    /// far as rows are remembered: the n_cells that were read last. Not for adaptive codecs and those that code rows in
    /// groups.
    void read_out(Side side, size_t cell, const int32_t* positions, uint16_t* row);

    /// Gives up the K and V of one head of a dense or coded cell. A cell that has lost every head gives its memory
    /// back; in others the row stays whole.
    void evict(size_t cell, size_t head);
    bool is_evicted(size_t cell, size_t head) const {
        return ((evicted_rows(cell / kBlock, head) >> (cell % kBlock)) & 1) != 0;
    }
    /// Bit i: row i of this block is evicted.
    uint64_t evicted_rows(size_t block, size_t head) const {
        return evicted_.empty() ? 0 : evicted_[block * geometry_.n_head_kv + head];
    }
    /// Whether the cell was in use and has lost every head.
    bool is_emptied(size_t cell) const { return (state_[cell] & kEmptied) != 0; }

    /// Moves the key of one cell by `delta` positions: dense rows are rotated, codes remember the shift. `rope` is what
    /// the host's shift applies.
    void shift_key(size_t cell, int32_t delta, const Rope& rope);

    /// Makes cell `to` a copy of cell `from`, in code where it is coded. Where cells are coded in groups, copy all of a
    /// group onto an aligned one: half a group cannot be decoded.
    void copy_cell(size_t from, size_t to);

    void drop(size_t cell);
    void clear();
    void trim() { pool_.trim(); }

    size_t dense_rows() const { return pool_.size(); }
    size_t coded_cells() const { return n_coded_; }
    size_t emptied_cells() const { return n_emptied_; }
    /// Not what lies idle in the arena.
    size_t resident_bytes() const;
    /// Bytes per coded token: codes of all heads, K and V. Without codecs, of a dense row.
    size_t code_bytes_per_token() const;
    /// The same where codes have lengths of their own: the mean of those that were written, with their places in the
    /// blocks; before any was, of the longest.
    double mean_bytes_per_token() const;
    /// Resident bytes of what the codecs have learned from this cache.
    size_t adopted_bytes() const { return has_codecs() ? codecs_.k->adopted_bytes() + codecs_.v->adopted_bytes() : 0; }
    /// Mean elements of code space that a code of one side touches; nothing before any is coded.
    std::optional<double> mean_nonzeros(Side side) const;
    /// The part of it that codes use when this share of rows is salient.
    double used_bytes_per_token(double salient_share) const;
    /// Salient rows per coded row, of codes of one length; nothing before any is coded.
    std::optional<double> salient_share() const;
    /// Coded rows (one head, one side) that gather() and read() rebuilt so far.
    uint64_t rows_rebuilt() const { return rows_rebuilt_.load(std::memory_order_relaxed); }

  private:
    static constexpr uint8_t kDenseK = 1;
    static constexpr uint8_t kDenseV = 2;
    static constexpr uint8_t kCoded = 4;
    static constexpr uint8_t kEmptied = 8;

    uint16_t* make_dense(Side side, size_t cell);
    void free_row(size_t cell);
    void forget_evicted(size_t cell);
    void residuals(Side side, size_t head, std::span<const uint32_t> cells, const int32_t* positions, float* x) const;
    std::vector<float> joint_residuals(Side side, size_t head, std::span<const uint32_t> cells,
                                       const int32_t* positions) const;
    /// Heads [first_head, end_head) of some cells, which one codec serves.
    struct EncodeTask {
        Side side;
        size_t first_head, end_head;
        size_t first_cell;  ///< cells[0] among all that are being coded
        std::span<const uint32_t> cells;
    };
    /// Codes [heads / joint_heads, cells, code_bytes]. salient: [n_head_kv, all cells that are being coded] or empty.
    std::vector<std::byte> encode_task(const EncodeTask& task, const int32_t* positions,
                                       std::span<const uint8_t> salient) const;
    /// encode_task() without the rows whose codes are remembered.
    std::vector<std::byte> encode_or_recall(const EncodeTask& task, const int32_t* positions,
                                            std::span<const uint8_t> salient) const;
    RememberedRows& remembered(Side side) { return side == Side::kK ? remembered_k_ : remembered_v_; }
    const RememberedRows& remembered(Side side) const { return side == Side::kK ? remembered_k_ : remembered_v_; }
    void put_codes(Side side, size_t head, std::span<const uint32_t> cells, std::span<const std::byte> codes);
    void adopt_marked(const EncodeTask& task, const int32_t* positions, std::span<std::byte> codes) const;
    VariableBlock& variable_block(Side side, size_t cell, size_t head) {
        return (side == Side::kK ? variable_k_ : variable_v_)[cell / kBlock * geometry_.n_head_kv + head];
    }
    const VariableBlock& variable_block(Side side, size_t cell, size_t head) const {
        return const_cast<LayerStore*>(this)->variable_block(side, cell, head);
    }
    template <typename Visit>
    void for_each_code(Side side, const Visit& visit) const;
    const Codec& codec(Side side) const { return side == Side::kK ? *codecs_.k : *codecs_.v; }
    const Codec& codec(Side side, size_t head) const {
        return side == Side::kK ? codecs_.k_of(head) : codecs_.v_of(head);
    }
    const std::vector<float>& plain_mean(Side side) const {
        return side == Side::kK ? codecs_.k_plain_mean : codecs_.v_mean;
    }
    /// Codes of one side of a cell: one for each head, or for each set of heads that are coded together.
    size_t codes_per_cell(Side side) const { return geometry_.n_head_kv / codec(side).joint_heads(); }
    size_t row_length(Side side) const { return side == Side::kK ? k_row_ : v_row_; }
    /// Bytes of the codes of one block and side, where they are all of one length.
    size_t block_bytes(Side side) const { return codes_per_cell(side) * kBlock * codec(side).code_bytes(); }
    /// Makes room for the codes of a cell.
    void reserve_codes(size_t cell);
    void give_back_codes();
    /// The codes of one block, of the heads that are coded together with this one. Null before the first is put.
    std::byte* code_block(Side side, size_t block, size_t head) const;
    /// One code of any codec; `code` is given its length.
    void get_code(Side side, size_t cell, size_t head, std::vector<std::byte>& code) const;
    void put_code(Side side, size_t cell, size_t head, std::span<const std::byte> code);
    bool is_in_coded_group(size_t cell) const;
    void decode_run(Side side, size_t block, size_t head, size_t first, size_t n, const int32_t* positions,
                    float* x) const;

    size_t n_cells_;
    size_t k_row_;
    size_t v_row_;
    LayerGeometry geometry_;
    LayerCodecs codecs_;
    std::vector<uint8_t> state_;
    std::vector<int32_t> shift_;
    Rope shift_rope_;  // what the host shifts with; a codec may know no rotation at all
    // Slots of dense cells; only blocks that hold any have an entry.
    struct DenseBlock {
        std::array<uint32_t, kBlock> slot;
        uint32_t n_cells = 0;
    };
    std::vector<std::unique_ptr<DenseBlock>> dense_blocks_;
    DensePool pool_;
    std::shared_ptr<CodeArena> arena_;
    std::vector<std::byte*>
        codes_k_;  // [blocks] of codes that are all of one length: [codes_per_cell, kBlock], or null
    std::vector<std::byte*> codes_v_;
    std::vector<VariableBlock> variable_k_;  // [blocks, heads] of the others
    std::vector<VariableBlock> variable_v_;
    RememberedRows remembered_k_;
    RememberedRows remembered_v_;
    std::vector<uint64_t> evicted_;  // [blocks, heads], a bit a cell; empty until the first eviction
    size_t n_coded_ = 0;
    size_t n_emptied_ = 0;
    mutable std::atomic<uint64_t> rows_rebuilt_ = 0;
};

}  // namespace kvcodec
