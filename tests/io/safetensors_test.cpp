#include "deltaw/io/safetensors.hpp"

#include <cmath>
#include <cstdlib>
#include <limits>
#include <numbers>

#include "catch.hpp"
#include "scratch.hpp"

namespace io = deltaw::io;
using deltaw::bf16;
using deltaw::f16;
using deltaw_tests::ContainsSubstring;
using deltaw_tests::error_text;
using deltaw_tests::Scratch;
using io::Dtype;
using io::SafetensorsReader;
using io::SafetensorsWriter;

namespace {

constexpr std::uint64_t any_size = 1u << 30;

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }
std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// A file with that header and data, its length in front.
std::string file_of(std::string_view header, std::string_view data) {
  const std::uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file.append(header).append(data);
}

}  // namespace

TEST_CASE("the bytes of a written file are these", "[io]") {
  const Scratch scratch;
  const std::vector<float> floats{1.0f, -2.0f};
  const std::int64_t step = 7;
  SafetensorsWriter writer;
  writer.add("bytes", {3}, std::vector<std::uint8_t>{1, 2, 255});  // a temporary: kept by the writer
  writer.add("b", {2, 1}, floats);
  writer.add("a", {2, 1}, std::span(floats));
  writer.add("\"c\"", Dtype::I64, {}, std::as_bytes(std::span(&step, 1)));
  writer.write(scratch / "file");

  using namespace std::string_literals;
  const std::string expected =
      "\x08\x01\0\0\0\0\0\0"s  // 264: 259 and 5 spaces
      R"({"__metadata__":{"format":"pt"},)"
      R"("\"c\"":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
      R"("a":{"dtype":"F32","shape":[2,1],"data_offsets":[8,16]},)"
      R"("b":{"dtype":"F32","shape":[2,1],"data_offsets":[16,24]},)"
      R"("bytes":{"dtype":"U8","shape":[3],"data_offsets":[24,27]}})"
      "     "
      "\x07\0\0\0\0\0\0\0"
      "\0\0\x80\x3f\0\0\0\xc0"
      "\0\0\x80\x3f\0\0\0\xc0"
      "\x01\x02\xff"s;
  CHECK(io::read_text(scratch / "file", any_size) == expected);
}

TEST_CASE("metadata is written with format pt, unless the caller has another", "[io]") {
  SafetensorsWriter writer;
  const auto metadata = [&] {
    const std::string file = writer.header();
    return SafetensorsReader::view(bytes_of(file), "memory").metadata();
  };
  CHECK(metadata() == std::map<std::string, std::string>{{"format", "pt"}});
  writer.set_metadata("format", "np");
  writer.set_metadata("a \"key\"", "\u03c0\n\t\x01");
  CHECK(metadata() == std::map<std::string, std::string>{{"format", "np"}, {"a \"key\"", "\u03c0\n\t\x01"}});
  CHECK_THAT(error_text<deltaw::NameError>([&] { writer.set_metadata(std::string("a\0", 2), ""); }),
             ContainsSubstring("key 'a\\x00': got a NUL character"));
  writer.set_metadata("broken", "\xff");
  CHECK_THAT(error_text<deltaw::FormatError>([&] { writer.header(); }), ContainsSubstring("want UTF-8 text"));
}

