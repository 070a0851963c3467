// The instructions of each level: AVX-512 (VBMI2, BF16, VNNI), AVX2, NEON and plain C++.
//
// Each level has Float (bfloat16 values, x in float32) and Int8 (int8 values, x quantised to 12 bits per row). AVX-512 also
// has Bfloat16 (bfloat16 values, x in bfloat16, sums in float32) and Int8Row, which is Int8 for one row of x. For selected
// entries of a product, each level has FloatProduct, and AVX-512 also Bfloat16Product. Only AVX-512 has GramLoops.
// The loops of factored.h are the same code at each level.
#pragma once
#include "matrix.h"

namespace plain {
#include "loops.h"

struct Float {
    using Input = float; using Value = uint16_t; using Acc = float; using Sum = float;
    static constexpr int TILE = 1;
    static constexpr bool QUANTISED = false;
    static int64_t place(int64_t col) { return col; }
    static Acc zero() { return 0; }
    static Sum sum(Acc acc) { return acc; }
    template <int B> static void add(uint64_t mask, const Value* values, const Input* x, int64_t, Acc* acc) {
        for (; mask; mask &= mask - 1) *acc += from_bfloat16(*values++) * x[__builtin_ctzll(mask)];
    }
    // Skips zeros, as `add` does: a sum with -0.0 or with an infinite x would differ.
    template <int B> static void add_dense(const Value* values, const Input* x, int64_t, Acc* acc) {
        for (int col = 0; col < BLOCK; col++)
            if (values[col] & 0x7fff) *acc += from_bfloat16(values[col]) * x[col];
    }
};

struct Int8 {
    using Input = int16_t; using Value = int8_t; using Acc = int64_t; using Sum = int64_t;
    static constexpr int TILE = 1;
    static constexpr bool QUANTISED = true;
    static void store(Input* input, int64_t col, int value) { input[col] = Input(value); }
    static Acc zero() { return 0; }
    static Sum sum(Acc acc) { return acc; }
    template <int B> static void add(uint64_t mask, const Value* values, const Input* x, int64_t, Acc* acc) {
        for (; mask; mask &= mask - 1) *acc += *values++ * x[__builtin_ctzll(mask)];
    }
};

#include "sample.h"
#include "factored.h"
}  // namespace plain

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define SEFT_X86 1

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,popcnt,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,popcnt,bmi,bmi2")
#endif
namespace avx2 {
#include "loops.h"

static inline __m256i joined(__m128i low, __m128i high) { return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1); }

static inline __m128i words_at(const void* at) { return _mm_loadu_si128(static_cast<const __m128i*>(at)); }

struct Float {
    using Input = float; using Value = uint16_t; using Acc = __m256; using Sum = float;
    static constexpr int TILE = 1;
    static constexpr bool QUANTISED = false;
    // The even columns of 16 come first, then the odd ones, as `multiply` reads them.
    static int64_t place(int64_t col) { return (col & ~15) | (col & 1) << 3 | (col & 15) >> 1; }
    static Acc zero() { return _mm256_setzero_ps(); }
    static Sum sum(Acc acc) {
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(acc), _mm256_extractf128_ps(acc, 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
    }
    static void multiply(__m256i words, const Input* x, Acc& even, Acc& odd) {
        auto low = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
        auto high = _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(int(0xffff0000))));
        even = _mm256_fmadd_ps(low, _mm256_loadu_ps(x), even);
        odd = _mm256_fmadd_ps(high, _mm256_loadu_ps(x + 8), odd);
    }
    // The bytes of a mask are read from memory: shifts would take more instructions. x86 is little-endian.
    template <int B> static void add(const uint64_t& mask, const Value* values, const Input* x, int64_t, Acc* acc) {
        auto even = zero(), odd = zero();
        auto bytes = reinterpret_cast<const uint8_t*>(&mask);
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++) {
            uint64_t low = bytes[2 * part], high = bytes[2 * part + 1];
            const Value* next = values + __builtin_popcountll(low);
            auto packed = joined(words_at(values), words_at(next));
            auto shuffle = joined(words_at(SHUFFLES.words[low]), words_at(SHUFFLES.words[high]));
            multiply(_mm256_shuffle_epi8(packed, shuffle), x + 16 * part, even, odd);
            values = next + __builtin_popcountll(high);
        }
        *acc = _mm256_add_ps(*acc, _mm256_add_ps(even, odd));
    }
    template <int B> static void add_dense(const Value* values, const Input* x, int64_t, Acc* acc) {
        auto even = zero(), odd = zero();
        for (int part = 0; part < 4; part++)
            multiply(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + 16 * part)), x + 16 * part, even, odd);
        *acc = _mm256_add_ps(*acc, _mm256_add_ps(even, odd));
    }
};

