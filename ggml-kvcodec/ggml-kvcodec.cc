// The plug-in: a ggml backend whose buffers hold compressed KV caches. Registry entry -> device -> buffer types ->
// buffer -> backend, top to bottom from the end of this file. Only tensors named cache_k_l<i> and cache_v_l<i> are
// managed; everything else that the host puts here is plain memory. The whole graph comes to this backend, and it has
// the host's own CPU backend compute all of it but what reads or writes managed tensors.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ggml-backend-impl.h"
#include "ggml-kvcodec/codec_choice.h"
#include "ggml-kvcodec/host_cpu.h"
#include "ggml-kvcodec/kv_cache.h"
#include "ggml-kvcodec/log.h"
#include "ggml-kvcodec/report.h"
#include "kvcodec/error.h"
#include "kvcodec/options.h"
#include "kvcodec/target.h"

namespace kvcodec::host {
namespace {

constexpr const char* kName = "KVCODEC";

// What the environment asks of the next context: KVCODEC is read whenever a cache is allocated, so that a program can
// give each context its own options. A mistake switches compression off with one line; it never stops the host.
class Settings {
  public:
    ~Settings() {
        if (served && !explained && wanted_) {
            log_summary(
                "nothing is compressed: no layer of the cache was placed on this device; leave out -ngl 0, -nkvo "
                "and --device, and a real GPU takes precedence");
        }
    }
    Settings() = default;
    Settings(const Settings&) = delete;
    Settings& operator=(const Settings&) = delete;

    /// Codecs and options for a new cache; equal texts share one choice, and so one copy of the artifact in memory.
    std::shared_ptr<CodecChoice> choice() {
        const std::lock_guard lock(mutex_);
        const char* variable = std::getenv("KVCODEC");
        const std::string text = variable == nullptr ? "" : variable;
        std::shared_ptr<CodecChoice>& known = choices_[text];
        if (known == nullptr) {
            try {
                known = std::make_shared<CodecChoice>(parse_options(text));
            } catch (const Error& error) {
                log_line(GGML_LOG_LEVEL_ERROR, fmt::format("nothing is compressed: {}", error.what()));
                explained = true;
                Options none;
                none.codec = Options::CodecChoice::kNone;
                known = std::make_shared<CodecChoice>(none);
            }
        }
        wanted_ |= !known->off() && known->options().log != Options::Log::kQuiet;
        return known;
    }

    std::atomic<bool> served = false;     // a program has asked for this backend
    std::atomic<bool> explained = false;  // a cache was placed here, or a line says why not

  private:
    std::mutex mutex_;
    std::map<std::string, std::shared_ptr<CodecChoice>> choices_;
    bool wanted_ = false;
};

Settings& settings() {
    static Settings instance;
    return instance;
}

// --- buffer: address space, and the cache that its KV tensors form, if they come here

ggml_backend_buffer_type_t cache_buffer_type();

constexpr size_t kAlignment = 64;
// As the host's own buffers lie. Its attention over a pass-through layer reads a tenth slower from the start of a page:
// there the processor fetches the other half of a head's 128-byte row ahead, here a part of the next head's row.
constexpr size_t kBaseOffset = kAlignment;

struct Buffer {
    explicit Buffer(size_t size) : memory(kBaseOffset + size), choice(settings().choice()), cache(choice, memory) {
        const std::lock_guard lock(mutex());
        all().push_back(this);
    }
    ~Buffer() {
        const std::lock_guard lock(mutex());
        std::erase(all(), this);
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    static std::mutex& mutex() {
        static std::mutex instance;
        return instance;
    }
    // In order of creation.
    static std::vector<Buffer*>& all() {
        static std::vector<Buffer*> instance;
        return instance;
    }

    Reservation memory;
    std::shared_ptr<CodecChoice> choice;
    KvCache cache;
};

Buffer& context_of(ggml_backend_buffer_t buffer) {
    return *static_cast<Buffer*>(buffer->context);
}

void buffer_free(ggml_backend_buffer_t buffer) {
    delete &context_of(buffer);
}

void* buffer_get_base(ggml_backend_buffer_t buffer) {
    return context_of(buffer).memory.data() + kBaseOffset;
}

ggml_status buffer_init_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor) {
    int32_t layer = 0;
    bool is_key = false;
    if (context_of(buffer).choice->off() || tensor->view_src != nullptr || tensor->op != GGML_OP_NONE ||
        !parse_cache_name(tensor->name, layer, is_key)) {
        return GGML_STATUS_SUCCESS;
    }
    if (tensor->type != GGML_TYPE_F16) {
        if (!settings().explained) {
            log_warning("nothing is compressed: the cache type is {}; leave out -ctk and -ctv",
                        ggml_type_name(tensor->type));
        }
        settings().explained = true;
        context_of(buffer).cache.note_other_type();
        return GGML_STATUS_SUCCESS;
    }
    settings().explained = true;
    context_of(buffer).cache.add_root(tensor, layer, is_key);
    if (buffer->buft != cache_buffer_type()) {
        buffer->buft = cache_buffer_type();
        context_of(buffer).memory.use_small_pages();
    }
    return GGML_STATUS_SUCCESS;
}

void buffer_memset_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor, uint8_t value, size_t offset,
                          size_t size) {
    if (context_of(buffer).cache.compressed_layer_of(tensor) != nullptr) {
        try {
            const std::string bytes(size, static_cast<char>(value));
            context_of(buffer).cache.set(tensor, bytes.data(), offset, size);
        } catch (const std::exception& error) {
            log_line(GGML_LOG_LEVEL_ERROR, error.what());
        }
    } else {
        std::memset(static_cast<char*>(tensor->data) + offset, value, size);
    }
}

void buffer_set_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data, size_t offset,
                       size_t size) {
    if (context_of(buffer).cache.compressed_layer_of(tensor) != nullptr) {
        try {
            context_of(buffer).cache.set(tensor, data, offset, size);
        } catch (const std::exception& error) {  // the host calls this where nothing may be thrown
            log_line(GGML_LOG_LEVEL_ERROR, error.what());
        }
    } else {
        std::memcpy(static_cast<char*>(tensor->data) + offset, data, size);
    }
}

