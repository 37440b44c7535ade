// A view that only reads does not become one that writes.
// error: (conversion from .*const float.* to non-scalar type|could not convert|no matching function)

#include "deltaw/core/view.hpp"

#ifdef DELTAW_SHOULD_FAIL
using From = const float;
using To = float;
#else
using From = float;
using To = const float;
#endif

deltaw::MatrixView<To> convert(deltaw::MatrixView<From> view) { return view; }
