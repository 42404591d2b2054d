// The one function that fmt's templates call, compiled once. fmt's packages offer it in a shared library, which a
// plug-in had better not need, or header-only, which costs two seconds in every file.
#define FMT_HEADER_ONLY
#include <fmt/format.h>

#include <string>

namespace {

[[gnu::used]] std::string (*const keep)(fmt::string_view, fmt::format_args) = &fmt::vformat;

}  // namespace