void buffer_get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor* tensor, void* data, size_t offset,
                       size_t size) {
    if (context_of(buffer).cache.compressed_layer_of(tensor) != nullptr) {
        try {
            context_of(buffer).cache.get(tensor, data, offset, size);
        } catch (const std::exception& error) {
            log_line(GGML_LOG_LEVEL_ERROR, error.what());
            std::memset(data, 0, size);
        }
    } else {
        std::memcpy(data, static_cast<const char*>(tensor->data) + offset, size);
    }
}

bool buffer_cpy_tensor(ggml_backend_buffer_t buffer, const ggml_tensor* src, ggml_tensor* dst) {
    KvCache& cache = context_of(buffer).cache;
    if (cache.compressed_layer_of(dst) != nullptr || cache.compressed_layer_of(src) != nullptr) {
        try {
            return cache.copy(src, dst);
        } catch (const std::exception& error) {
            log_line(GGML_LOG_LEVEL_ERROR, error.what());
            return false;
        }
    }
    const ggml_backend_buffer_t from = src->view_src != nullptr ? src->view_src->buffer : src->buffer;
    if (from == buffer || ggml_backend_buffer_is_host(from)) {
        std::memcpy(dst->data, src->data, ggml_nbytes(src));
        return true;
    }
    return false;
}

void buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) {
    Buffer& context = context_of(buffer);
    if (!context.cache.manages_any()) {
        std::memset(context.memory.data(), value, context.memory.size());
    } else if (value == 0) {
        context.cache.clear();
        context.memory.release(0, context.memory.size());
    }
}

constexpr ggml_backend_buffer_i kBufferInterface = {
    .free_buffer = buffer_free,
    .get_base = buffer_get_base,
    .init_tensor = buffer_init_tensor,
    .memset_tensor = buffer_memset_tensor,
    .set_tensor = buffer_set_tensor,
    .get_tensor = buffer_get_tensor,
    .set_tensor_2d = nullptr,
    .get_tensor_2d = nullptr,
    .cpy_tensor = buffer_cpy_tensor,
    .clear = buffer_clear,
    .reset = nullptr,
};

// --- buffer types: plain memory, as the host's own; and, once managed tensors lie in it, memory that the host must not
// touch. The host chooses the first; of the second it makes buffers only for copies of such memory.

const char* buffer_type_get_name(ggml_backend_buffer_type_t /*type*/) {
    return kName;
}

ggml_backend_buffer_t buffer_type_alloc(ggml_backend_buffer_type_t type, size_t size) {
    try {
        return ggml_backend_buffer_init(type, kBufferInterface, new Buffer(size), size);
    } catch (const std::exception& error) {
        log_line(GGML_LOG_LEVEL_ERROR, error.what());
        return nullptr;
    }
}

size_t buffer_type_get_alignment(ggml_backend_buffer_type_t /*type*/) {
    return kAlignment;
}

ggml_backend_dev_t device();

