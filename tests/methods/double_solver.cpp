#include "double_solver.hpp"

template void deltaw::CpuSolver::svd_batched<double, double>(deltaw::index_t, deltaw::MatrixView<double>,
                                                             deltaw::MatrixView<double>, deltaw::MatrixView<double>,
                                                             deltaw::MatrixView<double>);
