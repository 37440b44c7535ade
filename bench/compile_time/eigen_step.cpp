// One LoRA step on bare Eigen: what somebody would write without DeltaW. See compile_time.sh.

#include <Eigen/Core>

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

void adamw(Matrix& p, const Matrix& g, Matrix& m, Matrix& v) {
  m.array() = 0.9f * m.array() + 0.1f * g.array();
  v.array() = 0.999f * v.array() + 0.001f * g.array().square();
  p.array() = 0.99f * p.array() - 1e-3f * m.array() / (v.array().sqrt() + 1e-8f);
}

int main() {
  constexpr int tokens = 8, in = 32, out = 64, rank = 4;
  Matrix w = Matrix::Random(out, in), x = Matrix::Random(tokens, in), dy = Matrix::Random(tokens, out);
  Matrix a = Matrix::Random(rank, in), b = Matrix::Zero(out, rank), da(rank, in), db(out, rank);
  Matrix ma = Matrix::Zero(rank, in), va = ma, mb = Matrix::Zero(out, rank), vb = mb;

  Matrix y(tokens, out), dx(tokens, in);
  y.noalias() = x * w.transpose();
  const Matrix z = 2 * x * a.transpose();
  y.noalias() += z * b.transpose();

  db.noalias() = dy.transpose() * z;
  const Matrix h = 2 * dy * b;
  da.noalias() = h.transpose() * x;
  dx.noalias() = dy * w;
  dx.noalias() += h * a;

  adamw(a, da, ma, va);
  adamw(b, db, mb, vb);
  return y(0, 0) > dx(0, 0) + a(0, 0) + b(0, 0) ? 1 : 0;
}
