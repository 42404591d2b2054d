// How much attention each cached key receives.
#pragma once

#include <cstddef>

#include "kvcodec/attend/attention.h"
#include "kvcodec/store/layer_store.h"
#include "kvcodec/threads.h"

namespace kvcodec {

/// mass[head * stride + cell] += the probabilities that the call's query tokens from `first_token` on give to a cell
/// (counted from call.first_cell), summed over tokens and over the query heads of each KV head. They are those of
/// Attention::run(): evicted rows take no part, sink logits take their share without leaving it anywhere. The output
/// of the call is not touched.
///
/// An exact softmax in two passes over the keys: maxima and sums first, probabilities with both known.
void add_attention_mass(const LayerStore& store, const AttentionCall& call, size_t first_token, float* mass,
                        size_t stride, Team& team);

}  // namespace kvcodec