struct Int8 {
    using Input = int16_t; using Value = int8_t; using Acc = __m256i; using Sum = int64_t;
    static constexpr int TILE = 1;
    static constexpr bool QUANTISED = true;
    static void store(Input* input, int64_t col, int value) { input[col] = Input(value); }
    static Acc zero() { return _mm256_setzero_si256(); }
    static Sum sum(Acc acc) {
        auto low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(acc));
        auto wide = _mm256_add_epi64(low, _mm256_cvtepi32_epi64(_mm256_extracti128_si256(acc, 1)));
        auto half = _mm_add_epi64(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        return _mm_extract_epi64(half, 0) + _mm_extract_epi64(half, 1);
    }
    static __m128i bytes_of(const void* low, const void* high) {
        auto first = _mm_castsi128_pd(_mm_loadl_epi64(static_cast<const __m128i*>(low)));
        return _mm_castpd_si128(_mm_loadh_pd(first, static_cast<const double*>(high)));
    }
    template <int B> static void add(const uint64_t& mask, const Value* values, const Input* x, int64_t, Acc* acc) {
        auto bytes = reinterpret_cast<const uint8_t*>(&mask);
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++) {
            uint64_t low = bytes[2 * part], high = bytes[2 * part + 1];
            const Value* next = values + __builtin_popcountll(low);
            auto packed = bytes_of(values, next);
            auto shuffle = bytes_of(SHUFFLES.bytes[low], SHUFFLES.high_bytes[high]);
            auto weights = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(packed, shuffle));
            auto inputs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 16 * part));
            *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(weights, inputs));
            values = next + __builtin_popcountll(high);
        }
    }
};

static inline void transpose(const float* in, int64_t width, float* out, int64_t height) {
    static_assert(TILE_SIZE == 8);
    __m256 rows[8], pairs[8], fours[8];
    for (int row = 0; row < 8; row++) rows[row] = _mm256_loadu_ps(in + row * width);
    for (int row = 0; row < 8; row += 2) {
        pairs[row] = _mm256_unpacklo_ps(rows[row], rows[row + 1]);
        pairs[row + 1] = _mm256_unpackhi_ps(rows[row], rows[row + 1]);
    }
    for (int row = 0; row < 8; row += 4)
        for (int half = 0; half < 2; half++) {
            fours[row + 2 * half] = _mm256_shuffle_ps(pairs[row + half], pairs[row + half + 2], 0x44);
            fours[row + 2 * half + 1] = _mm256_shuffle_ps(pairs[row + half], pairs[row + half + 2], 0xee);
        }
    for (int col = 0; col < 4; col++) {  // each register has a column and the one four places later
        _mm256_storeu_ps(out + col * height, _mm256_permute2f128_ps(fours[col], fours[col + 4], 0x20));
        _mm256_storeu_ps(out + (col + 4) * height, _mm256_permute2f128_ps(fours[col], fours[col + 4], 0x31));
    }
}

