#pragma once
// Everything that needs only Eigen: core, the Cpu backend, dense bases, adapters, initializers, optimizers, and the
// adapted layer. Named layers with targets by pattern: deltaw/model/adapter_set.hpp. Files: deltaw/io/.

#include "deltaw/adapters/adalora.hpp"
#include "deltaw/adapters/codyra.hpp"
#include "deltaw/adapters/full_delta.hpp"
#include "deltaw/adapters/lora.hpp"
#include "deltaw/adapters/sora.hpp"
#include "deltaw/backend/cpu.hpp"
#include "deltaw/base/base_ref.hpp"
#include "deltaw/base/dense.hpp"
#include "deltaw/core/adapter.hpp"
#include "deltaw/core/rank.hpp"
#include "deltaw/init/gaussian.hpp"
#include "deltaw/init/kaiming.hpp"
#include "deltaw/model/adapted_linear.hpp"
#include "deltaw/model/any_adapter.hpp"
#include "deltaw/optim/adamw.hpp"
#include "deltaw/optim/optimizer.hpp"
#include "deltaw/optim/schedule.hpp"
#include "deltaw/optim/sgd.hpp"
#include "deltaw/version.hpp"
