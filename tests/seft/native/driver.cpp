// Runs products of random shapes at every level with a reference beside them. test_sanitizers.py compiles it with the
// address and undefined-behaviour sanitizers. Every array has exactly the size that matrix.h promises.
#include "../../../seft/native/kernels.cpp"

#include <cmath>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

static void two_threads(void (*work)(void*), void* data, unsigned, unsigned) {
    std::thread other(work, data);
    work(data);
    other.join();
}

static std::mt19937 engine(7);
static float uniform() { return std::uniform_real_distribution<float>(-1, 1)(engine); }

static bool check(int64_t rows, int64_t cols, int64_t batch, float zeros, bool int8, Dtype dtype) {
    const int64_t panels = divided_up(rows, PANEL), blocks = divided_up(cols, BLOCK);
    std::vector<float> weights(rows * cols), scales(rows, 0.01f), bias(rows);
    std::vector<uint64_t> masks(panels * blocks * PANEL);
    std::vector<int64_t> starts(panels);
    std::vector<uint16_t> words;
    std::vector<int8_t> bytes;
    for (auto& value : bias) value = uniform();
    for (int64_t panel = 0; panel < panels; panel++) {
        starts[panel] = int8 ? bytes.size() : words.size();
        for (int64_t block = 0; block < blocks; block++)
            for (int64_t row = 0; row < PANEL; row++)
                for (int64_t bit = 0; bit < BLOCK; bit++) {
                    int64_t r = panel * PANEL + row, c = block * BLOCK + bit;
                    if (r >= rows || c >= cols || std::fabs(uniform()) < zeros) continue;
                    masks[(panel * blocks + block) * PANEL + row] |= uint64_t(1) << bit;
                    if (int8) {
                        bytes.push_back(int8_t(uniform() * 127));
                        weights[r * cols + c] = bytes.back() * scales[r];
                    } else {
                        words.push_back(to_bfloat16(uniform()));
                        weights[r * cols + c] = from_bfloat16(words.back());
                    }
                }
    }
    words.resize(words.size() + 32);
    bytes.resize(bytes.size() + 64);
    const void* values = int8 ? static_cast<const void*>(bytes.data()) : words.data();
    Matrix matrix{rows, cols, masks.data(), values, starts.data(), int8 ? scales.data() : nullptr, bias.data()};
    std::vector<uint16_t> x16(batch * cols), y16(batch * rows), dense(rows * cols);
    std::vector<float> x32(batch * cols), y32(batch * rows);
    for (int64_t i = 0; i < batch * cols; i++) x32[i] = from_bfloat16(x16[i] = to_bfloat16(uniform()));
    const void* x = dtype == BFLOAT16 ? static_cast<const void*>(x16.data()) : x32.data();
    void* y = dtype == BFLOAT16 ? static_cast<void*>(y16.data()) : y32.data();
    seft_multiply(&matrix, x, y, batch, dtype, 2);
    seft_expand(&matrix, 0, rows, dense.data(), 2);
    for (int64_t b = 0; b < batch; b++)
        for (int64_t r = 0; r < rows; r++) {
            double sum = bias[r], size = std::fabs(bias[r]);
            for (int64_t c = 0; c < cols; c++) {
                double term = double(weights[r * cols + c]) * x32[b * cols + c];
                sum += term;
                size += std::fabs(term);
            }
            double found = dtype == BFLOAT16 ? from_bfloat16(y16[b * rows + r]) : y32[b * rows + r];
            double allowed = size * 0.004 + (int8 ? 0.0002 * cols : 0);
            if (!(std::fabs(found - sum) <= allowed)) {
                std::printf("level %d, %ld x %ld, batch %ld, int8 %d: %g instead of %g\n", int(seft_level()), long(rows),
                            long(cols), long(batch), int8, found, sum);
                return false;
            }
        }
    for (int64_t i = 0; i < rows * cols; i++)
        if (from_bfloat16(dense[i]) * (int8 ? scales[i / cols] : 1) != weights[i]) return false;
    if (int8 || cols % BLOCK) return true;
    // A dense matrix gives the same bits, and no byte after its last value is read.
    Matrix plain{rows, cols, nullptr, dense.data(), nullptr, nullptr, bias.data()};
    std::vector<uint16_t> again16(batch * rows);
    std::vector<float> again32(batch * rows);
    seft_multiply(&plain, x, dtype == BFLOAT16 ? static_cast<void*>(again16.data()) : again32.data(), batch, dtype, 2);
    return dtype == BFLOAT16 ? again16 == y16 : again32 == y32;
}

