// The loops of x^T x for bfloat16 inputs, with sums in float32. levels.h includes this file for AVX-512.
//
// The inputs are copied in panels of GRAM_COLS columns, with two tokens of a column side by side, as `dpbf16_ps` reads
// them. A tile has GRAM_ROWS x GRAM_COLS sums in registers. Only tiles of the upper triangle are computed.

struct GramLoops {
    static constexpr int VECTORS = GRAM_COLS / 16;

    static void copy(const Gram& gram, int64_t first, int64_t last) {
        for (int64_t panel = first; panel < last; panel++) {
            const int64_t from = panel * GRAM_COLS, width = std::min<int64_t>(GRAM_COLS, gram.cols - from);
            uint32_t* out = gram.pairs + panel * gram.steps * GRAM_COLS;
            for (int64_t step = 0; step < gram.steps; step++, out += GRAM_COLS) {
                const uint16_t* low = gram.x + 2 * step * gram.cols + from;
                const uint16_t* high = 2 * step + 1 < gram.tokens ? low + gram.cols : nullptr;
                for (int64_t col = 0; col < width; col++) out[col] = low[col] | (high ? uint32_t(high[col]) << 16 : 0);
                for (int64_t col = width; col < GRAM_COLS; col++) out[col] = 0;
            }
        }
    }

    // Adds the products of some panels of columns with all columns before their end. Panels are counted from the last one,
    // because it has the most work.
    static void add(const Gram& gram, int64_t first, int64_t last) {
        const int64_t panels = divided_up(gram.cols, GRAM_COLS);
        for (int64_t panel = panels - 1 - first; panel > panels - 1 - last; panel--) {
            const int64_t from = panel * GRAM_COLS, end = std::min<int64_t>(from + GRAM_COLS, gram.cols);
            for (int64_t row = 0; row < end; row += GRAM_ROWS) {
                alignas(64) float tile[GRAM_ROWS][GRAM_COLS];
                multiply(gram, row, panel, tile);
                for (int64_t i = row; i < std::min<int64_t>(row + GRAM_ROWS, end); i++)
                    for (int64_t j = std::max(i, from); j < end; j++)
                        gram.out[j * gram.cols + i] = gram.out[i * gram.cols + j] += gram.weight * tile[i - row][j - from];
            }
        }
    }

    // A sum in a register ends after GRAM_STEPS pairs of tokens, because a long sum loses more to rounding.
    static void multiply(const Gram& gram, int64_t row, int64_t panel, float (&tile)[GRAM_ROWS][GRAM_COLS]) {
        const uint32_t* right = gram.pairs + panel * gram.steps * GRAM_COLS;
        const uint32_t* left = gram.pairs + row / GRAM_COLS * gram.steps * GRAM_COLS + row % GRAM_COLS;
        memset(tile, 0, sizeof tile);
        for (int64_t step = 0; step < gram.steps;) {
            __m512 sums[GRAM_ROWS][VECTORS];
            for (auto& each : sums)
                for (auto& sum : each) sum = _mm512_setzero_ps();
            for (const int64_t end = std::min(step + GRAM_STEPS, gram.steps); step < end; step++) {
                __m512bh columns[VECTORS];
                for (int vector = 0; vector < VECTORS; vector++)
                    columns[vector] = (__m512bh)_mm512_load_si512(right + 16 * vector);
                for (int i = 0; i < GRAM_ROWS; i++) {
                    const auto pair = (__m512bh)_mm512_set1_epi32(int(left[i]));
                    for (int vector = 0; vector < VECTORS; vector++)
                        sums[i][vector] = _mm512_dpbf16_ps(sums[i][vector], pair, columns[vector]);
                }
                left += GRAM_COLS;
                right += GRAM_COLS;
            }
            for (int i = 0; i < GRAM_ROWS; i++)
                for (int vector = 0; vector < VECTORS; vector++) {
                    float* out = tile[i] + 16 * vector;
                    _mm512_store_ps(out, _mm512_add_ps(_mm512_load_ps(out), sums[i][vector]));
                }
        }
    }
};
