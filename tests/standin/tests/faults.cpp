// Runs every planted fault and every twin in a process of its own. A fault has to end with the stand-in's status and
// message (or with a sanitizer's, where the list says so), a twin with success.
// Usage: faults [NAME]: only the faults whose name contains NAME.

#include <sys/wait.h>
#include <unistd.h>

#include "faults.hpp"

namespace {

struct Outcome {
  int status;
  std::string said;
};

Outcome run(const char* self, const Fault& fault, bool faulty) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    close(ends[0]);
    close(ends[1]);
    execl(self, self, "--run", fault.name, faulty ? "fault" : "twin", static_cast<char*>(nullptr));
    _exit(127);
  }
  close(ends[1]);
  Outcome outcome{};
  char bytes[4096];
  for (ssize_t n; (n = read(ends[0], bytes, sizeof bytes)) > 0;)
    outcome.said.append(bytes, static_cast<std::size_t>(n));
  close(ends[0]);
  waitpid(child, &outcome.status, 0);
  return outcome;
}

bool as_promised(const Fault& fault, const Outcome& outcome) {
  const auto says = [&](const char* text) { return outcome.said.find(text) != std::string::npos; };
  if (WIFEXITED(outcome.status) && WEXITSTATUS(outcome.status) == standin::stop_status) return says(fault.message);
  return fault.sanitized != nullptr && outcome.status != 0 && says(fault.sanitized);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == "--run") {
    for (const Fault& fault : faults)
      if (fault.name == std::string(argv[2])) fault.program(std::string(argv[3]) == "fault");
    return 0;
  }
  int failures = 0;
  for (const Fault& fault : faults) {
    if (argc == 2 && std::string(fault.name).find(argv[1]) == std::string::npos) continue;
    const Outcome faulty = run("/proc/self/exe", fault, true), twin = run("/proc/self/exe", fault, false);
    const bool stopped = as_promised(fault, faulty), passed = twin.status == 0;
    failures += !stopped + !passed;
    std::printf("%-32s fault %s, twin %s\n", fault.name, stopped ? "stopped" : "NOT STOPPED",
                passed ? "passes" : "FAILS");
    if (!stopped)
      std::printf("  status %d, said: %s\n  wanted: %s\n", faulty.status, faulty.said.c_str(), fault.message);
    if (!passed) std::printf("  status %d, said: %s\n", twin.status, twin.said.c_str());
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
