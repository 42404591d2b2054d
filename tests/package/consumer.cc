// Codes one vector with the scalar codec and looks at what comes back.
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <vector>

#include "kvcodec/codec/scalar/scalar_codec.h"

int main() {
    const size_t dim = 64;
    const kvcodec::ScalarCodec codec(dim, 4);
    std::vector<float> x(dim), decoded(dim);
    for (size_t i = 0; i < dim; ++i) {
        x[i] = std::sin(static_cast<float>(i));
    }
    std::vector<std::byte> code(codec.code_bytes() + kvcodec::Codec::kCodeSlackBytes);
    codec.encode(x.data(), 1, code.data());
    codec.decode(code.data(), 0, 1, decoded.data());
    float miss = 0, energy = 0;
    for (size_t i = 0; i < dim; ++i) {
        miss += (x[i] - decoded[i]) * (x[i] - decoded[i]);
        energy += x[i] * x[i];
    }
    const float error = std::sqrt(miss / energy);
    std::printf("%s: %zu bytes for %zu floats, error %.3f\n", codec.describe().c_str(), codec.code_bytes(), dim,
                static_cast<double>(error));
    return error < 0.2F ? 0 : 1;
}
