#pragma once
// Everything the library asks of the operating system: maps, reads and atomic writes. POSIX; no other header calls it.
// Every error is a FileError of the form `path: what was being done: what the system said`.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "deltaw/core/error.hpp"

namespace deltaw::io {

static_assert(sizeof(off_t) == 8, "deltaw/io/file.hpp wants 64-bit file offsets: define _FILE_OFFSET_BITS=64");

namespace detail {

[[noreturn]] inline void raise_file(const std::filesystem::path& path, std::string_view doing, int error) {
  raise<FileError>(path.string(), std::string(doing).append(": ").append(std::generic_category().message(error)));
}

/// Calls until the answer is no longer "interrupted by a signal".
template <class Call>
auto retry(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

/// Owns a file descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int value) : value_(value) {}
  Descriptor(Descriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~Descriptor() { close(); }

  int get() const noexcept { return value_; }
  /// 0, or the error number. Never repeated after EINTR: on Linux the descriptor is gone either way.
  int close() noexcept {
    if (value_ < 0) return 0;
    return ::close(std::exchange(value_, -1)) == 0 || errno == EINTR ? 0 : errno;
  }

 private:
  int value_ = -1;
};

inline const char* file_kind(mode_t mode) {
  if (S_ISREG(mode)) return "a regular file";
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

inline void check_path(const std::filesystem::path& path) {
  if (path.empty()) raise_mismatch<FileError>("file", "path", "an empty path", "the name of a file");
  if (path.native().find('\0') != std::string::npos)
    raise_mismatch<FileError>(path.c_str(), "path", "a NUL character", "a path without one");
}

}  // namespace detail

/// A regular file opened for reading at any place; links are followed. Its size is the one it had when it was opened.
/// Reading is const and safe from several threads.
class InputFile {
 public:
  /// Throws FileError if the file is missing, unreadable, or not a regular file.
  explicit InputFile(std::filesystem::path path) : path_(std::move(path)) {
    detail::check_path(path_);
    // Without O_NONBLOCK, opening a pipe waits for a writer before it can be refused.
    constexpr int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    descriptor_ = detail::Descriptor(detail::retry([&] { return ::open(path_.c_str(), flags); }));
    if (descriptor_.get() < 0) detail::raise_file(path_, "opening for reading", errno);
    struct stat status {};
    if (::fstat(descriptor_.get(), &status) != 0) detail::raise_file(path_, "asking for the size", errno);
    if (!S_ISREG(status.st_mode))
      raise_mismatch<FileError>(path_.string(), "kind", detail::file_kind(status.st_mode), "a regular file");
    size_ = static_cast<std::uint64_t>(status.st_size);
  }

  const std::filesystem::path& path() const { return path_; }
  std::uint64_t size() const { return size_; }
  int descriptor() const { return descriptor_.get(); }

  /// Fills `out` with the bytes from `offset` on. Throws FileError if the file has (or now has) fewer.
  void read_at(std::uint64_t offset, std::span<std::byte> out) const {
    if (offset > size_ || out.size() > size_ - offset)
      raise_mismatch<FileError>(path_.string(), "read",
                                std::to_string(out.size()) + " bytes from " + std::to_string(offset),
                                "no more than the " + std::to_string(size_) + " bytes of the file");
    for (std::size_t done = 0; done < out.size();) {
      const auto got = detail::retry([&] {
        return ::pread(descriptor_.get(), out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
      });
      if (got < 0) detail::raise_file(path_, "reading", errno);
      if (got == 0)
        raise_mismatch<FileError>(path_.string(), "size", offset + done,
                                  std::to_string(size_) + ", as it was when the file was opened");
      done += static_cast<std::size_t>(got);
    }
  }

 private:
  std::filesystem::path path_;
  detail::Descriptor descriptor_;
  std::uint64_t size_ = 0;
};

/// A regular file seen as bytes, read-only, without reading it first. The bytes stay what they were when the file is
/// replaced by `write_atomically`; a program that truncates the file in place makes access to them fatal (SIGBUS).
class MappedFile {
 public:
  MappedFile() = default;
  /// Throws FileError if the file is missing, unreadable, not a regular file, or cannot be mapped.
  explicit MappedFile(const std::filesystem::path& path) {
    const InputFile file(path);
    if (file.size() > std::numeric_limits<std::size_t>::max()) detail::raise_file(path, "mapping", EFBIG);
    if (file.size() == 0) return;  // mmap refuses a length of zero
    const auto size = static_cast<std::size_t>(file.size());
    void* memory = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.descriptor(), 0);
    if (memory == MAP_FAILED) detail::raise_file(path, "mapping", errno);
    bytes_ = {static_cast<const std::byte*>(memory), size};
  }
  MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~MappedFile() {
    if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  }

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

namespace detail {

template <class Buffer>
Buffer read_whole(const std::filesystem::path& path, std::uint64_t max_bytes) {
  const InputFile file(path);
  if (file.size() > max_bytes)
    raise_mismatch<FileError>(path.string(), "size", file.size(), "at most " + std::to_string(max_bytes) + " bytes");
  Buffer content(static_cast<std::size_t>(file.size()), {});
  file.read_at(0, std::as_writable_bytes(std::span(content)));
  return content;
}

}  // namespace detail

/// The whole file; FileError, before anything is allocated, if it is longer than `max_bytes`.
inline std::vector<std::byte> read_file(const std::filesystem::path& path, std::uint64_t max_bytes) {
  return detail::read_whole<std::vector<std::byte>>(path, max_bytes);
}

/// The same, as text.
inline std::string read_text(const std::filesystem::path& path, std::uint64_t max_bytes) {
  return detail::read_whole<std::string>(path, max_bytes);
}

/// Makes the directory and those above it; one that is there already is fine.
inline void create_directories(const std::filesystem::path& path) {
  detail::check_path(path);
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) detail::raise_file(path, "making the directory", error.value());
}

/// A file that comes into being whole or not at all. Bytes go to a temporary name in the same directory; `commit` syncs
/// them to disk and renames, so that at every point the target is the old file or the new one. Without `commit`, or
/// after any error, the temporary, `.NAME.HEX.tmp`, is removed. It stays behind where nothing can unwind: after
/// SIGKILL, and without exceptions after an error raised by whoever writes the content.
///
/// A new file gets the permissions of the one it replaces. A link is followed: what it points at is replaced. Refused
/// with FileError: a target that is a directory, a device or a dangling link, or a file that the user may not write.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& target) : target_(resolve(target)) {
    if (!target_.has_filename())
      raise_mismatch<FileError>(target_.string(), "path", "a directory", "the name of a file");
    const auto parent = target_.has_parent_path() ? target_.parent_path() : std::filesystem::path(".");
    directory_ =
        detail::Descriptor(detail::retry([&] { return ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
    if (directory_.get() < 0) detail::raise_file(target_, "opening its directory", errno);
    const std::string name = target_.filename().string();
    struct stat old {};
    const bool replaces = ::fstatat(directory_.get(), name.c_str(), &old, AT_SYMLINK_NOFOLLOW) == 0;
    if (!replaces && errno != ENOENT) detail::raise_file(target_, "looking at the file to replace", errno);
    if (replaces && !S_ISREG(old.st_mode))
      raise_mismatch<FileError>(target_.string(), "kind", detail::file_kind(old.st_mode), "a regular file to replace");
    if (replaces && ::faccessat(directory_.get(), name.c_str(), W_OK, AT_EACCESS) != 0)
      detail::raise_file(target_, "asking to replace", errno);
    create_temporary(name);
    if (replaces && ::fchmod(file_.get(), old.st_mode & 0777) != 0) fail("setting permissions", errno);
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile() { discard(); }

  /// Appends the bytes.
  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const auto written = detail::retry([&] { return ::write(file_.get(), bytes.data(), bytes.size()); });
      if (written < 0) fail("writing", errno);
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
  }
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }

  /// Puts the new file in place. It is on disk when this returns.
  void commit() {
    if (detail::retry([&] { return ::fsync(file_.get()); }) != 0) fail("syncing to disk", errno);
    if (const int error = file_.close(); error != 0) fail("closing", error);
    if (::renameat(directory_.get(), temporary_.c_str(), directory_.get(), target_.filename().c_str()) != 0)
      fail("renaming the finished file", errno);
    temporary_.clear();
    // Some file systems cannot sync a directory and say EINVAL; they have nothing more to offer.
    if (detail::retry([&] { return ::fsync(directory_.get()); }) != 0 && errno != EINVAL)
      detail::raise_file(target_, "syncing its directory (the new file is in place)", errno);
  }

  /// Removes the temporary; the target stays as it is.
  void discard() noexcept {
    file_.close();
    if (!temporary_.empty()) ::unlinkat(directory_.get(), temporary_.c_str(), 0);
    temporary_.clear();
  }

 private:
  static std::filesystem::path resolve(const std::filesystem::path& target) {
    detail::check_path(target);
    std::error_code error;
    if (!std::filesystem::is_symlink(std::filesystem::symlink_status(target, error))) return target;
    auto resolved = std::filesystem::canonical(target, error);
    if (error) detail::raise_file(target, "following the link", error.value());
    return resolved;
  }

  void create_temporary(const std::string& name) {
    constexpr int attempts = 100;
    constexpr std::size_t kept = 200;  // of the name: a file name has at most 255 bytes
    constexpr int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW;
    const auto now = static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
    const auto process = static_cast<std::uint64_t>(::getpid()) << 40;
    for (std::uint64_t attempt = 0; file_.get() < 0 && attempt < attempts; ++attempt) {
      std::array<char, 16> digits{};
      const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), (process ^ now) + attempt, 16).ptr;
      temporary_ = "." + name.substr(0, kept) + "." + std::string(digits.data(), end) + ".tmp";
      file_ = detail::Descriptor(
          detail::retry([&] { return ::openat(directory_.get(), temporary_.c_str(), flags, 0666); }));
      if (file_.get() < 0 && errno != EEXIST) break;
    }
    if (file_.get() >= 0) return;
    const int error = errno;
    temporary_.clear();  // not ours to remove
    detail::raise_file(target_, "making a temporary file in its directory", error);
  }

  [[noreturn]] void fail(std::string_view doing, int error) {
    discard();  // here and not only in the destructor: without exceptions nothing unwinds
    detail::raise_file(target_, doing, error);
  }

  std::filesystem::path target_;
  detail::Descriptor directory_;
  detail::Descriptor file_;
  std::string temporary_;
};

/// Replaces or makes the file with what `producer(AtomicFile&)` writes. If the producer throws, the old file stays.
template <std::invocable<AtomicFile&> Producer>
void write_atomically(const std::filesystem::path& path, Producer&& producer) {
  AtomicFile file(path);
  std::forward<Producer>(producer)(file);
  file.commit();
}

inline void write_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  write_atomically(path, [&](AtomicFile& file) { file.write(bytes); });
}

inline void write_atomically(const std::filesystem::path& path, std::string_view text) {
  write_atomically(path, std::as_bytes(std::span(text)));
}

}  // namespace deltaw::io