#include "sample.h"
#include "factored.h"
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target( \
    "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,avx512bf16,avx512vnni,avx2,fma,popcnt,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,avx512bf16,avx512vnni,avx2,fma,popcnt,bmi,bmi2")
#endif
namespace avx512 {
#include "loops.h"

// Loads 64 bytes into a register. The form of an expand instruction that reads memory is several times slower on AMD
// processors, and compilers choose it unless the value goes through a register.
static inline __m512i load(const void* values) {
    __m512i loaded = _mm512_loadu_si512(values);
    asm("" : "+v"(loaded));
    return loaded;
}

// A zero in a register that nothing before has written. On AMD processors an expand instruction waits for the last
// value of the register that it writes, also in its zeroing form, so reused registers would make a chain of latencies.
static inline __m512i fresh_zero() {
    __m512i zero;
    asm("vpxord %0, %0, %0" : "=v"(zero));
    return zero;
}

struct Bfloat16 {
    using Input = uint16_t; using Value = uint16_t; using Acc = __m512; using Sum = float;
    static constexpr int TILE = 3;
    static constexpr bool QUANTISED = false;
    static Acc zero() { return _mm512_setzero_ps(); }
    static Sum sum(Acc acc) { return _mm512_reduce_add_ps(acc); }
    static __m512bh pairs(const Input* words) { return (__m512bh)_mm512_loadu_si512(words); }
    template <int B> static void add(uint64_t mask, const Value* values, const Input* x, int64_t stride, Acc* acc) {
        auto low = uint32_t(mask), high = uint32_t(mask >> 32);
        auto first = (__m512bh)_mm512_mask_expand_epi16(fresh_zero(), low, load(values));
        auto second = (__m512bh)_mm512_mask_expand_epi16(fresh_zero(), high, load(values + __builtin_popcount(low)));
        for (int b = 0; b < B; b++) {
            acc[b] = _mm512_dpbf16_ps(acc[b], first, pairs(x + b * stride));
            acc[b] = _mm512_dpbf16_ps(acc[b], second, pairs(x + b * stride + 32));
        }
    }
    template <int B> static void add_dense(const Value* values, const Input* x, int64_t stride, Acc* acc) {
        for (int b = 0; b < B; b++) {
            acc[b] = _mm512_dpbf16_ps(acc[b], pairs(values), pairs(x + b * stride));
            acc[b] = _mm512_dpbf16_ps(acc[b], pairs(values + 32), pairs(x + b * stride + 32));
        }
    }
};

struct Float {
    using Input = float; using Value = uint16_t; using Acc = __m512; using Sum = float;
    static constexpr int TILE = 1;
    static constexpr bool QUANTISED = false;
    static int64_t place(int64_t col) { return col; }
    static Acc zero() { return _mm512_setzero_ps(); }
    static Sum sum(Acc acc) { return _mm512_reduce_add_ps(acc); }
    static __m512 wide(__m256i words) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
    }
    static __m256i load(const Value* values) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)); }
    template <int B> static void add(uint64_t mask, const Value* values, const Input* x, int64_t, Acc* acc) {
        for (int part = 0; part < 4; part++, mask >>= 16) {
            auto words = _mm256_maskz_expand_epi16(__mmask16(mask), load(values));
            *acc = _mm512_fmadd_ps(wide(words), _mm512_loadu_ps(x + 16 * part), *acc);
            values += __builtin_popcountll(mask & 0xffff);
        }
    }
    template <int B> static void add_dense(const Value* values, const Input* x, int64_t, Acc* acc) {
        for (int part = 0; part < 4; part++)
            *acc = _mm512_fmadd_ps(wide(load(values + 16 * part)), _mm512_loadu_ps(x + 16 * part), *acc);
    }
};