ggml_backend_buffer_type make_buffer_type(bool (*is_host)(ggml_backend_buffer_type_t)) {
    return {
        .iface =
            {
                .get_name = buffer_type_get_name,
                .alloc_buffer = buffer_type_alloc,
                .get_alignment = buffer_type_get_alignment,
                .get_max_size = nullptr,
                .get_alloc_size = nullptr,
                .is_host = is_host,
            },
        .device = device(),
        .context = nullptr,
    };
}

ggml_backend_buffer_type_t buffer_type() {
    static ggml_backend_buffer_type type = make_buffer_type([](ggml_backend_buffer_type_t) { return true; });
    return &type;
}

ggml_backend_buffer_type_t cache_buffer_type() {
    static ggml_backend_buffer_type type = make_buffer_type([](ggml_backend_buffer_type_t) { return false; });
    return &type;
}

// --- backend

const ggml_tensor* root_of(const ggml_tensor* tensor) {
    return tensor->view_src != nullptr ? tensor->view_src : tensor;
}

// The cache that manages this tensor or its root; null where nobody does.
KvCache* cache_of(const ggml_tensor* tensor) {
    if (tensor == nullptr) {
        return nullptr;
    }
    const ggml_backend_buffer_t buffer = root_of(tensor)->buffer;
    return buffer != nullptr && buffer->buft == cache_buffer_type() ? &context_of(buffer).cache : nullptr;
}

// The cache whose compressed layer serves this node itself; null when the host computes it.
KvCache* serving_cache(const ggml_tensor* node) {
    const ggml_tensor* cached = node->op == GGML_OP_FLASH_ATTN_EXT                         ? node->src[1]
                                : node->op == GGML_OP_SET_ROWS || node->op == GGML_OP_ROPE ? node
                                                                                           : nullptr;
    KvCache* cache = cache_of(cached);
    return cache != nullptr && cache->compressed_layer_of(cached) != nullptr ? cache : nullptr;
}

// False when the layer has just become pass-through: the node is left to the host.
bool compute_managed(KvCache& cache, ggml_tensor* node, Team& team) {
    switch (node->op) {
        case GGML_OP_FLASH_ATTN_EXT:
            return cache.flash_attn(node, team);
        case GGML_OP_SET_ROWS:
            return cache.set_rows(node);
        default:
            return cache.shift(node);
    }
}

// Managed layers that a node reads or writes in a way that only flat memory serves.
void flatten_operands(ggml_tensor* node) {
    const auto flatten = [&](const ggml_tensor* tensor) {
        KvCache* cache = cache_of(tensor);
        Layer* layer = cache == nullptr ? nullptr : cache->compressed_layer_of(tensor);
        if (layer != nullptr) {
            cache->pass_through(*layer, node->op == GGML_OP_MUL_MAT
                                            ? "flash attention is off; run with -fa on"
                                            : fmt::format("the model uses {} on its cache", ggml_op_name(node->op)));
        }
    };
    flatten(node);
    for (const ggml_tensor* source : node->src) {
        flatten(source);
    }
}

bool is_no_op(const ggml_tensor* node) {
    return node->op == GGML_OP_NONE || node->op == GGML_OP_VIEW || node->op == GGML_OP_RESHAPE ||
           node->op == GGML_OP_PERMUTE || node->op == GGML_OP_TRANSPOSE;
}

HostCpu& cpu_of(ggml_backend_t backend) {
    return *static_cast<HostCpu*>(backend->context);
}

const char* backend_get_name(ggml_backend_t /*backend*/) {
    return kName;
}

void backend_free(ggml_backend_t backend) {
    delete &cpu_of(backend);
    delete backend;
}

ggml_status backend_graph_compute(ggml_backend_t backend, ggml_cgraph* graph) {
    const auto is_served = [](ggml_tensor* node) {
        if (is_no_op(node)) {
            return false;
        }
        if (serving_cache(node) != nullptr) {
            return true;
        }
        flatten_operands(node);
        return false;
    };
    // A layer may have become pass-through since it was asked: by a node before.
    const auto serve = [](ggml_tensor* node, Team& team) {
        KvCache* cache = serving_cache(node);
        return cache != nullptr && compute_managed(*cache, node, team);
    };
    try {
        return cpu_of(backend).compute(graph, is_served, serve);
    } catch (const std::exception& error) {
        log_line(GGML_LOG_LEVEL_ERROR, error.what());
        return GGML_STATUS_FAILED;
    }
}

