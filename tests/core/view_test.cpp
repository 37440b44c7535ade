#include <Eigen/Core>
#include <array>
#include <vector>

#include "catch.hpp"
#include "deltaw/core/half.hpp"
#include "deltaw/core/view.hpp"
#include "message.hpp"

namespace dw = deltaw;
using deltaw_tests::message_of;
using dw::index_t;

namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ColMajor = Eigen::MatrixXf;

template <class View, class M>
void check_same_elements(const View& v, const M& matrix) {
  REQUIRE(v.rows == matrix.rows());
  REQUIRE(v.cols == matrix.cols());
  for (index_t i = 0; i < v.rows; ++i)
    for (index_t j = 0; j < v.cols; ++j) CHECK(&v(i, j) == &matrix.coeffRef(i, j));
}

}  // namespace

TEST_CASE("a view of a row-major Eigen matrix, map or block is the same memory") {
  RowMajor matrix = RowMajor::Random(5, 7);
  check_same_elements(dw::view(matrix), matrix);

  auto block = matrix.block(1, 2, 3, 4);
  const auto v = dw::view(block);
  CHECK(v.data == &matrix(1, 2));
  CHECK(v.stride == 7);
  CHECK(v(2, 3) == matrix(3, 5));

  std::vector<double> memory(24);
  Eigen::Map<Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>, 0, Eigen::OuterStride<>> map(
      memory.data(), 4, 5, Eigen::OuterStride<>(6));
  CHECK(dw::view(map).stride == 6);
  check_same_elements(dw::view(map), map);

  Eigen::RowVectorXf row(6);
  CHECK(dw::view(row).rows == 1);
  CHECK(dw::view(row).cols == 6);
}

TEST_CASE("a view of a constant matrix only reads") {
  const RowMajor matrix = RowMajor::Random(2, 3);
  const auto v = dw::view(matrix);
  STATIC_REQUIRE(std::is_same_v<decltype(v), const dw::MatrixView<const float>>);
  CHECK(v(1, 2) == matrix(1, 2));
}

TEST_CASE("a column-major matrix of features x tokens is a view of tokens x features") {
  ColMajor matrix = ColMajor::Random(4, 3);
  const auto v = dw::view_transposed(matrix);
  REQUIRE(v.rows == 3);
  REQUIRE(v.cols == 4);
  CHECK(v.stride == 4);
  for (index_t token = 0; token < 3; ++token)
    for (index_t feature = 0; feature < 4; ++feature) CHECK(&v(token, feature) == &matrix(feature, token));

  auto tokens = matrix.middleCols(1, 2);
  CHECK(dw::view_transposed(tokens).data == &matrix(0, 1));
}

TEST_CASE("a matrix whose elements do not lie side by side is refused") {
  std::vector<float> memory(24);
  Eigen::Map<RowMajor, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>> strided(
      memory.data(), 2, 3, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(12, 2));
  CHECK(message_of<dw::ShapeError>([&] { dw::view(strided); }) ==
        "view: inner stride: got 2, want 1: the elements of a row side by side");
  RowMajor matrix(4, 5);
  auto column = matrix.col(1);  // Eigen calls it column-major
  CHECK(message_of<dw::ShapeError>([&] { dw::view_transposed(column); }) ==
        "view_transposed: inner stride: got 5, want 1: the elements of a column side by side");
}

TEST_CASE("ranges of rows and columns") {
  std::vector<float> memory(35);
  const dw::MatrixView<float> v{memory.data(), 5, 6, 7};
  const auto part = v.row_range(1, 3).col_range(2, 4);
  CHECK(part.data == memory.data() + 9);
  CHECK(part.rows == 3);
  CHECK(part.cols == 4);
  CHECK(part.stride == 7);
  CHECK(&part(2, 3) == &v(3, 5));
  CHECK(v.size() == 30);
  CHECK_FALSE(v.contiguous());
  CHECK(v.row_range(2, 1).contiguous());
  CHECK(v.row_range(2, 0).empty());
  CHECK(dw::t(v).base.data == v.data);
  CHECK(dw::vector_view(memory.data(), 9).rows == 1);
}

TEST_CASE("check_view names the argument, the part, what was given and what was expected") {
  std::vector<float> memory(12);
  const auto check = [](dw::MatrixView<float> v) {
    dw::check_view("Lora.forward", "y", v, 3, 4, "tokens", "out_features");
  };
  check({memory.data(), 3, 4, 4});
  CHECK(message_of<dw::ShapeError>([&] {
          check({memory.data(), 2, 4, 4});
        }) == "Lora.forward: y.rows (tokens): got 2, want 3");
  CHECK(message_of<dw::ShapeError>([&] {
          check({memory.data(), 3, 5, 5});
        }) == "Lora.forward: y.cols (out_features): got 5, want 4");
  CHECK(message_of<dw::ShapeError>([&] {
          check({memory.data(), 3, 4, 3});
        }) == "Lora.forward: y.stride (elements): got 3, want at least 4");
  CHECK(message_of<dw::ShapeError>([&] {
          check({memory.data(), 3, 4, -4});
        }) == "Lora.forward: y.stride (elements): got -4, want at least 4");
  CHECK(message_of<dw::ShapeError>([&] {
          check({nullptr, 3, 4, 4});
        }) == "Lora.forward: y.data (pointer): got null, want memory for 12");
}

