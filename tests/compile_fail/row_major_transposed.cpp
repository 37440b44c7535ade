// A row-major matrix needs no transposed view.
// error: deltaw::view_transposed wants a column-major matrix of features x tokens; for a row-major one use deltaw::view

#include <Eigen/Core>

#include "deltaw/core/view.hpp"

#ifdef DELTAW_SHOULD_FAIL
using Activations = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
#else
using Activations = Eigen::MatrixXf;
#endif

auto tokens_of(Activations& activations) { return deltaw::view_transposed(activations); }
