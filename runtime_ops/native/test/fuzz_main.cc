// Runs the harness of fuzz.cc where the compiler has no libFuzzer: random inputs and mutations of earlier ones,
// without guidance by coverage. Usage: onnxq_fuzz_plain SECONDS [SEED].
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 60;
  std::mt19937_64 random(count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 0);
  std::vector<std::vector<uint8_t>> corpus(256);
  uint64_t runs = 0;
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds) {
    for (int i = 0; i < 1000; ++i, ++runs) {
      std::vector<uint8_t> input = corpus[random() % corpus.size()];
      if (input.empty() || random() % 8 == 0) {
        input.resize(random() % 512);
        // Small bytes mean small sizes, which most weights have.
        const uint64_t most = random() % 2 ? 16 : 256;
        for (auto& byte : input) byte = static_cast<uint8_t>(random() % most);
      } else {
        for (uint64_t changes = 1 + random() % 4; changes > 0; --changes) {
          const size_t at = random() % input.size();
          input[at] = static_cast<uint8_t>(random() % 3 ? random() % 24 : random());
        }
      }
      // A copy of its own size, so that the sanitizer sees every byte beyond it.
      LLVMFuzzerTestOneInput(std::vector<uint8_t>(input).data(), input.size());
      corpus[random() % corpus.size()] = std::move(input);
    }
  }
  std::printf("%llu inputs in %.0f s, nothing found\n", static_cast<unsigned long long>(runs), seconds);
}