TEST_CASE("check_view takes an empty view without memory and any stride of a single row") {
  CHECK_NOTHROW(dw::check_view("f", "x", dw::MatrixView<float>{nullptr, 0, 4}, 0, 4));
  CHECK_NOTHROW(dw::check_view("f", "x", dw::MatrixView<float>{nullptr, 4, 0}, 4, 0));
  float value = 0;
  CHECK_NOTHROW(dw::check_view("f", "x", dw::MatrixView<float>{&value, 1, 1, 0}, 1, 1));
}

TEST_CASE("overlap sees shared elements and nothing else") {
  std::vector<float> memory(200);
  const dw::MatrixView<float> whole{memory.data(), 8, 16, 20};
  const auto left = whole.col_range(0, 5), middle = whole.col_range(5, 6), right = whole.col_range(11, 5);

  SECTION("the same view, rows in common, rows apart") {
    CHECK(dw::overlap(whole, whole));
    CHECK(dw::overlap(whole.row_range(0, 4), whole.row_range(3, 2)));
    CHECK_FALSE(dw::overlap(whole.row_range(0, 4), whole.row_range(4, 4)));
  }
  SECTION("column blocks of one matrix lie between each other") {
    CHECK_FALSE(dw::overlap(left, middle));
    CHECK_FALSE(dw::overlap(middle, left));
    CHECK_FALSE(dw::overlap(left, right));
    CHECK_FALSE(dw::overlap(right, left));
    CHECK(dw::overlap(left, whole.col_range(4, 2)));
    CHECK(dw::overlap(whole.col_range(4, 2), left));
    CHECK_FALSE(dw::overlap(left.row_range(2, 3), middle.row_range(4, 3)));
  }
  SECTION("a block whose rows run into the next row's begin") {
    const dw::MatrixView<float> shifted{memory.data() + 18, 6, 10, 20};
    CHECK(dw::overlap(whole, shifted));
    CHECK_FALSE(dw::overlap(dw::MatrixView<float>{memory.data() + 8, 8, 8, 20}, shifted.col_range(0, 8)));
  }
  SECTION("a single row in the gap between the rows of a block") {
    CHECK_FALSE(dw::overlap(left, middle.row_range(3, 1)));
    CHECK_FALSE(dw::overlap(middle.row_range(3, 1), left));
    CHECK(dw::overlap(left, whole.row_range(3, 1)));
    CHECK(dw::overlap(dw::vector_view(memory.data() + 5, 16), left));
    CHECK_FALSE(dw::overlap(dw::vector_view(memory.data() + 5, 15), left));
  }
  SECTION("views of other strides count by their range") {
    const dw::MatrixView<float> other{memory.data() + 5, 4, 6, 21};
    CHECK(dw::overlap(left, other));
    CHECK_FALSE(dw::overlap(left.row_range(0, 2), dw::MatrixView<float>{memory.data() + 25, 4, 6, 21}));
  }
  SECTION("views of other types") {
    const dw::MatrixView<dw::bf16> halves{reinterpret_cast<dw::bf16*>(memory.data()), 8, 10, 40};
    CHECK(dw::overlap(halves, left));
    CHECK_FALSE(dw::overlap(halves, middle));
    CHECK_FALSE(dw::overlap(middle, halves));
    CHECK(dw::overlap(halves, whole.col_range(4, 1)));
  }
  SECTION("nothing overlaps with an empty view") {
    CHECK_FALSE(dw::overlap(whole, whole.row_range(2, 0)));
    CHECK_FALSE(dw::overlap(dw::MatrixView<float>{}, whole));
  }
  SECTION("a stride of 0 does not divide by zero") {
    const dw::MatrixView<float> broadcast{memory.data(), 4, 5, 0};
    CHECK(dw::overlap(broadcast, broadcast));
  }
}

TEST_CASE("check_no_alias names both views") {
  std::vector<float> memory(12);
  const dw::MatrixView<float> a{memory.data(), 3, 4};
  CHECK_NOTHROW(dw::check_no_alias("gemm", "a", a.row_range(0, 1), "c", a.row_range(1, 2)));
  CHECK(message_of<dw::AliasError>([&] { dw::check_no_alias("gemm", "a", a, "c", a.row_range(2, 1)); }) ==
        "gemm: a and c: got views that share memory, want separate ones");
}
