#pragma once
// Functors for a backend's `map`: f(current value of out, inputs...) is the new value. Named and public, since nvcc takes
// neither lambdas nor private types as kernel arguments.

#include "deltaw/core/config.hpp"

namespace deltaw {

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

/// scale a b.
struct ScaledProduct {
  double scale = 1;
  template <class X, class Y, class Z>
  DELTAW_HD X operator()(X, Y a, Z b) const {
    return static_cast<X>(scale) * static_cast<X>(a) * static_cast<X>(b);
  }
};

/// out in.
struct Multiply {
  template <class X, class Y>
  DELTAW_HD X operator()(X out, Y in) const {
    return out * static_cast<X>(in);
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
