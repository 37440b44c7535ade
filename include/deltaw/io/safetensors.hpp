#pragma once
// Safetensors files: `SafetensorsReader` (over a map, over a file read piece by piece, or over bytes in memory) and
// `SafetensorsWriter` (atomic). Reading is strict: a file that is not exactly what the format says is refused whole.
//
//   auto reader = io::SafetensorsReader::open("adapter_model.safetensors");
//   const io::TensorInfo& down = reader.at("q.lora_A.weight", {16, 768});          // NameError, ShapeError
//   reader.read_into<float>(down, values, {.require_finite = true});               // from F32, F16, BF16 or F64
//
//   io::SafetensorsWriter writer;
//   writer.add("q.lora_A.weight", {16, 768}, values);                              // borrowed until write
//   writer.write("adapter_model.safetensors");

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <ranges>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "deltaw/core/error.hpp"
#include "deltaw/io/dtype.hpp"
#include "deltaw/io/file.hpp"
#include "deltaw/io/json.hpp"
#include "deltaw/io/safetensors_header.hpp"

namespace deltaw::io {

/// Sizes of any integer type as a shape; throws ShapeError for a negative one.
template <std::integral... Sizes>
std::vector<std::uint64_t> make_shape(Sizes... sizes) {
  auto size = [](auto value) {
    if (std::cmp_less(value, 0)) raise_mismatch<ShapeError>("make_shape", "size", value, "0 or more");
    return static_cast<std::uint64_t>(value);
  };
  return {size(sizes)...};
}

/// How a reader gets at a file. Map: the system brings pages in as they are touched. Stream: only the header is kept,
/// and each read copies from the file, so that memory is never asked to hold more than the tensor in hand.
enum class Access { Map, Stream };

struct ReadOptions {
  bool require_finite = false;  ///< refuse NaN and infinity, before anything is written
};

/// Reads a safetensors file. Opening checks the whole header (see parse_safetensors_header); after that no tensor can
/// lie outside the file. Every function that takes a TensorInfo wants one of this reader's. Reading is const and safe
/// from several threads. File errors are FileError; errors name the file and the tensor.
class SafetensorsReader {
 public:
  static SafetensorsReader open(const std::filesystem::path& path, Access access = Access::Map) {
    SafetensorsReader reader(path.string());
    if (access == Access::Map) {
      reader.map_ = MappedFile(path);
      reader.memory_ = reader.map_.bytes();
    } else {
      reader.stream_.emplace(path);
    }
    reader.parse();
    return reader;
  }
  /// Over the bytes of a file that the caller keeps in memory; `name` stands in messages.
  static SafetensorsReader view(std::span<const std::byte> bytes, std::string name) {
    SafetensorsReader reader(std::move(name));
    reader.memory_ = bytes;
    reader.parse();
    return reader;
  }

  const std::string& file() const { return file_; }
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }  ///< in the order of their bytes
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  /// The tensor of that name, or null.
  const TensorInfo* find(std::string_view name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &header_.tensors[found->second];
  }
  bool contains(std::string_view name) const { return find(name) != nullptr; }
  /// The tensor of that name; throws NameError if there is none.
  const TensorInfo& at(std::string_view name) const {
    const TensorInfo* found = find(name);
    if (found == nullptr)
      raise_mismatch<NameError>(file_, detail::tensor_label(name), "no such tensor",
                                "one of the " + std::to_string(tensors().size()) + " of this file");
    return *found;
  }
  /// The same, and throws ShapeError unless it has that shape.
  const TensorInfo& at(std::string_view name, const std::vector<std::uint64_t>& shape) const {
    const TensorInfo& info = at(name);
    if (info.shape != shape)
      raise_mismatch<ShapeError>(file_, detail::tensor_label(name) + " shape", shape_text(info.shape),
                                 shape_text(shape));
    return info;
  }

