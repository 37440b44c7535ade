// Safetensors files that are wrong by design or by chance: each is refused with a message, or read to something
// consistent, whichever way it is opened.

#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <utility>

#include "catch.hpp"
#include "deltaw/io/safetensors.hpp"
#include "scratch.hpp"

namespace io = deltaw::io;
using deltaw::FormatError;
using deltaw_tests::ContainsSubstring;
using deltaw_tests::error_text;
using deltaw_tests::Scratch;
using io::SafetensorsReader;

namespace {

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

std::string length_of(std::uint64_t length) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes;
}
std::string file_of(const std::string& header, const std::string& data) {
  return length_of(header.size()) + header + data;
}

/// What is said about the file: the same by map, by stream and over memory, or the test fails. The path is cut off.
std::string refusal(const Scratch& scratch, const std::string& content) {
  const auto path = scratch / "file";
  std::ofstream(path, std::ios::binary) << content;
  const auto mapped = error_text<FormatError>([&] { SafetensorsReader::open(path); });
  CHECK(error_text<FormatError>([&] { SafetensorsReader::open(path, io::Access::Stream); }) == mapped);
  CHECK(error_text<FormatError>([&] { SafetensorsReader::view(bytes_of(content), path.string()); }) == mapped);
  if (!mapped.starts_with(path.string() + ": ")) return mapped;
  return mapped.substr(path.string().size() + 2);
}

/// A tensor entry; the pieces are put in as they are.
std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

/// The file that is damaged below: two tensors, an empty one, metadata.
std::string whole_file() {
  const std::string header = R"({"__metadata__":{"format":"pt"},)" + entry("a", "\"F32\"", "[2,1]", "[0,8]") + "," +
                             entry("b", "\"F16\"", "[3]", "[8,14]") + "," + entry("e", "\"I8\"", "[0]", "[14,14]") +
                             "} ";
  return file_of(header, "0123456789abcd");
}

/// Reads all that the reader offers and checks that it hangs together; under a sanitizer, that it stays inside.
void check_consistent(const SafetensorsReader& reader, std::size_t file_bytes) {
  std::uint64_t end = 0;
  for (const auto& info : reader.tensors()) {
    if (info.begin != end || &reader.at(info.name) != &info) FAIL("a hole, an overlap or a lost name");
    end = info.end;
    const auto bytes = reader.bytes(info);
    if (bytes.size() * 8 != *io::element_count(info.shape) * io::dtype_bits(info.dtype))
      FAIL("a size that is not the shape's");
    std::vector<std::byte> copy(bytes.size());
    reader.read_bytes(info, copy);
    if (!std::equal(copy.begin(), copy.end(), bytes.begin())) FAIL("two readings that differ");
    if (io::is_convertible(info.dtype) && reader.read<float>(info).size() != info.element_count()) FAIL("elements");
  }
  if (end > file_bytes) FAIL("more tensor than file");
}

}  // namespace

TEST_CASE("a header of the wrong length is refused before anything is allocated", "[io]") {
  const Scratch scratch;
  CHECK(refusal(scratch, "") == "size: got 0, want at least the 8 bytes of the header's length");
  CHECK(refusal(scratch, "1234567") == "size: got 7, want at least the 8 bytes of the header's length");
  CHECK(refusal(scratch, length_of(0)) == "header start: got '', want '{'");
  CHECK(refusal(scratch, length_of(3) + "{}") ==
        "header length: got 3, want at most the 2 bytes that the file has left");
  CHECK(refusal(scratch, length_of(100'000'000) + "{}") ==
        "header length: got 100000000, want at most the 2 bytes that the file has left");
  CHECK(refusal(scratch, length_of(100'000'001) + "{}") == "header length: got 100000001, want at most 100000000");
  CHECK(refusal(scratch, length_of(~std::uint64_t{0}) + "{}") ==
        "header length: got 18446744073709551615, want at most 100000000");
  CHECK(refusal(scratch, "version https://git-lfs.github.com/spec/v1\n") ==
        "header length: got 2336927755350992246, want at most 100000000");
}

