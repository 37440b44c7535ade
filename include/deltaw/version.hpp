#pragma once
// The version of the library. CMakeLists.txt reads these three lines; nothing else states it.

#include <string_view>

#define DELTAW_VERSION_MAJOR 0
#define DELTAW_VERSION_MINOR 1
#define DELTAW_VERSION_PATCH 0

namespace deltaw {

inline constexpr int version_major = DELTAW_VERSION_MAJOR;
inline constexpr int version_minor = DELTAW_VERSION_MINOR;
inline constexpr int version_patch = DELTAW_VERSION_PATCH;

#define DELTAW_TEXT_(x) #x
#define DELTAW_TEXT(x) DELTAW_TEXT_(x)
/// The version as text, "0.1.0".
inline constexpr std::string_view version =
    DELTAW_TEXT(DELTAW_VERSION_MAJOR) "." DELTAW_TEXT(DELTAW_VERSION_MINOR) "." DELTAW_TEXT(DELTAW_VERSION_PATCH);
#undef DELTAW_TEXT
#undef DELTAW_TEXT_

}  // namespace deltaw
