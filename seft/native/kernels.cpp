// The functions that Python calls through ctypes: products with compressed matrices, expanding them, selected entries of a
// product of two dense matrices, the product of a matrix with itself, and a step of an optimizer.
//
// They know nothing of torch. Python gives them torch's GOMP_parallel, so that the products use the threads that torch
// already has. A second pool would compete with them for the processors.
#include "levels.h"

#include <atomic>
#include <initializer_list>
#include <memory>
#include <new>

#define SEFT_API extern "C" __attribute__((visibility("default")))

enum Level : int32_t { PLAIN = 0, AVX2 = 1, AVX512 = 2, NEON = 3 };
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

static bool supported(int32_t level) {
    switch (level) {
        case PLAIN: return true;
#ifdef SEFT_X86
        // The features of the targets in levels.h.
        case AVX2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt") &&
                   __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
        case AVX512:
            return supported(AVX2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bf16") &&
                   __builtin_cpu_supports("avx512vnni");
#endif
#ifdef SEFT_NEON
        case NEON: return true;
#endif
        default: return false;
    }
}

static int32_t best() {
    for (int32_t level : {NEON, AVX512, AVX2})
        if (supported(level)) return level;
    return PLAIN;
}

static std::atomic<int32_t> chosen{best()};
static std::atomic<Parallel> parallel{nullptr};

SEFT_API int32_t seft_supported(int32_t level) { return supported(level); }
SEFT_API int32_t seft_level() { return chosen; }
SEFT_API void seft_use_level(int32_t level) { if (supported(level)) chosen = level; }
SEFT_API void seft_use_parallel(Parallel function) { parallel = function; }

namespace {
// The loops for one kind of values and x at one level.
struct Loops {
    size_t input_bytes;
    void (*prepare)(const Job&);
    void (*panels)(const Job&, int64_t, int64_t);
};

Loops loops(int32_t level, bool int8, [[maybe_unused]] int64_t batch, [[maybe_unused]] Dtype dtype) {
#define SEFT_LOOPS(space, lanes) Loops{sizeof(space::lanes::Input), space::prepare<space::lanes>, space::panels<space::lanes>}
    switch (level) {
#ifdef SEFT_X86
        case AVX2: return int8 ? SEFT_LOOPS(avx2, Int8) : SEFT_LOOPS(avx2, Float);
        case AVX512:
            if (int8) return batch == 1 ? SEFT_LOOPS(avx512, Int8Row) : SEFT_LOOPS(avx512, Int8);
            return dtype == BFLOAT16 ? SEFT_LOOPS(avx512, Bfloat16) : SEFT_LOOPS(avx512, Float);
#endif
#ifdef SEFT_NEON
        case NEON: return int8 ? SEFT_LOOPS(neon, Int8) : SEFT_LOOPS(neon, Float);
#endif
        default: return int8 ? SEFT_LOOPS(plain, Int8) : SEFT_LOOPS(plain, Float);
    }
}

// The loops for selected entries at one level.
struct SampleLoops {
    size_t input_bytes;
    void (*copy)(const Sample&, const void*, int64_t, int64_t, int64_t, int64_t, int64_t, void*);
    void (*add)(const Sample&, int64_t, int64_t);
};

SampleLoops sample_loops(int32_t level, [[maybe_unused]] Dtype dtype) {
#define SEFT_SAMPLE(space, product) \
    SampleLoops{sizeof(space::product::Input), space::copy_columns<space::product>, space::add_products<space::product>}
    switch (level) {
#ifdef SEFT_X86
        case AVX2: return SEFT_SAMPLE(avx2, FloatProduct);
        case AVX512: return dtype == BFLOAT16 ? SEFT_SAMPLE(avx512, Bfloat16Product) : SEFT_SAMPLE(avx512, FloatProduct);
#endif
#ifdef SEFT_NEON
        case NEON: return SEFT_SAMPLE(neon, FloatProduct);
#endif
        default: return SEFT_SAMPLE(plain, FloatProduct);
    }
}

// The loops of the optimizer of all nonzeros at one level.
struct FactoredLoops {
    void (*squares)(const Factored&, int64_t, int64_t, float*);
    void (*scaled)(const Factored&, int64_t, int64_t);
    void (*change)(const Factored&, int64_t, int64_t);
};

template <class Weight, class Gradient>
FactoredLoops factored_loops(int32_t level) {
#define SEFT_FACTORED(space) \
    FactoredLoops{space::add_squares<Weight, Gradient>, space::scaled_squares<Gradient>, space::change<Weight, Gradient>}
    switch (level) {
#ifdef SEFT_X86
        case AVX2: return SEFT_FACTORED(avx2);
        case AVX512: return SEFT_FACTORED(avx512);
#endif
#ifdef SEFT_NEON
        case NEON: return SEFT_FACTORED(neon);
#endif
        default: return SEFT_FACTORED(plain);
    }
}

FactoredLoops factored_loops(int32_t level, Dtype weight, Dtype gradient) {
    if (weight == FLOAT32) return factored_loops<float, float>(level);
    return gradient == FLOAT32 ? factored_loops<uint16_t, float>(level) : factored_loops<uint16_t, uint16_t>(level);
}

// Most tokens whose columns are copied at the same time, which limits the memory of the copies.
constexpr int64_t COPIED_TOKENS = 1024;

// Work on panels that threads take in chunks, until none is left.
template <class Chunk>
struct Shared {
    Chunk chunk;
    int64_t panels, size;
    std::atomic<int64_t> next{0};
    static void run(void* shared) {
        auto& work = *static_cast<Shared*>(shared);
        for (int64_t first; (first = work.next.fetch_add(work.size)) < work.panels;)
            work.chunk(first, first + work.size < work.panels ? first + work.size : work.panels);
    }
};

template <class Chunk>
void share(int64_t panels, int64_t weights, int32_t threads, Chunk chunk) {
    Parallel function = parallel;
    // Waking threads takes longer than a small product.
    if (threads <= 1 || !function || weights < 65536) return chunk(0, panels);
    int64_t size = panels / (threads * 8);
    Shared<Chunk> work{chunk, panels, size ? size : 1};
    function(Shared<Chunk>::run, &work, unsigned(threads), 0);
}

// Memory that a thread keeps between products, aligned to a cache line.
char* scratch(size_t bytes) {
    struct Deleter { void operator()(char* memory) { ::operator delete(memory, std::align_val_t(64)); } };
    static thread_local std::unique_ptr<char, Deleter> memory;
    static thread_local size_t size = 0;
    if (bytes > size) {
        size = 0;
        memory.reset(static_cast<char*>(::operator new(bytes, std::align_val_t(64))));
        size = bytes;
    }
    return memory.get();
}
}  // namespace

// y[batch][rows] = x[batch][cols] * matrix^T + bias. x and y have the given dtype. Returns 0, or 1 if memory is short.
SEFT_API int32_t seft_multiply(const Matrix* matrix, const void* x, void* y, int64_t batch, int32_t dtype, int32_t threads) {
    Loops level = loops(chosen, matrix->scales != nullptr, batch, Dtype(dtype));
    Job job{matrix, x, y, batch, Dtype(dtype), divided_up(matrix->cols, BLOCK) * BLOCK, nullptr, nullptr};
    size_t inputs = divided_up(batch * job.padded * level.input_bytes, 64) * 64;
    try {
        char* memory = scratch(inputs + batch * sizeof(float));
        job.input = memory;
        job.input_scales = reinterpret_cast<float*>(memory + inputs);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    level.prepare(job);
    share(divided_up(matrix->rows, PANEL), matrix->rows * matrix->cols, threads,
          [&](int64_t first, int64_t last) { level.panels(job, first, last); });
    return 0;
}

// Writes the rows from `first` to before `last` as a dense matrix of bfloat16. int8 values are written without their
// scale, so that bfloat16 holds them exactly. `first` is a multiple of PANEL.
SEFT_API void seft_expand(const Matrix* matrix, int64_t first, int64_t last, uint16_t* out, int32_t threads) {
    const Matrix& m = *matrix;
    const int64_t blocks = divided_up(m.cols, BLOCK), from = first / PANEL;
    auto expand = [&](int64_t start, int64_t end) {
        for (int64_t panel = from + start; panel < from + end; panel++) {
            int64_t next = m.starts[panel];
            for (int64_t block = 0; block < blocks; block++)
                for (int64_t row = 0; row < PANEL; row++) {
                    uint64_t mask = m.masks[(panel * blocks + block) * PANEL + row];
                    int64_t at = panel * PANEL + row;
                    if (at >= last) {
                        next += __builtin_popcountll(mask);
                        continue;
                    }
                    int64_t width = m.cols - block * BLOCK < BLOCK ? m.cols - block * BLOCK : BLOCK;
                    uint16_t* target = out + (at - first) * m.cols + block * BLOCK;
                    memset(target, 0, width * 2);
                    for (; mask; mask &= mask - 1, next++)
                        target[__builtin_ctzll(mask)] =
                            m.scales ? to_bfloat16(static_cast<const int8_t*>(m.values)[next])
                                     : static_cast<const uint16_t*>(m.values)[next];
                }
        }
    };
    share(divided_up(last - first, PANEL), (last - first) * m.cols, threads, expand);
}

// out[at] = sum over tokens of left[token][row] * right[token][col] for each position row * cols + col. Both matrices have
// the given dtype; sums are float32. Returns 0, or 1 if memory is short.
SEFT_API int32_t seft_sample(const void* left, const void* right, int64_t tokens, int64_t rows, int64_t cols,
                             const int32_t* positions, int64_t count, float* out, int32_t dtype, int32_t threads) {
    const SampleLoops level = sample_loops(chosen, Dtype(dtype));
    const int64_t most = tokens < COPIED_TOKENS ? tokens : COPIED_TOKENS, bytes = dtype == BFLOAT16 ? 2 : 4;
    // An odd number of blocks: with a power of two, all columns would share few sets of the cache.
    const int64_t blocks = divided_up(most, TOKENS) | 1;
    Sample sample{0, rows, cols, positions, out, Dtype(dtype), blocks * TOKENS, nullptr, nullptr, 0};
    try {
        sample.right_copy = scratch(cols * sample.padded * level.input_bytes);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    std::fill(out, out + count, 0.f);
    auto place = [&](int64_t row) { return std::lower_bound(positions, positions + count, row * cols) - positions; };
    for (int64_t token = 0; token < tokens; token += sample.tokens) {
        sample.tokens = tokens - token < most ? tokens - token : most;
        auto left_part = static_cast<const char*>(left) + token * rows * bytes;
        auto right_part = static_cast<const char*>(right) + token * cols * bytes;
        share(blocks, cols * sample.tokens, threads, [&](int64_t first, int64_t last) {
            level.copy(sample, right_part, cols, 0, cols, first, last, sample.right_copy);
        });
        share(divided_up(rows, STRIPE), (rows + count) * sample.tokens, threads, [&](int64_t first, int64_t last) {
            alignas(64) char stripe[STRIPE * (COPIED_TOKENS + TOKENS) * sizeof(float)];
            Sample own = sample;
            own.left_copy = stripe;
            for (; first < last; first++) {
                own.first_row = first * STRIPE;
                const int64_t end = own.first_row + STRIPE < rows ? own.first_row + STRIPE : rows;
                const int64_t from = place(own.first_row), to = place(end);
                if (from == to) continue;
                level.copy(own, left_part, rows, own.first_row, end, 0, blocks, stripe);
                level.add(own, from, to);
            }
        });
    }
    return 0;
}

// Adds weight * x^T x to the symmetric matrix `out`. x is bfloat16 [tokens][cols], sums are float32. Returns 0, or 1 if
// memory is short or the level in use has no such loops.
SEFT_API int32_t seft_gram([[maybe_unused]] const uint16_t* x, [[maybe_unused]] int64_t tokens,
                           [[maybe_unused]] int64_t cols, [[maybe_unused]] float weight, [[maybe_unused]] float* out,
                           [[maybe_unused]] int32_t threads) {
#ifdef SEFT_X86
    if (chosen == AVX512) {
        const int64_t panels = divided_up(cols, GRAM_COLS), most = std::min(tokens, COPIED_TOKENS);
        Gram gram{x, 0, cols, weight, out, divided_up(most, 2), nullptr};
        try {
            gram.pairs = reinterpret_cast<uint32_t*>(scratch(panels * gram.steps * GRAM_COLS * sizeof(uint32_t)));
        } catch (const std::bad_alloc&) {
            return 1;
        }
        for (int64_t token = 0; token < tokens; token += gram.tokens, gram.x += gram.tokens * cols) {
            gram.tokens = std::min(most, tokens - token);
            gram.steps = divided_up(gram.tokens, 2);
            share(panels, gram.tokens * cols, threads,
                  [&](int64_t first, int64_t last) { avx512::GramLoops::copy(gram, first, last); });
            share(panels, cols * cols, threads,
                  [&](int64_t first, int64_t last) { avx512::GramLoops::add(gram, first, last); });
        }
        return 0;
    }
#endif
    return 1;
}

// The three functions below work on a weight matrix and its gradient, of the given dtypes; the gradient of a float32 weight
// is float32. Sums are float32.

// Sets the gradient to zero at the zeros of the weight. Writes the sum of its squares in each row, and in each column
// of every `height` rows.
SEFT_API void seft_squares(const Factored* work, float* col_sums, int64_t height, int32_t weight, int32_t gradient,
                           int32_t threads) {
    const FactoredLoops level = factored_loops(chosen, Dtype(weight), Dtype(gradient));
    share(divided_up(work->rows, height), work->rows * work->cols, threads, [&](int64_t first, int64_t last) {
        for (; first < last; first++) {
            float* sums = col_sums + first * work->cols;
            std::fill(sums, sums + work->cols, 0.f);
            level.squares(*work, first * height, std::min(work->rows, (first + 1) * height), sums);
        }
    });
}

// Writes the sums of the squares of the scaled gradient in each row.
SEFT_API void seft_scaled_squares(const Factored* work, int32_t weight, int32_t gradient, int32_t threads) {
    const FactoredLoops level = factored_loops(chosen, Dtype(weight), Dtype(gradient));
    share(work->rows, work->rows * work->cols, threads,
          [&](int64_t first, int64_t last) { level.scaled(*work, first, last); });
}

// Subtracts the scaled gradient from the weight. A bfloat16 weight is rounded stochastically. A row whose scale is zero does
// not change.
SEFT_API void seft_change(const Factored* work, int32_t weight, int32_t gradient, int32_t threads) {
    const FactoredLoops level = factored_loops(chosen, Dtype(weight), Dtype(gradient));
    share(work->rows, work->rows * work->cols, threads,
          [&](int64_t first, int64_t last) { level.change(*work, first, last); });
}
