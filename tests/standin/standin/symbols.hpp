#pragma once
// The program's own symbol table: the name of a kernel behind its address, and the shared memory of a kernel, which here is
// its static local variables.

#include <cxxabi.h>
#include <elf.h>
#include <link.h>

#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "stop.hpp"

namespace standin {

struct SharedVariable {
  unsigned char* begin;
  std::size_t bytes;
};

struct Kernel {
  std::string name;
  std::vector<SharedVariable> shared;
  std::size_t shared_bytes = 0;
};

class Symbols {
 public:
  static Symbols& get() {
    static Symbols* symbols = new Symbols;
    return *symbols;
  }

  const Kernel& kernel(const void* address) {
    auto [it, fresh] = kernels_.try_emplace(address);
    if (fresh) it->second = look_up(reinterpret_cast<std::uintptr_t>(address) - offset_);
    return it->second;
  }

 private:
  Symbols() {
    // The first object is the program itself; position-independent ones lie off their own addresses.
    dl_iterate_phdr(
        [](dl_phdr_info* info, std::size_t, void* self) {
          static_cast<Symbols*>(self)->offset_ = info->dlpi_addr;
          return 1;
        },
        this);
    std::ifstream file("/proc/self/exe", std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    const auto& header = *reinterpret_cast<const Elf64_Ehdr*>(bytes_.data());
    const auto* sections = reinterpret_cast<const Elf64_Shdr*>(bytes_.data() + header.e_shoff);
    for (int i = 0; i < header.e_shnum; ++i)
      if (sections[i].sh_type == SHT_SYMTAB) {
        begin_ = reinterpret_cast<const Elf64_Sym*>(bytes_.data() + sections[i].sh_offset);
        end_ = begin_ + sections[i].sh_size / sizeof(Elf64_Sym);
        names_ = bytes_.data() + sections[sections[i].sh_link].sh_offset;
      }
    if (begin_ == nullptr) stop("the program has no symbol table; the stand-in needs one to find shared memory");
  }

  Kernel look_up(std::uintptr_t address) const {
    Kernel kernel;
    std::string mangled;
    for (const Elf64_Sym* s = begin_; s != end_ && mangled.empty(); ++s)
      if (ELF64_ST_TYPE(s->st_info) == STT_FUNC && s->st_value == address) mangled = names_ + s->st_name;
    if (mangled.substr(0, 2) != "_Z") stop("a launch of what is no C++ function of this program");
    int status = 0;
    char* readable = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
    kernel.name = status == 0 ? readable : mangled;
    std::free(readable);
    kernel.name = kernel.name.substr(0, kernel.name.find('('));
    if (const auto space = kernel.name.find(' '); kernel.name.substr(0, space) == "void")
      kernel.name.erase(0, space + 1);
    const std::string local = "_ZZ" + mangled.substr(2) + "E";
    for (const Elf64_Sym* s = begin_; s != end_; ++s)
      if (ELF64_ST_TYPE(s->st_info) == STT_OBJECT &&
          std::string_view(names_ + s->st_name).substr(0, local.size()) == local) {
        kernel.shared.push_back({reinterpret_cast<unsigned char*>(s->st_value + offset_), s->st_size});
        kernel.shared_bytes += s->st_size;
      }
    return kernel;
  }

  std::vector<char> bytes_;
  std::uintptr_t offset_ = 0;
  const Elf64_Sym *begin_ = nullptr, *end_ = nullptr;
  const char* names_ = nullptr;
  std::map<const void*, Kernel> kernels_;
};

}  // namespace standin
