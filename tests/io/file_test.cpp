#include "deltaw/io/file.hpp"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <thread>

#include "catch.hpp"
#include "scratch.hpp"

namespace fs = std::filesystem;
namespace io = deltaw::io;
using deltaw::FileError;
using deltaw_tests::ContainsSubstring;
using deltaw_tests::error_text;
using deltaw_tests::Scratch;

namespace {

constexpr std::uint64_t any_size = 1u << 30;

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void put(const fs::path& path, std::string_view text) { std::ofstream(path, std::ios::binary) << text; }

/// Runs `action` in a child process and returns what waitpid says of it; the child ends with 0 if `action` returns
/// true.
int status_of_child(const std::function<bool()>& action) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    bool good = false;
    try {
      good = action();
    } catch (...) {}
    ::_exit(good ? 0 : 1);
  }
  int status = -1;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return status;
}

/// The same without the rights of root, for whom no directory is read-only.
bool holds_for_a_plain_user(const std::function<bool()>& check) {
  return status_of_child([&] {
           constexpr uid_t nobody = 65534;
           if (::geteuid() == 0 && (::setgid(nobody) != 0 || ::setuid(nobody) != 0)) return false;
           return check();
         }) == 0;
}

}  // namespace

TEST_CASE("a mapped file shows the bytes of the file", "[io]") {
  const Scratch scratch;
  const auto path = scratch / "bytes";
  put(path, std::string_view("a\0b", 3));
  io::MappedFile map(path);
  CHECK(text_of(map.bytes()) == std::string("a\0b", 3));

  SECTION("moving keeps the bytes where they are") {
    const auto* data = map.bytes().data();
    io::MappedFile other(std::move(map));
    CHECK(other.bytes().data() == data);
    CHECK(map.bytes().empty());
    map = std::move(other);
    CHECK(text_of(map.bytes()) == std::string("a\0b", 3));
  }
  SECTION("an empty file is no bytes") {
    put(path, "");
    CHECK(io::MappedFile(path).bytes().empty());
    CHECK(io::read_text(path, 0).empty());
  }
  SECTION("a link is followed") {
    fs::create_symlink("bytes", scratch / "link");
    CHECK(io::MappedFile(scratch / "link").bytes().size() == 3);
  }
  SECTION("replacing the file leaves the bytes") {
    io::write_atomically(path, "new content");
    CHECK(text_of(map.bytes()) == std::string("a\0b", 3));
    CHECK(io::read_text(path, any_size) == "new content");
  }
}

TEST_CASE("what is not a readable regular file is refused by name", "[io]") {
  const Scratch scratch;
  const std::string there = scratch.path().string();
  const std::vector<std::function<void(const fs::path&)>> openers{
      [](const fs::path& path) { io::MappedFile{path}; },
      [](const fs::path& path) { io::InputFile{path}; },
      [](const fs::path& path) { io::read_file(path, any_size); },
  };
  for (const auto& open : openers) {
    auto refusal = [&](const fs::path& path) { return error_text<FileError>([&] { open(path); }); };
    CHECK(refusal(scratch / "none") == there + "/none: opening for reading: No such file or directory");
    CHECK(refusal(scratch.path()) == there + ": kind: got a directory, want a regular file");
    CHECK(refusal("/dev/null") == "/dev/null: kind: got a device, want a regular file");
    CHECK(refusal("") == "file: path: got an empty path, want the name of a file");
    CHECK(refusal(std::string("a\0b", 3)) == "a: path: got a NUL character, want a path without one");
    put(scratch / "file", "x");
    CHECK(refusal(scratch / "file/under") == there + "/file/under: opening for reading: Not a directory");
    fs::remove(scratch / "pipe");
    REQUIRE(::mkfifo((scratch / "pipe").c_str(), 0600) == 0);
    CHECK(refusal(scratch / "pipe") == there + "/pipe: kind: got a pipe, want a regular file");
  }
  put(scratch / "secret", "x");
  fs::permissions(scratch / "secret", fs::perms::none);
  fs::permissions(scratch.path(), fs::perms(0755));
  CHECK(holds_for_a_plain_user([&] {
    return error_text<FileError>([&] { io::MappedFile{scratch / "secret"}; }) ==
           there + "/secret: opening for reading: Permission denied";
  }));
}

TEST_CASE("a whole file is read up to a size", "[io]") {
  const Scratch scratch;
  const auto path = scratch / "text";
  put(path, "12345");
  CHECK(io::read_text(path, 5) == "12345");
  CHECK(text_of(io::read_file(path, 5)) == "12345");
  CHECK(error_text<FileError>([&] { io::read_text(path, 4); }) ==
        path.string() + ": size: got 5, want at most 4 bytes");
}

