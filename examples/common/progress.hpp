#pragma once
// A progress bar where standard error is a terminal, and a line now and then where it is not. NO_COLOR is honoured
// (no-color.org).

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

namespace examples {

class Progress {
 public:
  /// `first` is how far a resumed run is already.
  Progress(std::string title, long total, bool quiet, long first = 0)
      : title_(std::move(title)), total_(total), first_(first), quiet_(quiet), terminal_(isatty(STDERR_FILENO) == 1) {
    const char* no_color = std::getenv("NO_COLOR");
    color_ = terminal_ && (no_color == nullptr || *no_color == '\0');
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() {
    if (shown_ && terminal_) std::fputc('\n', stderr);
  }

  /// `done` of the total are done; `note` ("loss 0.512") stands behind the bar.
  void update(long done, const std::string& note = {}) {
    if (quiet_) return;
    const auto now = Clock::now();
    const double since = std::chrono::duration<double>(now - last_).count();
    if (done < total_ && since < (terminal_ ? 0.1 : 10)) return;
    last_ = now;
    const double elapsed = std::chrono::duration<double>(now - start_).count();
    const double left =
        done > first_ ? elapsed / static_cast<double>(done - first_) * static_cast<double>(total_ - done) : 0;
    const std::string time = done < total_ ? "ETA " + clock_text(left) : "in " + clock_text(elapsed);
    if (terminal_) {
      std::fprintf(stderr, "\r%s %s %ld/%ld  %s  %s\x1b[K", title_.c_str(), bar(done).c_str(), done, total_,
                   note.c_str(), time.c_str());
    } else {
      std::fprintf(stderr, "%s %ld/%ld  %s  %s\n", title_.c_str(), done, total_, note.c_str(), time.c_str());
    }
    std::fflush(stderr);
    shown_ = true;
  }

 private:
  using Clock = std::chrono::steady_clock;

  std::string bar(long done) const {
    constexpr long width = 30;
    const long full = total_ > 0 ? done * width / total_ : width;
    std::string text = "[";
    if (color_) text += "\x1b[32m";
    text.append(static_cast<std::size_t>(full), '#');
    if (color_) text += "\x1b[0m";
    text.append(static_cast<std::size_t>(width - full), '.');
    return text + "]";
  }
  static std::string clock_text(double seconds) {
    char text[32];
    const long whole = static_cast<long>(seconds + 0.5);
    std::snprintf(text, sizeof text, "%ld:%02ld", whole / 60, whole % 60);
    return text;
  }

  std::string title_;
  long total_, first_;
  bool quiet_, terminal_, color_ = false, shown_ = false;
  Clock::time_point start_ = Clock::now(), last_ = start_;
};

}  // namespace examples
