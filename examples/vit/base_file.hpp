#pragma once
// The model's weights as a safetensors file.

#include <filesystem>
#include <string>

#include "deltaw/io/safetensors.hpp"
#include "vit/vit.hpp"

namespace vit {

/// Vectors have one dimension in files.
template <class T>
std::vector<std::uint64_t> shape_in_file(const dw::Tensor<T>& tensor) {
  if (tensor.rows() == 1) return dw::io::make_shape(tensor.cols());
  return dw::io::make_shape(tensor.rows(), tensor.cols());
}

/// Fills every weight; throws, with the model untouched, if the file lacks one, has another shape, or is not finite.
template <class T>
void load_weights(Vit<T>& model, const std::filesystem::path& path) {
  const auto reader = dw::io::SafetensorsReader::open(path);
  std::map<std::string, std::vector<T>> values;
  for (const auto& [name, tensor] : model.tensors()) {
    const auto& info = reader.at(name, shape_in_file(tensor));
    auto& into = values[name];
    into.resize(static_cast<std::size_t>(tensor.size()));
    reader.template read_into<T>(info, into, {.require_finite = true});
  }
  if (reader.tensors().size() != values.size())
    dw::raise_mismatch<dw::FormatError>(path.string(), "tensors", reader.tensors().size(),
                                        "just the " + std::to_string(values.size()) + " of this model");
  for (auto& [name, tensor] : model.tensors()) std::copy(values[name].begin(), values[name].end(), tensor.view().data);
}

template <class T>
void save_weights(Vit<T>& model, const std::filesystem::path& path, const std::map<std::string, std::string>& about) {
  dw::io::SafetensorsWriter writer;
  for (const auto& [name, tensor] : model.tensors())
    writer.add(name, shape_in_file(tensor),
               std::span<const T>(tensor.view().data, static_cast<std::size_t>(tensor.size())));
  for (const auto& [key, value] : about) writer.set_metadata(key, value);
  writer.write(path);
}

}  // namespace vit
