#pragma once
// What an error says: tests compare whole messages, so that a poor one is seen when the test is written.

#include <string>

namespace deltaw_tests {

/// The message of the `E` that `f` throws; an error of another type goes on to Catch and fails the test.
template <class E, class F>
std::string message_of(F f) {
  try {
    f();
  } catch (const E& error) { return error.what(); }
  return "nothing was thrown";
}

}  // namespace deltaw_tests
