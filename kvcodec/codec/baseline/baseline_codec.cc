#include "kvcodec/codec/baseline/baseline_codec.h"

#include "kvcodec/error.h"

namespace kvcodec {
namespace {

[[noreturn]] void refuse(const Codec& codec) {
    throw Error(codec.describe() + ": this codec has no code space; decode its rows");
}

}  // namespace

void BaselineCodec::prepare(const float* /*q*/, size_t /*lanes*/, size_t /*begin*/, size_t /*end*/,
                            float* /*table*/) const {
    refuse(*this);
}

void BaselineCodec::score(const float* /*table*/, size_t /*lanes*/, const std::byte* /*codes*/,
                          std::span<const uint16_t> /*rows*/, float* /*s*/) const {
    refuse(*this);
}

void BaselineCodec::accumulate(const float* /*p*/, size_t /*lanes*/, const std::byte* /*codes*/,
                               std::span<const uint16_t> /*rows*/, float* /*acc*/) const {
    refuse(*this);
}

void BaselineCodec::finish(const float* /*acc*/, size_t /*lanes*/, size_t /*begin*/, size_t /*end*/,
                           float* /*out*/) const {
    refuse(*this);
}

}  // namespace kvcodec
