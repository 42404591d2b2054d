#include "ggml-kvcodec/log.h"

#include <cstdio>

namespace kvcodec::host {

void log_line(ggml_log_level level, const std::string& line) {
    const std::string text = "kvcodec: " + line + "\n";
    ggml_log_callback callback = nullptr;
    void* user_data = nullptr;
    ggml_log_get(&callback, &user_data);
    if (callback != nullptr) {
        callback(level, text.c_str(), user_data);
    } else {
        std::fputs(text.c_str(), stderr);
    }
}

}  // namespace kvcodec::host