TEST_CASE("every dtype, shape and access comes back as it was written", "[io]") {
  const Scratch scratch;
  std::string pattern(4096, '\0');
  for (std::size_t i = 0; i < pattern.size(); ++i) pattern[i] = static_cast<char>(i * 37 + 11);
  const std::vector<std::vector<std::uint64_t>> shapes{{}, {1}, {8}, {2, 3, 4}, {0}, {5, 0, 7}, {1, 1, 1, 1, 1, 16}};

  SafetensorsWriter writer;
  std::map<std::string, std::string> written;
  for (const auto& row : io::dtypes) {
    for (const auto& shape : shapes) {
      const std::uint64_t bits = *io::element_count(shape) * row.bits;
      if (bits % 8 != 0) continue;
      const std::string name = std::string(row.name) + io::shape_text(shape);
      written[name] = pattern.substr(written.size(), bits / 8);
      writer.add(name, row.dtype, shape, bytes_of(written[name]));
    }
  }
  CHECK(written.size() == 22 * 7 - 3 * 2);  // F4, F6_E2M3 and F6_E3M2 have no whole bytes at 1 element, twice each
  writer.write(scratch / "file");

  for (const auto access : {io::Access::Map, io::Access::Stream}) {
    const auto reader = SafetensorsReader::open(scratch / "file", access);
    REQUIRE(reader.tensors().size() == written.size());
    for (const auto& info : reader.tensors()) {
      INFO(info.name);
      REQUIRE(written.count(info.name) == 1);
      CHECK(info.name == std::string(io::dtype_name(info.dtype)) + io::shape_text(info.shape));
      CHECK(info.element_count() == *io::element_count(info.shape));
      CHECK(info.begin % ((io::dtype_bits(info.dtype) + 7) / 8) == 0);
      std::string copy(info.byte_count(), 'x');
      reader.read_bytes(info, std::as_writable_bytes(std::span(copy)));
      CHECK(copy == written[info.name]);
      if (access == io::Access::Map) CHECK(text_of(reader.bytes(info)) == written[info.name]);
    }
  }
}

TEST_CASE("the table of dtypes is in the order of the enumeration", "[io]") {
  for (std::size_t i = 0; i < io::dtypes.size(); ++i) {
    CHECK(static_cast<std::size_t>(io::dtypes[i].dtype) == i);
    CHECK(io::find_dtype(io::dtypes[i].name) == io::dtypes[i].dtype);
  }
  CHECK(io::dtypes.size() == 22);
  CHECK(!io::find_dtype("F32 "));
  CHECK(!io::find_dtype(""));
  CHECK(io::dtype_of<bool>() == Dtype::BOOL);
  CHECK(io::dtype_of<std::int8_t>() == Dtype::I8);
  CHECK(io::dtype_of<std::uint16_t>() == Dtype::U16);
  CHECK(io::dtype_of<int>() == Dtype::I32);
  CHECK(io::dtype_of<std::size_t>() == Dtype::U64);
  CHECK(io::dtype_of<bf16>() == Dtype::BF16);
  CHECK(io::dtype_of<f16>() == Dtype::F16);
}

TEST_CASE("a file without tensors is a file", "[io]") {
  const Scratch scratch;
  SafetensorsWriter().write(scratch / "file");
  const auto reader = SafetensorsReader::open(scratch / "file");
  CHECK(reader.tensors().empty());
  CHECK(SafetensorsReader::view(bytes_of(file_of("{}", "")), "memory").metadata().empty());
}

TEMPLATE_TEST_CASE("float and double are read from every kind of float", "[io]", float, double) {
  const Scratch scratch;
  const std::vector<double> exact{0.0, -1.5, 0.25, 1024.0, -3.0};
  std::vector<float> floats(exact.begin(), exact.end());
  std::vector<f16> halves;
  std::vector<bf16> brains;
  for (const double value : exact) {
    halves.emplace_back(value);
    brains.emplace_back(value);
  }
  SafetensorsWriter writer;
  writer.add("F64", {5}, exact);
  writer.add("F32", {5}, floats);
  writer.add("F16", {5}, halves);
  writer.add("BF16", {5}, brains);
  writer.add("one", {1}, std::vector<std::uint8_t>{1});
  writer.write(scratch / "file");

  const std::vector<TestType> expected(exact.begin(), exact.end());
  for (const auto access : {io::Access::Map, io::Access::Stream}) {
    const SafetensorsReader reader = SafetensorsReader::open(scratch / "file", access);
    for (const std::string name : {"F64", "F32", "F16", "BF16"}) {
      INFO(name);
      std::vector<TestType> into(5, TestType{99});
      reader.read_into<TestType>(reader.at(name), into);
      CHECK(into == expected);
      CHECK(reader.read<TestType>(reader.at(name, {5}), {.require_finite = true}) == expected);
    }
    CHECK(error_text<deltaw::FormatError>([&] { reader.read<TestType>(reader.at("one")); }) ==
          (scratch / "file").string() + ": tensor 'one' dtype: got U8, want F64, F32, F16 or BF16");
  }
}

