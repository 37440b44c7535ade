#pragma once
// What one optimizer update of a tensor needs, handed to the backend that carries it out in one pass.

namespace deltaw {

/// AdamW by PyTorch's rules (Loshchilov and Hutter, 2019, arXiv 1711.05101).
struct AdamWUpdate {
  double learning_rate = 1e-3;
  double beta1 = 0.9, beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.01;
  double gradient_scale = 1;  ///< multiplies the gradient: clipping and loss unscaling, in the same pass
  long step = 1;              ///< counted from 1, this update included
};

/// SGD by PyTorch's rules (Sutskever et al., 2013, in PyTorch's form: the learning rate is not inside the momentum).
struct SgdUpdate {
  double learning_rate = 1e-2;
  double momentum = 0;
  double dampening = 0;
  bool nesterov = false;
  double weight_decay = 0;  ///< coupled, g += wd p, unless `decoupled`
  bool decoupled = false;   ///< p *= 1 - lr wd instead
  double gradient_scale = 1;
  long step = 1;
};

}  // namespace deltaw