  /// The tensor's bytes where they lie, at any alignment, alive as long as the reader (view: as the caller's memory).
  /// Throws UnsupportedError for Access::Stream.
  std::span<const std::byte> bytes(const TensorInfo& info) const {
    check_own(info);
    if (stream_)
      raise<UnsupportedError>(file_,
                              "bytes of " + detail::tensor_label(info.name) +
                                  ": got a reader opened as Access::Stream, want Access::Map (or use read_bytes)");
    return memory_.subspan(static_cast<std::size_t>(data_begin_ + info.begin),
                           static_cast<std::size_t>(info.byte_count()));
  }

  /// Copies the tensor's bytes; throws ShapeError unless `out` has just its size.
  void read_bytes(const TensorInfo& info, std::span<std::byte> out) const {
    check_own(info);
    check_size(info, "bytes", out.size(), info.byte_count());
    fetch(data_begin_ + info.begin, out);
  }

  /// Copies the tensor's elements. float and double are converted from F64, F32, F16 and BF16 (rounded to nearest; F64
  /// beyond the range of float becomes infinity); other types must be the tensor's own (std::uint8_t reads BOOL too).
  /// Throws ShapeError unless `out` has just its element count, FormatError for another dtype, NonFiniteError if asked
  /// to.
  template <Storable T>
  void read_into(const TensorInfo& info, std::span<T> out, ReadOptions options = {}) const {
    static_assert(!std::same_as<T, bool>, "a file's BOOL may hold any byte: read it as std::uint8_t");
    check_own(info);
    check_size(info, "elements", out.size(), info.element_count());
    check_dtype<T>(info);
    if (options.require_finite) check_finite<T>(info);
    if (!std::floating_point<T> || info.dtype == dtype_of<T>()) return read_bytes(info, std::as_writable_bytes(out));
    if constexpr (std::floating_point<T>)
      for_each_element<T>(info, [&](std::uint64_t index, T value) { out[static_cast<std::size_t>(index)] = value; });
  }
  /// The same, into a vector made for it.
  template <Storable T>
  std::vector<T> read(const TensorInfo& info, ReadOptions options = {}) const {
    check_own(info);
    check_dtype<T>(info);
    std::vector<T> values(static_cast<std::size_t>(info.element_count()));
    read_into<T>(info, values, options);
    return values;
  }

 private:
  explicit SafetensorsReader(std::string file) : file_(std::move(file)) {}

  void parse() {
    const std::uint64_t size = stream_ ? stream_->size() : memory_.size();
    if (size < 8) raise_mismatch<FormatError>(file_, "size", size, "at least the 8 bytes of the header's length");
    std::uint64_t length = 0;
    fetch(0, std::as_writable_bytes(std::span(&length, 1)));
    check_header_length(file_, length, size);
    std::string copy;
    std::string_view text;
    if (stream_) {
      copy.resize(static_cast<std::size_t>(length));
      fetch(8, std::as_writable_bytes(std::span(copy)));
      text = copy;
    } else {
      text = {reinterpret_cast<const char*>(memory_.data()) + 8, static_cast<std::size_t>(length)};
    }
    data_begin_ = 8 + length;
    header_ = parse_safetensors_header(file_, text, size - data_begin_);
    for (std::size_t i = 0; i < header_.tensors.size(); ++i) by_name_.emplace(header_.tensors[i].name, i);
  }

  void fetch(std::uint64_t offset, std::span<std::byte> out) const {
    if (stream_) return stream_->read_at(offset, out);
    if (!out.empty()) std::memcpy(out.data(), memory_.data() + offset, out.size());
  }

