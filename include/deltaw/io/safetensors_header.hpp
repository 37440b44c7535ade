#pragma once
// The header of a safetensors file: parsed strictly, so that every tensor it names lies inside the file, and no byte of
// the file belongs to none or to two.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "deltaw/core/error.hpp"
#include "deltaw/io/dtype.hpp"
#include "deltaw/io/json.hpp"

namespace deltaw::io {

inline constexpr std::uint64_t max_header_bytes = 100'000'000;
inline constexpr std::string_view metadata_key = "__metadata__";

/// One tensor of a file: row-major, packed, little-endian, at bytes [begin, end) after the header.
struct TensorInfo {
  std::string name;
  Dtype dtype = Dtype::F32;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0, end = 0;

  std::uint64_t byte_count() const { return end - begin; }
  std::uint64_t element_count() const { return byte_count() * 8 / dtype_bits(dtype); }
  bool operator==(const TensorInfo&) const = default;
};

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;              ///< in the order of their bytes
  std::map<std::string, std::string> metadata;  ///< `__metadata__`
};

namespace detail {

inline std::string tensor_label(std::string_view name) { return "tensor " + quote(name); }

/// Turns the events of `visit_json` into tensors and metadata, refusing whatever is not the one legal form
/// {"NAME": {"dtype": D, "shape": [n, ...], "data_offsets": [begin, end]}, "__metadata__": {"KEY": "VALUE"}}.
class HeaderVisitor {
 public:
  HeaderVisitor(std::string_view file, SafetensorsHeader& header) : file_(file), header_(header) {}

  void open_object() {
    if (depth_ > 1) mismatch("an object");
    ++depth_;
  }
  void open_array() {
    if (depth_ != 2 || in_metadata_ || field_ == Field::dtype) mismatch("an array");
    ++depth_;
  }
  void close() {
    if (depth_ == 3 && field_ == Field::data_offsets && offsets_.size() != 2)
      mismatch(std::to_string(offsets_.size()) + " numbers");
    if (depth_ == 2 && !in_metadata_) finish_tensor();
    --depth_;
  }
  void key(std::string_view name) {
    if (depth_ == 1) {
      in_metadata_ = name == metadata_key;
      tensor_ = {};
      tensor_.name = name;
      offsets_.clear();
      seen_ = 0;
      return;
    }
    key_ = name;
    if (in_metadata_) return;
    const auto field = std::find(field_names.begin(), field_names.end(), name);
    if (field == field_names.end())
      raise_mismatch<FormatError>(file_, tensor_label(tensor_.name), "a field " + quote(name),
                                  "only dtype, shape and data_offsets");
    field_ = static_cast<Field>(field - field_names.begin());
    seen_ |= 1u << static_cast<unsigned>(field_);
  }
  void string(std::string_view value) {
    if (depth_ == 2 && in_metadata_) {
      header_.metadata.emplace(key_, value);
    } else if (depth_ == 2 && field_ == Field::dtype) {
      const auto dtype = find_dtype(value);
      if (!dtype) mismatch(quote(value));
      tensor_.dtype = *dtype;
    } else {
      mismatch("the string " + quote(value));
    }
  }
  void natural(std::uint64_t value) {
    if (depth_ != 3 || value > max_number || (field_ == Field::data_offsets && offsets_.size() == 2))
      mismatch(std::to_string(value));
    (field_ == Field::shape ? tensor_.shape : offsets_).push_back(value);
  }
  void other(std::string_view text) { mismatch(text.size() > 40 ? quote(text, 40) : text); }

 private:
  enum class Field { dtype, shape, data_offsets };
  static constexpr std::array<std::string_view, 3> field_names{"dtype", "shape", "data_offsets"};
  static constexpr std::uint64_t max_number = 9'007'199'254'740'992;  // 2^53: what every JSON reader counts exactly

  void finish_tensor() {
    const std::string label = tensor_label(tensor_.name);
    for (unsigned i = 0; i < field_names.size(); ++i)
      if ((seen_ >> i & 1u) == 0)
        raise_mismatch<FormatError>(file_, label, "no " + std::string(field_names[i]), "dtype, shape and data_offsets");
    tensor_.begin = offsets_[0];
    tensor_.end = offsets_[1];
    if (tensor_.end < tensor_.begin)
      raise_mismatch<FormatError>(file_, label + " data_offsets", shape_text(offsets_),
                                  "an end that is not before the begin");
    const auto bytes = packed_bytes<FormatError>(file_, label, tensor_.dtype, tensor_.shape);
    if (tensor_.byte_count() != bytes)
      raise_mismatch<FormatError>(file_, label + " data_offsets", shape_text(offsets_),
                                  std::to_string(bytes) + " bytes for " + std::string(dtype_name(tensor_.dtype)) + " " +
                                      shape_text(tensor_.shape));
    header_.tensors.push_back(std::move(tensor_));
  }

