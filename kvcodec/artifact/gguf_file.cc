#include "kvcodec/artifact/gguf_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "kvcodec/artifact/temporary_file.h"
#include "kvcodec/error.h"

namespace kvcodec {

namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read and written in place, as little-endian");

constexpr std::string_view kMagic = "GGUF";
constexpr uint32_t kVersion = 3;
constexpr uint64_t kAlignment = 32;
constexpr std::string_view kAlignmentKey = "general.alignment";
constexpr size_t kMaxDims = 4;
// Far beyond any real model; bound the memory that a damaged count can ask for.
constexpr uint64_t kMaxEntries = uint64_t{1} << 20;
constexpr uint64_t kMaxNameBytes = 65535;

struct BlockLayout {
    uint32_t type;  // ggml_type
    uint32_t elements;
    uint32_t bytes;
};

// ggml's type table (ggml.c, type_traits) as of ggml 0.25.3.
constexpr BlockLayout kBlockLayouts[] = {
    {kGgmlF32, 1, 4}, {kGgmlF16, 1, 2},                                            // F32, F16
    {2, 32, 18},      {3, 32, 20},                                                 // Q4_0, Q4_1
    {6, 32, 22},      {7, 32, 24},                                                 // Q5_0, Q5_1
    {8, 32, 34},      {9, 32, 36},                                                 // Q8_0, Q8_1
    {10, 256, 84},    {11, 256, 110},   {12, 256, 144},                            // Q2_K, Q3_K, Q4_K
    {13, 256, 176},   {14, 256, 210},   {15, 256, 292},                            // Q5_K, Q6_K, Q8_K
    {16, 256, 66},    {17, 256, 74},    {18, 256, 98},                             // IQ2_XXS, IQ2_XS, IQ3_XXS
    {19, 256, 50},    {20, 32, 18},     {21, 256, 110},                            // IQ1_S, IQ4_NL, IQ3_S
    {22, 256, 82},    {23, 256, 136},                                              // IQ2_S, IQ4_XS
    {24, 1, 1},       {25, 1, 2},       {26, 1, 4},     {27, 1, 8},   {28, 1, 8},  // I8, I16, I32, I64, F64
    {29, 256, 56},    {30, 1, 2},                                                  // IQ1_M, BF16
    {34, 256, 54},    {35, 256, 66},                                               // TQ1_0, TQ2_0
    {39, 32, 17},     {40, 64, 36},     {41, 128, 18},  {42, 64, 18},              // MXFP4, NVFP4, Q1_0, Q2_0
};

const BlockLayout* find_block_layout(uint32_t type) {
    const auto* it = std::ranges::find(kBlockLayouts, type, &BlockLayout::type);
    return it == std::end(kBlockLayouts) ? nullptr : it;
}

/// Bytes of one value, 0 for strings (they vary), arrays and unknown types.
size_t value_bytes(GgufType type) {
    switch (type) {
        case GgufType::kU8:
        case GgufType::kI8:
        case GgufType::kBool:
            return 1;
        case GgufType::kU16:
        case GgufType::kI16:
            return 2;
        case GgufType::kU32:
        case GgufType::kI32:
        case GgufType::kF32:
            return 4;
        case GgufType::kU64:
        case GgufType::kI64:
        case GgufType::kF64:
            return 8;
        case GgufType::kString:
        case GgufType::kArray:
            break;
    }
    return 0;
}

template <typename T>
T load(const std::byte* from) {
    T value;
    std::memcpy(&value, from, sizeof(T));
    return value;
}

template <typename T>
std::optional<uint64_t> load_uint(const std::byte* from) {
    const T value = load<T>(from);
    return std::in_range<uint64_t>(value) ? std::optional<uint64_t>(value) : std::nullopt;
}

uint64_t align_up(uint64_t n, uint64_t alignment) {
    return (n + alignment - 1) / alignment * alignment;
}

/// Names come from the file and end up in messages.
std::string printable(std::string_view name) {
    std::string text(name.substr(0, 64));
    std::ranges::replace_if(
        text, [](unsigned char c) { return c < 0x20 || c > 0x7e; }, '?');
    return text;
}

}  // namespace

