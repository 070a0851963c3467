// The data that Python passes to the kernels, and helpers that every level of instructions uses.
//
// A compressed matrix is a list of panels of 8 rows. A panel is a list of blocks of 64 columns. A block has one mask of
// 64 bits per row: bit c is set if column c is nonzero. The nonzero values of a block follow each other by row, then by
// column, and all blocks of all panels follow each other in one array. So a kernel reads two streams from front to back.
// Rows and columns that fill the last panel and block have no bits. 64 bytes after the last value can be read.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

constexpr int PANEL = 8;
constexpr int BLOCK = 64;
// Largest absolute value of a quantised x. Its products with int8 weights are added in partial sums of 32 bits. Each
// partial sum has the products of at most a quarter of the columns. With MAX_INT8_COLS columns it does not overflow,
// even if every product has the largest value.
constexpr int LARGEST_INPUT = 2047;
constexpr int64_t MAX_INT8_COLS = 32768;
static_assert(MAX_INT8_COLS / 4 * 127 * LARGEST_INPUT < INT64_C(1) << 31);

extern "C" struct Matrix {
    int64_t rows, cols;
    const uint64_t* masks;   // [panels][blocks][PANEL]; null: a dense matrix of bfloat16, row after row, cols % BLOCK == 0
    const void* values;      // bfloat16, or int8 if there are scales
    const int64_t* starts;   // index of the first value of each panel
    const float* scales;     // per row; a weight is value * scale
    const float* bias;       // per row, or null
};

enum Dtype : int32_t { BFLOAT16 = 0, FLOAT32 = 1 };

// One product: rows of y = rows of x times the transposed matrix. `input` is x as the kernels of the level read it.
struct Job {
    const Matrix* matrix;
    const void* x;
    void* y;
    int64_t batch;
    Dtype dtype;
    int64_t padded;          // columns of `input`, a multiple of BLOCK
    void* input;
    float* input_scales;     // per row of x, for int8
};

// Some entries of left^T right: products of a column of `left` with a column of `right`, over all tokens.
constexpr int TILE_SIZE = 8;
constexpr int STRIPE = 32;
constexpr int TOKENS = 32;
struct Sample {
    int64_t tokens, rows, cols;
    const int32_t* positions;  // row * cols + col, sorted
    float* out;
    Dtype dtype;
    int64_t padded;            // tokens of a copied column, a multiple of TOKENS
    void* right_copy;
    void* left_copy;           // the columns of `left` from first_row on
    int64_t first_row;
};

// What the loops of gram.h work on. `pairs` has the copied inputs: `steps` pairs of tokens of each panel of columns.
constexpr int GRAM_ROWS = 8;
constexpr int GRAM_COLS = 48;
constexpr int64_t GRAM_STEPS = 64;
struct Gram {
    const uint16_t* x;
    int64_t tokens, cols;
    float weight;
    float* out;
    int64_t steps;
    uint32_t* pairs;
};

// A step of the optimizer of all nonzeros. A row's sums are added in LANES parts.
constexpr int64_t LANES = 16;
struct Factored {
    void* weight;            // [rows][cols]
    void* gradient;          // [rows][cols]
    int64_t rows, cols;
    float* row_sums;
    const float* row_scales;
    const float* col_scales;
    uint64_t random;         // the seed of the random bits
};

// Writes 8 rows of 8 floats as columns. Rows in `in` are `width` apart, and columns in `out` are `height` apart.
// The levels AVX2 and AVX-512 have their own version.
static inline void transpose(const float* in, int64_t width, float* out, int64_t height) {
    for (int64_t col = 0; col < TILE_SIZE; col++)
        for (int64_t row = 0; row < TILE_SIZE; row++) out[col * height + row] = in[row * width + col];
}

static inline int64_t divided_up(int64_t total, int64_t part) { return (total + part - 1) / part; }

static inline float from_bfloat16(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

// Rounds to the nearest, ties to even, as torch does.
static inline uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float read(uint16_t bits) { return from_bfloat16(bits); }
static inline float read(float value) { return value; }

// Writes a float that bfloat16 can hold.
static inline void write_exact(float value, uint16_t* out) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    *out = uint16_t(bits >> 16);
}
static inline void write_exact(float value, float* out) { *out = value; }

// Random bits of an entry: the hash lowbias32 of Chris Wellons' Hash Prospector, with a seed in its middle.
static inline uint32_t random_bits(uint32_t index, uint64_t seed) {
    uint32_t bits = index ^ uint32_t(seed);
    bits = (bits ^ bits >> 16) * 0x7feb352d ^ uint32_t(seed >> 32);
    bits = (bits ^ bits >> 15) * 0x846ca68b;
    return bits ^ bits >> 16;
}

// Rounds up with a probability proportional to the value of the bits that bfloat16 lacks.
static inline void round_stochastically(float value, uint32_t random, uint16_t* out) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    *out = uint16_t((bits + (random & 0xffff)) >> 16);
}
static inline void round_stochastically(float value, uint32_t, float* out) { *out = value; }

static inline float total(float (&sums)[LANES]) {
    for (int64_t half = LANES / 2; half; half /= 2)
        for (int64_t lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
    return sums[0];
}

static inline float read_x(const Job& job, int64_t index) {
    return job.dtype == BFLOAT16 ? from_bfloat16(static_cast<const uint16_t*>(job.x)[index])
                                 : static_cast<const float*>(job.x)[index];
}

static inline void write_y(const Job& job, int64_t index, float value) {
    if (job.dtype == BFLOAT16)
        static_cast<uint16_t*>(job.y)[index] = to_bfloat16(value);
    else
        static_cast<float*>(job.y)[index] = value;
}

// For each byte of a mask: the shuffle that moves packed values to the places of its bits. 0x80 writes zero.
struct Shuffles {
    alignas(16) uint8_t words[256][16];
    alignas(16) uint8_t bytes[256][8];
    alignas(16) uint8_t high_bytes[256][8];  // the same for values that start at byte 8
    constexpr Shuffles() : words(), bytes(), high_bytes() {
        for (int mask = 0; mask < 256; mask++) {
            int next = 0;
            for (int bit = 0; bit < 8; bit++) {
                bool set = (mask >> bit) & 1;
                bytes[mask][bit] = set ? uint8_t(next) : 0x80;
                high_bytes[mask][bit] = set ? uint8_t(next + 8) : 0x80;
                words[mask][2 * bit] = set ? uint8_t(2 * next) : 0x80;
                words[mask][2 * bit + 1] = set ? uint8_t(2 * next + 1) : 0x80;
                next += set;
            }
        }
    }
};
static constexpr Shuffles SHUFFLES;
