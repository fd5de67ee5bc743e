// shim ROWS INPUT... OUTPUT...: the kernel on a CPU. Each input is read from its file, each output is written to its own;
// both are exactly as large as what the kernel may touch, so that AddressSanitizer sees the first byte beyond.
#include <cstdio>
#include <cstdlib>

#include "layernorm.cu"

template <class Element>
static std::vector<Element> read(const char* path, size_t count) {
    std::vector<Element> data(count);
    std::FILE* file = std::fopen(path, "rb");
    if (!file || std::fread(data.data(), sizeof(Element), count, file) != count) std::exit(3);
    std::fclose(file);
    return data;
}

template <class Element>
static void write_out(const char* path, const std::vector<Element>& data) {
    std::FILE* file = std::fopen(path, "wb");
    if (!file || std::fwrite(data.data(), sizeof(Element), data.size(), file) != data.size()) std::exit(3);
    std::fclose(file);
}

int main(int, char** argv) {
    const int rows = std::atoi(*++argv);
    const size_t count = size_t(rows) * N;
    const auto x = read<Bits>(*++argv, count);
#if RESIDUAL
    const auto residual = read<Bits>(*++argv, count);
#endif
#if GAMMA
    const auto gamma = read<Weight>(*++argv, UNIFORM ? 1 : N);
#endif
#if BETA
    const auto beta = read<Weight>(*++argv, UNIFORM ? 1 : N);
#endif
#if OUT
    const auto scale = read<float>(*++argv, 1);
#endif
    std::vector<Stored> y(count);
#if SUM
    std::vector<Bits> sum(count);
#endif
    const int blocks = (rows + ROWS - 1) / ROWS * CLUSTER;
    shim::launch(blocks, CLUSTER, THREADS, [&] {
        normdeploy_norm(
            x.data(),
#if RESIDUAL
            residual.data(),
#endif
#if GAMMA
            gamma.data(),
#endif
#if BETA
            beta.data(),
#endif
#if OUT
            scale.data(),
#endif
            rows, y.data()
#if SUM
            , sum.data()
#endif
        );
    });
    write_out(*++argv, y);
#if SUM
    write_out(*++argv, sum);
#endif
    return 0;
}