  [[noreturn]] void mismatch(std::string_view got) const {
    const std::string label = in_metadata_ ? std::string(metadata_key) : tensor_label(tensor_.name);
    if (depth_ == 0) raise_mismatch<FormatError>(file_, "header", got, "an object of tensors");
    if (depth_ == 1)
      raise_mismatch<FormatError>(file_, label, got,
                                  in_metadata_ ? "an object of strings" : "an object of dtype, shape and data_offsets");
    if (in_metadata_) raise_mismatch<FormatError>(file_, label + " " + quote(key_), got, "a string");
    const std::string place = label + " " + key_;
    if (field_ == Field::dtype) raise_mismatch<FormatError>(file_, place, got, dtype_list());
    if (field_ == Field::data_offsets)
      raise_mismatch<FormatError>(file_, place, got, "[begin, end], whole numbers from 0 to 2^53");
    raise_mismatch<FormatError>(file_, place, got, "an array of whole numbers from 0 to 2^53");
  }
  static std::string dtype_list() {
    std::string list = "one of";
    for (const DtypeInfo& row : dtypes) list.append(" ").append(row.name);
    return list;
  }

  std::string_view file_;
  SafetensorsHeader& header_;
  int depth_ = 0;  // objects and arrays that are open
  bool in_metadata_ = false;
  TensorInfo tensor_;
  std::vector<std::uint64_t> offsets_;
  std::string key_;
  Field field_ = Field::dtype;
  unsigned seen_ = 0;  // one bit a field
};

/// Throws unless the tensors, in the order of their bytes, cover [0, data_bytes) without hole or overlap.
inline void check_layout(std::string_view file, const std::vector<TensorInfo>& tensors, std::uint64_t data_bytes) {
  std::uint64_t expected = 0;
  for (const TensorInfo& tensor : tensors) {
    const std::string label = tensor_label(tensor.name) + " begin";
    if (tensor.begin > expected)
      raise_mismatch<FormatError>(file, label, tensor.begin, std::to_string(expected) + " (no hole before it)");
    if (tensor.begin < expected)
      raise_mismatch<FormatError>(file, label, tensor.begin,
                                  std::to_string(expected) + " (no overlap with the one before)");
    expected = tensor.end;
  }
  if (expected != data_bytes)
    raise_mismatch<FormatError>(file, "bytes after the header", data_bytes,
                                std::to_string(expected) + ", where the last tensor ends");
}

}  // namespace detail

/// Throws FormatError unless a file of `file_bytes` (8 or more) has room for a header of `length` after its first 8
/// bytes.
inline void check_header_length(std::string_view file, std::uint64_t length, std::uint64_t file_bytes) {
  if (length > max_header_bytes)
    raise_mismatch<FormatError>(file, "header length", length, "at most " + std::to_string(max_header_bytes));
  if (length > file_bytes - 8)
    raise_mismatch<FormatError>(file, "header length", length,
                                "at most the " + std::to_string(file_bytes - 8) + " bytes that the file has left");
}

/// Parses the header text (without the eight bytes of its length) of a file with `data_bytes` bytes after it.
/// Throws FormatError, naming `file` and the tensor, for anything that is not a valid header of just that file.
inline SafetensorsHeader parse_safetensors_header(std::string_view file, std::string_view text,
                                                  std::uint64_t data_bytes) {
  const auto last = text.find_last_not_of(' ');  // writers pad with spaces, and only with these
  if (!text.starts_with('{')) raise_mismatch<FormatError>(file, "header start", quote(text.substr(0, 8)), "'{'");
  if (text[last] != '}') raise_mismatch<FormatError>(file, "header end", quote(text.substr(last, 1)), "'}' and spaces");
  SafetensorsHeader header;
  detail::HeaderVisitor visitor(file, header);
  visit_json(file, text, {.max_depth = 4, .max_bytes = max_header_bytes}, visitor);
  std::sort(header.tensors.begin(), header.tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  detail::check_layout(file, header.tensors, data_bytes);
  return header;
}

}  // namespace deltaw::io
