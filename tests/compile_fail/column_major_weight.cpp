// A column-major weight is other memory than a row-major one: refused, and the message says what to do.
// error: A column-major matrix of features x tokens .*use deltaw::view_transposed\. A column-major weight W .* is not

#include <Eigen/Core>

#include "deltaw/base/dense.hpp"

#ifdef DELTAW_SHOULD_FAIL
using Weight = Eigen::MatrixXf;
#else
using Weight = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
#endif

auto base_of(Weight& weight) { return deltaw::DenseLinear<float, float>{deltaw::view(weight), {}}; }