std::optional<uint64_t> GgufValue::uint_at(uint64_t i) const {
    if (i >= count) {
        return std::nullopt;
    }
    const std::byte* from = bytes.data() + i * value_bytes(type);
    switch (type) {
        case GgufType::kU8:
            return load_uint<uint8_t>(from);
        case GgufType::kI8:
            return load_uint<int8_t>(from);
        case GgufType::kU16:
            return load_uint<uint16_t>(from);
        case GgufType::kI16:
            return load_uint<int16_t>(from);
        case GgufType::kU32:
            return load_uint<uint32_t>(from);
        case GgufType::kI32:
            return load_uint<int32_t>(from);
        case GgufType::kU64:
            return load_uint<uint64_t>(from);
        case GgufType::kI64:
            return load_uint<int64_t>(from);
        default:
            return std::nullopt;
    }
}

/// Position in the file; every read is checked against its end.
class GgufFile::Cursor {
  public:
    explicit Cursor(const GgufFile& file) : file_(file) {}

    [[noreturn]] void fail(const std::string& what) const {
        throw Error(fmt::format("{}: not a usable GGUF file: {}", file_.path_, what));
    }
    size_t position() const { return position_; }

    std::span<const std::byte> take(uint64_t n) {
        if (n > file_.data_.size() - position_) {
            fail(fmt::format("it ends early, at byte {}", file_.data_.size()));
        }
        const auto bytes = file_.data_.subspan(position_, n);
        position_ += n;
        return bytes;
    }
    template <typename T>
    T read() {
        return load<T>(take(sizeof(T)).data());
    }
    std::string_view read_string(uint64_t max_bytes) {
        const uint64_t n = read<uint64_t>();
        if (n > max_bytes) {
            fail(fmt::format("string of {} bytes at byte {}", n, position_));
        }
        const auto bytes = take(n);
        return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
    }
    /// A name that must be neither empty nor overlong.
    std::string_view read_name(std::string_view what) {
        const std::string_view name = read_string(kMaxNameBytes);
        if (name.empty()) {
            fail(fmt::format("empty {} at byte {}", what, position_));
        }
        return name;
    }

    GgufValue read_value(std::string_view key) {
        GgufValue value;
        value.type = GgufType{read<uint32_t>()};
        if (value.type == GgufType::kArray) {
            value.is_array = true;
            value.type = GgufType{read<uint32_t>()};
            value.count = read<uint64_t>();
        }
        if (value.type == GgufType::kString) {
            const size_t begin = position_;
            for (uint64_t i = 0; i < value.count; ++i) {
                take(read<uint64_t>());
            }
            value.bytes = file_.data_.subspan(begin, position_ - begin);
            return value;
        }
        const size_t size = value_bytes(value.type);
        if (size == 0) {
            fail(
                fmt::format("key '{}' has the unsupported type {}", printable(key), static_cast<uint32_t>(value.type)));
        }
        if (value.count > file_.data_.size()) {
            fail(fmt::format("key '{}' is an array of {} values", printable(key), value.count));
        }
        value.bytes = take(value.count * size);
        return value;
    }

  private:
    const GgufFile& file_;
    size_t position_ = 0;
};

GgufFile::GgufFile(const std::string& path) : path_(path) {
    // Not blocking: opening a pipe must fail, not wait for its writer.
    const FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat status {};
    if (fd.get() < 0 || ::fstat(fd.get(), &status) != 0) {
        throw Error(fmt::format("{}: cannot be read: {}", path, std::strerror(errno)));
    }
    if (!S_ISREG(status.st_mode) || status.st_size == 0) {
        throw Error(fmt::format("{}: not a GGUF file: {}", path,
                                S_ISREG(status.st_mode) ? "it is empty" : "it is not a regular file"));
    }
    const auto size = static_cast<size_t>(status.st_size);
    void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (address == MAP_FAILED) {
        throw Error(fmt::format("{}: cannot be mapped into memory: {}", path, std::strerror(errno)));
    }
    data_ = {static_cast<const std::byte*>(address), size};
    try {
        parse();
    } catch (...) {
        ::munmap(address, size);
        throw;
    }
}

GgufFile::~GgufFile() {
    ::munmap(const_cast<std::byte*>(data_.data()), data_.size());
}

