#pragma once
// What the last bits of a result depend on besides the program: recorded in a training state, compared when it is
// resumed.

#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "deltaw/backend/cpu.hpp"
#include "deltaw/io/json.hpp"
#include "deltaw/version.hpp"

namespace deltaw::io {

struct Environment {
  std::string version = {};      ///< of this library
  std::string blas = {};         ///< what carries out the products, with its own word on its configuration
  std::string core = {};         ///< the kernel that the BLAS chose for this processor; empty if it does not say
  std::string threads = {};      ///< of the products
  std::string vector_bits = {};  ///< widest vector that the compiler was allowed to use
};

namespace detail {

// Not inline: each unit has the value of its own flags, and templates over it stay apart.
#if defined(__AVX512F__)
constexpr int vector_bits = 512;
#elif defined(__AVX__)
constexpr int vector_bits = 256;
#else
constexpr int vector_bits = 128;
#endif

/// Each field with its name, for those that write, read and compare.
inline auto environment_fields(Environment& e) {
  return std::array{std::pair<std::string_view, std::string*>{"version", &e.version},
                    std::pair<std::string_view, std::string*>{"blas", &e.blas},
                    std::pair<std::string_view, std::string*>{"core", &e.core},
                    std::pair<std::string_view, std::string*>{"threads", &e.threads},
                    std::pair<std::string_view, std::string*>{"vector_bits", &e.vector_bits}};
}

}  // namespace detail

#if DELTAW_CBLAS
inline namespace environment_with_cblas {
#else
inline namespace environment_with_eigen {
#endif

/// Of this program, as it runs now. OpenBLAS is asked for its configuration, core and threads; with another BLAS the
/// caller fills in `blas`, `core` and `threads`, if they are to be compared.
template <int vector_bits = detail::vector_bits>
Environment current_environment() {
  Environment e{.version = std::string(version),
                .blas = {},
                .core = {},
                .threads = {},
                .vector_bits = std::to_string(vector_bits)};
#if DELTAW_CBLAS && defined(OPENBLAS_VERSION)
  e.blas = openblas_get_config();
  e.core = openblas_get_corename();
  e.threads = std::to_string(openblas_get_num_threads());
#elif DELTAW_CBLAS
  e.blas = "a BLAS that is not OpenBLAS";
#else
  e.blas = "Eigen " + std::to_string(EIGEN_WORLD_VERSION) + "." + std::to_string(EIGEN_MAJOR_VERSION) + "." +
           std::to_string(EIGEN_MINOR_VERSION);
  e.threads = std::to_string(Eigen::nbThreads());
#endif
  return e;
}

}  // namespace environment_with_cblas or environment_with_eigen

/// A sentence for each field in which the two differ.
inline std::vector<std::string> compare_environments(std::string_view file, Environment saved, Environment here) {
  std::vector<std::string> warnings;
  const auto saved_fields = detail::environment_fields(saved), here_fields = detail::environment_fields(here);
  for (std::size_t i = 0; i < saved_fields.size(); ++i)
    if (*saved_fields[i].second != *here_fields[i].second)
      warnings.push_back(std::string(file) + ": " + std::string(saved_fields[i].first) + ": it was saved with " +
                         quote(*saved_fields[i].second) + " and is resumed with " + quote(*here_fields[i].second) +
                         "; results may differ in their last bits");
  return warnings;
}

}  // namespace deltaw::io