struct Int8 {
    using Input = int16_t; using Value = int8_t; using Acc = __m512i; using Sum = int64_t;
    static constexpr int TILE = 3;
    static constexpr bool QUANTISED = true;
    static void store(Input* input, int64_t col, int value) { input[col] = Input(value); }
    static Acc zero() { return _mm512_setzero_si512(); }
    static Sum sum(Acc acc) {
        return _mm512_reduce_add_epi64(_mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(acc)),
                                                        _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(acc, 1))));
    }
    template <int B> static void add(uint64_t mask, const Value* values, const Input* x, int64_t stride, Acc* acc) {
        auto packed = _mm512_mask_expand_epi8(fresh_zero(), mask, load(values));
        auto first = _mm512_cvtepi8_epi16(_mm512_castsi512_si256(packed));
        auto second = _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(packed, 1));
        for (int b = 0; b < B; b++) {
            acc[b] = _mm512_dpwssd_epi32(acc[b], first, _mm512_loadu_si512(x + b * stride));
            acc[b] = _mm512_dpwssd_epi32(acc[b], second, _mm512_loadu_si512(x + b * stride + 32));
        }
    }
};

// Int8 for one row of x. The 12 bits of x are two unsigned numbers of 6 bits, so that int8 weights need no conversion:
// x = 64 * high + low - 2048. A block of x has the low parts of its 64 columns, then the high parts.
struct Int8Row {
    using Input = int16_t; using Value = int8_t; using Sum = int64_t;
    struct Acc { __m512i low, high, weights; };
    static constexpr int TILE = 1;
    static constexpr bool QUANTISED = true;
    static Acc zero() { return {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()}; }
    static Sum sum(const Acc& acc) {
        return Int8::sum(acc.low) + 64 * Int8::sum(acc.high) - 2048 * Int8::sum(acc.weights);
    }
    static void store(Input* input, int64_t col, int value) {
        auto parts = reinterpret_cast<uint8_t*>(input) + col / BLOCK * (2 * BLOCK) + col % BLOCK;
        parts[0] = uint8_t((value + 2048) & 63);
        parts[BLOCK] = uint8_t((value + 2048) >> 6);
    }
    template <int B> static void add(uint64_t mask, const Value* values, const Input* x, int64_t, Acc* acc) {
        auto packed = _mm512_mask_expand_epi8(fresh_zero(), mask, load(values));
        acc->low = _mm512_dpbusd_epi32(acc->low, _mm512_loadu_si512(x), packed);
        acc->high = _mm512_dpbusd_epi32(acc->high, _mm512_loadu_si512(x + 32), packed);
        acc->weights = _mm512_dpbusd_epi32(acc->weights, _mm512_set1_epi8(1), packed);
    }
};

using avx2::transpose;
#include "sample.h"
#include "factored.h"

struct Bfloat16Product {
    using Input = uint16_t;
    static Input read(const Sample&, const void* matrix, int64_t index) { return static_cast<const Input*>(matrix)[index]; }
    static void copy(const Sample&, const void* matrix, int64_t at, int64_t width, Input* out, int64_t height) {
        const Input* in = static_cast<const Input*>(matrix) + at;
        __m128i words[8], pairs[8];
        for (int token = 0; token < 8; token++)
            words[token] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + token * width));
        for (int pair = 0; pair < 4; pair++) {
            pairs[pair] = _mm_unpacklo_epi16(words[2 * pair], words[2 * pair + 1]);
            pairs[pair + 4] = _mm_unpackhi_epi16(words[2 * pair], words[2 * pair + 1]);
        }
        for (int half = 0; half < 2; half++) {  // the first four columns, then the last four
            const __m128i* each = pairs + 4 * half;
            __m128i fours[4] = {_mm_unpacklo_epi32(each[0], each[1]), _mm_unpacklo_epi32(each[2], each[3]),
                                _mm_unpackhi_epi32(each[0], each[1]), _mm_unpackhi_epi32(each[2], each[3])};
            for (int two = 0; two < 2; two++) {
                Input* to = out + (4 * half + 2 * two) * height;
                auto low = _mm_unpacklo_epi64(fours[2 * two], fours[2 * two + 1]);
                auto high = _mm_unpackhi_epi64(fours[2 * two], fours[2 * two + 1]);
                _mm_storeu_si128(reinterpret_cast<__m128i*>(to), low);
                _mm_storeu_si128(reinterpret_cast<__m128i*>(to + height), high);
            }
        }
    }
    static float product(const Input* left, const Input* right, int64_t tokens) {
        auto sums = _mm512_setzero_ps(), others = _mm512_setzero_ps();
        int64_t token = 0;
        for (; token + 64 <= tokens; token += 64) {
            sums = _mm512_dpbf16_ps(sums, Bfloat16::pairs(left + token), Bfloat16::pairs(right + token));
            others = _mm512_dpbf16_ps(others, Bfloat16::pairs(left + token + 32), Bfloat16::pairs(right + token + 32));
        }
        if (token < tokens) sums = _mm512_dpbf16_ps(sums, Bfloat16::pairs(left + token), Bfloat16::pairs(right + token));
        return _mm512_reduce_add_ps(_mm512_add_ps(sums, others));
    }
};

