#pragma once
// The solver of the Cpu, with its slowest instantiation compiled once for all tests of methods.

#include "deltaw/backend/cpu_solver.hpp"

extern template void deltaw::CpuSolver::svd_batched<double, double>(deltaw::index_t, deltaw::MatrixView<double>,
                                                                    deltaw::MatrixView<double>,
                                                                    deltaw::MatrixView<double>,
                                                                    deltaw::MatrixView<double>);
