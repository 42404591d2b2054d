// Reads and writes GGUF, the file format of ggml: metadata and tensors in one file (versions 2 and 3, little-endian).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace kvcodec {

/// Type of a metadata value; the numbers are those of the format.
enum class GgufType : uint32_t {
    kU8 = 0,
    kI8 = 1,
    kU16 = 2,
    kI16 = 3,
    kU32 = 4,
    kI32 = 5,
    kF32 = 6,
    kBool = 7,
    kString = 8,
    kArray = 9,
    kU64 = 10,
    kI64 = 11,
    kF64 = 12,
};

/// Tensor types that kvcodec itself reads and writes; the numbers are ggml's.
inline constexpr uint32_t kGgmlF32 = 0;
inline constexpr uint32_t kGgmlF16 = 1;

/// A metadata value, not yet decoded: `type` of its elements (a scalar has one) and the bytes that hold them.
struct GgufValue {
    GgufType type = GgufType::kU8;
    bool is_array = false;
    uint64_t count = 1;
    std::span<const std::byte> bytes;

    /// Element i of an integer value; nothing if it is not an integer >= 0 or i >= count.
    std::optional<uint64_t> uint_at(uint64_t i) const;
};

struct GgufTensor {
    std::string_view name;
    uint32_t type = 0;  ///< ggml_type
    uint32_t n_dims = 0;
    std::array<uint64_t, 4> dims{1, 1, 1, 1};  ///< fastest first, as ggml's ne
    uint64_t offset = 0;                       ///< from the start of the file's data section
    /// The tensor's data; nothing if the size of its type is unknown here.
    std::optional<std::span<const std::byte>> bytes;
};

/// A GGUF file mapped into memory. Opening checks the whole structure, so everything handed out lies inside the file;
/// strings and spans are valid while the object lives. The file must not be cut short meanwhile (replacing it is safe).
class GgufFile {
  public:
    /// Throws Error if the file cannot be read or is not a well-formed GGUF file.
    explicit GgufFile(const std::string& path);
    ~GgufFile();
    GgufFile(const GgufFile&) = delete;
    GgufFile& operator=(const GgufFile&) = delete;

    const std::string& path() const { return path_; }
    size_t file_bytes() const { return data_.size(); }

    /// Metadata by key; nothing if the key is absent or its value is of another kind. get_uint takes every integer type
    /// whose value is >= 0, get_float both floating-point types.
    std::optional<uint64_t> get_uint(std::string_view key) const;
    std::optional<double> get_float(std::string_view key) const;
    std::optional<bool> get_bool(std::string_view key) const;
    std::optional<std::string_view> get_string(std::string_view key) const;
    /// The undecoded value; null if absent.
    const GgufValue* find_value(std::string_view key) const;

    std::span<const GgufTensor> tensors() const { return tensors_; }
    /// Null if absent.
    const GgufTensor* find_tensor(std::string_view name) const;

  private:
    class Cursor;

    void parse();
    void read_metadata(Cursor& cursor, uint64_t count);
    void read_tensors(Cursor& cursor, uint64_t count);
    void place_tensors(size_t data_begin, uint64_t alignment);
    const GgufValue* find_scalar(std::string_view key, GgufType type) const;

    std::string path_;
    std::span<const std::byte> data_;
    std::unordered_map<std::string_view, GgufValue> metadata_;
    std::vector<GgufTensor> tensors_;
    std::unordered_map<std::string_view, size_t> tensor_index_;
};

/// Collects metadata and tensors, then writes them in one go (version 3, 32-byte alignment). Keys and tensor names must
/// be distinct.
class GgufWriter {
  public:
    void set_u32(std::string_view key, uint32_t value);
    void set_u64(std::string_view key, uint64_t value);
    void set_f32(std::string_view key, float value);
    void set_bool(std::string_view key, bool value);
    void set_string(std::string_view key, std::string_view value);
    void set_u32_array(std::string_view key, std::span<const uint32_t> values);
    void set_f32_array(std::string_view key, std::span<const float> values);

    /// dims: fastest first, 1 to 4 of them, their product the number of values. The values are not copied: they must
    /// stay alive until write().
    void add_f16_tensor(std::string_view name, std::span<const uint64_t> dims, std::span<const uint16_t> values);
    void add_f32_tensor(std::string_view name, std::span<const uint64_t> dims, std::span<const float> values);

    /// Writes `path` as a whole or not at all: a temporary file beside it is synced, then takes its name. Throws Error
    /// if the folder cannot be written or the disk is full; an earlier file stays as it was.
    void write(const std::string& path) const;

  private:
    void add_key(std::string_view key, GgufType type);
    void add_tensor(std::string_view name, uint32_t type, std::span<const uint64_t> dims,
                    std::span<const std::byte> values);

    uint64_t n_values_ = 0;
    std::string metadata_;
    std::string tensor_infos_;
    uint64_t data_bytes_ = 0;
    std::vector<std::span<const std::byte>> tensors_;
};

}  // namespace kvcodec