  void check_own(const TensorInfo& info) const {
    const TensorInfo* own = find(info.name);
    if (own == nullptr || *own != info)
      raise_mismatch<NameError>(file_, detail::tensor_label(info.name), "a tensor of another file", "one of this file");
  }
  void check_size(const TensorInfo& info, std::string_view what, std::uint64_t got, std::uint64_t want) const {
    if (got != want)
      raise_mismatch<ShapeError>(file_, detail::tensor_label(info.name) + ": memory to read into",
                                 std::to_string(got).append(" ").append(what),
                                 std::to_string(want).append(" for shape ").append(shape_text(info.shape)));
  }
  template <class T>
  void check_dtype(const TensorInfo& info) const {
    const bool same = info.dtype == dtype_of<T>();
    const bool byte_of_bool = std::same_as<T, std::uint8_t> && info.dtype == Dtype::BOOL;
    if (same || byte_of_bool || (std::floating_point<T> && is_convertible(info.dtype))) return;
    raise_mismatch<FormatError>(file_, detail::tensor_label(info.name) + " dtype", dtype_name(info.dtype),
                                std::floating_point<T> ? "F64, F32, F16 or BF16" : dtype_name(dtype_of<T>()));
  }
  template <class T>
  void check_finite(const TensorInfo& info) const {
    using Real = std::conditional_t<std::same_as<T, double>, double, float>;
    if (!is_convertible(info.dtype)) return;  // integers are finite
    for_each_element<Real>(info, [&](std::uint64_t index, Real value) {
      if (!is_finite_bits(value))
        raise_mismatch<NonFiniteError>(file_, detail::tensor_label(info.name) + " element " + std::to_string(index),
                                       std::to_string(value), "a finite number");
    });
  }

  /// use(index, value) for each element, through one small buffer so that a stream of any length can be read.
  template <class T, class Use>
  void for_each_element(const TensorInfo& info, Use use) const {
    std::array<std::byte, 16384> buffer;
    const std::uint64_t element = dtype_bits(info.dtype) / 8;
    for (std::uint64_t at = 0; at < info.byte_count(); at += buffer.size()) {
      const auto chunk = std::span(buffer).first(
          static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), info.byte_count() - at)));
      fetch(data_begin_ + info.begin + at, chunk);
      convert_elements<T>(info.dtype, chunk, [&](std::size_t i, T value) { use(at / element + i, value); });
    }
  }

  std::string file_;
  MappedFile map_;
  std::optional<InputFile> stream_;
  std::span<const std::byte> memory_;  // of the map or the caller; unused where there is a stream
  std::uint64_t data_begin_ = 0;
  SafetensorsHeader header_;
  std::map<std::string_view, std::size_t> by_name_;  // the names are those in header_: moving a vector moves no element
};

/// Collects tensors and writes them as one safetensors file, atomically. Values that the caller keeps are borrowed, and
/// read when `write` is called; a temporary is moved in and kept. The order of adding does not matter.
class SafetensorsWriter {
 public:
  /// Throws NameError for an empty, reserved or repeated name, or one that is not UTF-8 or holds a NUL; ShapeError if
  /// the shape overflows or is not that of just these bytes.
  void add(std::string name, Dtype dtype, std::vector<std::uint64_t> shape, std::span<const std::byte> bytes) {
    insert(std::move(name), dtype, std::move(shape), bytes, nullptr);
  }
  /// The same for a contiguous range of values, in the dtype of their C++ type.
  template <std::ranges::contiguous_range Values>
  requires Storable<std::ranges::range_value_t<Values>>
  void add(std::string name, std::vector<std::uint64_t> shape, Values&& values) {
    using T = std::ranges::range_value_t<Values>;
    if constexpr (std::ranges::borrowed_range<Values>) {
      const std::span<const T> span(std::ranges::data(values), std::ranges::size(values));
      insert(std::move(name), dtype_of<T>(), std::move(shape), std::as_bytes(span), nullptr);
    } else {
      const auto owner = std::make_shared<const std::remove_cvref_t<Values>>(std::forward<Values>(values));
      const std::span<const T> span(std::ranges::data(*owner), std::ranges::size(*owner));
      insert(std::move(name), dtype_of<T>(), std::move(shape), std::as_bytes(span), owner);
    }
  }
  /// {"format": "pt"} is there from the start, since loaders ask for it. Throws NameError for a key with a NUL.
  void set_metadata(std::string key, std::string value) {
    if (key.find('\0') != std::string::npos)
      raise_mismatch<NameError>("SafetensorsWriter.set_metadata", "key " + quote(key), "a NUL character",
                                "a key without");
    metadata_.insert_or_assign(std::move(key), std::move(value));
  }

