#include "conformance.hpp"

using namespace deltaw_tests;

TEST_CASE("float: forward equals the dense oracle") { forward_equals_oracle<float, Tested>(); }
TEST_CASE("float: gradients equal those in double") { gradients_equal_double<float, Tested, float>(); }
TEST_CASE("float: the adapted model starts as the base") { starts_as_the_base<float, Tested>(); }
TEST_CASE("float: merge, unmerge and delta_weight agree with forward") { merges<float, Tested>(); }
TEST_CASE("float: runs repeat to the bit") { repeats_to_the_bit<float, Tested>(); }
TEST_CASE("float: erased equals typed to the bit") { erased_equals_typed<float, Tested>(); }
TEST_CASE("float: each method costs what its row states") { costs_what_the_row_states<float, Tested>(); }
