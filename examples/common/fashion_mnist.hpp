#pragma once
// Fashion-MNIST from its four idx.gz files (docs/data.md), checked before anything is believed: gzip's CRC, the magic
// numbers, the sizes, the range of the labels.

#include <zlib.h>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "deltaw/core/view.hpp"
#include "deltaw/io/file.hpp"

namespace examples {

using deltaw::index_t;

inline constexpr const char* default_data_folder = "/usr/share/datasets/fashion-mnist";
inline constexpr index_t image_side = 28, image_pixels = image_side * image_side, image_classes = 10;

struct LabelledImages {
  std::vector<std::uint8_t> pixels;  ///< 28 x 28 each, row by row, 0 black
  std::vector<int> labels;           ///< 0 to 9

  index_t count() const { return static_cast<index_t>(labels.size()); }
  std::span<const std::uint8_t> image(index_t i) const {
    return std::span(pixels).subspan(static_cast<std::size_t>(i * image_pixels), image_pixels);
  }
};

/// The content of a gzip file, which may have at most `max_bytes`. Throws FileError or FormatError.
inline std::vector<std::uint8_t> read_gzip(const std::filesystem::path& path, std::size_t max_bytes) {
  const auto packed = deltaw::io::read_file(path, max_bytes);
  const auto refuse = [&](std::string_view got) {
    deltaw::raise_mismatch<deltaw::FormatError>(path.string(), "gzip data", got, "the file as it was published");
  };
  z_stream stream{};
  constexpr int gzip_only = 16 + MAX_WBITS;
  if (inflateInit2(&stream, gzip_only) != Z_OK)
    deltaw::raise<deltaw::MemoryError>("read_gzip", "zlib: got no memory, want some 50 kB");
  std::vector<std::uint8_t> content(max_bytes + 1);  // the one more byte shows that a file is too long
  stream.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  stream.next_out = content.data();
  stream.avail_out = static_cast<uInt>(content.size());
  const int result = inflate(&stream, Z_FINISH);
  const std::string message = stream.msg != nullptr ? stream.msg : "an end too early";
  const std::size_t size = stream.total_out, rest = stream.avail_in;
  inflateEnd(&stream);
  if (size > max_bytes) refuse("more than " + std::to_string(max_bytes) + " bytes");
  if (result != Z_STREAM_END) refuse(message);  // zlib has compared the CRC and the length when it says Z_STREAM_END
  if (rest != 0) refuse(std::to_string(rest) + " bytes after the end");
  content.resize(size);
  return content;
}

namespace detail {

inline std::uint32_t big_endian(std::span<const std::uint8_t> bytes) {
  std::uint32_t value = 0;
  for (const std::uint8_t byte : bytes.first(4)) value = value << 8 | byte;
  return value;
}

/// The data of an idx file of bytes, whose header must begin with `magic` and then have these sizes (0: any, returned).
inline std::vector<std::uint8_t> read_idx(const std::filesystem::path& path, std::uint32_t magic,
                                          std::vector<std::uint32_t>& sizes) {
  constexpr std::size_t most_images = 1'000'000;
  const std::size_t header = 4 + 4 * sizes.size();
  auto content = read_gzip(path, header + most_images * (sizes.size() == 1 ? 1 : std::size_t{image_pixels}));
  const auto refuse = [&](std::string_view what, auto got, std::string_view want) {
    deltaw::raise_mismatch<deltaw::FormatError>(path.string(), what, got, want);
  };
  if (content.size() < header) refuse("size", content.size(), "at least " + std::to_string(header) + " bytes");
  const std::span<const std::uint8_t> bytes = content;
  if (const auto got = big_endian(bytes); got != magic) refuse("idx magic", got, std::to_string(magic));
  std::size_t want = header, elements = 1;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const std::uint32_t size = big_endian(bytes.subspan(4 + 4 * i));
    if (sizes[i] != 0 && size != sizes[i]) refuse("idx size " + std::to_string(i), size, std::to_string(sizes[i]));
    if (size == 0 || size > most_images) refuse("idx size " + std::to_string(i), size, "1 to 1000000");
    sizes[i] = size;
    elements *= size;
  }
  want += elements;
  if (content.size() != want) refuse("size", content.size(), std::to_string(want) + " bytes, as its header says");
  content.erase(content.begin(), content.begin() + static_cast<std::ptrdiff_t>(header));
  return content;
}

}  // namespace detail

/// The images and labels NAME-images-idx3-ubyte.gz and NAME-labels-idx1-ubyte.gz of a folder; NAME is "train" or "t10k".
inline LabelledImages read_fashion_mnist(const std::filesystem::path& folder, const std::string& name) {
  const auto images_path = folder / (name + "-images-idx3-ubyte.gz"),
             labels_path = folder / (name + "-labels-idx1-ubyte.gz");
  for (const auto& path : {images_path, labels_path})
    if (std::error_code ignored; !std::filesystem::exists(path, ignored))
      deltaw::raise_mismatch<deltaw::FileError>(path.string(), "data", "no such file",
                                                "the four files of Fashion-MNIST: install the Debian package "
                                                "dataset-fashion-mnist, or put them in a folder and "
                                                "give it with --data (docs/data.md says where they are)");
  std::vector<std::uint32_t> image_sizes{0, image_side, image_side}, label_sizes{0};
  LabelledImages set;
  set.pixels = detail::read_idx(images_path, 0x803, image_sizes);
  label_sizes[0] = image_sizes[0];
  const auto labels = detail::read_idx(labels_path, 0x801, label_sizes);
  for (const std::uint8_t label : labels) {
    if (label >= image_classes)
      deltaw::raise_mismatch<deltaw::FormatError>(labels_path.string(), "label", int{label}, "0 to 9");
    set.labels.push_back(label);
  }
  return set;
}

}  // namespace examples
