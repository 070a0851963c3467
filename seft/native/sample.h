// The loops of selected entries of left^T right. levels.h includes this file once per level, after the instructions.
//
// The columns of both matrices are copied, so that the tokens of a column follow each other, padded with zeros to whole
// blocks of TOKENS. Then an entry is the product of two columns. A sum does not depend on the threads.

// Copies 8 columns of 8 tokens. `width` is the number of columns of the matrix, `height` that of tokens of a copy.
template <class Product>
static void copy_tile(const Sample& sample, const void* matrix, int64_t at, int64_t width, typename Product::Input* out,
                      int64_t height) {
    for (int64_t col = 0; col < TILE_SIZE; col++)
        for (int64_t token = 0; token < TILE_SIZE; token++)
            out[col * height + token] = Product::read(sample, matrix, at + token * width + col);
}

// Copies the columns from `first` to before `last`, as many at a time as are in a cache line.
template <class Product>
static void copy_columns(const Sample& sample, const void* matrix, int64_t width, int64_t first, int64_t last, void* copy) {
    auto out = static_cast<typename Product::Input*>(copy);
    const int64_t height = sample.padded, line = 64 / sizeof(typename Product::Input);
    for (int64_t stripe = first; stripe < last; stripe += line) {
        const int64_t end = last - stripe < line ? last : stripe + line;
        const int64_t tiled = stripe + (end - stripe) / TILE_SIZE * TILE_SIZE;
        int64_t token = 0;
        for (; token + TILE_SIZE <= sample.tokens; token += TILE_SIZE) {
            for (int64_t col = stripe; col < tiled; col += TILE_SIZE)
                Product::copy(sample, matrix, token * width + col, width, out + col * height + token, height);
            for (int64_t col = tiled; col < end; col++)
                for (int64_t each = token; each < token + TILE_SIZE; each++)
                    out[col * height + each] = Product::read(sample, matrix, each * width + col);
        }
        for (int64_t col = stripe; col < end; col++) {
            for (int64_t each = token; each < sample.tokens; each++)
                out[col * height + each] = Product::read(sample, matrix, each * width + col);
            memset(out + col * height + sample.tokens, 0, (height - sample.tokens) * sizeof(typename Product::Input));
        }
    }
}

// Adds the products of the positions from `first` to before `last` to `out`.
template <class Product>
static void add_products(const Sample& sample, int64_t first, int64_t last) {
    auto left = static_cast<const typename Product::Input*>(sample.left_copy);
    auto right = static_cast<const typename Product::Input*>(sample.right_copy);
    for (int64_t at = first; at < last; at++) {
        const int64_t row = sample.positions[at] / sample.cols, col = sample.positions[at] % sample.cols;
        sample.out[at] += Product::product(left + row * sample.padded, right + col * sample.padded, sample.padded);
    }
}

// Both matrices are read as float32. The order of the sums is the same at every level.
struct FloatProduct {
    using Input = float;
    static Input read(const Sample& sample, const void* matrix, int64_t index) {
        return sample.dtype == BFLOAT16 ? from_bfloat16(static_cast<const uint16_t*>(matrix)[index])
                                        : static_cast<const float*>(matrix)[index];
    }
    static void copy(const Sample& sample, const void* matrix, int64_t at, int64_t width, Input* out, int64_t height) {
        copy_tile<FloatProduct>(sample, matrix, at, width, out, height);
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