constexpr ggml_backend_i kBackendInterface = {
    .get_name = backend_get_name,
    .free = backend_free,
    .set_tensor_async = nullptr,
    .get_tensor_async = nullptr,
    .set_tensor_2d_async = nullptr,
    .get_tensor_2d_async = nullptr,
    .cpy_tensor_async = nullptr,
    .synchronize = nullptr,
    .graph_plan_create = nullptr,
    .graph_plan_free = nullptr,
    .graph_plan_update = nullptr,
    .graph_plan_compute = nullptr,
    .graph_compute = backend_graph_compute,
    .event_record = nullptr,
    .event_wait = nullptr,
    .graph_optimize = nullptr,
};

void backend_set_n_threads(ggml_backend_t backend, int n_threads) {
    cpu_of(backend).set_n_threads(n_threads);
}

void backend_set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void* data) {
    cpu_of(backend).set_abort_callback(callback, data);
}

// --- device

const char* device_get_name(ggml_backend_dev_t /*device*/) {
    return kName;
}

const char* device_get_description(ggml_backend_dev_t /*device*/) {
    return "compressed KV cache (CPU)";
}

void device_get_memory(ggml_backend_dev_t /*device*/, size_t* free, size_t* total) {
    *total = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
    *free = *total;
    // What can be had without swapping, caches of files included; sysconf knows only unused pages.
    std::ifstream meminfo("/proc/meminfo");
    for (std::string line; std::getline(meminfo, line);) {
        size_t kibibytes = 0;
        if (std::sscanf(line.c_str(), "MemAvailable: %zu kB", &kibibytes) == 1) {
            *free = kibibytes * 1024;
        }
    }
}

// Not GPU: a real one must keep precedence. Not ACCEL: the host gives those no KV cache.
enum ggml_backend_dev_type device_get_type(ggml_backend_dev_t /*device*/) {
    return GGML_BACKEND_DEVICE_TYPE_IGPU;
}

void device_get_props(ggml_backend_dev_t dev, ggml_backend_dev_props* props) {
    *props = {};
    props->name = device_get_name(dev);
    props->description = device_get_description(dev);
    props->type = device_get_type(dev);
    device_get_memory(dev, &props->memory_free, &props->memory_total);
    props->caps.buffer_from_host_ptr = false;
#ifdef KVCODEC_HOST_HAS_MMAP_SUPPORT
    props->caps.mmap_support = true;
#endif
}

ggml_guid_t backend_guid() {
    static ggml_guid guid = {0x6b, 0x76, 0x63, 0x6f, 0x64, 0x65, 0x63, 0x00,
                             0x9d, 0x41, 0x4e, 0x2c, 0x8a, 0x17, 0x53, 0xe6};
    return &guid;
}

ggml_backend_t device_init_backend(ggml_backend_dev_t dev, const char* /*params*/) {
    try {
        settings().served = true;
        settings().choice();  // a mistake is reported even if no cache comes
        return new ggml_backend{
            .guid = backend_guid(), .iface = kBackendInterface, .device = dev, .context = new HostCpu};
    } catch (const std::exception& error) {
        log_line(GGML_LOG_LEVEL_ERROR, error.what());
        return nullptr;
    }
}

ggml_backend_buffer_type_t device_get_buffer_type(ggml_backend_dev_t /*device*/) {
    return buffer_type();
}

// Devices of the host that some operations go to before they go to the CPU (BLAS).
const std::vector<ggml_backend_dev_t>& accelerators() {
    static const std::vector<ggml_backend_dev_t> found = [] {
        std::vector<ggml_backend_dev_t> devices;
        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            if (ggml_backend_dev_type(ggml_backend_dev_get(i)) == GGML_BACKEND_DEVICE_TYPE_ACCEL) {
                devices.push_back(ggml_backend_dev_get(i));
            }
        }
        return devices;
    }();
    return found;
}

// The host asks where a weight should lie: the weight's buffer is of our type, and empty.
bool lies_in_an_empty_buffer(const ggml_tensor* op) {
    return std::any_of(std::begin(op->src), std::end(op->src), [](const ggml_tensor* source) {
        return source != nullptr && source->buffer != nullptr && source->buffer->size == 0 &&
               source->buffer->buft == buffer_type();
    });
}

bool has_gpu() {
    static const bool found = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU) != nullptr;
    return found;
}

bool is_weight(const ggml_tensor* tensor) {
    return tensor != nullptr && tensor->buffer != nullptr && tensor->buffer->usage == GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
}

