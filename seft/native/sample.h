// The loops of selected entries of left^T right. levels.h includes this file once per level, after the instructions.
//
// The columns of both matrices are copied, so that the tokens of a column follow each other, padded with zeros to whole
// blocks of TOKENS. Then an entry is the product of two columns. A sum does not depend on the threads. The columns of
// `left` are copied a STRIPE at a time just before they are needed, so they are still in the cache.

// Copies the columns from `first` to before `last` of the blocks of TOKENS tokens from `block` to before `end`. `copy` is
// the place of column `first`. A block is read row by row and fills whole cache lines of the copy.
template <class Product>
static void copy_columns(const Sample& sample, const void* matrix, int64_t width, int64_t first, int64_t last,
                         int64_t block, int64_t end, void* copy) {
    auto out = static_cast<typename Product::Input*>(copy);
    const int64_t height = sample.padded, tiled = first + (last - first) / TILE_SIZE * TILE_SIZE;
    for (; block < end; block++) {
        const int64_t start = block * TOKENS, stop = start + TOKENS, present = sample.tokens - start;
        const int64_t filled = start + (present < 0 ? 0 : present < TOKENS ? present : TOKENS);
        const int64_t whole = filled / TILE_SIZE * TILE_SIZE;
        for (int64_t col = first; col < tiled; col += TILE_SIZE)
            for (int64_t token = start; token < whole; token += TILE_SIZE)
                Product::copy(sample, matrix, token * width + col, width, out + (col - first) * height + token, height);
        for (int64_t col = first; col < last; col++) {
            auto column = out + (col - first) * height;
            for (int64_t token = col < tiled ? whole : start; token < filled; token++)
                column[token] = Product::read(sample, matrix, token * width + col);
            if (filled < stop) memset(column + filled, 0, (stop - filled) * sizeof(typename Product::Input));
        }
    }
}

// Adds the products of the positions from `first` to before `last` to `out`. `left_copy` begins at row `first_row`.
template <class Product>
static void add_products(const Sample& sample, int64_t first, int64_t last) {
    auto left = static_cast<const typename Product::Input*>(sample.left_copy);
    auto right = static_cast<const typename Product::Input*>(sample.right_copy);
    for (int64_t at = first; at < last; at++) {
        const int64_t row = sample.positions[at] / sample.cols, col = sample.positions[at] % sample.cols;
        sample.out[at] += Product::product(left + (row - sample.first_row) * sample.padded, right + col * sample.padded, sample.padded);
    }
}

// Both matrices are read as float32. The order of the sums is the same at every level.
struct FloatProduct {
    using Input = float;
    static Input read(const Sample& sample, const void* matrix, int64_t index) {
        return sample.dtype == BFLOAT16 ? from_bfloat16(static_cast<const uint16_t*>(matrix)[index])
                                        : static_cast<const float*>(matrix)[index];
    }
    // Copies 8 columns of 8 tokens. The matrix has `width` columns, and a column of the copy has `height` tokens.
    static void copy(const Sample& sample, const void* matrix, int64_t at, int64_t width, Input* out, int64_t height) {
        if (sample.dtype == FLOAT32) return transpose(static_cast<const float*>(matrix) + at, width, out, height);
        float tile[TILE_SIZE * TILE_SIZE];
        for (int64_t token = 0; token < TILE_SIZE; token++)
            for (int64_t col = 0; col < TILE_SIZE; col++)
                tile[token * TILE_SIZE + col] = from_bfloat16(static_cast<const uint16_t*>(matrix)[at + token * width + col]);
        transpose(tile, TILE_SIZE, out, height);
    }
    static float product(const Input* left, const Input* right, int64_t tokens) {
        float sums[TOKENS] = {};
        for (int64_t token = 0; token < tokens; token += TOKENS)
            for (int lane = 0; lane < TOKENS; lane++) sums[lane] += left[token + lane] * right[token + lane];
        for (int half = TOKENS / 2; half; half /= 2)
            for (int lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
        return sums[0];
    }
};
