#pragma once
// The singular vectors of a base's weight, for the initializers that start from them. The unit that calls them includes
// backend/cpu_solver.hpp or backend/cuda_solver.hpp as well.

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "deltaw/backend/solver.hpp"
#include "deltaw/core/adapter.hpp"
#include "deltaw/core/base_change.hpp"
#include "deltaw/core/functors.hpp"
#include "deltaw/core/initial.hpp"
#include "deltaw/core/options.hpp"

namespace deltaw::init {

/// W = U diag(s) V^T with k = min(out, in) and s falling: u out x k, s 1 x k, vt k x in.
template <class P, class Space>
struct SingularVectors {
  Tensor<P, Space> u, s, vt;

  /// Triplets [first, first + count): U's columns, s as a column, V^T's rows.
  ConstMatrixView<P, Space> left(index_t first, index_t count) const { return u.view().col_range(first, count); }
  ConstMatrixView<P, Space> values(index_t first, index_t count) const { return {s.view().data + first, count, 1, 1}; }
  ConstMatrixView<P, Space> right(index_t first, index_t count) const { return vt.view().row_range(first, count); }
};

/// Of w, in the precision of P whatever the weight's type; it waits for the device, so that what is wrong is raised here.
template <class P, class B, class W>
SingularVectors<P, typename B::Space> decompose(typename B::Context& ctx, MatrixView<W, typename B::Space> w) {
  SingularVectors<P, typename B::Space> found;
  const index_t k = std::min(w.rows, w.cols);
  typename SolverOf<B>::type solver(ctx);
  solver.svd(w, found.u.resize(w.rows, k), found.s.resize(1, k), found.vt.resize(k, w.cols));
  solver.wait_and_check();
  return found;
}

/// The singular values of w, falling, on the host.
template <class P, class B, class W>
std::vector<double> spectrum(typename B::Context& ctx, MatrixView<W, typename B::Space> w) {
  const auto found = decompose<P, B>(ctx, w);
  std::vector<P> values(static_cast<std::size_t>(found.s.size()));
  Memory<typename B::Space>::to_host(values.data(), found.s.view().data, found.s.bytes());
  return {values.begin(), values.end()};
}

/// The adapter's parameter of that role; throws UnsupportedError where it has none.
template <class A>
auto& parameter_of(A& adapter, Role role, std::string_view where, std::string_view name) {
  Parameter<typename A::Scalar, typename A::Backend::Space>* found = nullptr;
  adapter.for_each_parameter([&](auto& p) {
    if (p.role == role) found = &p;
  });
  if (found == nullptr) raise_mismatch<UnsupportedError>(where, name, "a method without one", "one that has it");
  return *found;
}

/// That the weight is a whole layer's, and has `more` singular vectors beyond the adapter's ranks.
inline void check_decomposable(std::string_view where, index_t rank, const LinearShape& shape, index_t more = 0) {
  if (shape.in_total() != shape.in_features || shape.out_total() != shape.out_features)
    raise_mismatch<UnsupportedError>(where, "shape", "a shard of a layer", "a whole layer, to decompose its weight");
  const index_t limit = std::min(shape.in_features, shape.out_features);
  if (rank + more > limit)
    raise_mismatch<OptionError>(
        where, "rank", rank,
        (more > 0 ? "below min(in_features, out_features) = " : "at most min(in_features, out_features) = ") +
            std::to_string(limit));
}

}  // namespace deltaw::init
