#include "conformance.hpp"

using namespace deltaw_tests;

TEST_CASE("bf16: forward equals the dense oracle") { forward_equals_oracle<float, Tested, dw::bf16>(); }
TEST_CASE("bf16: gradients equal those in double") { gradients_equal_double<float, Tested, dw::bf16>(); }
TEST_CASE("bf16: merge, unmerge and delta_weight agree with forward") { merges<float, Tested, dw::bf16>(); }
TEST_CASE("bf16: erased equals typed to the bit") { erased_equals_typed<float, Tested, dw::bf16>(); }
TEST_CASE("f16: forward equals the dense oracle") { forward_equals_oracle<float, Tested, dw::f16>(); }
TEST_CASE("f16: gradients equal those in double") { gradients_equal_double<float, Tested, dw::f16>(); }