TEST_CASE("a header that is no strict JSON is refused", "[io]") {
  const Scratch scratch;
  auto header = [&](const std::string& text) { return refusal(scratch, file_of(text, "")); };
  CHECK(header("[]") == "header start: got '[]', want '{'");
  CHECK(header(" {}") == "header start: got ' {}', want '{'");
  CHECK(header("\xef\xbb\xbf{}") == "header start: got '\\xef\\xbb\\xbf{}', want '{'");
  CHECK(header("{}\n") == "header end: got '\\x0a', want '}' and spaces");
  CHECK(header("{") == "header end: got '{', want '}' and spaces");
  CHECK(header("{}  ") == "(no error)");
  CHECK_THAT(header("{}}"), ContainsSubstring("byte 3 of the JSON text: got 'parse error at line 1, column 3"));
  CHECK_THAT(header("{} {}"), ContainsSubstring("byte 4 of the JSON text: got 'parse error"));
  CHECK_THAT(header("{'a':1}"), ContainsSubstring("want well-formed JSON in UTF-8"));
  CHECK_THAT(header("{\"a\":}"), ContainsSubstring("want well-formed JSON in UTF-8"));
  CHECK_THAT(header("{/* a comment */}"), ContainsSubstring("want well-formed JSON in UTF-8"));
  CHECK_THAT(header("{\"\xff\":{}}"), ContainsSubstring("ill-formed UTF-8 byte"));
  CHECK_THAT(header("{\"\xed\xa0\x80\":{}}"), ContainsSubstring("ill-formed UTF-8 byte"));
  CHECK_THAT(header("{\"\\ud800\":{}}"), ContainsSubstring("surrogate"));
  CHECK(header(std::string("{}\0}", 4)) == "byte 2 of the JSON text: got NUL, want JSON");
  CHECK(header("{\"a\\u0000b\":{}}") == "key 'a\\x00b': got a NUL character, want a name without one");
  CHECK(header("{\"__metadata__\":{\"a\\u0000b\":\"\"}}") ==
        "key '__metadata__'.'a\\x00b': got a NUL character, want a name without one");

  std::string deep = "{\"a\":";
  for (int i = 0; i < 100'000; ++i) deep += "{\"a\":";
  CHECK(header(deep + "}") == "tensor 'a': got a field 'a', want only dtype, shape and data_offsets");
  const std::string arrays(100'000, '[');
  CHECK(header("{\"w\":{\"shape\":" + arrays + "}") ==
        "tensor 'w' shape: got an array, want an array of whole numbers from 0 to 2^53");
}

TEST_CASE("an entry that has not the one legal form is refused by the name of its tensor", "[io]") {
  const Scratch scratch;
  struct Case {
    std::string header, says;
  };
  const std::string f32 = "\"F32\"", two = "[2]", span = "[0,8]";
  const std::string offsets_want = ", want [begin, end], whole numbers from 0 to 2^53";
  const std::string shape_want = ", want an array of whole numbers from 0 to 2^53";
  const std::string dtype_want =
      ", want one of BOOL F4 F6_E2M3 F6_E3M2 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ I16 U16 F16 BF16 "
      "I32 U32 "
      "F32 C64 F64 I64 U64";
  const std::vector<Case> cases{
      {R"("w":1)", "tensor 'w': got 1, want an object of dtype, shape and data_offsets"},
      {R"("w":[])", "tensor 'w': got an array, want an object of dtype, shape and data_offsets"},
      {R"("w":null)", "tensor 'w': got null, want an object of dtype, shape and data_offsets"},
      {R"("w":"x")", "tensor 'w': got the string 'x', want an object of dtype, shape and data_offsets"},
      {R"("w":{})", "tensor 'w': got no dtype, want dtype, shape and data_offsets"},
      {R"("w":{"dtype":"F32","data_offsets":[0,8]})", "tensor 'w': got no shape, want dtype, shape and data_offsets"},
      {R"("w":{"dtype":"F32","shape":[2]})", "tensor 'w': got no data_offsets, want dtype, shape and data_offsets"},
      {R"("w":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"strides":[1]})",
       "tensor 'w': got a field 'strides', want only dtype, shape and data_offsets"},
      {R"("w":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]})",
       "key 'w'.'shape': got it twice, want it once"},
      {entry("w", f32, two, span) + "," + entry("w", f32, two, "[8,16]"), "key 'w': got it twice, want it once"},
      {entry("w", f32, two, span) + R"(,"\u0077":1)", "key 'w': got it twice, want it once"},
      {R"("__metadata__":{},"__metadata__":{})", "key '__metadata__': got it twice, want it once"},
      {R"("__metadata__":{"a":"1","a":"1"})", "key '__metadata__'.'a': got it twice, want it once"},
      {R"("__metadata__":[])", "__metadata__: got an array, want an object of strings"},
      {R"("__metadata__":"x")", "__metadata__: got the string 'x', want an object of strings"},
      {R"("__metadata__":{"a":1})", "__metadata__ 'a': got 1, want a string"},
      {R"("__metadata__":{"a":{}})", "__metadata__ 'a': got an object, want a string"},
      {R"("__metadata__":{"a":["b"]})", "__metadata__ 'a': got an array, want a string"},
      {R"("__metadata__":{"a":true})", "__metadata__ 'a': got true, want a string"},
      {entry("w", "\"F33\"", two, span), "tensor 'w' dtype: got 'F33'" + dtype_want},
      {entry("w", "\"f32\"", two, span), "tensor 'w' dtype: got 'f32'" + dtype_want},
      {entry("w", "32", two, span), "tensor 'w' dtype: got 32" + dtype_want},
      {entry("w", "[]", two, span), "tensor 'w' dtype: got an array" + dtype_want},
      {entry("w", f32, "2", span), "tensor 'w' shape: got 2" + shape_want},
      {entry("w", f32, "{}", span), "tensor 'w' shape: got an object" + shape_want},
      {entry("w", f32, "[-2]", span), "tensor 'w' shape: got -2" + shape_want},
      {entry("w", f32, "[-0]", span), "tensor 'w' shape: got -0" + shape_want},
      {entry("w", f32, "[2.0]", span), "tensor 'w' shape: got 2.0" + shape_want},
      {entry("w", f32, "[2e0]", span), "tensor 'w' shape: got 2e0" + shape_want},
      {entry("w", f32, "[9007199254740993]", span), "tensor 'w' shape: got 9007199254740993" + shape_want},
      {entry("w", f32, "[18446744073709551618]", span), "tensor 'w' shape: got 18446744073709551618" + shape_want},
      {entry("w", f32, "[\"2\"]", span), "tensor 'w' shape: got the string '2'" + shape_want},
      {entry("w", f32, "[[2]]", span), "tensor 'w' shape: got an array" + shape_want},
      {entry("w", f32, "[null]", span), "tensor 'w' shape: got null" + shape_want},
      {entry("w", f32, two, "[0]"), "tensor 'w' data_offsets: got 1 numbers" + offsets_want},
      {entry("w", f32, two, "[0,8,8]"), "tensor 'w' data_offsets: got 8" + offsets_want},
      {entry("w", f32, two, "[0,8.5]"), "tensor 'w' data_offsets: got 8.5" + offsets_want},
      {entry("w", f32, two, "[-8,0]"), "tensor 'w' data_offsets: got -8" + offsets_want},
      {entry("w", f32, two, "\"0,8\""), "tensor 'w' data_offsets: got the string '0,8'" + offsets_want},
      {entry("w", f32, two, "[8,0]"), "tensor 'w' data_offsets: got [8, 0], want an end that is not before the begin"},
      {entry("w", f32, "[3]", span), "tensor 'w' data_offsets: got [0, 8], want 12 bytes for F32 [3]"},
      {entry("w", f32, "[]", span), "tensor 'w' data_offsets: got [0, 8], want 4 bytes for F32 []"},
      {entry("w", f32, "[2,0]", span), "tensor 'w' data_offsets: got [0, 8], want 0 bytes for F32 [2, 0]"},
      {entry("w", "\"F4\"", "[3]", "[0,1]"), "tensor 'w': got F4 [3], want a whole number of bytes"},
      {entry("w", "\"F6_E2M3\"", "[2]", "[0,1]"), "tensor 'w': got F6_E2M3 [2], want a whole number of bytes"},
      {entry("w", "\"U8\"", "[9007199254740992,9007199254740992]", span),
       "tensor 'w': got U8 [9007199254740992, 9007199254740992], want a size that 64 bits can count"},
      {entry("w", f32, "[9007199254740992,64]", span),
       "tensor 'w': got F32 [9007199254740992, 64], want a size that 64 bits can count"},
  };
  for (const auto& [header, says] : cases) {
    INFO(header);
    CHECK(refusal(scratch, file_of("{" + header + "}", "01234567")) == says);
  }
  CHECK(refusal(scratch, file_of("{" + entry("w", f32, two, span) + "}", "01234567")) == "(no error)");
}

TEST_CASE("tensors must cover the data without hole or overlap", "[io]") {
  const Scratch scratch;
  auto pair = [&](const std::string& a, const std::string& b, std::size_t data) {
    const std::string header = "{" + entry("b", "\"U8\"", "[4]", b) + "," + entry("a", "\"U8\"", "[4]", a) + "}";
    return refusal(scratch, file_of(header, std::string(data, 'x')));
  };
  CHECK(pair("[0,4]", "[4,8]", 8) == "(no error)");
  CHECK(pair("[4,8]", "[0,4]", 8) == "(no error)");
  CHECK(pair("[1,5]", "[5,9]", 9) == "tensor 'a' begin: got 1, want 0 (no hole before it)");
  CHECK(pair("[0,4]", "[5,9]", 9) == "tensor 'b' begin: got 5, want 4 (no hole before it)");
  CHECK(pair("[0,4]", "[3,7]", 8) == "tensor 'b' begin: got 3, want 4 (no overlap with the one before)");
  CHECK(pair("[0,4]", "[0,4]", 4) == "tensor 'b' begin: got 0, want 4 (no overlap with the one before)");
  CHECK(pair("[0,4]", "[4,8]", 7) == "bytes after the header: got 7, want 8, where the last tensor ends");
  CHECK(pair("[0,4]", "[4,8]", 9) == "bytes after the header: got 9, want 8, where the last tensor ends");
  CHECK(refusal(scratch, file_of("{}", "x")) == "bytes after the header: got 1, want 0, where the last tensor ends");
}

TEST_CASE("what a file says of itself is shown short and printable", "[io]") {
  const Scratch scratch;
  const auto says = refusal(scratch, file_of("{\"" + std::string(1'000'000, 'n') + "\\u001b[2J\":1}", ""));
  CHECK(says == "tensor '" + std::string(160, 'n') + "...': got 1, want an object of dtype, shape and data_offsets");
  CHECK(refusal(scratch, file_of("{\"\\u001b[2J\":1}", "")) ==
        "tensor '\\x1b[2J': got 1, want an object of dtype, shape and data_offsets");
  const auto number = refusal(scratch, file_of("{\"w\":" + std::string(1000, '1') + "}", ""));
  CHECK(number.size() < 400);
}

TEST_CASE("a file cut anywhere is refused", "[io]") {
  const Scratch scratch;
  const std::string whole = whole_file();
  CHECK(refusal(scratch, whole) == "(no error)");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    INFO("cut after " << size << " of " << whole.size() << " bytes");
    CHECK(refusal(scratch, whole.substr(0, size)) != "(no error)");
  }
  CHECK(refusal(scratch, whole + "x") != "(no error)");
}

TEST_CASE("flipped bits and exchanged characters end in an error or in a consistent file", "[io]") {
  const Scratch scratch;
  const std::string whole = whole_file();
  const std::string characters = "{}[]\",:0123456789-.eE+abFIUdtnull\\ \n\x7f\xc3\xff";
  std::mt19937_64 random(20250101);
  auto below = [&](std::size_t limit) { return static_cast<std::size_t>(random() % limit); };
  int read = 0, refused = 0;
  for (int round = 0; round < 8000; ++round) {
    std::string damaged = whole;
    for (std::size_t times = 1 + below(3); times > 0; --times) {
      const std::size_t at = below(damaged.size());
      if (round % 2 == 0) {
        damaged[at] = static_cast<char>(damaged[at] ^ (1 << below(8)));
      } else if (round % 4 == 1) {
        damaged[at] = characters[below(characters.size())];
      } else {
        damaged.erase(at, 1 + below(4)).insert(below(damaged.size()), 1, characters[below(characters.size())]);
      }
    }
    // A copy of just that size, so that a sanitizer sees any step beyond it.
    const auto exact = std::make_unique<char[]>(damaged.size());
    std::copy(damaged.begin(), damaged.end(), exact.get());
    const auto text = error_text<FormatError>([&] {
      const auto reader = SafetensorsReader::view(bytes_of({exact.get(), damaged.size()}), "memory");
      check_consistent(reader, damaged.size());
    });
    (text == "(no error)" ? read : refused) += 1;
    if (round % 40 == 0) CHECK((refusal(scratch, damaged) == "(no error)") == (text == "(no error)"));
  }
  // Both happen: a flip in the data or in a name goes unseen, one in the structure does not.
  CHECK(read > 200);
  CHECK(refused > 7000);
}

TEST_CASE("twenty thousand empty tensors cost no more than their header", "[io]") {
  const Scratch scratch;
  std::string header = "{";
  for (int i = 0; i < 20'000; ++i)
    header += entry("t" + std::to_string(i), "\"F64\"", "[0,9007199254740992]", "[0,0]") + ",";
  header.back() = '}';
  CHECK(refusal(scratch, file_of(header, "")) == "(no error)");
}
