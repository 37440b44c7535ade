#pragma once
// The demo's table: a line a method, over all seeds.

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "deltaw/io/json.hpp"

namespace table {

using Json = nlohmann::ordered_json;

/// The values of one field, over the seeds.
inline std::vector<double> values_of(const Json& rows, const std::string& method, const char* field) {
  std::vector<double> values;
  for (const auto& row : rows)
    if (row["method"] == method) values.push_back(row[field].get<double>());
  return values;
}

inline double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double v : values) sum += v;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

/// "74.03 %", or with more seeds "74.03 % (73.90 to 74.20)".
inline std::string percent(const std::vector<double>& values) {
  char text[64];
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  if (values.size() == 1) {
    std::snprintf(text, sizeof text, "%.2f %%", 100 * values.front());
  } else {
    std::snprintf(text, sizeof text, "%.2f %% (%.2f to %.2f)", 100 * mean(values), 100 * *low, 100 * *high);
  }
  return text;
}

/// How much of the way from the head alone to full fine-tuning each other method goes, seed by seed.
inline void print_gap(const Json& rows, const std::string& method) {
  const auto head = values_of(rows, "head", "test_accuracy"), full = values_of(rows, "full", "test_accuracy");
  const auto own = values_of(rows, method, "test_accuracy");
  if (head.size() != own.size() || full.size() != own.size()) return;
  std::vector<double> closed;
  for (std::size_t i = 0; i < own.size(); ++i) closed.push_back((own[i] - head[i]) / (full[i] - head[i]));
  const double share =
      mean(values_of(rows, method, "trainable_parameters")) / mean(values_of(rows, "full", "trainable_parameters"));
  std::printf("%s closes %s of the gap between head and full, with %.2f %% of full's parameters\n", method.c_str(),
              percent(closed).c_str(), 100 * share);
}

inline void print(const Json& rows, const std::vector<std::string>& methods) {
  std::printf("\n%-8s  %-26s  %10s  %10s  %12s\n", "method", "test accuracy", "trainable", "s a step", "extra memory");
  for (const std::string& method : methods) {
    const double step = mean(values_of(rows, method, "seconds_per_step"));
    char seconds[32] = "-";
    if (step > 0) std::snprintf(seconds, sizeof seconds, "%.4f", step);
    std::printf("%-8s  %-26s  %10.0f  %10s  %9.1f MB\n", method.c_str(),
                percent(values_of(rows, method, "test_accuracy")).c_str(),
                mean(values_of(rows, method, "trainable_parameters")), seconds,
                mean(values_of(rows, method, "peak_extra_bytes")) / 1e6);
  }
  std::printf(
      "extra memory: most heap in use while training (for frozen: while recognising), over weights and images\n");
  for (const std::string& method : methods)
    if (method != "frozen" && method != "head" && method != "full") print_gap(rows, method);
}

}  // namespace table
