// LoRA on a layer cut in two: by inputs the two outputs add up, by outputs they stand side by side; dropout included.

#include "conformance.hpp"

using namespace deltaw_tests;

namespace {
using Lora = dw::Lora<double, dw::Cpu>;

struct Part {
  Lora lora;
  Lora::Saved saved;
  dw::Tensor<double> y, dx;
};

struct Layer {
  dw::index_t tokens = 270, in = 11, out = 9, rank = 3;
  dw::Cpu::Context ctx;
  dw::Tensor<double> x{tokens, in}, dy{tokens, out}, a{rank, in}, b{out, rank};

  Layer() {
    std::mt19937 random(4);
    std::uniform_real_distribution<double> uniform(-1, 1);
    for (auto* m : {&x, &dy, &a, &b})
      for (dw::index_t i = 0; i < m->size(); ++i) m->view().data[i] = uniform(random);
  }
  Part run(dw::LinearShape shape) {
    Part part{Lora(shape, {.rank = rank, .alpha = 5, .dropout = 0.4, .seed = 2}), {}, {}, {}};
    const auto& s = shape.shard;
    part.lora.for_each_parameter([&](auto& p) {
      if (p.role == dw::Role::Down)
        dw::Cpu::copy(ctx, a.view().col_range(s.in_offset, shape.in_features), p.value.view());
      else
        dw::Cpu::copy(ctx, b.view().row_range(s.out_offset, shape.out_features), p.value.view());
    });
    part.saved.call = {.training = true, .step = 7};
    part.y.resize(tokens, shape.out_features);
    part.dx.resize(tokens, shape.in_features);
    const auto xs = x.view().col_range(s.in_offset, shape.in_features);
    part.lora.forward(ctx, {}, xs, part.y.view(), part.saved);
    part.lora.backward(ctx, {}, xs, dy.view().col_range(s.out_offset, shape.out_features), part.dx.view(), part.saved);
    return part;
  }
};

Matrix gradient(Part& part, dw::Role role) {
  Matrix found;
  part.lora.for_each_parameter([&](auto& p) {
    if (p.role == role) found = to_matrix(p.grad.view());
  });
  return found;
}
Matrix beside(const Matrix& left, const Matrix& right) {
  Matrix m(left.rows, left.cols + right.cols);
  for (dw::index_t i = 0; i < m.rows; ++i)
    for (dw::index_t j = 0; j < m.cols; ++j) m(i, j) = j < left.cols ? left(i, j) : right(i, j - left.cols);
  return m;
}
}  // namespace

TEST_CASE("row-parallel: partial outputs add up, gradients of A and X are parts of the whole") {
  Layer layer;
  Part whole = layer.run({11, 9});
  Part left = layer.run({4, 9, {.in_offset = 0, .in_total = 11}});
  Part right = layer.run({7, 9, {.in_offset = 4, .in_total = 11}});
  CHECK(relative_error(plus(to_matrix(left.y.view()), to_matrix(right.y.view())), to_matrix(whole.y.view())) <= 1e-14);
  CHECK(relative_error(beside(to_matrix(left.dx.view()), to_matrix(right.dx.view())), to_matrix(whole.dx.view())) <=
        1e-14);
  CHECK(relative_error(beside(gradient(left, dw::Role::Down), gradient(right, dw::Role::Down)),
                       gradient(whole, dw::Role::Down)) <= 1e-14);
  CHECK(relative_error(plus(gradient(left, dw::Role::Up), gradient(right, dw::Role::Up)),
                       gradient(whole, dw::Role::Up)) <= 1e-14);
}

TEST_CASE("column-parallel: outputs stand side by side, gradients of A and X add up") {
  Layer layer;
  Part whole = layer.run({11, 9});
  Part left = layer.run({11, 5, {.out_offset = 0, .out_total = 9}});
  Part right = layer.run({11, 4, {.out_offset = 5, .out_total = 9}});
  CHECK(relative_error(beside(to_matrix(left.y.view()), to_matrix(right.y.view())), to_matrix(whole.y.view())) <=
        1e-14);
  CHECK(relative_error(plus(to_matrix(left.dx.view()), to_matrix(right.dx.view())), to_matrix(whole.dx.view())) <=
        1e-14);
  CHECK(relative_error(plus(gradient(left, dw::Role::Down), gradient(right, dw::Role::Down)),
                       gradient(whole, dw::Role::Down)) <= 1e-14);
}