void GgufFile::parse() {
    Cursor cursor(*this);
    const auto magic = cursor.take(kMagic.size());
    if (std::memcmp(magic.data(), kMagic.data(), kMagic.size()) != 0) {
        cursor.fail("it does not begin with 'GGUF'");
    }
    const auto version = cursor.read<uint32_t>();
    if (version != 2 && version != kVersion) {
        cursor.fail(fmt::format("version {}; versions 2 and 3 (little-endian) are supported", version));
    }
    const auto n_tensors = cursor.read<uint64_t>();
    const auto n_values = cursor.read<uint64_t>();
    if (n_tensors > kMaxEntries || n_values > kMaxEntries) {
        cursor.fail(fmt::format("{} tensors and {} metadata values", n_tensors, n_values));
    }
    read_metadata(cursor, n_values);
    uint64_t alignment = kAlignment;
    if (find_value(kAlignmentKey) != nullptr) {
        alignment = get_uint(kAlignmentKey).value_or(0);
        if (!std::has_single_bit(alignment) || alignment > data_.size()) {
            cursor.fail(fmt::format("{} is not a usable power of two", kAlignmentKey));
        }
    }
    read_tensors(cursor, n_tensors);
    place_tensors(align_up(cursor.position(), alignment), alignment);
}

void GgufFile::read_metadata(Cursor& cursor, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
        const std::string_view key = cursor.read_name("metadata key");
        if (!metadata_.try_emplace(key, cursor.read_value(key)).second) {
            cursor.fail(fmt::format("key '{}' occurs twice", printable(key)));
        }
    }
}

void GgufFile::read_tensors(Cursor& cursor, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
        GgufTensor tensor;
        tensor.name = cursor.read_name("tensor name");
        tensor.n_dims = cursor.read<uint32_t>();
        if (tensor.n_dims > kMaxDims) {
            cursor.fail(fmt::format("tensor '{}' has {} dimensions", printable(tensor.name), tensor.n_dims));
        }
        for (uint32_t d = 0; d < tensor.n_dims; ++d) {
            tensor.dims[d] = cursor.read<uint64_t>();
        }
        tensor.type = cursor.read<uint32_t>();
        tensor.offset = cursor.read<uint64_t>();
        if (!tensor_index_.try_emplace(tensor.name, tensors_.size()).second) {
            cursor.fail(fmt::format("tensor '{}' occurs twice", printable(tensor.name)));
        }
        tensors_.push_back(tensor);
    }
}

void GgufFile::place_tensors(size_t data_begin, uint64_t alignment) {
    const auto fail = [this](const GgufTensor& tensor, std::string_view what) {
        throw Error(fmt::format("{}: not a usable GGUF file: tensor '{}' {}", path_, printable(tensor.name), what));
    };
    const uint64_t available = data_.size() > data_begin ? data_.size() - data_begin : 0;
    std::vector<const GgufTensor*> placed;
    for (GgufTensor& tensor : tensors_) {
        if (tensor.offset % alignment != 0 || tensor.offset > available) {
            fail(tensor, "has a misaligned offset or one behind the end of the file");
        }
        const BlockLayout* layout = find_block_layout(tensor.type);
        if (layout == nullptr) {
            continue;
        }
        if (tensor.dims[0] % layout->elements != 0) {
            fail(tensor, fmt::format("has rows of {} elements, its type needs a multiple of {}", tensor.dims[0],
                                     layout->elements));
        }
        uint64_t bytes = 0;
        bool overflow = __builtin_mul_overflow(tensor.dims[0] / layout->elements, uint64_t{layout->bytes}, &bytes);
        for (size_t d = 1; d < kMaxDims; ++d) {
            overflow |= __builtin_mul_overflow(bytes, tensor.dims[d], &bytes);
        }
        if (overflow || bytes > available - tensor.offset) {
            fail(tensor, "reaches behind the end of the file");
        }
        tensor.bytes = data_.subspan(data_begin + tensor.offset, bytes);
        placed.push_back(&tensor);
    }
    // Without overlaps the tensors together are no larger than the file, however many there are.
    std::ranges::sort(placed, {}, [](const GgufTensor* tensor) { return tensor->offset; });
    for (size_t i = 1; i < placed.size(); ++i) {
        if (placed[i - 1]->offset + placed[i - 1]->bytes->size() > placed[i]->offset) {
            fail(*placed[i], fmt::format("overlaps tensor '{}'", printable(placed[i - 1]->name)));
        }
    }
}

const GgufValue* GgufFile::find_value(std::string_view key) const {
    const auto it = metadata_.find(key);
    return it == metadata_.end() ? nullptr : &it->second;
}

const GgufValue* GgufFile::find_scalar(std::string_view key, GgufType type) const {
    const GgufValue* value = find_value(key);
    return value != nullptr && !value->is_array && value->type == type ? value : nullptr;
}