// All that the host's CPU can do, so that graphs stay whole. Not: weights, which the host keeps in its own, repacked
// buffers, and what it has better devices for: a GPU takes over large products of weights in the CPU's memory. Answers
// depend on buffer types only: the host asks before memory exists.
bool device_supports_op(ggml_backend_dev_t /*device*/, const ggml_tensor* op) {
    if (lies_in_an_empty_buffer(op)) {
        return false;
    }
    const bool managed =
        cache_of(op) != nullptr || std::any_of(std::begin(op->src), std::end(op->src),
                                               [](const ggml_tensor* source) { return cache_of(source) != nullptr; });
    const auto serves = [&](ggml_backend_dev_t device) { return ggml_backend_dev_supports_op(device, op); };
    if (!managed && (std::any_of(accelerators().begin(), accelerators().end(), serves) ||
                     (has_gpu() && std::any_of(std::begin(op->src), std::end(op->src), is_weight)))) {
        return false;
    }
    static const ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return cpu != nullptr && serves(cpu);
}

bool device_supports_buft(ggml_backend_dev_t /*device*/, ggml_backend_buffer_type_t type) {
    const ggml_backend_dev_t device = ggml_backend_buft_get_device(type);
    return type == cache_buffer_type() || ggml_backend_buft_is_host(type) ||
           (device != nullptr && ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU);
}

ggml_backend_reg_t registry();

ggml_backend_dev_t device() {
    static ggml_backend_device instance = {
        .iface =
            {
                .get_name = device_get_name,
                .get_description = device_get_description,
                .get_memory = device_get_memory,
                .get_type = device_get_type,
                .get_props = device_get_props,
                .init_backend = device_init_backend,
                .get_buffer_type = device_get_buffer_type,
                .get_host_buffer_type = nullptr,
                .buffer_from_host_ptr = nullptr,
                .supports_op = device_supports_op,
                .supports_buft = device_supports_buft,
                .offload_op = nullptr,
                .event_new = nullptr,
                .event_free = nullptr,
                .event_synchronize = nullptr,
            },
        .reg = registry(),
        .context = nullptr,
    };
    return &instance;
}

// --- registry entry

size_t write_report(char* text, size_t size) {
    const std::lock_guard lock(Buffer::mutex());
    std::string report;
    for (const Buffer* buffer : Buffer::all()) {
        if (buffer->cache.manages_any()) {
            report += fmt::format("{}{}", report.empty() ? "" : ",", buffer->cache.report_json());
        }
    }
    report = fmt::format("[{}]", report);
    if (size > report.size()) {
        std::memcpy(text, report.c_str(), report.size() + 1);
    }
    return report.size() + 1;
}

const char* registry_get_name(ggml_backend_reg_t /*reg*/) {
    return kName;
}

size_t registry_get_device_count(ggml_backend_reg_t /*reg*/) {
    return 1;
}

ggml_backend_dev_t registry_get_device(ggml_backend_reg_t /*reg*/, size_t /*index*/) {
    return device();
}

void* registry_get_proc_address(ggml_backend_reg_t /*reg*/, const char* name) {
    if (std::strcmp(name, "ggml_backend_set_n_threads") == 0) {
        return reinterpret_cast<void*>(backend_set_n_threads);
    }
    if (std::strcmp(name, "ggml_backend_set_abort_callback") == 0) {
        return reinterpret_cast<void*>(backend_set_abort_callback);
    }
    if (std::strcmp(name, kReportFunction) == 0) {
        return reinterpret_cast<void*>(write_report);
    }
    return nullptr;
}

ggml_backend_reg_t registry() {
    static ggml_backend_reg instance = {
        .api_version = GGML_BACKEND_API_VERSION,
        .iface =
            {
                .get_name = registry_get_name,
                .get_device_count = registry_get_device_count,
                .get_device = registry_get_device,
                .get_proc_address = registry_get_proc_address,
            },
        .context = nullptr,
    };
    return &instance;
}

}  // namespace
}  // namespace kvcodec::host

// The host's entry point. Structures change between ggml versions without a change of GGML_BACKEND_API_VERSION, so
// only the very version that this was built for is accepted.
extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init() {
    if (std::strcmp(ggml_version(), KVCODEC_GGML_VERSION) != 0) {
        kvcodec::host::log_line(GGML_LOG_LEVEL_ERROR,
                                fmt::format("this plug-in was built for ggml {}, the program uses {}; rebuild it with "
                                            "`make plugin LLAMA_SRC=<its source tree>`",
                                            KVCODEC_GGML_VERSION, ggml_version()));
        return nullptr;
    }
    try {
        kvcodec::force_target_of_environment();
    } catch (const kvcodec::Error& error) {
        kvcodec::host::log_line(GGML_LOG_LEVEL_WARN,
                                fmt::format("{}; taking {}", error.what(), kvcodec::target_name()));
    }
    return kvcodec::host::registry();
}