  /// The first bytes of the file: the header's length, the header, and spaces up to a multiple of 8.
  /// Throws FormatError if it would be longer than a reader takes, or if metadata is not UTF-8.
  std::string header() const { return header(layout()); }

  /// Writes the file; see AtomicFile for what happens to an older one. It may be one that the values are mapped from.
  void write(const std::filesystem::path& path) const {
    const auto ordered = layout();
    const std::string start = header(ordered);
    write_atomically(path, [&](AtomicFile& file) {
      file.write(start);
      for (const Entry* entry : ordered) file.write(entry->bytes);
    });
  }

 private:
  struct Entry {
    std::string name;
    Dtype dtype;
    std::vector<std::uint64_t> shape;
    std::span<const std::byte> bytes;
    std::shared_ptr<const void> owner;  // of the bytes, where we keep them
  };

  void insert(std::string name, Dtype dtype, std::vector<std::uint64_t> shape, std::span<const std::byte> bytes,
              std::shared_ptr<const void> owner) {
    constexpr std::string_view where = "SafetensorsWriter.add";
    const std::string label = detail::tensor_label(name);
    if (name.empty()) raise_mismatch<NameError>(where, label, "an empty name", "a name");
    if (name == metadata_key) raise_mismatch<NameError>(where, label, "the reserved name", "another");
    if (name.find('\0') != std::string::npos)
      raise_mismatch<NameError>(where, label, "a NUL character", "a name without");
    if (!is_utf8(name)) raise_mismatch<NameError>(where, label, "bytes that are not UTF-8", "a name in UTF-8");
    if (entries_.contains(name)) raise_mismatch<NameError>(where, label, "it a second time", "each name once");
    if (const auto want = packed_bytes<ShapeError>(where, label, dtype, shape); bytes.size() != want)
      raise_mismatch<ShapeError>(
          where, label, std::to_string(bytes.size()) + " bytes",
          std::to_string(want) + " for " + std::string(dtype_name(dtype)) + " " + shape_text(shape));
    Entry entry{name, dtype, std::move(shape), bytes, std::move(owner)};
    entries_.emplace(std::move(name), std::move(entry));
  }

  /// The order of the bytes: large elements first, which aligns every tensor, then by name.
  std::vector<const Entry*> layout() const {
    std::vector<const Entry*> ordered;
    for (const auto& [name, entry] : entries_) ordered.push_back(&entry);
    std::stable_sort(ordered.begin(), ordered.end(), [](auto a, auto b) { return a->dtype > b->dtype; });
    return ordered;
  }

  std::string header(const std::vector<const Entry*>& ordered) const {
    constexpr std::string_view where = "SafetensorsWriter.write";
    std::string text = "{" + dump_json(where, metadata_key) + ":" + dump_json(where, metadata_);
    std::uint64_t begin = 0;
    for (const Entry* entry : ordered) {
      const std::uint64_t end = begin + entry->bytes.size();
      text.append(",").append(dump_json(where, entry->name)).append(":{\"dtype\":\"").append(dtype_name(entry->dtype));
      text.append("\",\"shape\":").append(dump_json(where, entry->shape));
      text.append(",\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}");
      begin = end;
    }
    text.append("}");
    text.append((8 - text.size() % 8) % 8, ' ');
    if (text.size() > max_header_bytes)
      raise_mismatch<FormatError>(where, "header", std::to_string(text.size()) + " bytes",
                                  "at most " + std::to_string(max_header_bytes));
    const std::uint64_t length = text.size();
    std::string start(sizeof(length), '\0');
    std::memcpy(start.data(), &length, sizeof(length));
    return start.append(text);
  }

  std::map<std::string, Entry, std::less<>> entries_;
  std::map<std::string, std::string> metadata_{{"format", "pt"}};
};

}  // namespace deltaw::io
