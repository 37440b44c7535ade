#include "conformance.hpp"

using namespace deltaw_tests;

TEST_CASE("double: forward equals the dense oracle") { forward_equals_oracle<double, Tested>(); }
TEST_CASE("double: gradients equal central differences") { gradients_equal_differences<Tested>(); }
TEST_CASE("double: a wrong sign or a missing scale in any product is found") { planted_faults_are_found<Tested>(); }
TEST_CASE("double: the adapted model starts as the base") { starts_as_the_base<double, Tested>(); }
TEST_CASE("double: merge, unmerge and delta_weight agree with forward") { merges<double, Tested>(); }
TEST_CASE("double: parameters are counted by the formula") { counts_its_parameters<double, Tested>(); }
TEST_CASE("double: gradients accumulate") { gradients_accumulate<double, Tested>(); }
TEST_CASE("double: runs repeat to the bit") { repeats_to_the_bit<double, Tested>(); }
TEST_CASE("double: erased equals typed to the bit") { erased_equals_typed<double, Tested>(); }
TEST_CASE("double: frozen parameters stay") { frozen_parameters_stay<double, Tested>(); }
TEST_CASE("double: bad calls are refused") { refuses_bad_calls<double, Tested>(); }
