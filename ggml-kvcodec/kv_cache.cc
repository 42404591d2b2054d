#include "ggml-kvcodec/kv_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>
#include <string_view>

#include "ggml-kvcodec/log.h"
#include "kvcodec/attend/softmax.h"
#include "kvcodec/half.h"

namespace kvcodec::host {
namespace {

const ggml_tensor* root_of(const ggml_tensor* tensor) {
    return tensor->view_src != nullptr ? tensor->view_src : tensor;
}

size_t offset_in_root(const ggml_tensor* tensor) {
    return static_cast<size_t>(static_cast<const char*>(tensor->data) -
                               static_cast<const char*>(root_of(tensor)->data));
}

size_t row_bytes(const ggml_tensor* root) {
    return static_cast<size_t>(root->ne[0]) * sizeof(uint16_t);
}

template <class T>
const T* data_of(const ggml_tensor* tensor) {
    return static_cast<const T*>(tensor->data);
}

float op_float(const ggml_tensor* node, int i) {
    float value = 0;
    std::memcpy(&value, &node->op_params[i], sizeof value);
    return value;
}

bool is_zero(const std::vector<uint16_t>& row) {
    return std::all_of(row.begin(), row.end(), [](uint16_t value) { return value == 0; });
}

double mebibytes(size_t bytes) {
    return static_cast<double>(bytes) / (1 << 20);
}

// ALiBi slopes of ggml's FLASH_ATTN_EXT.
std::vector<float> alibi_slopes(float max_bias, size_t n_head) {
    std::vector<float> slopes;
    if (max_bias > 0) {
        const auto power = static_cast<float>(1U << static_cast<uint32_t>(std::floor(std::log2(n_head))));
        const float m0 = std::exp2(-max_bias / power);
        const float m1 = std::exp2(-max_bias / 2 / power);
        for (size_t head = 0; head < n_head; ++head) {
            const auto h = static_cast<float>(head);
            slopes.push_back(h < power ? std::pow(m0, h + 1) : std::pow(m1, 2 * (h - power) + 1));
        }
    }
    return slopes;
}

// Which cells the queries of one FLASH_ATTN_EXT see.
class Sight {
  public:
    Sight(const ggml_tensor* node, size_t cells_per_stream)
        : mask_(node->src[3]),
          n_tokens_(static_cast<size_t>(node->src[0]->ne[1])),
          n_streams_(static_cast<size_t>(node->src[1]->ne[3])),
          n_kv_(static_cast<size_t>(node->src[1]->ne[1])),
          first_cell_(offset_in_root(node->src[1]) / row_bytes(root_of(node->src[1]))),
          cells_per_stream_(cells_per_stream) {}

    struct Pairs {
        uint64_t all = 0;
        uint64_t chosen = 0;
    };

    // (query, key) pairs in all, and those whose cell is chosen (by cell of the cache). Row by row of the mask: a
    // column is as many cache misses as there are queries.
    Pairs pairs(const std::vector<uint8_t>& chosen) const {
        Pairs pairs;
        for (size_t stream = 0; stream < n_streams_; ++stream) {
            const uint8_t* of_stream = chosen.data() + first_cell_ + stream * cells_per_stream_;
            if (mask_ == nullptr) {
                pairs.all += n_tokens_ * n_kv_;
                pairs.chosen += n_tokens_ * (n_kv_ - static_cast<size_t>(std::count(of_stream, of_stream + n_kv_, 0)));
                continue;
            }
            for (size_t token = 0; token < n_tokens_; ++token) {
                pairs.all += count_visible(row(stream, token), n_kv_);
                pairs.chosen += count_visible(row(stream, token), of_stream, n_kv_);
            }
        }
        return pairs;
    }

    /// Whether the cell is one of the streams that the queries belong to.
    bool covers(size_t cell) const {
        return cell >= first_cell_ && cell < first_cell_ + n_streams_ * cells_per_stream_;
    }

    /// Queries that see one cell.
    uint32_t of(size_t cell) const {
        if (!covers(cell)) {
            return 0;
        }
        const size_t stream = (cell - first_cell_) / cells_per_stream_;
        const size_t index = (cell - first_cell_) % cells_per_stream_;
        if (index >= n_kv_) {
            return 0;
        }
        if (mask_ == nullptr) {
            return static_cast<uint32_t>(n_tokens_);
        }
        uint32_t seen = 0;
        for (size_t token = 0; token < n_tokens_; ++token) {
            seen += half_to_float(row(stream, token)[index]) != -INFINITY ? 1 : 0;
        }
        return seen;
    }

  private:
    const uint16_t* row(size_t stream, size_t token) const {
        return reinterpret_cast<const uint16_t*>(data_of<char>(mask_) + token * mask_->nb[1] +
                                                 stream % static_cast<size_t>(mask_->ne[3]) * mask_->nb[3]);
    }

