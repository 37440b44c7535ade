// The reader of Fashion-MNIST, over files that the test writes, and what a run sees of the images.

#include <zlib.h>

#include <numeric>
#include <set>

#include "catch.hpp"
#include "common/batches.hpp"
#include "common/fashion_mnist.hpp"
#include "io/scratch.hpp"
#include "vit/images.hpp"

namespace {

using deltaw::index_t;
using deltaw_tests::error_text;
using deltaw_tests::Scratch;
using Bytes = std::vector<std::uint8_t>;

void put(Bytes& bytes, std::uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<std::uint8_t>(value >> shift));
}

Bytes images_file(std::uint32_t count, std::uint32_t magic = 0x803, std::uint32_t side = 28) {
  Bytes bytes;
  put(bytes, magic), put(bytes, count), put(bytes, side), put(bytes, side);
  for (std::uint32_t i = 0; i < count * side * side; ++i) bytes.push_back(static_cast<std::uint8_t>(i % 251));
  return bytes;
}

Bytes labels_file(const Bytes& labels) {
  Bytes bytes;
  put(bytes, 0x801), put(bytes, static_cast<std::uint32_t>(labels.size()));
  bytes.insert(bytes.end(), labels.begin(), labels.end());
  return bytes;
}

Bytes packed(const Bytes& content) {
  z_stream stream{};
  REQUIRE(deflateInit2(&stream, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  Bytes out(deflateBound(&stream, content.size()));
  stream.next_in = const_cast<Bytef*>(content.data());
  stream.avail_in = static_cast<uInt>(content.size());
  stream.next_out = out.data();
  stream.avail_out = static_cast<uInt>(out.size());
  REQUIRE(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

/// A folder with three images and their labels, and the means to spoil it.
struct Folder {
  Scratch scratch;

  Folder() {
    write("images-idx3", packed(images_file(3)));
    write("labels-idx1", packed(labels_file({9, 0, 4})));
  }
  void write(const std::string& name, const Bytes& bytes) {
    deltaw::io::write_atomically(scratch / ("train-" + name + "-ubyte.gz"), std::as_bytes(std::span(bytes)));
  }
  template <class E>
  std::string error() const {
    return error_text<E>([&] { examples::read_fashion_mnist(scratch.path(), "train"); });
  }
};

}  // namespace

TEST_CASE("Fashion-MNIST files are read") {
  const Folder folder;
  const auto set = examples::read_fashion_mnist(folder.scratch.path(), "train");
  CHECK(set.count() == 3);
  CHECK(set.labels == std::vector<int>{9, 0, 4});
  CHECK(set.image(1)[0] == 784 % 251);
  CHECK(set.image(2).size() == 784);
}

TEST_CASE("Files that are not Fashion-MNIST are refused with what to do") {
  using Catch::Contains;
  Folder folder;
  SECTION("missing") {
    std::filesystem::remove(folder.scratch / "train-labels-idx1-ubyte.gz");
    CHECK_THAT(folder.error<deltaw::FileError>(),
               Contains("train-labels-idx1-ubyte.gz: data: got no such file, want the four files of Fashion-MNIST") &&
                   Contains("dataset-fashion-mnist") && Contains("--data"));
  }
  SECTION("a bit flipped") {
    Bytes bytes = packed(images_file(3));
    bytes[bytes.size() - 6] ^= 1;  // of the CRC
    folder.write("images-idx3", bytes);
    CHECK_THAT(folder.error<deltaw::FormatError>(), Contains("gzip data: got incorrect data check"));
  }
  SECTION("cut short") {
    Bytes bytes = packed(images_file(3));
    bytes.resize(bytes.size() / 2);
    folder.write("images-idx3", bytes);
    CHECK_THAT(folder.error<deltaw::FormatError>(), Contains("gzip data: got"));
  }
  SECTION("something behind the end") {
    Bytes bytes = packed(images_file(3));
    bytes.push_back(0);
    folder.write("images-idx3", bytes);
    CHECK_THAT(folder.error<deltaw::FormatError>(), Contains("gzip data: got 1 bytes after the end"));
  }
  SECTION("no gzip") {
    folder.write("images-idx3", images_file(3));
    CHECK_THAT(folder.error<deltaw::FormatError>(), Contains("gzip data: got incorrect header check"));
  }
  SECTION("magic") {
    folder.write("images-idx3", packed(images_file(3, 0x801)));
    CHECK_THAT(folder.error<deltaw::FormatError>(), Contains("idx magic: got 2049, want 2051"));
  }
  SECTION("image size") {
    folder.write("images-idx3", packed(images_file(3, 0x803, 32)));
    CHECK_THAT(folder.error<deltaw::FormatError>(), Contains("idx size 1: got 32, want 28"));
  }
  SECTION("more images promised than there are") {
    Bytes content = images_file(3);
    content[7] = 4;
    folder.write("images-idx3", packed(content));
    CHECK_THAT(folder.error<deltaw::FormatError>(), Contains("size: got 2368, want 3152 bytes, as its header says"));
  }
  SECTION("no image") {
    folder.write("images-idx3", packed(images_file(0)));
    CHECK_THAT(folder.error<deltaw::FormatError>(), Contains("idx size 0: got 0, want 1 to 1000000"));
  }
  SECTION("too short for a header") {
    folder.write("images-idx3", packed({0, 0, 8, 3}));
    CHECK_THAT(folder.error<deltaw::FormatError>(), Contains("size: got 4, want at least 16 bytes"));
  }
  SECTION("labels that are not as many") {
    folder.write("labels-idx1", packed(labels_file({1, 2})));
    CHECK_THAT(folder.error<deltaw::FormatError>(), Contains("idx size 0: got 2, want 3"));
  }
  SECTION("a label out of range") {
    folder.write("labels-idx1", packed(labels_file({1, 2, 10})));
    CHECK_THAT(folder.error<deltaw::FormatError>(), Contains("label: got 10, want 0 to 9"));
  }
}

TEST_CASE("A balanced choice has as many of each label, also in its parts") {
  std::vector<int> labels;
  for (int i = 0; i < 1000; ++i) labels.push_back(i * i % 5);  // 0, 1 and 4 only, unevenly; 2 and 3 never
  for (int i = 0; i < 300; ++i) labels.push_back(i % 5);
  const auto chosen = examples::balanced_choice(labels, 100, deltaw::RandomKey{1});
  CHECK(std::set<index_t>(chosen.begin(), chosen.end()).size() == 100);
  for (const auto first : {0, 50}) {
    std::vector<int> count(5);
    for (int i = first; i < first + 50; ++i)
      ++count[static_cast<std::size_t>(labels[static_cast<std::size_t>(chosen[static_cast<std::size_t>(i)])])];
    CHECK(count == std::vector<int>(5, 10));
  }
  CHECK(examples::balanced_choice(labels, 100, deltaw::RandomKey{2}) != chosen);
  CHECK_THAT(error_text<deltaw::OptionError>([&] { examples::balanced_choice(labels, 1301, deltaw::RandomKey{1}); }),
             Catch::Contains("count: got 1301, want at most the 1300 images there are"));
}

TEST_CASE("Batches are a function of the step, and an epoch sees each image once") {
  std::vector<index_t> images(10);
  std::iota(images.begin(), images.end(), 100);
  const auto batch = [&](long step) {
    examples::Batches batches(images, 4, 7);
    const auto chosen = batches(step);
    return std::vector<index_t>(chosen.begin(), chosen.end());
  };
  examples::Batches running(images, 4, 7);
  std::vector<index_t> seen;
  for (long step = 0; step < 5; ++step) {
    const auto chosen = running(step);
    CHECK(std::vector<index_t>(chosen.begin(), chosen.end()) == batch(step));
    seen.insert(seen.end(), chosen.begin(), chosen.end());
  }
  for (const int epoch : {0, 1})
    CHECK(std::set<index_t>(seen.begin() + 10 * epoch, seen.begin() + 10 * (epoch + 1)) ==
          std::set<index_t>(images.begin(), images.end()));
  CHECK(!std::equal(seen.begin(), seen.begin() + 10, seen.begin() + 10));
}

TEST_CASE("Images become patches, upright, or turned to the left and inverted") {
  examples::LabelledImages set;
  set.labels = {6};
  set.pixels.assign(784, 0);
  set.pixels[1 * 28 + 27] = 200;  // second row, last column
  const std::vector<index_t> chosen{0};
  vit::PatchBatch batch;
  const auto value = [](int pixel) { return (static_cast<float>(pixel) / 255 - 0.2860f) / 0.3530f; };
  batch.fill(set, chosen, vit::Look::Upright);
  CHECK(batch.patches().rows == 49);
  CHECK(batch.labels()[0] == 6);
  CHECK(batch.patches()(6, 1 * 4 + 3) == value(200));  // patch 6 of the first row of patches
  CHECK(batch.patches()(0, 0) == value(0));
  batch.fill(set, chosen, vit::Look::Shifted);
  CHECK(batch.patches()(0, 1) == value(55));  // the right edge is now on top, and what was below is to the right
  CHECK(batch.patches()(6, 7) == value(255));
}
