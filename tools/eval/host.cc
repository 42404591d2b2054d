#include "tools/eval/host.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "ggml-kvcodec/report.h"
#include "kvcodec/error.h"
#include "tools/eval/plugin_report.h"

namespace kvcodec {

namespace {

// KVCODEC, which the plug-in reads when it allocates a cache.
void set_plugin_options(const CacheSpec& spec) {
    const std::string text =
        spec.plugin ? spec.options + (spec.artifact.empty() ? "" : ",artifact=" + spec.artifact) : "codec=none";
    if (::setenv("KVCODEC", text.c_str(), 1) != 0) {
        throw Error("the environment variable KVCODEC cannot be set");
    }
}

Json read_reports(ggml_backend_reg_t plugin) {
    const auto report = reinterpret_cast<host::ReportFunction>(
        plugin == nullptr ? nullptr : ggml_backend_reg_get_proc_address(plugin, host::kReportFunction));
    if (report == nullptr) {
        return Json::array();
    }
    std::string text(report(nullptr, 0), '\0');
    report(text.data(), text.size());
    return Json::parse(text.c_str());
}

}  // namespace

EvalContext::EvalContext(llama_model* model, const CacheSpec& spec, const ContextShape& shape, size_t n_threads,
                         size_t f16_bytes, ggml_backend_reg_t plugin)
    : spec_(spec), shape_(shape), f16_bytes_(f16_bytes), plugin_(plugin) {
    const auto last_id = [&] {
        const Json reports = read_reports(plugin_);
        return reports.empty() ? int64_t{-1} : reports.back()["id"].get<int64_t>();
    };
    before_id_ = last_id();
    set_plugin_options(spec);
    llama_context_params params = llama_context_default_params();
    params.n_seq_max = static_cast<uint32_t>(shape.n_seq);
    params.n_ctx = static_cast<uint32_t>(shape.n_ctx * shape.n_seq);
    params.n_batch = static_cast<uint32_t>(std::max(shape.n_ubatch, shape.n_seq));
    params.n_ubatch = static_cast<uint32_t>(std::max(shape.n_ubatch, shape.n_seq));
    params.n_threads = params.n_threads_batch = static_cast<int32_t>(n_threads);
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.type_k = spec.type_k;
    params.type_v = spec.type_v;
    params.offload_kqv =
        true;  // the host's own caches, too, where there is a plug-in: codec=none leaves them as they are
    params.kv_unified = shape.unified;
    context_ = make_llama_context(model, params);
    last_id_ = last_id();
}

void EvalContext::decode(const TokenBatch& batch) const {
    if (const int32_t status = llama_decode(context_.get(), batch.get()); status != 0) {
        throw Error(fmt::format("llama.cpp failed to run the model with the cache {} (status {}): {}", spec_.name,
                                status, last_host_error()));
    }
}

Json EvalContext::report() const {
    Json own = Json::array();
    for (const Json& report : read_reports(plugin_)) {
        if (report["id"] > before_id_ && report["id"] <= last_id_) {
            own.push_back(report);
        }
    }
    return joined_report(own);
}

double EvalContext::host_bytes_in_use() const {
    size_t tokens = 0;
    for (size_t sequence = 0; sequence < shape_.n_seq; ++sequence) {
        const llama_pos last =
            llama_memory_seq_pos_max(llama_get_memory(context_.get()), static_cast<llama_seq_id>(sequence));
        tokens += static_cast<size_t>(last + 1);
    }
    const double all_layers = spec_.host_rate() * static_cast<double>(f16_bytes_ * tokens);
    // Layers with a sliding window hold fewer tokens. The state has what each layer holds, but also a few bytes a cell
    // of bookkeeping, which make it the larger one for a model without such layers.
    const auto state = static_cast<double>(llama_state_get_size(context_.get()));
    return state == 0 ? all_layers : std::min(all_layers, state);
}

Json EvalContext::accounting() const {
    if (!spec_.plugin) {
        const double rate = spec_.host_rate();
        return {{"rate", rate},
                {"total_4k", rate},
                {"total_32k", rate},
                {"resident_bytes", host_bytes_in_use()},
                {"f16_bytes_of_token", f16_bytes_},
                {"pairs_through_codes", 1.0}};
    }
    const Json report = this->report();
    if (report.is_null()) {
        return {{"rate", 1.0}, {"total_4k", 1.0}, {"total_32k", 1.0}, {"pairs_through_codes", 0.0}};
    }
    const auto number = [&](const char* key) { return report[key].get<double>(); };
    const double f16 = number("f16_bytes");
    const auto total = [&](double tokens) { return total_bytes(report, tokens) / (f16 * tokens); };
    return {{"rate", number("code_bytes") / f16},
            {"total_4k", total(4096)},
            {"total_32k", total(32768)},
            {"resident_bytes", report["resident_bytes"]},
            {"f16_bytes_of_token", report["f16_bytes"]},
            {"pairs_through_codes", number("pairs") == 0 ? 0.0 : number("pairs_coded") / number("pairs")},
            {"codecs", report["codecs"].empty() ? Json("none") : report["codecs"].back()}};
}

EvalHost::EvalHost(const std::string& model_path, const std::string& plugin, size_t n_threads)
    : info_(read_model_info(model_path)),
      n_threads_(n_threads),
      device_(plugin.empty() ? nullptr : load_plugin(plugin)),
      model_(load_llama_model(model_path, device_)) {}

std::unique_ptr<EvalContext> EvalHost::make_context(const CacheSpec& spec, const ContextShape& shape) const {
    size_t row = 0;
    for (const uint32_t n_head_kv : info_.n_head_kv) {
        row += n_head_kv * (info_.head_dim_k + info_.head_dim_v);
    }
    return std::make_unique<EvalContext>(model_.get(), spec, shape, n_threads_, row * sizeof(uint16_t),
                                         device_ == nullptr ? nullptr : ggml_backend_dev_backend_reg(device_));
}

}  // namespace kvcodec
