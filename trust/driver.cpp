// Calls that memcheck.py recorded, without Python: driver LIBRARY CALLS THREADS ROUNDS
// Each thread makes all of them, from another one on, reads the same inputs and writes to outputs of its own, each in
// memory of exactly its size. Prints how many calls were made and how many gave other bytes than they did then.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <thread>
#include <vector>

namespace {

struct Tensor {
  std::int64_t bytes, output; // bytes: -1 where there is none
  char *data;                 // what is read, or must be written
};

struct Call {
  std::int64_t kernel, which, type;
  std::vector<std::int64_t> numbers;
  std::vector<Tensor> tensors;
};

using Kernel = std::int64_t (*)(std::int64_t, std::int64_t, const void *, const void *const *);
const char *const NAMES[] = {"reconv_direct", "reconv_conv", "reconv_separable", "reconv_deform"};

std::int64_t number(std::FILE *file) {
  std::int64_t value = 0;
  if (std::fread(&value, sizeof value, 1, file) != 1)
    std::exit(2);
  return value;
}

std::vector<Call> read(const char *path) {
  std::FILE *file = std::fopen(path, "rb");
  if (!file)
    std::exit(2);
  std::vector<Call> calls(number(file));
  for (Call &call : calls) {
    call.kernel = number(file), call.which = number(file), call.type = number(file);
    call.numbers.resize(number(file));
    for (std::int64_t &each : call.numbers)
      each = number(file);
    call.tensors.resize(number(file));
    for (Tensor &t : call.tensors) {
      t.bytes = number(file), t.output = number(file), t.data = nullptr;
      if (t.bytes < 0)
        continue;
      t.data = static_cast<char *>(std::malloc(t.bytes));
      if (t.bytes && std::fread(t.data, t.bytes, 1, file) != 1)
        std::exit(2);
    }
  }
  std::fclose(file);
  return calls;
}

// Whether these are the same numbers: zeros may differ in their sign, by the order of a sum.
template <class T> bool equal(const char *a, const char *b, std::int64_t bytes) {
  for (std::int64_t at = 0; at < bytes; at += sizeof(T)) {
    T x, y;
    std::memcpy(&x, a + at, sizeof x), std::memcpy(&y, b + at, sizeof y);
    if (x != y)
      return false;
  }
  return true;
}

bool same(std::int64_t type, const char *a, const char *b, std::int64_t bytes) {
  return type == 0 ? equal<float>(a, b, bytes) : type == 1 ? equal<double>(a, b, bytes) : std::memcmp(a, b, bytes) == 0;
}

// Whether the call gives what it gave.
bool made(Kernel kernel, const Call &call) {
  std::vector<const void *> given;
  std::vector<char *> own;
  for (const Tensor &t : call.tensors) {
    if (t.output && t.bytes >= 0)
      own.push_back(static_cast<char *>(std::malloc(t.bytes)));
    given.push_back(t.output && t.bytes >= 0 ? own.back() : t.data);
  }
  bool good = kernel(call.which, call.type, call.numbers.data(), given.data()) == 0;
  std::size_t at = 0;
  for (const Tensor &t : call.tensors)
    if (t.output && t.bytes >= 0) {
      good = good && same(call.type, own[at], t.data, t.bytes);
      std::free(own[at++]);
    }
  return good;
}

} // namespace

int main(int count, char **given) {
  if (count != 5)
    return 2;
  void *library = dlopen(given[1], RTLD_NOW);
  if (!library) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  Kernel kernels[4];
  for (int i = 0; i < 4; ++i)
    kernels[i] = reinterpret_cast<Kernel>(dlsym(library, NAMES[i]));
  const auto isa = reinterpret_cast<const char *(*)()>(dlsym(library, "reconv_isa"));
  const std::vector<Call> calls = read(given[2]);
  const int threads = std::atoi(given[3]), rounds = std::atoi(given[4]);
  std::atomic<long> done{0}, wrong{0};
  const auto work = [&](int number) {
    for (int round = 0; round < rounds; ++round)
      for (std::size_t i = 0; i < calls.size(); ++i) {
        const Call &call = calls[(i + number * calls.size() / threads) % calls.size()];
        if (!made(kernels[call.kernel], call)) {
          std::fprintf(stderr, "wrong: %s %ld, type %ld, numbers", NAMES[call.kernel], call.which, call.type);
          for (const std::int64_t each : call.numbers)
            std::fprintf(stderr, " %ld", each);
          std::fprintf(stderr, "\n"), wrong.fetch_add(1, std::memory_order_relaxed);
        }
        done.fetch_add(1, std::memory_order_relaxed); // a stronger order would hide races
      }
  };
  std::vector<std::thread> running;
  for (int number = 1; number < threads; ++number)
    running.emplace_back(work, number);
  work(0);
  for (std::thread &thread : running)
    thread.join();
  for (const Call &call : calls)
    for (const Tensor &t : call.tensors)
      std::free(t.data);
  std::printf("%s %ld %ld\n", isa(), done.load(), wrong.load());
}
