#include "ggml-kvcodec/op_chain.h"

#include <algorithm>
#include <cstring>

#include "ggml-backend.h"
#include "kvcodec/half.h"

namespace kvcodec::host {
namespace {

constexpr int kModeAdjacent = 0;
constexpr int kModeHalves = 2;

std::vector<float> read_floats(const ggml_tensor* tensor, size_t first, size_t n) {
    std::vector<float> values(n);
    if (tensor->type == GGML_TYPE_F32) {
        ggml_backend_tensor_get(tensor, values.data(), first * sizeof(float), n * sizeof(float));
    } else if (tensor->type == GGML_TYPE_F16) {
        std::vector<uint16_t> halves(n);
        ggml_backend_tensor_get(tensor, halves.data(), first * sizeof(uint16_t), n * sizeof(uint16_t));
        std::transform(halves.begin(), halves.end(), values.begin(), half_to_float);
    } else {
        values.clear();
    }
    return values;
}

bool is_view(const ggml_tensor* tensor) {
    return tensor->op == GGML_OP_VIEW || tensor->op == GGML_OP_RESHAPE;
}

// A bias is a leaf of one row that an ADD broadcasts over tokens.
std::vector<float> trace_bias(const ggml_tensor* tensor, size_t row_length) {
    size_t first = 0;
    while (is_view(tensor)) {
        first += tensor->op == GGML_OP_VIEW ? tensor->view_offs / sizeof(float) : 0;
        tensor = tensor->src[0];
    }
    if (tensor->op != GGML_OP_ADD) {
        return {};
    }
    const ggml_tensor* bias = tensor->src[1];
    if (bias->op != GGML_OP_NONE || ggml_nrows(bias) != 1 || bias->ne[0] != tensor->ne[0] ||
        first + row_length > static_cast<size_t>(bias->ne[0])) {
        return {};
    }
    return read_floats(bias, first, row_length);
}

}  // namespace

std::optional<RopeParams> read_rope(const ggml_tensor* rope) {
    const int mode = rope->op_params[2];
    constexpr int kOffsetParam = 15;  // first rotated element; only 0 is known here
    if ((mode != kModeAdjacent && mode != kModeHalves) || rope->op_params[kOffsetParam] != 0) {
        return std::nullopt;
    }
    const auto number = [&](int i) {
        float value = 0;
        std::memcpy(&value, &rope->op_params[i], sizeof value);
        return value;
    };
    RopeParams params;
    params.pairing = mode == kModeAdjacent ? RopeParams::Pairing::kAdjacent : RopeParams::Pairing::kHalves;
    params.n_dims = static_cast<uint32_t>(rope->op_params[1]);
    params.n_ctx_orig = static_cast<uint32_t>(rope->op_params[4]);
    params.freq_base = number(5);
    params.freq_scale = number(6);
    params.ext_factor = number(7);
    params.attn_factor = number(8);
    params.beta_fast = number(9);
    params.beta_slow = number(10);
    if (rope->src[2] != nullptr) {
        params.freq_factors = read_floats(rope->src[2], 0, params.n_dims / 2);
    }
    return params;
}

RowOrigin trace_rows(const ggml_tensor* set_rows) {
    RowOrigin origin;
    const ggml_tensor* rows = set_rows->src[0];
    const auto row_length = static_cast<size_t>(rows->ne[0]);
    while (is_view(rows)) {
        rows = rows->src[0];
    }
    if (rows->op == GGML_OP_ROPE) {
        const std::optional<RopeParams> rope = read_rope(rows);
        origin.rotation = rope ? RowOrigin::Rotation::kKnown : RowOrigin::Rotation::kUnknown;
        if (rope) {
            origin.rope = *rope;
            origin.positions = rows->src[1];
        }
        origin.bias = trace_bias(rows->src[0], row_length);
        return origin;
    }
    // A ROPE further up (a norm or a concatenation after it) rotates rows in a way that is not undone here.
    const ggml_tensor* above = rows;
    for (int depth = 0; depth < 8 && above != nullptr; ++depth, above = above->src[0]) {
        if (above->op == GGML_OP_ROPE) {
            origin.rotation = RowOrigin::Rotation::kUnknown;
            return origin;
        }
        if (above->op == GGML_OP_MUL_MAT) {
            break;
        }
    }
    origin.bias = trace_bias(set_rows->src[0], row_length);
    return origin;
}

}  // namespace kvcodec::host