TEST_CASE("a file is read at any place, and not beyond its end", "[io]") {
  const Scratch scratch;
  const auto path = scratch / "text";
  put(path, "0123456789");
  const io::InputFile file(path);
  CHECK(file.size() == 10);
  std::array<std::byte, 4> out{};
  file.read_at(6, out);
  CHECK(text_of(out) == "6789");
  file.read_at(10, {});
  CHECK(error_text<FileError>([&] { file.read_at(7, out); }) ==
        path.string() + ": read: got 4 bytes from 7, want no more than the 10 bytes of the file");
  CHECK(error_text<FileError>([&] { file.read_at(~std::uint64_t{0}, out); }) ==
        path.string() + ": read: got 4 bytes from 18446744073709551615, want no more than the 10 bytes of the file");
  fs::resize_file(path, 8);
  CHECK(error_text<FileError>([&] { file.read_at(6, out); }) ==
        path.string() + ": size: got 8, want 10, as it was when the file was opened");
}

TEST_CASE("an atomic write makes or replaces a file", "[io]") {
  const Scratch scratch;
  const auto path = scratch / "file";
  io::write_atomically(path, "first");
  CHECK(io::read_text(path, any_size) == "first");
  io::write_atomically(path, [&](io::AtomicFile& file) {
    file.write("sec");
    CHECK(io::read_text(path, any_size) == "first");
    CHECK(scratch.names().size() == 2);
    file.write(std::string_view{});
    file.write("ond");
  });
  CHECK(io::read_text(path, any_size) == "second");
  io::write_atomically(path, std::vector<std::byte>{});
  CHECK(io::read_text(path, any_size).empty());
  const std::string large(3'000'000, 'x');
  io::write_atomically(path, large);
  CHECK(io::read_text(path, any_size) == large);
  CHECK(scratch.names() == std::vector<std::string>{"file"});

  SECTION("permissions stay") {
    fs::permissions(path, fs::perms(0640));
    io::write_atomically(path, "third");
    CHECK(fs::status(path).permissions() == fs::perms(0640));
  }
  SECTION("a link stays a link") {
    fs::create_directory(scratch / "elsewhere");
    fs::create_symlink("../file", scratch / "elsewhere/link");
    io::write_atomically(scratch / "elsewhere/link", "third");
    CHECK(fs::is_symlink(scratch / "elsewhere/link"));
    CHECK(io::read_text(path, any_size) == "third");
  }
  SECTION("the longest name a directory takes") {
    const std::string name(255, 'n');
    io::write_atomically(scratch / name, "long");
    CHECK(io::read_text(scratch / name, any_size) == "long");
  }
  SECTION("a name relative to the working directory, which may change meanwhile") {
    const auto before = fs::current_path();
    fs::current_path(scratch.path());
    io::write_atomically("relative", [&](io::AtomicFile& file) {
      fs::current_path(before);
      file.write("here");
    });
    CHECK(io::read_text(scratch / "relative", any_size) == "here");
  }
}