static bool check_sample(int64_t tokens, int64_t rows, int64_t cols, Dtype dtype) {
    std::vector<uint16_t> left16(tokens * rows), right16(tokens * cols);
    std::vector<float> left32(tokens * rows), right32(tokens * cols);
    for (int64_t i = 0; i < tokens * rows; i++) left32[i] = from_bfloat16(left16[i] = to_bfloat16(uniform()));
    for (int64_t i = 0; i < tokens * cols; i++) right32[i] = from_bfloat16(right16[i] = to_bfloat16(uniform()));
    std::vector<int32_t> positions;
    for (int32_t at = 0; at < rows * cols; at++)
        if (uniform() > 0) positions.push_back(at);
    std::vector<float> found(positions.size());
    const bool half = dtype == BFLOAT16;
    const void* left = half ? static_cast<const void*>(left16.data()) : left32.data();
    const void* right = half ? static_cast<const void*>(right16.data()) : right32.data();
    seft_sample(left, right, tokens, rows, cols, positions.data(), positions.size(), found.data(), dtype, 2);
    for (size_t at = 0; at < positions.size(); at++) {
        double sum = 0, size = 0;
        for (int64_t token = 0; token < tokens; token++) {
            double term = double(left32[token * rows + positions[at] / cols]) * right32[token * cols + positions[at] % cols];
            sum += term;
            size += std::fabs(term);
        }
        if (!(std::fabs(found[at] - sum) <= size * 1e-6)) {
            std::printf("level %d, sample %ld x %ld x %ld, dtype %d: %g instead of %g\n", int(seft_level()), long(tokens),
                        long(rows), long(cols), int(dtype), double(found[at]), sum);
            return false;
        }
    }
    return true;
}

static bool check_gram(int64_t tokens, int64_t cols) {
    std::vector<uint16_t> x(tokens * cols);
    std::vector<float> found(cols * cols, 1);
    for (auto& value : x) value = to_bfloat16(uniform());
    if (seft_gram(x.data(), tokens, cols, 0.5f, found.data(), 2)) return false;
    for (int64_t i = 0; i < cols; i++)
        for (int64_t j = 0; j < cols; j++) {
            double sum = 1, size = 1;
            for (int64_t token = 0; token < tokens; token++) {
                double term = 0.5 * from_bfloat16(x[token * cols + i]) * from_bfloat16(x[token * cols + j]);
                sum += term;
                size += std::fabs(term);
            }
            if (!(std::fabs(found[i * cols + j] - sum) <= size * 1e-6)) {
                std::printf("gram %ld x %ld at %ld, %ld: %g instead of %g\n", long(tokens), long(cols), long(i), long(j),
                            double(found[i * cols + j]), sum);
                return false;
            }
        }
    return true;
}

// All entries of the gradient are 0.5, and every weight is 0 or 1.
static bool check_factored(int64_t rows, int64_t cols, bool half) {
    std::vector<uint16_t> weight(rows * cols), gradient16(rows * cols, to_bfloat16(0.5f));
    std::vector<float> gradient32(rows * cols, 0.5f), row_sums(rows), row_scales(rows, 0.25f), col_scales(cols, 0.5f);
    const int64_t height = 1 + engine() % 80, parts = divided_up(rows, height);
    std::vector<float> col_sums(parts * cols);
    for (auto& value : weight) value = uniform() > 0 ? to_bfloat16(1.f) : 0;
    const std::vector<uint16_t> before = weight;
    void* gradient = half ? static_cast<void*>(gradient16.data()) : gradient32.data();
    Factored work{weight.data(), gradient, rows, cols, row_sums.data(), row_scales.data(), col_scales.data(), 7};
    const Dtype dtype = half ? BFLOAT16 : FLOAT32;
    seft_squares(&work, col_sums.data(), height, BFLOAT16, dtype, 2);
    std::vector<float> by_row(rows), by_col(cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        const float kept = before[i] ? 0.5f : 0.f;
        if ((half ? from_bfloat16(gradient16[i]) : gradient32[i]) != kept) return false;
        by_row[i / cols] += kept * kept;
        by_col[i % cols] += kept * kept;
    }
    for (int64_t part = 1; part < parts; part++)
        for (int64_t col = 0; col < cols; col++) col_sums[col] += col_sums[part * cols + col];
    if (row_sums != by_row || !std::equal(by_col.begin(), by_col.end(), col_sums.begin())) return false;
    seft_scaled_squares(&work, BFLOAT16, dtype, 2);
    for (int64_t row = 0; row < rows; row++)
        if (row_sums[row] != by_row[row] * 0.015625f) return false;
    seft_change(&work, BFLOAT16, dtype, 2);
    for (int64_t i = 0; i < rows * cols; i++)
        if (from_bfloat16(weight[i]) != (before[i] ? 0.9375f : 0.f)) return false;
    return true;
}

int main() {
    seft_use_parallel(two_threads);
    for (int32_t level = 0; level < 4; level++) {
        if (!seft_supported(level)) continue;
        seft_use_level(level);
        for (int round = 0; round < 60; round++) {
            int64_t rows = 1 + engine() % 80, cols = 1 + engine() % 300, batch = 1 + engine() % 8;
            if (round == 0) rows = 400, cols = 320;  // large enough for two threads
            if (round % 4 == 1) cols = divided_up(cols, BLOCK) * BLOCK;
            float zeros = std::vector<float>{0, 0.6f, 0.97f, 2}[engine() % 4];
            for (bool int8 : {false, true})
                for (Dtype dtype : {BFLOAT16, FLOAT32})
                    if (!check(rows, cols, batch, zeros, int8, dtype)) return 1;
            const int64_t tokens = round % 20 ? engine() % 200 : 1024 + engine() % 100;
            for (Dtype dtype : {BFLOAT16, FLOAT32})
                if (!check_sample(tokens, rows, 1 + engine() % 40, dtype)) return 1;
            if (level == AVX512 && !check_gram(tokens, cols)) return 1;
            for (bool half : {false, true})
                if (!check_factored(rows, cols, half)) return 1;
        }
        std::printf("level %d\n", level);
    }
}
