#pragma once
// Undoing what was begun when an error ends it half-way.

#include <utility>

namespace deltaw {

/// Calls `undo` when it dies, unless `keep` was called: all is done, or nothing.
template <class F>
class Rollback {
 public:
  explicit Rollback(F undo) : undo_(std::move(undo)) {}
  Rollback(const Rollback&) = delete;
  Rollback& operator=(const Rollback&) = delete;
  ~Rollback() {
    if (armed_) undo_();
  }
  void keep() { armed_ = false; }

 private:
  F undo_;
  bool armed_ = true;
};

}  // namespace deltaw
