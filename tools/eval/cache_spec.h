// The caches that an evaluation compares, as its command line names them.
#pragma once

#include <ggml.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvcodec {

/// One of the host's caches (f16, q8_0, q4_0, ..., or a pair such as q8_0/q4_0 for K/V), or kvcodec with options:
///     kvcodec                  20 %
///     kvcodec:12.5%            another rate
///     kvcodec:codec=scalar:bits=3:artifact=none      any keys of KVCODEC, ':' between them.
struct CacheSpec {
    std::string name;     ///< as given, unless an artifact had to be told apart
    bool plugin = false;  ///< kvcodec, not a cache of the host
    ggml_type type_k = GGML_TYPE_F16;
    ggml_type type_v = GGML_TYPE_F16;
    std::string options;  ///< text of KVCODEC without the artifact
    std::string artifact;

    bool is_reference() const { return !plugin && type_k == GGML_TYPE_F16 && type_v == GGML_TYPE_F16; }
    /// Bytes of a cached element of a host cache as a share of f16.
    double host_rate() const;
    bool operator==(const CacheSpec&) const = default;
};

/// Caches of a list "f16,q8_0,kvcodec:20%". A kvcodec cache that names no artifact is evaluated once for each of
/// `artifacts`, or without one if there is none. `mode` is added to kvcodec's options. Throws Error naming the unknown
/// cache and the known ones.
std::vector<CacheSpec> parse_caches(std::string_view list, const std::vector<std::string>& artifacts,
                                    std::string_view mode);

}  // namespace kvcodec