#include "gram.h"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#if defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#define SEFT_NEON 1
namespace neon {
#include "loops.h"

struct Float {
    using Input = float; using Value = uint16_t; using Acc = float32x4_t; using Sum = float;
    static constexpr int TILE = 1;
    static constexpr bool QUANTISED = false;
    static int64_t place(int64_t col) { return col; }
    static Acc zero() { return vdupq_n_f32(0); }
    static Sum sum(Acc acc) { return vaddvq_f32(acc); }
    static Acc multiply(uint16x8_t words, const Input* x, Acc acc) {
        auto low = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(words), 16));
        auto high = vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(words), 16));
        return vfmaq_f32(vfmaq_f32(acc, low, vld1q_f32(x)), high, vld1q_f32(x + 4));
    }
    template <int B> static void add(uint64_t mask, const Value* values, const Input* x, int64_t, Acc* acc) {
        for (int part = 0; part < 8; part++, mask >>= 8) {
            auto packed = vld1q_u8(reinterpret_cast<const uint8_t*>(values));
            auto words = vqtbl1q_u8(packed, vld1q_u8(SHUFFLES.words[mask & 255]));
            *acc = multiply(vreinterpretq_u16_u8(words), x + 8 * part, *acc);
            values += __builtin_popcountll(mask & 255);
        }
    }
    template <int B> static void add_dense(const Value* values, const Input* x, int64_t, Acc* acc) {
        for (int part = 0; part < 8; part++) *acc = multiply(vld1q_u16(values + 8 * part), x + 8 * part, *acc);
    }
};

struct Int8 {
    using Input = int16_t; using Value = int8_t; using Acc = int32x4_t; using Sum = int64_t;
    static constexpr int TILE = 1;
    static constexpr bool QUANTISED = true;
    static void store(Input* input, int64_t col, int value) { input[col] = Input(value); }
    static Acc zero() { return vdupq_n_s32(0); }
    static Sum sum(Acc acc) { return vaddlvq_s32(acc); }
    template <int B> static void add(uint64_t mask, const Value* values, const Input* x, int64_t, Acc* acc) {
        for (int part = 0; part < 8; part++, mask >>= 8) {
            auto weights = vtbl1_s8(vld1_s8(values), vreinterpret_s8_u8(vld1_u8(SHUFFLES.bytes[mask & 255])));
            auto wide = vmovl_s8(weights);
            *acc = vmlal_s16(*acc, vget_low_s16(wide), vld1_s16(x + 8 * part));
            *acc = vmlal_s16(*acc, vget_high_s16(wide), vld1_s16(x + 8 * part + 4));
            values += __builtin_popcountll(mask & 255);
        }
    }
};

#include "sample.h"
#include "factored.h"
}  // namespace neon
#endif