TEST_CASE("an atomic write that fails leaves the old file and no temporary", "[io]") {
  const Scratch scratch;
  const auto path = scratch / "file";
  const std::string there = scratch.path().string();
  put(path, "old");
  auto refusal = [](const fs::path& target) {
    return error_text<FileError>([&] { io::write_atomically(target, "new"); });
  };

  SECTION("the producer throws") {
    CHECK_THROWS_AS(io::write_atomically(path,
                                         [](io::AtomicFile& file) {
                                           file.write("half of the ne");
                                           throw std::logic_error("the producer failed");
                                         }),
                    std::logic_error);
  }
  SECTION("nobody commits") {
    io::AtomicFile file(path);
    file.write("new");
  }
  SECTION("a directory that does not exist") {
    CHECK(refusal(scratch / "none/file") == there + "/none/file: opening its directory: No such file or directory");
  }
  SECTION("a directory that is a file") {
    CHECK(refusal(path / "under") == there + "/file/under: opening its directory: Not a directory");
  }
  SECTION("a target that is a directory, a device or a dangling link") {
    fs::create_directory(scratch / "directory");
    CHECK(refusal(scratch / "directory") ==
          there + "/directory: kind: got a directory, want a regular file to replace");
    CHECK(refusal(scratch / "directory/") == there + "/directory/: path: got a directory, want the name of a file");
    CHECK(refusal("/dev/null") == "/dev/null: kind: got a device, want a regular file to replace");
    fs::remove(scratch / "directory");
    fs::create_symlink("nowhere", scratch / "link");
    CHECK(refusal(scratch / "link") == there + "/link: following the link: No such file or directory");
    CHECK(fs::is_symlink(scratch / "link"));
    fs::remove(scratch / "link");
  }
  SECTION("a path that cannot be") {
    CHECK(refusal("") == "file: path: got an empty path, want the name of a file");
    CHECK(refusal(std::string("a\0b", 3)) == "a: path: got a NUL character, want a path without one");
    CHECK_THAT(refusal(scratch / std::string(256, 'n')), ContainsSubstring("File name too long"));
  }
  SECTION("a directory or a file that the user may not write") {
    fs::permissions(path, fs::perms(0444));
    fs::permissions(scratch.path(), fs::perms(0777));
    CHECK(
        holds_for_a_plain_user([&] { return refusal(path) == there + "/file: asking to replace: Permission denied"; }));
    fs::permissions(path, fs::perms(0666));
    fs::permissions(scratch.path(), fs::perms(0555));
    CHECK(holds_for_a_plain_user(
        [&] { return refusal(path) == there + "/file: making a temporary file in its directory: Permission denied"; }));
    fs::permissions(scratch.path(), fs::perms(0755));
  }
  SECTION("a disk that takes no more") {
    // A limit on the size of files stands for a full disk: the first write is short, the next one fails.
    CHECK(WEXITSTATUS(status_of_child([&] {
            ::signal(SIGXFSZ, SIG_IGN);
            const rlimit limit{100'000, 100'000};
            if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return false;
            const std::string large(200'000, 'x');
            return error_text<FileError>([&] { io::write_atomically(path, large); }) ==
                   there + "/file: writing: File too large";
          })) == 0);
  }
  CHECK(io::read_text(path, any_size) == "old");
  CHECK(scratch.names() == std::vector<std::string>{"file"});
}

TEST_CASE("after commit a file takes no more", "[io]") {
  const Scratch scratch;
  io::AtomicFile file(scratch / "file");
  file.write("all");
  file.commit();
  CHECK_THAT(error_text<FileError>([&] { file.write("more"); }),
             ContainsSubstring("file: writing: Bad file descriptor"));
  CHECK_THAT(error_text<FileError>([&] { file.commit(); }), ContainsSubstring("syncing to disk: Bad file descriptor"));
  CHECK(io::read_text(scratch / "file", any_size) == "all");
}

TEST_CASE("a process killed at any point of a write leaves the old or the new file whole", "[io]") {
  const Scratch scratch;
  const auto path = scratch / "file";
  const std::string before(100'000, 'o'), after(200'000, 'n');
  constexpr int pieces = 8;
  put(path, before);

  for (int killed_after = 0; killed_after <= pieces; ++killed_after) {
    const int status = status_of_child([&] {
      io::write_atomically(path, [&](io::AtomicFile& file) {
        for (int piece = 0; piece < pieces; ++piece) {
          if (piece == killed_after) ::raise(SIGKILL);
          file.write(std::string_view(after).substr(0, after.size() / pieces));
        }
        if (killed_after == pieces) ::raise(SIGKILL);
      });
      return true;
    });
    CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
    CHECK(io::read_text(path, any_size) == before);
  }
  // The callback cannot stand between sync, rename and sync: there the clock kills.
  for (int microseconds = 0; microseconds < 3000; microseconds += 50) {
    put(path, before);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      io::write_atomically(path, after);
      ::_exit(0);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
    ::kill(child, SIGKILL);
    REQUIRE(::waitpid(child, nullptr, 0) == child);
    const std::string found = io::read_text(path, any_size);
    CHECK((found == before || found == after));
  }
}

TEST_CASE("two writers and a reader of one file never see a mixture", "[io]") {
  const Scratch scratch;
  const auto path = scratch / "file";
  put(path, std::string(50'000, 'a'));
  auto writer = [&](char letter) {
    for (int i = 0; i < 50; ++i) io::write_atomically(path, std::string(50'000, letter));
  };
  std::thread first(writer, 'a'), second(writer, 'b');
  int mixtures = 0;
  for (int i = 0; i < 200; ++i) {
    const std::string found = io::read_text(path, any_size);
    mixtures += found != std::string(50'000, 'a') && found != std::string(50'000, 'b');
  }
  first.join();
  second.join();
  CHECK(mixtures == 0);
  CHECK(scratch.names() == std::vector<std::string>{"file"});
}

TEST_CASE("directories are made with those above them", "[io]") {
  const Scratch scratch;
  io::create_directories(scratch / "a/b/c");
  io::create_directories(scratch / "a/b/c");
  CHECK(fs::is_directory(scratch / "a/b/c"));
  put(scratch / "file", "x");
  CHECK(error_text<FileError>([&] { io::create_directories(scratch / "file"); }) ==
        (scratch / "file").string() + ": making the directory: Not a directory");
  CHECK(error_text<FileError>([&] { io::create_directories(scratch / "file/under"); }) ==
        (scratch / "file/under").string() + ": making the directory: Not a directory");
  CHECK_THAT(error_text<FileError>([&] { io::create_directories(""); }), ContainsSubstring("empty path"));
}
