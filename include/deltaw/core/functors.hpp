#pragma once
// Functors for a backend's `map`: f(current value of out, inputs...) is the new value. Named and public, since nvcc takes
// neither lambdas nor private types as kernel arguments.

#include "deltaw/core/config.hpp"

namespace deltaw {

/// The constant.
struct Constant {
  double value;
  template <class X>
  DELTAW_HD X operator()(X) const {
    return static_cast<X>(value);
  }
};

/// in, converted.
struct Assign {
  template <class X, class Y>
  DELTAW_HD X operator()(X, Y in) const {
    return static_cast<X>(in);
  }
};

/// out + in.
struct Add {
  template <class X, class Y>
  DELTAW_HD X operator()(X out, Y in) const {
    return out + static_cast<X>(in);
  }
};

/// out + scale in.
struct AddScaled {
  double scale = 1;
  template <class X, class Y>
  DELTAW_HD X operator()(X out, Y in) const {
    return out + static_cast<X>(scale) * static_cast<X>(in);
  }
};

/// scale out.
struct Scale {
  double scale = 1;
  template <class X>
  DELTAW_HD X operator()(X out) const {
    return static_cast<X>(scale) * out;
  }
};

/// out in.
struct Multiply {
  template <class X, class Y>
  DELTAW_HD X operator()(X out, Y in) const {
    return out * static_cast<X>(in);
  }
};

/// out / in, and 0 where in = 0.
struct Divide {
  template <class X, class Y>
  DELTAW_HD X operator()(X out, Y in) const {
    return static_cast<X>(in) == 0 ? X(0) : out / static_cast<X>(in);
  }
};

/// out = a - b.
struct Difference {
  template <class X, class Y, class Z>
  DELTAW_HD X operator()(X, Y a, Z b) const {
    return static_cast<X>(a) - static_cast<X>(b);
  }
};

/// out = (c - 1) in.
struct Excess {
  template <class X, class C, class Y>
  DELTAW_HD X operator()(X, C c, Y in) const {
    return (static_cast<X>(c) - 1) * static_cast<X>(in);
  }
};

/// out + (c - 1) in.
struct AddExcess {
  template <class X, class C, class Y>
  DELTAW_HD X operator()(X out, C c, Y in) const {
    return out + (static_cast<X>(c) - 1) * static_cast<X>(in);
  }
};

/// out + (c - 1) (out - b), which is b + c (out - b), and out to the bit where c = 1. Without b it is 0.
struct ScaleAround {
  template <class X, class C, class Y>
  DELTAW_HD X operator()(X out, C c, Y b) const {
    return out + (static_cast<X>(c) - 1) * (out - static_cast<X>(b));
  }
  template <class X, class C>
  DELTAW_HD X operator()(X out, C c) const {
    return out + (static_cast<X>(c) - 1) * out;
  }
};

/// scale a b.
struct ScaledProduct {
  double scale = 1;
  template <class X, class Y, class Z>
  DELTAW_HD X operator()(X, Y a, Z b) const {
    return static_cast<X>(scale) * static_cast<X>(a) * static_cast<X>(b);
  }
};

/// The product of all inputs.
struct Product {
  template <class X, class... In>
  DELTAW_HD X operator()(X, In... in) const {
    return (static_cast<X>(in) * ...);
  }
};

/// out + a b.
struct AddProduct {
  template <class X, class Y, class Z>
  DELTAW_HD X operator()(X out, Y a, Z b) const {
    return out + static_cast<X>(a) * static_cast<X>(b);
  }
};

/// 1, -1, or 0, by the sign of in.
struct Sign {
  template <class X, class Y>
  DELTAW_HD X operator()(X, Y in) const {
    return static_cast<X>(in > 0 ? 1 : in < 0 ? -1 : 0);
  }
};

/// sign(out) max(|out| - threshold, 0), which minimises (x - out)^2 / 2 + threshold |x|. What is below `least` becomes 0,
/// NaN stays NaN.
struct SoftThreshold {
  double threshold = 0;
  double least = threshold;
  template <class X>
  DELTAW_HD X operator()(X out) const {
    if (out >= static_cast<X>(least)) return out - static_cast<X>(threshold);
    if (out <= -static_cast<X>(least)) return out + static_cast<X>(threshold);
    return out - out;
  }
};

}  // namespace deltaw