TEST_CASE("conversion is right for every 16-bit pattern, and rounds doubles to nearest", "[io]") {
  std::vector<std::uint16_t> patterns(65536);
  for (std::size_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<std::uint16_t>(i);
  const std::vector<double> doubles{std::numbers::pi, 1.0 + 0x1p-24, 1.0 + 0x1.8p-23, 1e300, -1e-300};
  const Scratch scratch;
  SafetensorsWriter writer;
  writer.add("f16", Dtype::F16, {65536}, std::as_bytes(std::span(patterns)));
  writer.add("bf16", Dtype::BF16, {65536}, std::as_bytes(std::span(patterns)));
  writer.add("f64", {5}, doubles);
  writer.write(scratch / "file");
  const auto reader = SafetensorsReader::open(scratch / "file", io::Access::Stream);  // 131072 bytes: several pieces

  const auto from_f16 = reader.read<float>(reader.at("f16"));
  const auto from_bf16 = reader.read<float>(reader.at("bf16"));
  int wrong = 0;
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    const int exponent = static_cast<int>(i >> 10 & 31), fraction = static_cast<int>(i & 1023);
    const double magnitude = exponent == 0    ? std::ldexp(fraction, -24)
                             : exponent == 31 ? (fraction == 0 ? std::numeric_limits<double>::infinity() : std::nan(""))
                                              : std::ldexp(1024 + fraction, exponent - 25);
    const double want = std::copysign(magnitude, i >> 15 ? -1.0 : 1.0);
    wrong += std::isnan(want) ? !std::isnan(from_f16[i]) : static_cast<double>(from_f16[i]) != want;
    const auto bits = static_cast<std::uint32_t>(i << 16);
    float brain;
    std::memcpy(&brain, &bits, 4);
    wrong += std::isnan(brain) ? !std::isnan(from_bf16[i]) : from_bf16[i] != brain;
  }
  CHECK(wrong == 0);
  CHECK(reader.read<float>(reader.at("f64")) == std::vector<float>{std::numbers::pi_v<float>, 1.0f, 1.0f + 0x1p-22f,
                                                                   std::numeric_limits<float>::infinity(), -0.0f});
}

TEST_CASE("other types are read as they are, and only as they are", "[io]") {
  const Scratch scratch;
  const bool flags[] = {true, false};
  SafetensorsWriter writer;
  writer.add("steps", {2}, std::vector<std::int64_t>{-1, 1'000'000'000'000});
  writer.add("flags", {2}, flags);
  writer.add("brain", {2}, std::vector{bf16(1.0f), bf16(-2.0f)});
  writer.write(scratch / "file");
  const auto reader = SafetensorsReader::open(scratch / "file");
  CHECK(reader.read<std::int64_t>(reader.at("steps")) == std::vector<std::int64_t>{-1, 1'000'000'000'000});
  CHECK(reader.read<std::uint8_t>(reader.at("flags"), {.require_finite = true}) == std::vector<std::uint8_t>{1, 0});
  CHECK(static_cast<float>(reader.read<bf16>(reader.at("brain"), {.require_finite = true})[1]) == -2.0f);
  const std::string file = (scratch / "file").string();
  CHECK(error_text<deltaw::FormatError>([&] { reader.read<std::uint64_t>(reader.at("steps")); }) ==
        file + ": tensor 'steps' dtype: got I64, want U64");
  CHECK(error_text<deltaw::FormatError>([&] { reader.read<f16>(reader.at("brain")); }) ==
        file + ": tensor 'brain' dtype: got BF16, want F16");
}