std::optional<uint64_t> GgufFile::get_uint(std::string_view key) const {
    const GgufValue* value = find_value(key);
    return value != nullptr && !value->is_array ? value->uint_at(0) : std::nullopt;
}

std::optional<double> GgufFile::get_float(std::string_view key) const {
    if (const GgufValue* value = find_scalar(key, GgufType::kF32)) {
        return load<float>(value->bytes.data());
    }
    if (const GgufValue* value = find_scalar(key, GgufType::kF64)) {
        return load<double>(value->bytes.data());
    }
    return std::nullopt;
}

std::optional<bool> GgufFile::get_bool(std::string_view key) const {
    const GgufValue* value = find_scalar(key, GgufType::kBool);
    return value != nullptr ? std::optional(value->bytes[0] != std::byte{0}) : std::nullopt;
}

std::optional<std::string_view> GgufFile::get_string(std::string_view key) const {
    const GgufValue* value = find_scalar(key, GgufType::kString);
    if (value == nullptr) {
        return std::nullopt;
    }
    const auto text = value->bytes.subspan(sizeof(uint64_t));
    return std::string_view(reinterpret_cast<const char*>(text.data()), text.size());
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
    const auto it = tensor_index_.find(name);
    return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

namespace {

template <typename T>
void append(std::string& to, T value) {
    to.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void append_string(std::string& to, std::string_view text) {
    append(to, uint64_t{text.size()});
    to.append(text);
}

}  // namespace

void GgufWriter::add_key(std::string_view key, GgufType type) {
    append_string(metadata_, key);
    append(metadata_, type);
    ++n_values_;
}

void GgufWriter::set_u32(std::string_view key, uint32_t value) {
    add_key(key, GgufType::kU32);
    append(metadata_, value);
}

void GgufWriter::set_u64(std::string_view key, uint64_t value) {
    add_key(key, GgufType::kU64);
    append(metadata_, value);
}

void GgufWriter::set_f32(std::string_view key, float value) {
    add_key(key, GgufType::kF32);
    append(metadata_, value);
}

void GgufWriter::set_bool(std::string_view key, bool value) {
    add_key(key, GgufType::kBool);
    append(metadata_, static_cast<uint8_t>(value));
}

void GgufWriter::set_string(std::string_view key, std::string_view value) {
    add_key(key, GgufType::kString);
    append_string(metadata_, value);
}

void GgufWriter::set_u32_array(std::string_view key, std::span<const uint32_t> values) {
    add_key(key, GgufType::kArray);
    append(metadata_, GgufType::kU32);
    append(metadata_, uint64_t{values.size()});
    metadata_.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
}

void GgufWriter::set_f32_array(std::string_view key, std::span<const float> values) {
    add_key(key, GgufType::kArray);
    append(metadata_, GgufType::kF32);
    append(metadata_, uint64_t{values.size()});
    metadata_.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
}

void GgufWriter::add_f16_tensor(std::string_view name, std::span<const uint64_t> dims,
                                std::span<const uint16_t> values) {
    add_tensor(name, kGgmlF16, dims, std::as_bytes(values));
}

void GgufWriter::add_f32_tensor(std::string_view name, std::span<const uint64_t> dims, std::span<const float> values) {
    add_tensor(name, kGgmlF32, dims, std::as_bytes(values));
}

void GgufWriter::add_tensor(std::string_view name, uint32_t type, std::span<const uint64_t> dims,
                            std::span<const std::byte> values) {
    append_string(tensor_infos_, name);
    append(tensor_infos_, static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) {
        append(tensor_infos_, dim);
    }
    append(tensor_infos_, type);
    append(tensor_infos_, data_bytes_);
    data_bytes_ = align_up(data_bytes_ + values.size(), kAlignment);
    tensors_.push_back(values);
}

void GgufWriter::write(const std::string& path) const {
    std::string head(kMagic);
    append(head, kVersion);
    append(head, uint64_t{tensors_.size()});
    append(head, n_values_);
    head += metadata_;
    head += tensor_infos_;
    head.resize(align_up(head.size(), kAlignment));

    TemporaryFile file(path);
    file.write(head);
    for (const auto tensor : tensors_) {
        const std::string padding(align_up(tensor.size(), kAlignment) - tensor.size(), '\0');
        file.write({reinterpret_cast<const char*>(tensor.data()), tensor.size()});
        file.write(padding);
    }
    file.publish();
}

}  // namespace kvcodec