    const ggml_tensor* mask_;
    size_t n_tokens_;
    size_t n_streams_;
    size_t n_kv_;
    size_t first_cell_;
    size_t cells_per_stream_;
};

}  // namespace

bool KvCache::is_first(const Layer& layer, Side side) const {
    const auto compressed = std::find_if(layers_.begin(), layers_.end(), [](const auto& entry) {
        return entry.second.state != Layer::State::kPassThrough;
    });
    return side == Side::kK && compressed != layers_.end() && layer.index == compressed->first;
}

bool parse_cache_name(const char* name, int32_t& layer, bool& is_key) {
    char side = 0;
    int end = 0;
    if (std::sscanf(name, "cache_%c_l%d%n", &side, &layer, &end) != 2 || name[end] != '\0') {
        return false;
    }
    is_key = side == 'k';
    return side == 'k' || side == 'v';
}

KvCache::KvCache(std::shared_ptr<CodecChoice> choice, Reservation& memory)
    : options_(choice->options()),
      choice_(std::move(choice)),
      memory_(memory),
      window_(options_.mode == Options::Mode::kStrict ? 0 : options_.window),
      sinks_(options_.evicts() ? 0 : options_.sinks),  // an evictor keeps them within its budget
      attention_(options_.crossover, options_.measure == Options::Measure::kTime ? &times_ : nullptr) {
    static std::atomic<uint64_t> n_caches = 0;
    id_ = n_caches++;
}

KvCache::~KvCache() {
    report_end();
}

void KvCache::add_root(ggml_tensor* tensor, int32_t index, bool is_key) {
    Layer& layer = layers_[index];
    layer.index = index;
    (is_key ? layer.k : layer.v) = tensor;
    const auto cells = static_cast<size_t>(tensor->ne[1] * tensor->ne[2]);
    if (cells > n_cells_) {
        n_cells_ = cells;
        cells_per_stream_ = static_cast<size_t>(tensor->ne[1]);
        positions_.assign(n_cells_, kUnknownPosition);
        age_.assign(n_cells_, 0);
        unseen_.assign(n_cells_, 0);
        is_young_.assign(n_cells_, 0);
    }
    memory_.protect(static_cast<size_t>(static_cast<std::byte*>(tensor->data) - memory_.data()), ggml_nbytes(tensor));
}

Layer* KvCache::layer_of(const ggml_tensor* tensor) {
    const ggml_tensor* root = root_of(tensor);
    int32_t index = 0;
    bool is_key = false;
    if (root->op != GGML_OP_NONE || !parse_cache_name(root->name, index, is_key)) {
        return nullptr;
    }
    const auto found = layers_.find(index);
    if (found == layers_.end()) {
        return nullptr;
    }
    const ggml_tensor* managed = is_key ? found->second.k : found->second.v;
    return managed != nullptr && managed->data == root->data ? &found->second : nullptr;
}

Layer* KvCache::compressed_layer_of(const ggml_tensor* tensor) {
    Layer* layer = layer_of(tensor);
    return layer == nullptr || layer->state == Layer::State::kPassThrough ? nullptr : layer;
}

// Gives a layer its store once both tensors are known; a layer without a partner cannot be compressed.
void KvCache::make_whole(Layer& layer) {
    if (layer.store != nullptr || layer.state == Layer::State::kPassThrough) {
        return;
    }
    if (layer.k == nullptr || layer.v == nullptr) {
        pass_through(layer, "its keys and values are not stored separately");
    } else if (layer.k->ne[1] != layer.v->ne[1] || layer.k->ne[2] != layer.v->ne[2] ||
               static_cast<size_t>(layer.k->ne[1] * layer.k->ne[2]) != n_cells_ ||
               layer.k->ne[1] % LayerStore::kBlock != 0) {
        pass_through(layer, fmt::format("its {} cells are not a multiple of {}", layer.k->ne[1], LayerStore::kBlock));
    } else {
        layer.store = std::make_unique<LayerStore>(n_cells_, static_cast<size_t>(layer.k->ne[0]),
                                                   static_cast<size_t>(layer.v->ne[0]), options_.release, arena_);
    }
}

void KvCache::pass_through(Layer& layer, const std::string& reason) {
    if (layer.state == Layer::State::kPassThrough) {
        return;
    }
    const bool explained = has_other_types_ && (layer.k == nullptr || layer.v == nullptr);
    if (!explained && warned_.insert(reason).second) {
        log_warning("layer {} (and others alike) is not compressed: {}", layer.index, reason);
    }
    layer.state = Layer::State::kPassThrough;
    for (ggml_tensor* root : {layer.k, layer.v}) {
        if (root == nullptr) {
            continue;
        }
        memory_.unprotect(static_cast<size_t>(static_cast<std::byte*>(root->data) - memory_.data()), ggml_nbytes(root));
        std::memset(root->data, 0, ggml_nbytes(root));  // pages in order, as the host has them: it reads them faster
        if (layer.store == nullptr) {
            continue;
        }
        const Side side = root == layer.k ? Side::kK : Side::kV;
        for (size_t cell = 0; cell < n_cells_; ++cell) {
            if (layer.store->is_dense(cell) || layer.store->is_coded(cell)) {
                layer.store->read(side, cell, positions_.data(),
                                  static_cast<uint16_t*>(root->data) + cell * static_cast<size_t>(root->ne[0]));
            }
        }
    }
    layer.store.reset();
    layer.evictor.reset();
    layer.salient_rows.reset();
    layer.ripe.clear();
}

// The host computes layers in ascending order, so a key layer not above the last one starts a new graph.
void KvCache::begin_graph_if_new(const Layer& layer) {
    if (layer.index <= last_key_layer_) {
        ++graph_;
        cells_reset_ = false;
        positions_read_ = false;
        aged_ = false;
        pairs_counted_ = false;
    }
    last_key_layer_ = layer.index;
}

void KvCache::reset_cell(size_t cell) {
    age_[cell] = 0;
    unseen_[cell] = 0;
    if (is_young_[cell] == 0) {
        is_young_[cell] = 1;
        young_.push_back(static_cast<uint32_t>(cell));
    }
}

// The first key layer of a graph tells which cells are written, the first rotated one at which positions. They are read
// there: later the host may reuse their memory.
void KvCache::note_cells(Layer& layer, const ggml_tensor* node) {
    const auto* cells = data_of<int64_t>(node->src[1]);
    const auto n = static_cast<size_t>(node->src[0]->ne[1]);
    if (!cells_reset_) {
        cells_reset_ = true;
        for (size_t i = 0; i < n; ++i) {
            reset_cell(static_cast<size_t>(cells[i]));
            positions_[static_cast<size_t>(cells[i])] = kUnknownPosition;
        }
    }
    if (positions_read_ && layer.k_origin != nullptr) {
        return;
    }
    layer.k_origin = std::make_unique<RowOrigin>(trace_rows(node));
    if (const ggml_tensor* positions = layer.k_origin->positions; positions != nullptr && !positions_read_) {
        positions_read_ = true;
        for (size_t i = 0; i < n; ++i) {
            positions_[static_cast<size_t>(cells[i])] = data_of<int32_t>(positions)[i];
        }
    }
}

bool KvCache::set_rows(ggml_tensor* node) {
    Layer& layer = *layer_of(node);
    make_whole(layer);
    if (layer.state == Layer::State::kPassThrough) {
        return false;
    }
    const bool is_key = root_of(node)->data == layer.k->data;
    const ggml_tensor* rows = node->src[0];
    const ggml_tensor* root = is_key ? layer.k : layer.v;
    if (rows->ne[0] != root->ne[0] || rows->type != GGML_TYPE_F32 || node->src[1]->type != GGML_TYPE_I64 ||
        rows->ne[2] != 1) {
        pass_through(layer, "its rows come in a form that kvcodec does not know");
        return false;
    }
    if (is_key) {
        begin_graph_if_new(layer);
        note_cells(layer, node);
    } else if (layer.v_origin == nullptr) {
        layer.v_origin = std::make_unique<RowOrigin>(trace_rows(node));
    }
    const auto* cells = data_of<int64_t>(node->src[1]);
    for (int64_t i = 0; i < rows->ne[1]; ++i) {
        const auto* row = reinterpret_cast<const float*>(data_of<char>(rows) + i * static_cast<int64_t>(rows->nb[1]));
        layer.store->write(is_key ? Side::kK : Side::kV, static_cast<size_t>(cells[i]), row);
        if (is_key && layer.evictor != nullptr) {
            layer.evictor->forget(static_cast<size_t>(cells[i]));
        }
    }
    return true;
}

// Returns why the layer cannot be compressed, or nothing.
std::string KvCache::choose_codecs(Layer& layer, const ggml_tensor* node) {
    if (!options_.takes_layer(static_cast<uint32_t>(layer.index))) {
        return "layers= leaves it out";
    }
    const ggml_tensor* q = node->src[0];
    const ggml_tensor* k = node->src[1];
    const ggml_tensor* v = node->src[2];
    const LayerGeometry geometry{n_cells_, static_cast<size_t>(k->ne[2]), static_cast<size_t>(k->ne[0]),
                                 static_cast<size_t>(v->ne[0])};
    if (k->ne[2] != v->ne[2] || k->ne[0] * k->ne[2] != layer.k->ne[0] || v->ne[0] * v->ne[2] != layer.v->ne[0]) {
        return "its cache rows are not one K or V vector per head";
    }
    if (q->ne[2] % k->ne[2] != 0) {
        return "its query heads are not a multiple of its KV heads";
    }
    const auto rank = static_cast<size_t>(std::distance(layers_.begin(), layers_.find(layer.index)));
    if (const auto settings = choice_->eviction(rank, layers_.size())) {
        layer.store->set_codecs(geometry, {});
        layer.evictor = std::make_unique<Evictor>(*settings, geometry);
        layer.state = Layer::State::kCompressed;
        for (size_t cell = 0; cell < n_cells_; ++cell) {
            evict_zero_rows(layer, cell);
        }
        return {};
    }
    LayerFacts facts{static_cast<uint32_t>(layer.index),
                     geometry,
                     layer.k_origin ? *layer.k_origin : RowOrigin{},
                     layer.v_origin ? *layer.v_origin : RowOrigin{},
                     0,
                     dense_tokens()};
    for (const auto& [index, any] : layers_) {
        facts.f16_bytes += any.k == nullptr || any.v == nullptr ? 0 : row_bytes(any.k) + row_bytes(any.v);
    }
    CodecChoice::Choice choice = choice_->choose(facts);
    if (!choice.codecs) {
        return choice.reason;
    }
    layer.expected_error_k = choice.expected_error_k;
    layer.expected_error_v = choice.expected_error_v;
    layer.trained = choice.trained;
    layer.own_mean_k = choice.own_mean_k;
    layer.own_mean_v = choice.own_mean_v;
    layer.fixed_bytes = choice.fixed_bytes;
    if (choice.salient_share) {
        layer.salient_rows = std::make_unique<SalientRows>(*choice.salient_share);
    }
    layer.store->set_codecs(geometry, std::move(*choice.codecs));
    layer.state = Layer::State::kCompressed;
    return {};
}

// Counts, once a graph, the queries that see each young cell; cells of age >= window are handed to every layer, and
// those that their stream's queries no longer see: the host removes tokens without a word.
void KvCache::grow_older(const ggml_tensor* node) {
    if (aged_) {
        return;
    }
    aged_ = true;
    // A stream is one sequence, whose queries see all that they will ever see again, unless it is the only one: then
    // sequences may share it, and what one that pauses has of the window is given up, but not its first tokens.
    constexpr uint16_t kMostUnseen = 4, kMostUnseenInPool = 256;
    const bool is_pool = n_cells_ == cells_per_stream_;
    const Sight sight(node, cells_per_stream_);
    std::vector<uint32_t> ripe;
    size_t kept = 0;
    for (const uint32_t cell : young_) {
        const uint32_t seen = sight.of(cell);
        age_[cell] += seen;
        unseen_[cell] = static_cast<uint16_t>(seen > 0 ? 0 : unseen_[cell] + (sight.covers(cell) ? 1 : 0));
        // Of an evicting cache, cells are young until a decision has been made on them.
        const bool is_old = age_[cell] >= std::max(window_, 1U) && !is_sink(cell);
        const bool is_gone =
            is_pool ? unseen_[cell] >= kMostUnseenInPool && !is_sink(cell) : unseen_[cell] >= kMostUnseen;
        if (!options_.evicts() && (is_old || is_gone)) {
            is_young_[cell] = 0;
            ripe.push_back(cell);
        } else {
            young_[kept++] = cell;
        }
    }
    young_.resize(kept);
    for (auto& [index, other] : layers_) {
        if (other.state != Layer::State::kPassThrough) {
            other.ripe.insert(other.ripe.end(), ripe.begin(), ripe.end());
        }
    }
}

// Counts, once a graph, the pairs that attention is about to read, and those of them that it reads through codes:
// of an evicting cache, those whose key had been decided on.
void KvCache::count_pairs(const Layer& layer, const ggml_tensor* node) {
    if (pairs_counted_) {
        return;
    }
    pairs_counted_ = true;
    std::vector<uint8_t> is_dense = is_young_;
    for (size_t cell = 0; !options_.evicts() && cell < n_cells_; ++cell) {
        is_dense[cell] = layer.store->is_dense(cell) ? 1 : 0;
    }
    const Sight::Pairs pairs = Sight(node, cells_per_stream_).pairs(is_dense);
    counters_.pairs += pairs.all;
    counters_.pairs_coded += pairs.all - pairs.chosen;
}

void KvCache::evict(Layer& layer, const AttentionCall& call, Team& team) {
    const int64_t start = ggml_time_us();
    const std::span<const uint32_t> decided = layer.evictor->observe(*layer.store, call, team);
    for (const uint32_t cell : decided) {
        is_young_[cell] = 0;
    }
    if (!decided.empty()) {
        std::erase_if(young_, [&](uint32_t cell) { return is_young_[cell] == 0; });
    }
    counters_.encode_us += ggml_time_us() - start;
}

// Evicted rows are zeros in a state that the host has saved, and no key of a model is: they come back as evicted.
void KvCache::evict_zero_rows(Layer& layer, size_t cell) {
    const LayerGeometry& g = layer.store->geometry();
    for (size_t head = 0; head < g.n_head_kv; ++head) {
        const auto is_zero = [&](Side side, size_t dim) {
            const uint16_t* row = layer.store->dense_row(side, cell) + head * dim;
            return std::all_of(row, row + dim, [](uint16_t value) { return value == 0; });
        };
        if (layer.store->is_dense(cell) && is_zero(Side::kK, g.dim_k) && is_zero(Side::kV, g.dim_v)) {
            layer.store->evict(cell, head);
        }
    }
}

// Compares the first codes with what the artifact promises: one of another model is caught before it harms.
bool KvCache::fits_artifact(Layer& layer, std::span<const uint32_t> cells) {
    constexpr size_t kEnough = 16;
    constexpr double kTolerance = 2;
    // A mean that belongs to the model takes energy away.
    constexpr double kMostResidual = 1.1;
    constexpr int32_t kFirstPositions = 4;  // attention sinks are unlike all other vectors
    if (layer.checked || !layer.trained) {
        return true;
    }
    // Without RoPE positions are never known: the first cells stand for the first positions.
    const auto position_of = [&](uint32_t cell) {
        const bool is_known = positions_[cell] != kUnknownPosition || layer.store->codecs().need_positions();
        return is_known ? positions_[cell] : static_cast<int32_t>(cell % cells_per_stream_);
    };
    std::vector<uint32_t> sample;
    for (const uint32_t cell : cells) {
        if (position_of(cell) >= kFirstPositions && sample.size() < 2 * kEnough) {
            sample.push_back(cell);
        }
    }
    if (sample.size() < kEnough) {
        return true;
    }
    layer.checked = true;
    std::string problem;
    const auto check = [&](Side side, const char* name, double expected, bool own_mean) {
        Distortion sum;
        for (const Distortion& distortion : layer.store->distortion(side, sample, positions_.data())) {
            sum += distortion;
        }
        const double error = std::sqrt(sum.miss / std::max(sum.residual, 1e-20));
        if (expected > 0 && error > kTolerance * expected) {
            problem = fmt::format("{} are coded with an error of {:.2f}, the artifact promises {:.2f}", name, error,
                                  expected);
        } else if (!own_mean && sum.residual > kMostResidual * sum.energy) {
            problem = fmt::format("the artifact's mean of {} does not fit", name);
        }
    };
    check(Side::kK, "its keys", layer.expected_error_k, layer.own_mean_k);
    check(Side::kV, "its values", layer.expected_error_v, layer.own_mean_v);
    if (!problem.empty()) {
        pass_through(layer, problem + "; train an artifact for this model");
    }
    return problem.empty();
}

void KvCache::measure(Layer& layer, std::span<const uint32_t> cells, const uint8_t* salient) {
    const std::vector<Distortion> k = layer.store->distortion(Side::kK, cells, positions_.data(), salient);
    const std::vector<Distortion> v = layer.store->distortion(Side::kV, cells, positions_.data(), salient);
    for (size_t i = 0; i < cells.size(); ++i) {
        size_t range = 0;
        while (range + 1 < std::size(kDistortionRanges) &&
               positions_[cells[i]] >= static_cast<int64_t>(kDistortionRanges[range + 1])) {
            ++range;
        }
        layer.distortion_k[range] += k[i];
        layer.distortion_v[range] += v[i];
    }
}

// calls: of the attention that is being computed, one a stream.
void KvCache::encode_ripe(Layer& layer, bool all, std::span<const AttentionCall> calls, Team& team) {
    // Between prompts each layer codes a few cells every kStagger graphs, in turn, so that every step does equal work.
    constexpr uint64_t kStagger = 16;
    constexpr size_t kMostInStep = 64;
    constexpr size_t kBacklog = 1024;  // after a restored state: dense memory is given back at once
    if (layer.ripe.empty()) {
        return;
    }
    if (!all && layer.ripe.size() < 2 * kStagger && (graph_ + static_cast<uint64_t>(layer.index)) % kStagger != 0) {
        return;
    }
    std::sort(layer.ripe.begin(), layer.ripe.end());
    layer.ripe.erase(std::unique(layer.ripe.begin(), layer.ripe.end()), layer.ripe.end());
    const bool needs_position = layer.store->codecs().need_positions();
    bool lost_position = false;
    std::erase_if(layer.ripe, [&](uint32_t cell) {
        const bool codable = layer.store->is_whole(cell) && is_young_[cell] == 0;
        const bool lost = codable && needs_position && positions_[cell] == kUnknownPosition;
        lost_position |= lost;
        return !codable || lost;
    });
    if (lost_position && !warned_of_positions_) {
        warned_of_positions_ = true;
        log_warning("a state that another process saved was restored without positions; its tokens stay uncompressed");
    }
    // Cells that are coded in groups wait, dense, until their group is complete.
    const size_t n_ready = layer.store->complete_groups(layer.ripe);
    const size_t n = all || n_ready > kBacklog ? n_ready : std::min(n_ready, kMostInStep);
    const std::span<const uint32_t> cells(layer.ripe.data(), n);
    if (cells.empty() || !fits_artifact(layer, cells)) {
        return;
    }
    int64_t start = ggml_time_us();
    std::vector<uint8_t> marks;
    if (layer.salient_rows != nullptr) {
        marks = layer.salient_rows->choose(*layer.store, calls, cells, team);
    }
    const uint8_t* salient = marks.empty() ? nullptr : marks.data();
    counters_.encode_us += ggml_time_us() - start;
    if (options_.measure == Options::Measure::kError) {
        measure(layer, cells, salient);
    }
    start = ggml_time_us();
    layer.store->encode(cells, positions_.data(), team, salient);
    layer.store->trim();
    counters_.encode_us += ggml_time_us() - start;
    counters_.cells_coded += n;
    layer.ripe.erase(layer.ripe.begin(), layer.ripe.begin() + static_cast<std::ptrdiff_t>(n));
}

bool KvCache::flash_attn(ggml_tensor* node, Team& team) {
    const ggml_tensor* q = node->src[0];
    const ggml_tensor* k = node->src[1];
    const ggml_tensor* v = node->src[2];
    const ggml_tensor* mask = node->src[3];
    const ggml_tensor* sinks = node->src[4];
    Layer* layer_of_k = layer_of(k);
    if (layer_of_k == nullptr || layer_of(v) != layer_of_k) {
        for (Layer* layer : {layer_of_k, layer_of(v)}) {
            if (layer != nullptr) {
                pass_through(*layer, "its keys and values are not stored separately");
            }
        }
        return false;
    }
    Layer& layer = *layer_of_k;
    make_whole(layer);
    if (layer.state == Layer::State::kFresh) {
        if (const std::string reason = choose_codecs(layer, node); !reason.empty()) {
            pass_through(layer, reason);
        }
        report_load();
    }
    if (layer.state == Layer::State::kPassThrough) {
        return false;
    }
    if (q->type != GGML_TYPE_F32 || (mask != nullptr && (mask->type != GGML_TYPE_F16 || mask->ne[2] != 1))) {
        pass_through(layer, "its attention takes a form that kvcodec does not know");
        return false;
    }
    grow_older(node);

    const std::vector<float> slopes = alibi_slopes(op_float(node, 1), static_cast<size_t>(q->ne[2]));
    AttentionCall call;
    call.q_token_stride = q->nb[1] / sizeof(float);
    call.q_head_stride = q->nb[2] / sizeof(float);
    call.n_tokens = static_cast<size_t>(q->ne[1]);
    call.n_head = static_cast<size_t>(q->ne[2]);
    call.n_cells = static_cast<size_t>(k->ne[1]);
    call.scale = op_float(node, 0);
    call.softcap = op_float(node, 2);
    call.slopes = slopes.empty() ? nullptr : slopes.data();
    call.sinks = sinks == nullptr ? nullptr : data_of<float>(sinks);
    call.out_token_stride = node->nb[2] / sizeof(float);
    call.out_head_stride = node->nb[1] / sizeof(float);
    call.positions = positions_.data();
    call.mask_stride = mask == nullptr ? 0 : mask->nb[1] / sizeof(uint16_t);
    std::vector<AttentionCall> calls;
    for (int64_t stream = 0; stream < q->ne[3]; ++stream) {
        call.q = reinterpret_cast<const float*>(data_of<char>(q) + stream * static_cast<int64_t>(q->nb[3]));
        call.first_cell = offset_in_root(k) / row_bytes(layer.k) + static_cast<size_t>(stream) * cells_per_stream_;
        call.mask = mask == nullptr
                        ? nullptr
                        : reinterpret_cast<const uint16_t*>(data_of<char>(mask) +
                                                            stream % mask->ne[3] * static_cast<int64_t>(mask->nb[3]));
        call.out =
            reinterpret_cast<float*>(static_cast<char*>(node->data) + stream * static_cast<int64_t>(node->nb[3]));
        calls.push_back(call);
    }

    const bool strict = options_.mode == Options::Mode::kStrict;
    if (strict) {
        encode_ripe(layer, true, calls, team);
    }
    if (layer.state == Layer::State::kPassThrough) {
        return false;
    }
    count_pairs(layer, node);
    for (const AttentionCall& one : calls) {
        const int64_t start = ggml_time_us();
        ++(attention_.in_code_space(*layer.store, one) ? counters_.code_space_calls : counters_.block_calls);
        attention_.run(*layer.store, one, team);
        counters_.attention_us += ggml_time_us() - start;
        if (layer.evictor != nullptr) {
            evict(layer, one, team);
        }
    }

    // Small batches are steps of several sequences or of speculative decoding.
    constexpr size_t kFewestPromptTokens = 64;
    const bool prompt = call.n_tokens >= kFewestPromptTokens;
    if (!strict && !(prompt && options_.prefill == Options::Prefill::kExact)) {
        encode_ripe(layer, prompt, calls, team);
    }
    return true;
}

bool KvCache::shift(ggml_tensor* node) {
    Layer& layer = *layer_of(node);
    make_whole(layer);
    if (layer.state == Layer::State::kPassThrough) {
        return false;
    }
    const std::optional<RopeParams> params = read_rope(node);
    const ggml_tensor* delta = node->src[1];
    if (!params || root_of(node)->data != layer.k->data || static_cast<size_t>(delta->ne[0]) != n_cells_ ||
        offset_in_root(node) != 0) {
        pass_through(layer, "its keys are shifted in a way that kvcodec does not know");
        return false;
    }
    const auto* deltas = data_of<int32_t>(delta);
    if (layer.index <= shifted_layer_) {  // the first layer of a shift moves the positions that all layers share
        for (size_t cell = 0; cell < n_cells_; ++cell) {
            positions_[cell] += positions_[cell] == kUnknownPosition ? 0 : deltas[cell];
        }
    }
    shifted_layer_ = layer.index;
    // The host views only the rotated part of each head: the stride tells how long a head is.
    const Rope rope(*params, node->nb[1] / sizeof(uint16_t));
    for (size_t cell = 0; cell < n_cells_; ++cell) {
        if (deltas[cell] != 0) {
            layer.store->shift_key(cell, deltas[cell], rope);
        }
    }
    return true;
}

void KvCache::get(const ggml_tensor* tensor, void* data, size_t offset, size_t size) {
    const Layer& layer = *layer_of(tensor);
    const ggml_tensor* root = root_of(tensor);
    const Side side = root->data == layer.k->data ? Side::kK : Side::kV;
    const size_t bytes = row_bytes(root);
    std::vector<uint16_t> row(static_cast<size_t>(root->ne[0]));
    for (size_t at = offset_in_root(tensor) + offset, done = 0; done < size;) {
        const size_t part = std::min(bytes - at % bytes, size - done);
        if (layer.store == nullptr) {
            std::fill(row.begin(), row.end(), uint16_t{0});
        } else {
            if (options_.remember) {
                layer.store->read_out(side, at / bytes, positions_.data(), row.data());
            } else {
                layer.store->read(side, at / bytes, positions_.data(), row.data());
            }
            // Rows that were evicted whole are all alike.
            if (is_first(layer, side) && !is_zero(row)) {
                const CellOfRow known{positions_[at / bytes], age_[at / bytes]};
                cell_of_row_.remember(row, std::as_bytes(std::span(&known, 1)));
            }
        }
        std::memcpy(static_cast<char*>(data) + done, reinterpret_cast<char*>(row.data()) + at % bytes, part);
        at += part;
        done += part;
    }
}

void KvCache::set(ggml_tensor* tensor, const void* data, size_t offset, size_t size) {
    Layer& layer = *layer_of(tensor);
    make_whole(layer);
    const ggml_tensor* root = root_of(tensor);
    const size_t begin = offset_in_root(tensor) + offset;
    if (layer.state == Layer::State::kPassThrough) {
        std::memcpy(static_cast<char*>(root->data) + begin, data, size);
        return;
    }
    const Side side = root->data == layer.k->data ? Side::kK : Side::kV;
    const size_t bytes = row_bytes(root);
    std::vector<uint16_t> row(static_cast<size_t>(root->ne[0]));
    for (size_t at = begin, done = 0; done < size;) {
        const size_t cell = at / bytes;
        const size_t part = std::min(bytes - at % bytes, size - done);
        if (part < bytes) {
            layer.store->read(side, cell, positions_.data(), row.data());
        }
        std::memcpy(reinterpret_cast<char*>(row.data()) + at % bytes, static_cast<const char*>(data) + done, part);
        layer.store->write_half(side, cell, row.data());
        if (layer.evictor != nullptr) {
            layer.evictor->forget(cell);
            evict_zero_rows(layer, cell);
        }
        if (is_first(layer, side)) {                     // the host writes it before all others
            CellOfRow known{kUnknownPosition, window_};  // what nobody knows is coded as soon as it is used
            if (const auto bytes_of_known = cell_of_row_.find(row); bytes_of_known && !is_zero(row)) {
                std::memcpy(&known, bytes_of_known->data(), sizeof(known));
            }
            positions_[cell] = known.position;
            reset_cell(cell);
            age_[cell] = known.age;
        }
        at += part;
        done += part;
    }
}

bool KvCache::copy(const ggml_tensor* from, ggml_tensor* to) {
    Layer* layer = compressed_layer_of(to);
    if (layer == nullptr || layer->store == nullptr || layer_of(from) != layer ||
        root_of(from)->data != root_of(to)->data || ggml_nbytes(from) != ggml_nbytes(to)) {
        return false;
    }
    const size_t bytes = row_bytes(root_of(to));
    if (offset_in_root(from) % bytes != 0 || offset_in_root(to) % bytes != 0 || ggml_nbytes(to) % bytes != 0) {
        return false;
    }
    const size_t source = offset_in_root(from) / bytes;
    const size_t target = offset_in_root(to) / bytes;
    const size_t n = ggml_nbytes(to) / bytes;
    const size_t group = layer->store->has_codecs() ? layer->store->group_cells() : 1;
    if (source % group != 0 || target % group != 0 || n % group != 0) {
        return false;  // half a group cannot be decoded
    }
    for (size_t i = 0; i < n; ++i) {
        layer->store->copy_cell(source + i, target + i);
        if (layer->evictor != nullptr) {
            layer->evictor->copy_cell(source + i, target + i);
        }
        positions_[target + i] = positions_[source + i];
        if (layer->evictor != nullptr && layer->evictor->is_decided(target + i)) {
            is_young_[target + i] = 0;
        } else if (layer->store->is_dense(target + i)) {
            reset_cell(target + i);
        } else {
            age_[target + i] = age_[source + i];
        }
    }
    std::erase_if(young_, [&](uint32_t cell) { return is_young_[cell] == 0; });
    return true;
}

void KvCache::clear() {
    for (auto& [index, layer] : layers_) {
        if (layer.store != nullptr) {
            layer.store->clear();
        }
        if (layer.evictor != nullptr) {
            layer.evictor->clear();
        }
        layer.ripe.clear();
    }
    std::fill(positions_.begin(), positions_.end(), kUnknownPosition);
    std::fill(age_.begin(), age_.end(), 0);
    std::fill(unseen_.begin(), unseen_.end(), uint16_t{0});
    std::fill(is_young_.begin(), is_young_.end(), uint8_t{0});
    young_.clear();
}

size_t KvCache::fixed_bytes() const {
    size_t bytes = choice_->shared_bytes();
    for (const auto& [index, layer] : layers_) {
        bytes += layer.state == Layer::State::kCompressed ? layer.fixed_bytes + layer.store->adopted_bytes() : 0;
    }
    return bytes;
}

// Most tokens of one sequence that stay dense: the window, the sinks with the rest of their group, and a group that is
// not complete yet.
size_t KvCache::dense_tokens() const {
    size_t group = 1;
    for (const auto& [index, layer] : layers_) {
        if (layer.state == Layer::State::kCompressed) {
            group = std::max(group, layer.store->group_cells());
        }
    }
    return window_ + (sinks_ + group - 1) / group * group + group - 1;
}

// Bytes of a token once it is compressed. Of an evicting layer: what decisions have left so far; of one with salient
// rows: what codes in use take; or the budget's share before there was any.
double KvCache::bytes_per_token(const Layer& layer) {
    if (layer.salient_rows != nullptr) {
        return layer.store->used_bytes_per_token(layer.store->salient_share().value_or(layer.salient_rows->share()));
    }
    return layer.evictor == nullptr
               ? layer.store->mean_bytes_per_token()
               : layer.evictor->share(*layer.store) * static_cast<double>(layer.store->code_bytes_per_token());
}

std::string KvCache::describe(const Layer& layer) {
    if (layer.evictor != nullptr) {
        return layer.evictor->describe();
    }
    const LayerCodecs& codecs = layer.store->codecs();
    std::string text = fmt::format("K {}, V {}", codecs.k->describe(), codecs.v->describe());
    if (layer.salient_rows != nullptr) {
        text += fmt::format(", {:.4g} % of rows salient", 100 * layer.salient_rows->share());
    }
    return text;
}

// All compressed layers in one phrase: their codecs where all have the same, else the kinds and bits of each side.
std::string KvCache::describe_all() const {
    std::set<std::string> whole;
    struct Kinds {
        std::string names;
        double least = INFINITY;
        double most = 0;
        double sum = 0;
        void add(const Codec& codec) {
            const std::string text = codec.describe();
            const std::string kind = text.substr(0, text.find_first_of(", "));
            if (names.find(kind) == std::string::npos) {
                names += (names.empty() ? "" : " and ") + kind;
            }
            const double bits =
                8.0 * static_cast<double>(codec.code_bytes()) / static_cast<double>(codec.dim() * codec.joint_heads());
            least = std::min(least, bits);
            most = std::max(most, bits);
            sum += bits;
        }
    };
    Kinds k, v;
    size_t n = 0;
    for (const auto& [index, layer] : layers_) {
        if (layer.state != Layer::State::kCompressed) {
            continue;
        }
        whole.insert(describe(layer));
        if (layer.evictor == nullptr) {
            k.add(*layer.store->codecs().k);
            v.add(*layer.store->codecs().v);
            ++n;
        }
    }
    if (whole.size() <= 1 || n == 0) {
        return whole.empty() ? "none" : *whole.begin();
    }
    const auto phrase = [&](const Kinds& side) {
        return fmt::format("{}, {:.2f} to {:.2f} bits, {:.2f} on average", side.names, side.least, side.most,
                           side.sum / static_cast<double>(n));
    };
    return fmt::format("K {}; V {}", phrase(k), phrase(v));
}

void KvCache::report_load() {
    if (reported_load_ || options_.log == Options::Log::kQuiet) {
        return;
    }
    size_t compressed = 0;
    double code_bytes = 0;
    size_t dense_bytes = 0;
    size_t dense_row_bytes = 0;
    for (const auto& [index, layer] : layers_) {
        if (layer.state == Layer::State::kFresh) {
            return;  // reported once every layer has been seen
        }
        if (layer.k == nullptr || layer.v == nullptr) {
            continue;
        }
        const size_t bytes = row_bytes(layer.k) + row_bytes(layer.v);
        dense_bytes += bytes;
        if (layer.state == Layer::State::kCompressed) {
            ++compressed;
            code_bytes += bytes_per_token(layer);
            dense_row_bytes += bytes;
        } else {
            code_bytes += static_cast<double>(bytes);
        }
    }
    reported_load_ = true;
    if (dense_bytes == 0) {
        return;
    }
    const size_t total = static_cast<size_t>(code_bytes * static_cast<double>(n_cells_)) +
                         dense_row_bytes * std::min(n_cells_, dense_tokens()) + fixed_bytes();
    log_summary(
        "{} of {} layers compressed ({}); rate {:.1f} % of f16; at {} tokens {:.1f} MiB in all, {:.1f} % of f16",
        compressed, layers_.size(), describe_all(), 100.0 * code_bytes / static_cast<double>(dense_bytes), n_cells_,
        mebibytes(total), 100.0 * static_cast<double>(total) / static_cast<double>(dense_bytes * n_cells_));
}

void KvCache::add_nonzeros(const LayerStore& store, Totals& totals) {
    if (!store.has_codecs() || store.coded_cells() == 0) {
        return;
    }
    for (const Side side : {Side::kK, Side::kV}) {
        const bool is_k = side == Side::kK;
        if ((is_k ? *store.codecs().k : *store.codecs().v).is_variable()) {
            (is_k ? totals.nonzeros_k : totals.nonzeros_v).add(store.mean_nonzeros(side).value_or(0));
        }
    }
}

std::string KvCache::Totals::Mean::text(const char* of) const {
    return n == 0 ? "" : fmt::format("; {:.1f} atoms {}", sum / static_cast<double>(n), of);
}

KvCache::Totals KvCache::totals() const {
    Totals totals;
    totals.resident_bytes =
        fixed_bytes() + attention_.scratch_bytes() + arena_->idle_bytes() + cell_of_row_.resident_bytes();
    for (const auto& [index, layer] : layers_) {
        if (layer.store != nullptr) {
            const size_t f16 = row_bytes(layer.k) + row_bytes(layer.v);
            const size_t cells = layer.store->coded_cells() + layer.store->dense_rows() + layer.store->emptied_cells();
            ++totals.compressed_layers;
            add_nonzeros(*layer.store, totals);
            totals.resident_bytes += layer.store->resident_bytes();
            totals.resident_bytes += layer.evictor == nullptr ? 0 : layer.evictor->resident_bytes();
            totals.coded_cells = std::max(totals.coded_cells, layer.store->coded_cells());
            totals.dense_cells = std::max(totals.dense_cells, layer.store->dense_rows());
            totals.rows_rebuilt += layer.store->rows_rebuilt();
            totals.f16_bytes += f16 * cells;
        }
    }
    return totals;
}

void KvCache::report_end() {
    const Totals sum = totals();
    if (options_.log == Options::Log::kQuiet || counters_.pairs == 0 || sum.compressed_layers == 0) {
        return;
    }
    log_summary(
        "{} cells coded, {} dense; resident {:.2f} MiB, {:.1f} % of the {:.2f} MiB of f16; {:.1f} % of pairs read "
        "through codes; encoding {:.0f} ms, attention {:.0f} ms ({} calls in code space, {} by blocks, {} rows "
        "rebuilt){}",
        sum.coded_cells, sum.dense_cells, mebibytes(sum.resident_bytes),
        sum.f16_bytes == 0 ? 0.0 : 100.0 * static_cast<double>(sum.resident_bytes) / static_cast<double>(sum.f16_bytes),
        mebibytes(sum.f16_bytes),
        100.0 * static_cast<double>(counters_.pairs_coded) / static_cast<double>(counters_.pairs),
        static_cast<double>(counters_.encode_us) / 1e3, static_cast<double>(counters_.attention_us) / 1e3,
        counters_.code_space_calls, counters_.block_calls, sum.rows_rebuilt,
        sum.nonzeros_k.text("a key") + sum.nonzeros_v.text("a value"));
}

std::string KvCache::report_json() const {
    const Totals sum = totals();
    double code_bytes = 0;
    size_t f16_bytes = 0;
    std::string codecs;
    std::string distortion;
    for (const auto& [index, layer] : layers_) {
        if (layer.k == nullptr || layer.v == nullptr) {
            continue;
        }
        const size_t bytes = row_bytes(layer.k) + row_bytes(layer.v);
        const bool compressed = layer.state == Layer::State::kCompressed;
        f16_bytes += bytes;
        code_bytes += compressed ? bytes_per_token(layer) : static_cast<double>(bytes);
        codecs += fmt::format("{}\"{}\"", codecs.empty() ? "" : ",", compressed ? describe(layer) : "f16");
        const auto ranges = [](const DistortionByRange& sums) {
            std::string text;
            for (const Distortion& d : sums) {
                text += fmt::format("{}[{},{},{}]", text.empty() ? "" : ",", d.miss, d.residual, d.energy);
            }
            return text;
        };
        if (options_.measure == Options::Measure::kError && compressed && layer.evictor == nullptr) {
            distortion += fmt::format(R"({}{{"layer":{},"k":[{}],"v":[{}]}})", distortion.empty() ? "" : ",", index,
                                      ranges(layer.distortion_k), ranges(layer.distortion_v));
        }
    }
    std::string times = fmt::format(R"("encode":{})", counters_.encode_us);
    for (size_t part = 0; part < AttentionTimes::kParts; ++part) {
        times += fmt::format(R"(,"{}":{})", AttentionTimes::kNames[part], times_.ns[part].load() / 1000);
    }
    return fmt::format(
        R"({{"id":{},"cells":{},"codecs":[{}],"code_bytes":{},"f16_bytes":{},"fixed_bytes":{},"window":{},"sinks":{},)"
        R"("dense_tokens":{},"resident_bytes":{},"coded_cells":{},"dense_cells":{},"pairs":{},"pairs_coded":{},)"
        R"("rows_rebuilt":{},"encode_us":{},"attention_us":{},"times_us":{{{}}},"distortion":[{}]}})",
        id_, n_cells_, codecs, std::llround(code_bytes), f16_bytes, fixed_bytes(), window_, sinks_, dense_tokens(),
        sum.resident_bytes, sum.coded_cells, sum.dense_cells, counters_.pairs, counters_.pairs_coded, sum.rows_rebuilt,
        counters_.encode_us, counters_.attention_us, times, distortion);
}

}  // namespace kvcodec::host
