// What a program that has loaded the plug-in may ask it: ggml_backend_reg_get_proc_address(reg, kReportFunction) gives
// a ReportFunction.
#pragma once

#include <cstddef>

namespace kvcodec::host {

/// Writes a JSON array into text[size], one object for each cache that is alive, in order of creation, and returns the
/// bytes that it needs with the final zero. Writes nothing if `size` is smaller.
///
///     id                      counts caches from the start of the process
///     cells                   of all streams
///     codecs                  [text], one for each layer: "K ..., V ...", or "f16" where it passes through
///     code_bytes, f16_bytes   of one token, all layers; where rows are evicted, what is kept of those decided on;
///                             where some rows get more bits, the mean of what is in use
///     fixed_bytes             dictionaries, means, tables
///     window, sinks           tokens kept dense
///     dense_tokens            most tokens of one sequence that stay dense: window, sinks and incomplete groups
///     resident_bytes          everything, now
///     coded_cells, dense_cells  of the layer that has most
///     pairs, pairs_coded      (query, key) pairs attended to, and those whose key was read through its code; where
///                             rows are evicted, those whose key a decision had been made on, kept or not
///     rows_rebuilt            coded rows that were decoded
///     encode_us, attention_us
///     times_us                of attention, by part, summed over threads; all 0 unless measure=time
///     distortion              with measure=error, an array for each layer that codes: {layer, k, v}, each an array by
///                             position range (kDistortionRanges) of [squared error, squared norm without the mean,
///                             squared norm]
using ReportFunction = size_t (*)(char* text, size_t size);

inline constexpr const char* kReportFunction = "kvcodec_report";

/// First positions of the ranges of `distortion`.
inline constexpr size_t kDistortionRanges[] = {0, 512, 2048, 8192};

}  // namespace kvcodec::host
