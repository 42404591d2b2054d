#include "ggml-kvcodec/host_cpu.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "ggml-impl.h"
#include "kvcodec/error.h"

namespace kvcodec::host {
namespace {

std::atomic<int> n_threads_asked_for = 0;

}  // namespace

// The host's own threads, kept between graphs: without a pool, a host that was built without OpenMP starts new ones for
// each graph.
class ThreadPool {
  public:
    ThreadPool(ggml_backend_reg_t registry, ggml_backend_t backend)
        : backend_(backend),
          create_(find<decltype(create_)>(registry, "ggml_threadpool_new")),
          free_(find<decltype(free_)>(registry, "ggml_threadpool_free")),
          attach_(find<decltype(attach_)>(registry, "ggml_backend_cpu_set_threadpool")) {}
    ~ThreadPool() { replace(nullptr); }
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    void need(int n_threads) {
        if (n_threads > size_ && create_ != nullptr && free_ != nullptr && attach_ != nullptr) {
            ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
            replace(create_(&params));
            size_ = n_threads;
        }
    }

  private:
    template <typename F>
    static F find(ggml_backend_reg_t registry, const char* name) {
        return reinterpret_cast<F>(ggml_backend_reg_get_proc_address(registry, name));
    }
    void replace(ggml_threadpool_t pool) {
        if (pool_ != nullptr) {
            attach_(backend_, nullptr);
            free_(pool_);
        }
        pool_ = pool;
        if (pool_ != nullptr) {
            attach_(backend_, pool_);
        }
    }

    ggml_backend_t backend_;
    ggml_threadpool_t (*create_)(ggml_threadpool_params*);
    void (*free_)(ggml_threadpool_t);
    void (*attach_)(ggml_backend_t, ggml_threadpool_t);
    ggml_threadpool_t pool_ = nullptr;
    int size_ = 0;
};

HostCpu::HostCpu() {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (device != nullptr) {
        backend_.reset(ggml_backend_dev_init(device, nullptr));
    }
    if (backend_ == nullptr) {
        throw Error("the host has no CPU backend; load one (libggml-cpu) before kvcodec");
    }
    const ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(device);
    set_n_threads_ = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads"));
    const auto set_callback = reinterpret_cast<ggml_backend_set_abort_callback_t>(
        ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_abort_callback"));
    if (set_n_threads_ == nullptr || set_callback == nullptr) {
        throw Error("the host's CPU backend lacks functions that kvcodec needs; use llama.cpp's own");
    }
    set_callback(backend_.get(), should_stop, this);
    pool_ = std::make_unique<ThreadPool>(registry, backend_.get());
    const int known = n_threads_asked_for;
    set_n_threads(known > 0 ? known : static_cast<int>(std::max(1U, std::thread::hardware_concurrency())));
}

HostCpu::~HostCpu() = default;

void HostCpu::set_n_threads(int n_threads) {
    n_threads_asked_for = n_threads;
    pool_->need(n_threads);
    set_n_threads_(backend_.get(), n_threads);
}

void HostCpu::set_abort_callback(ggml_abort_callback callback, void* data) {
    host_callback_ = callback;
    host_data_ = data;
}

ggml_tensor* HostCpu::stand_in(size_t i, ggml_tensor* node) {
    if (i == stand_ins_.size()) {
        constexpr bool kNoMemory = true;
        StandIn& created = stand_ins_.emplace_back();
        created.cpu = this;
        created.memory.reset(ggml_init({ggml_tensor_overhead(), nullptr, kNoMemory}));
        created.op = ggml_custom_4d(created.memory.get(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, serve_stand_in,
                                    GGML_N_TASKS_MAX, &created);
        created.op->flags |= GGML_TENSOR_FLAG_COMPUTE;
    }
    stand_ins_[i].node = node;
    return stand_ins_[i].op;
}

// Called by every thread of the host's team, one of which is member 0.
void HostCpu::serve_stand_in(ggml_tensor* /*op*/, int member, int size, void* data) {
    const StandIn& self = *static_cast<StandIn*>(data);
    HostCpu& cpu = *self.cpu;
    if (member != 0) {
        cpu.team_.serve(static_cast<size_t>(member), static_cast<size_t>(size));
        return;
    }
    try {
        cpu.team_.lead(static_cast<size_t>(size), [&] {
            if (!(*cpu.serve_)(self.node, cpu.team_)) {
                cpu.refused_ = self.node;
            }
        });
    } catch (...) {  // the host is C: what happened is told when it has returned
        cpu.error_ = std::current_exception();
    }
}

// Asked by member 0 after every node.
bool HostCpu::should_stop(void* data) {
    const HostCpu& cpu = *static_cast<HostCpu*>(data);
    return cpu.refused_ != nullptr || cpu.error_ != nullptr ||
           (cpu.host_callback_ != nullptr && cpu.host_callback_(cpu.host_data_));
}

ggml_status HostCpu::compute(ggml_cgraph* graph, const IsServed& is_served, const Serve& serve) {
    serve_ = &serve;
    refused_ = nullptr;
    for (int first = 0; first < graph->n_nodes;) {
        nodes_.assign(graph->nodes + first, graph->nodes + graph->n_nodes);
        size_t n_served = 0;
        for (ggml_tensor*& node : nodes_) {
            if ((node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0 && is_served(node)) {
                node = stand_in(n_served++, node);
            }
        }
        ggml_cgraph rest = *graph;  // with its count of uses, by which the host decides what it fuses
        rest.nodes = nodes_.data();
        rest.n_nodes = static_cast<int>(nodes_.size());
        const ggml_tensor* refused_before = refused_;
        refused_ = nullptr;
        error_ = nullptr;
        const ggml_status status = ggml_backend_graph_compute(backend_.get(), &rest);
        if (error_ != nullptr) {
            std::rethrow_exception(error_);
        }
        if (refused_ == nullptr) {
            return status;
        }
        if (refused_ == refused_before) {
            throw Error("a layer is neither compressed nor left to the host");
        }
        first =
            static_cast<int>(std::find(graph->nodes + first, graph->nodes + graph->n_nodes, refused_) - graph->nodes);
    }
    return GGML_STATUS_SUCCESS;
}

}  // namespace kvcodec::host