TEST_CASE("values that are not finite are refused when asked, before anything is written", "[io]") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> floats(10'000, 1.0f);  // beyond one piece
  floats[9'999] = -infinity;
  const Scratch scratch;
  SafetensorsWriter writer;
  writer.add("float", {10'000}, floats);
  writer.add("double", {2}, std::vector<double>{1.0, 1e300});
  writer.add("half", {2}, std::vector{f16(std::nanf("")), f16(0.0f)});
  writer.add("brain", {1}, std::vector{bf16(infinity)});
  writer.write(scratch / "file");
  const std::string file = (scratch / "file").string();
  for (const auto access : {io::Access::Map, io::Access::Stream}) {
    const auto reader = SafetensorsReader::open(scratch / "file", access);
    auto refusal = [&]<class T>(const char* name, T) {
      std::vector<T> into(reader.at(name).element_count(), T(7.0f));
      const auto text = error_text<deltaw::NonFiniteError>(
          [&] { reader.read_into<T>(reader.at(name), into, {.require_finite = true}); });
      CHECK(std::all_of(into.begin(), into.end(), [](T value) { return static_cast<float>(value) == 7.0f; }));
      return text;
    };
    CHECK(refusal("float", float{}) == file + ": tensor 'float' element 9999: got -inf, want a finite number");
    CHECK(refusal("double", float{}) == file + ": tensor 'double' element 1: got inf, want a finite number");
    CHECK(refusal("half", double{}) == file + ": tensor 'half' element 0: got nan, want a finite number");
    CHECK(refusal("brain", bf16{}) == file + ": tensor 'brain' element 0: got inf, want a finite number");
    CHECK(reader.read<float>(reader.at("float")) == floats);
    CHECK(reader.read<double>(reader.at("double"), {.require_finite = true}) == std::vector<double>{1.0, 1e300});
  }
}

TEST_CASE("tensors are found by name, shape and reader", "[io]") {
  const std::string one = file_of(R"({"w":{"dtype":"U8","shape":[2,3],"data_offsets":[0,6]}})", "abcdef");
  const std::string two = file_of(R"({"w":{"dtype":"U8","shape":[6],"data_offsets":[0,6]}})", "ABCDEF");
  auto reader = SafetensorsReader::view(bytes_of(one), "one");
  const auto other = SafetensorsReader::view(bytes_of(two), "two");
  CHECK(reader.file() == "one");
  CHECK(reader.contains("w"));
  CHECK(!reader.contains("v"));
  CHECK(reader.find("v") == nullptr);
  const long rows = 2;
  CHECK(&reader.at("w", io::make_shape(rows, 3u)) == &reader.tensors()[0]);
  CHECK(error_text<deltaw::NameError>([&] { reader.at("v"); }) ==
        "one: tensor 'v': got no such tensor, want one of the 1 of this file");
  CHECK(error_text<deltaw::ShapeError>([&] {
          reader.at("w", {3, 2});
        }) == "one: tensor 'w' shape: got [2, 3], want [3, 2]");
  CHECK(error_text<deltaw::ShapeError>([&] { io::make_shape(rows, -3); }) ==
        "make_shape: size: got -3, want 0 or more");
  CHECK(error_text<deltaw::NameError>([&] { reader.bytes(other.at("w")); }) ==
        "one: tensor 'w': got a tensor of another file, want one of this file");

  std::vector<std::uint8_t> five(5, 9);
  CHECK(error_text<deltaw::ShapeError>([&] { reader.read_into<std::uint8_t>(reader.at("w"), five); }) ==
        "one: tensor 'w': memory to read into: got 5 elements, want 6 for shape [2, 3]");
  CHECK(error_text<deltaw::ShapeError>([&] {
          reader.read_bytes(reader.at("w"), std::as_writable_bytes(std::span(five)));
        }) == "one: tensor 'w': memory to read into: got 5 bytes, want 6 for shape [2, 3]");
  CHECK(five == std::vector<std::uint8_t>(5, 9));

  const SafetensorsReader moved(std::move(reader));
  CHECK(text_of(moved.bytes(moved.at("w"))) == "abcdef");
}

TEST_CASE("a stream has no bytes to show, and says when the file shrank", "[io]") {
  const Scratch scratch;
  SafetensorsWriter writer;
  writer.add("w", {2}, std::vector<float>{1, 2});
  writer.write(scratch / "file");
  const auto reader = SafetensorsReader::open(scratch / "file", io::Access::Stream);
  const std::string file = (scratch / "file").string();
  CHECK(error_text<deltaw::UnsupportedError>([&] { reader.bytes(reader.at("w")); }) ==
        file + ": bytes of tensor 'w': got a reader opened as Access::Stream, want Access::Map (or use read_bytes)");
  std::filesystem::resize_file(scratch / "file", std::filesystem::file_size(scratch / "file") - 1);
  CHECK_THAT(error_text<deltaw::FileError>([&] { reader.read<float>(reader.at("w")); }),
             ContainsSubstring("as it was when the file was opened"));
}

TEST_CASE("elements may lie at any address", "[io]") {
  const std::vector<float> values{1.25f, -2.5f, 3.75f};
  std::string file = file_of(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("w":{"dtype":"F32","shape":[3],"data_offsets":[1,13]}})",
                             "x");
  file.append(reinterpret_cast<const char*>(values.data()), 12);
  for (std::size_t shift = 0; shift < 8; ++shift) {
    const std::string shifted = std::string(shift, ' ') + file;
    const auto reader = SafetensorsReader::view(bytes_of(std::string_view(shifted).substr(shift)), "memory");
    CHECK(reader.read<float>(reader.at("w")) == values);
    CHECK(reader.read<double>(reader.at("w")) == std::vector<double>{1.25, -2.5, 3.75});
  }
}

TEST_CASE("a file is saved over itself while it is mapped", "[io]") {
  const Scratch scratch;
  std::vector<float> values(100'000);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  SafetensorsWriter first;
  first.add("w", {100'000}, values);
  first.write(scratch / "file");

  const auto reader = SafetensorsReader::open(scratch / "file");
  SafetensorsWriter second;
  second.add("small", {1}, std::vector<float>{5});
  second.add("w", Dtype::F32, {100'000}, reader.bytes(reader.at("w")));
  second.write(scratch / "file");

  CHECK(reader.read<float>(reader.at("w")) == values);
  const auto again = SafetensorsReader::open(scratch / "file");
  CHECK(again.read<float>(again.at("w")) == values);
  CHECK(again.read<float>(again.at("small")) == std::vector<float>{5});
}

TEST_CASE("the writer refuses what no file can hold", "[io]") {
  SafetensorsWriter writer;
  const std::vector<float> two{1, 2};
  writer.add("w", {2}, two);
  const std::string header = writer.header();
  auto bad_name = [&](std::string name) { return error_text<deltaw::NameError>([&] { writer.add(name, {2}, two); }); };
  const std::string where = "SafetensorsWriter.add: tensor ";
  CHECK(bad_name("w") == where + "'w': got it a second time, want each name once");
  CHECK(bad_name("") == where + "'': got an empty name, want a name");
  CHECK(bad_name("__metadata__") == where + "'__metadata__': got the reserved name, want another");
  CHECK(bad_name(std::string("a\0b", 3)) == where + "'a\\x00b': got a NUL character, want a name without");
  CHECK(bad_name("\xc3(") == where + "'\\xc3(': got bytes that are not UTF-8, want a name in UTF-8");

  auto bad_shape = [&](Dtype dtype, std::vector<std::uint64_t> shape) {
    return error_text<deltaw::ShapeError>([&] { writer.add("v", dtype, shape, std::as_bytes(std::span(two))); });
  };
  constexpr std::uint64_t large = std::uint64_t{1} << 32;
  CHECK(bad_shape(Dtype::F32, {3}) == where + "'v': got 8 bytes, want 12 for F32 [3]");
  CHECK(bad_shape(Dtype::F32, {}) == where + "'v': got 8 bytes, want 4 for F32 []");
  CHECK(bad_shape(Dtype::U8, {large, large}) ==
        where + "'v': got U8 [4294967296, 4294967296], want a size that 64 bits can count");
  CHECK(bad_shape(Dtype::F64, {large, large / 32}) ==
        where + "'v': got F64 [4294967296, 134217728], want a size that 64 bits can count");
  CHECK(bad_shape(Dtype::F4, {3}) == where + "'v': got F4 [3], want a whole number of bytes");
  CHECK(writer.header() == header);
}

TEST_CASE("a write that fails leaves the old file", "[io]") {
  const Scratch scratch;
  SafetensorsWriter writer;
  writer.add("w", {1}, std::vector<float>{1});
  std::filesystem::create_directory(scratch / "directory");
  CHECK(error_text<deltaw::FileError>([&] { writer.write(scratch / "directory"); }) ==
        (scratch / "directory").string() + ": kind: got a directory, want a regular file to replace");
  CHECK(error_text<deltaw::FileError>([&] { writer.write(scratch / "none/file"); }) ==
        (scratch / "none/file").string() + ": opening its directory: No such file or directory");
  io::write_atomically(scratch / "file", "old");
  writer.set_metadata("broken", "\xff");
  CHECK_THROWS_AS(writer.write(scratch / "file"), deltaw::FormatError);
  CHECK(io::read_text(scratch / "file", any_size) == "old");
  CHECK(scratch.names() == std::vector<std::string>{"directory", "file"});
}

#ifdef DELTAW_SOURCE_DIR
TEST_CASE("an independent reader and writer in Python agrees", "[io]") {
  if (std::system("python3 -c pass >/dev/null 2>&1") != 0) {
    WARN("no python3 here: the cross-check did not run");
    return;
  }
  const Scratch scratch;
  const auto python = [&](const std::string& verb) {
    const std::string script = std::string(DELTAW_SOURCE_DIR) + "/tests/io/safetensors_check.py";
    return std::system(("python3 '" + script + "' " + verb + " '" + (scratch / "file").string() + "'").c_str());
  };
  REQUIRE(python("write") == 0);
  SafetensorsWriter writer;
  {
    const auto reader = SafetensorsReader::open(scratch / "file");
    CHECK(reader.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"writer", "python"}});
    CHECK(reader.tensors().size() == 7);
    CHECK(reader.read<std::uint8_t>(reader.at("byte", {3})) == std::vector<std::uint8_t>{1, 2, 255});
    CHECK(reader.read<double>(reader.at("double", {2})) == std::vector<double>{1e300, -0.1});
    CHECK(reader.read<float>(reader.at("empty", {0, 4})).empty());
    CHECK(reader.read<float>(reader.at("half", {2, 2})) == std::vector<float>{1.5f, -2.0f, 0.25f, 65504.0f});
    CHECK(reader.read<float>(reader.at("matrix", {2, 3})) ==
          std::vector<float>{0.5f, -1.0f, 3.0f, 1e-30f, 7.0f, -0.0f});
    CHECK(reader.read<std::int64_t>(reader.at("scalar", {})) == std::vector<std::int64_t>{-7});
    CHECK(reader.read<int>(reader.at("with \"quotes\" and \u03c0", {1})) == std::vector<int>{-2147483647 - 1});
    for (const auto& info : reader.tensors()) writer.add(info.name, info.dtype, info.shape, reader.bytes(info));
    writer.write(scratch / "file");
  }
  CHECK(python("read") == 0);
}
#endif
