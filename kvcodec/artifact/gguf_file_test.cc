#include "kvcodec/artifact/gguf_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "kvcodec/error.h"

namespace kvcodec {
namespace {

namespace fs = std::filesystem;

void write_bytes(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc).write(bytes.data(), static_cast<long>(bytes.size()));
}

std::string read_bytes(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

/// Builds GGUF files byte by byte, right or wrong.
class Bytes {
  public:
    Bytes(uint32_t version, uint64_t n_tensors, uint64_t n_values) {
        text_ = "GGUF";
        add(version).add(n_tensors).add(n_values);
    }
    template <typename T>
    Bytes& add(T value) {
        text_.append(reinterpret_cast<const char*>(&value), sizeof(value));
        return *this;
    }
    Bytes& str(const std::string& value) {
        add(uint64_t{value.size()});
        text_ += value;
        return *this;
    }
    Bytes& tensor(const std::string& name, std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
        str(name).add(static_cast<uint32_t>(dims.size()));
        for (const uint64_t dim : dims) {
            add(dim);
        }
        return add(type).add(offset);
    }
    Bytes& data(size_t n, size_t alignment = 32) {
        text_.resize((text_.size() + alignment - 1) / alignment * alignment + n);
        return *this;
    }
    const std::string& text() const { return text_; }

  private:
    std::string text_;
};

class GgufFileTest : public testing::Test {
  protected:
    void SetUp() override {
        folder_ = testing::TempDir() + "/kvcodec_gguf_" +
                  testing::UnitTest::GetInstance()->current_test_info()->name() + std::to_string(::getpid());
        fs::create_directories(folder_);
        path_ = folder_ + "/file.gguf";
    }
    void TearDown() override { fs::remove_all(folder_); }

    void expect_refused(const Bytes& bytes, const std::string& why) {
        write_bytes(path_, bytes.text());
        try {
            GgufFile file(path_);
            ADD_FAILURE() << "accepted: " << why;
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
            EXPECT_NE(std::string(error.what()).find(path_), std::string::npos) << error.what();
        }
    }

    std::string folder_;
    std::string path_;
};

TEST_F(GgufFileTest, RoundTrip) {
    const std::vector<float> floats = {1.0F, -2.5F, 3.0F};
    const std::vector<uint16_t> halves = {0x3C00, 0xBC00, 0, 1, 2, 3};
    const std::vector<uint32_t> layers = {0, 7, 4000000000U};
    GgufWriter writer;
    writer.set_u32("a.u32", 4000000000U);
    writer.set_u64("a.u64", uint64_t{1} << 60);
    writer.set_f32("a.f32", 0.1F);
    writer.set_bool("a.true", true);
    writer.set_bool("a.false", false);
    writer.set_string("a.string", std::string_view("x\0y", 3));
    writer.set_string("a.empty", "");
    writer.set_u32_array("a.u32s", layers);
    writer.set_f32_array("a.f32s", floats);
    writer.add_f32_tensor("floats", std::array<uint64_t, 1>{3}, floats);
    writer.add_f16_tensor("halves", std::array<uint64_t, 2>{2, 3}, halves);
    writer.write(path_);

    const GgufFile file(path_);
    EXPECT_EQ(file.get_uint("a.u32"), 4000000000U);
    EXPECT_EQ(file.get_uint("a.u64"), uint64_t{1} << 60);
    EXPECT_EQ(file.get_float("a.f32"), 0.1F);
    EXPECT_EQ(file.get_bool("a.true"), true);
    EXPECT_EQ(file.get_bool("a.false"), false);
    EXPECT_EQ(file.get_string("a.string"), std::string_view("x\0y", 3));
    EXPECT_EQ(file.get_string("a.empty"), "");
    const GgufValue* values = file.find_value("a.u32s");
    ASSERT_NE(values, nullptr);
    EXPECT_EQ(values->count, 3U);
    EXPECT_EQ(values->uint_at(2), 4000000000U);
    EXPECT_EQ(values->uint_at(3), std::nullopt);
    EXPECT_EQ(file.find_value("a.f32s")->uint_at(0), std::nullopt);

    EXPECT_EQ(file.get_uint("absent"), std::nullopt);
    EXPECT_EQ(file.get_uint("a.f32"), std::nullopt);
    EXPECT_EQ(file.get_uint("a.u32s"), std::nullopt);
    EXPECT_EQ(file.get_string("a.u32"), std::nullopt);
    EXPECT_EQ(file.get_bool("a.u32"), std::nullopt);
    EXPECT_EQ(file.get_float("a.u32"), std::nullopt);

    ASSERT_EQ(file.tensors().size(), 2U);
    const GgufTensor* tensor = file.find_tensor("halves");
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(tensor->type, kGgmlF16);
    EXPECT_EQ(tensor->dims, (std::array<uint64_t, 4>{2, 3, 1, 1}));
    ASSERT_EQ(tensor->bytes->size(), 12U);
    EXPECT_EQ(std::memcmp(tensor->bytes->data(), halves.data(), 12), 0);
    EXPECT_EQ(file.find_tensor("absent"), nullptr);
}

TEST_F(GgufFileTest, ReadsEveryValueTypeOfVersion2) {
    Bytes bytes(2, 0, 11);
    bytes.str("u8").add(uint32_t{0}).add(uint8_t{200});
    bytes.str("i8").add(uint32_t{1}).add(int8_t{-3});
    bytes.str("u16").add(uint32_t{2}).add(uint16_t{60000});
    bytes.str("i16").add(uint32_t{3}).add(int16_t{300});
    bytes.str("i32").add(uint32_t{5}).add(int32_t{70000});
    bytes.str("i64").add(uint32_t{11}).add(int64_t{-1});
    bytes.str("f64").add(uint32_t{12}).add(0.25);
    bytes.str("strings").add(uint32_t{9}).add(uint32_t{8}).add(uint64_t{2}).str("one").str("");
    bytes.str("bools").add(uint32_t{9}).add(uint32_t{7}).add(uint64_t{2}).add(uint16_t{0x0101});
    bytes.str("none").add(uint32_t{9}).add(uint32_t{4}).add(uint64_t{0});
    bytes.str("last").add(uint32_t{4}).add(uint32_t{9});
    write_bytes(path_, bytes.text());
    const GgufFile file(path_);
    EXPECT_EQ(file.get_uint("u8"), 200U);
    EXPECT_EQ(file.get_uint("i8"), std::nullopt);
    EXPECT_EQ(file.get_uint("u16"), 60000U);
    EXPECT_EQ(file.get_uint("i16"), 300U);
    EXPECT_EQ(file.get_uint("i32"), 70000U);
    EXPECT_EQ(file.get_uint("i64"), std::nullopt);
    EXPECT_EQ(file.get_float("f64"), 0.25);
    EXPECT_EQ(file.get_string("strings"), std::nullopt);
    EXPECT_EQ(file.find_value("strings")->count, 2U);
    EXPECT_EQ(file.find_value("none")->uint_at(0), std::nullopt);
    EXPECT_EQ(file.get_uint("last"), 9U);
}

TEST_F(GgufFileTest, KnowsQuantisedSizesAndToleratesUnknownTypes) {
    Bytes bytes(3, 3, 0);
    bytes.tensor("q4_1", {64, 2}, 3, 0).tensor("scalar", {}, 0, 96).tensor("future", {5}, 999, 128).data(160);
    write_bytes(path_, bytes.text());
    const GgufFile file(path_);
    EXPECT_EQ(file.find_tensor("q4_1")->bytes->size(), 80U);
    EXPECT_EQ(file.find_tensor("scalar")->bytes->size(), 4U);
    EXPECT_FALSE(file.find_tensor("future")->bytes.has_value());
}

TEST_F(GgufFileTest, RefusesDamage) {
    const uint64_t huge = ~uint64_t{0};
    expect_refused(Bytes(1, 0, 0), "version 1");
    expect_refused(Bytes(0x03000000, 0, 0), "version");
    expect_refused(Bytes(3, huge, 0), "tensors");
    expect_refused(Bytes(3, 0, huge), "metadata values");
    expect_refused(Bytes(3, 0, 1), "ends early");
    expect_refused(Bytes(3, 0, 1).add(huge), "string of");
    expect_refused(Bytes(3, 0, 1).str("").add(uint32_t{0}).add(uint8_t{0}), "empty metadata key");
    expect_refused(Bytes(3, 0, 1).str("k").add(uint32_t{13}), "unsupported type 13");
    expect_refused(Bytes(3, 0, 1).str("k").add(uint32_t{8}).add(huge), "ends early");
    expect_refused(Bytes(3, 0, 1).str("k").add(uint32_t{9}).add(uint32_t{9}).add(uint64_t{1}), "unsupported type 9");
    expect_refused(Bytes(3, 0, 1).str("k").add(uint32_t{9}).add(uint32_t{10}).add(huge), "array of");
    expect_refused(Bytes(3, 0, 1).str("k").add(uint32_t{9}).add(uint32_t{10}).add(uint64_t{2}), "ends early");
    expect_refused(Bytes(3, 0, 1).str("k").add(uint32_t{9}).add(uint32_t{8}).add(huge), "ends early");
    expect_refused(Bytes(3, 0, 2).str("k").add(uint32_t{0}).add(uint8_t{0}).str("k").add(uint32_t{0}).add(uint8_t{0}),
                   "'k' occurs twice");
    for (const uint32_t alignment : {0U, 3U, 0x80000000U}) {
        expect_refused(Bytes(3, 0, 1).str("general.alignment").add(uint32_t{4}).add(alignment), "general.alignment");
    }
    expect_refused(Bytes(3, 0, 1).str("general.alignment").add(uint32_t{8}).str("32"), "general.alignment");

    expect_refused(Bytes(3, 1, 0).tensor("", {1}, 0, 0).data(4), "empty tensor name");
    expect_refused(Bytes(3, 1, 0).tensor("t", {1, 1, 1, 1, 1}, 0, 0).data(4), "5 dimensions");
    expect_refused(Bytes(3, 2, 0).tensor("t", {1}, 0, 0).tensor("t", {1}, 0, 32).data(64), "'t' occurs twice");
    expect_refused(Bytes(3, 1, 0).tensor("t", {1}, 0, 4).data(64), "misaligned");
    expect_refused(Bytes(3, 1, 0).tensor("t", {1}, 0, 64).data(32), "behind the end");
    expect_refused(Bytes(3, 1, 0).tensor("t", {1}, 0, 64).data(64), "reaches behind the end");
    expect_refused(Bytes(3, 1, 0).tensor("t", {17}, 0, 0).data(64), "reaches behind the end");
    expect_refused(Bytes(3, 1, 0).tensor("t", {uint64_t{1} << 62, 4}, 0, 0).data(64), "reaches behind the end");
    expect_refused(Bytes(3, 1, 0).tensor("t", {huge, huge, huge, huge}, 0, 0).data(64), "reaches behind the end");
    expect_refused(Bytes(3, 1, 0).tensor("t", {33}, 3, 0).data(64), "multiple of 32");
    expect_refused(Bytes(3, 2, 0).tensor("t", {16}, 0, 0).tensor("u", {1}, 0, 32).data(64), "overlaps");
}

TEST_F(GgufFileTest, RefusesWhatIsNoFile) {
    EXPECT_THROW(GgufFile(folder_ + "/absent"), Error);
    EXPECT_THROW(GgufFile{folder_}, Error);
    write_bytes(path_, "");
    EXPECT_THROW(GgufFile{path_}, Error);
    write_bytes(path_, "GG");
    EXPECT_THROW(GgufFile{path_}, Error);
    write_bytes(path_, std::string(4096, '\0'));
    EXPECT_THROW(GgufFile{path_}, Error);
}

TEST_F(GgufFileTest, WriteThatFailsLeavesTheEarlierFileAndNothingElse) {
    write_bytes(path_, "earlier");
    const std::vector<float> values(1 << 16);
    GgufWriter writer;
    writer.add_f32_tensor("big", std::array<uint64_t, 1>{values.size()}, values);

    // A file size limit stands for a full disk: write() fails midway.
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
    const rlimit small{4096, before.rlim_max};
    auto* handler = std::signal(SIGXFSZ, SIG_IGN);
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    std::string message;
    try {
        writer.write(path_);
    } catch (const Error& error) {
        message = error.what();
    }
    ::setrlimit(RLIMIT_FSIZE, &before);
    std::signal(SIGXFSZ, handler);

    EXPECT_NE(message.find(path_ + ": cannot be written"), std::string::npos) << message;
    EXPECT_EQ(read_bytes(path_), "earlier");
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
}

TEST_F(GgufFileTest, WriteNeedsAFolder) {
    EXPECT_THROW(GgufWriter().write(folder_ + "/absent/file.gguf"), Error);
    fs::create_directories(folder_ + "/folder");
    EXPECT_THROW(GgufWriter().write(folder_ + "/folder"), Error);
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
    GgufWriter().write(path_);
    EXPECT_EQ(GgufFile(path_).tensors().size(), 0U);
}

}  // namespace
}  // namespace kvcodec
