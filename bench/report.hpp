#pragma once
// What every benchmark says about itself (machine, BLAS, flags), its arguments, and its rows in a JSON file.

#include <Eigen/Core>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "deltaw/core/config.hpp"
#if DELTAW_CBLAS
#include <cblas.h>
#endif

namespace deltaw_bench {

/// `--out DIR --full --only TEXT`: where results go, whether to measure everything, and which rows (those whose label
/// contains TEXT). Anything else ends the program.
struct Arguments {
  std::string out = ".", only;
  bool full = false;

  Arguments(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
      const std::string_view name = argv[i];
      if (name == "--full") {
        full = true;
      } else if ((name == "--out" || name == "--only") && i + 1 < argc) {
        (name == "--out" ? out : only) = argv[++i];
      } else {
        std::fprintf(stderr, "%s: got '%s', want --out DIR, --full or --only TEXT\n", argv[0], argv[i]);
        std::exit(2);
      }
    }
  }
  bool wanted(std::string_view label) const { return label.find(only) != std::string_view::npos; }
};

/// The BLAS in its own words, and the kernels it chose for this processor.
inline std::string blas_name() {
#if DELTAW_CBLAS && defined(OPENBLAS_VERSION)
  return openblas_get_config();
#elif DELTAW_CBLAS
  return "unknown CBLAS";
#else
  return "Eigen " + std::to_string(EIGEN_WORLD_VERSION) + "." + std::to_string(EIGEN_MAJOR_VERSION) + "." +
         std::to_string(EIGEN_MINOR_VERSION) + ", " + Eigen::SimdInstructionSetsInUse();
#endif
}
inline std::string core_name() {
#if DELTAW_CBLAS && defined(OPENBLAS_VERSION)
  return openblas_get_corename();
#else
  return "";
#endif
}
inline void set_threads(int threads) {
#if DELTAW_CBLAS && defined(OPENBLAS_VERSION)
  openblas_set_num_threads(threads);
#endif
  Eigen::setNbThreads(threads);
}
/// Compiler and flags, as CMake passed them.
inline std::string flags() {
#if defined(DELTAW_BENCH_FLAGS)
  return DELTAW_BENCH_FLAGS;
#else
  return "unknown";
#endif
}

inline std::string first_line_with(const char* file, std::string_view key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);)
    if (line.find(key) != std::string::npos) return line;
  return "";
}
inline void print_machine() {
  const std::string model = first_line_with("/proc/cpuinfo", "model name");
  std::printf("%s\nBLAS %s%s%s\nflags %s\nload %s (anything above 1 disturbs the times, less the ratios)\n\n",
              model.empty() ? "unknown processor" : model.substr(model.find(':') + 2).c_str(), blas_name().c_str(),
              core_name().empty() ? "" : ", core ", core_name().c_str(), flags().c_str(),
              first_line_with("/proc/loadavg", " ").c_str());
}

/// One JSON object on one line.
class Row {
 public:
  Row& add(std::string_view name, std::string_view text) {
    std::string quoted = "\"";
    for (char c : text) quoted.append(c == '"' || c == '\\' ? "\\" : "").push_back(c);
    return append(name, quoted + "\"");
  }
  Row& add(std::string_view name, double number) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", number);
    return append(name, text);
  }
  Row& add(std::string_view name, long number) { return append(name, std::to_string(number)); }
  const std::string& text() const { return text_; }

 private:
  Row& append(std::string_view name, const std::string& value) {
    text_.append(text_.empty() ? "\"" : ", \"").append(name).append("\": ").append(value);
    return *this;
  }
  std::string text_;
};

/// A JSON array that several programs share, a row a line. Each program replaces its own rows and keeps the others'.
class RowFile {
 public:
  RowFile(std::string path, std::string_view program)
      : path_(std::move(path)), mark_("{\"program\": \"" + std::string(program) + "\", ") {
    std::ifstream in(path_);
    for (std::string line; std::getline(in, line);)
      if (line.starts_with("{") && !line.starts_with(mark_)) lines_.push_back(line.substr(0, line.rfind('}') + 1));
    write();
  }
  void add(const Row& row) {
    lines_.push_back(mark_ + row.text() + "}");
    write();
  }

 private:
  void write() const {
    std::ofstream out(path_);
    out << "[\n";
    for (std::size_t i = 0; i < lines_.size(); ++i) out << lines_[i] << (i + 1 < lines_.size() ? ",\n" : "\n");
    out << "]\n";
    if (!out.flush()) {
      std::fprintf(stderr, "cannot write %s\n", path_.c_str());
      std::exit(1);
    }
  }
  std::string path_, mark_;
  std::vector<std::string> lines_;
};

}  // namespace deltaw_bench
