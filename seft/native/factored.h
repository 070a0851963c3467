// The loops of the optimizer of all nonzeros (seft.repair.factored). levels.h includes this file once per level.
//
// They are plain loops, which the compiler vectorises for the level. Every level adds in the same order, so neither the
// level nor the threads change a bit.

template <class Weight, class Gradient>
static void add_square(const Weight* weight, Gradient* gradient, float* sum, float* col_sum) {
    const float masked = read(*gradient) * (read(*weight) != 0.f ? 1.f : 0.f);
    write_exact(masked, gradient);
    *sum += masked * masked;
    *col_sum += masked * masked;
}

// For the rows from `first` to before `last`: sets the gradient to zero at the zeros of the weight, writes the sum of
// its squares in each row to `row_sums`, and adds its squares in each column to `col_sums`.
template <class Weight, class Gradient>
static void add_squares(const Factored& work, int64_t first, int64_t last, float* col_sums) {
    for (int64_t row = first; row < last; row++) {
        auto weight = static_cast<const Weight*>(work.weight) + row * work.cols;
        auto gradient = static_cast<Gradient*>(work.gradient) + row * work.cols;
        float sums[LANES] = {};
        int64_t col = 0;
        for (; col + LANES <= work.cols; col += LANES)
            for (int64_t lane = 0; lane < LANES; lane++)
                add_square(weight + col + lane, gradient + col + lane, sums + lane, col_sums + col + lane);
        for (int64_t lane = 0; col + lane < work.cols; lane++)
            add_square(weight + col + lane, gradient + col + lane, sums + lane, col_sums + col + lane);
        work.row_sums[row] = total(sums);
    }
}

static inline float squared(float value) { return value * value; }

// Writes the sums of the squares of the scaled gradient in each row to `row_sums`.
template <class Gradient>
static void scaled_squares(const Factored& work, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
        auto gradient = static_cast<const Gradient*>(work.gradient) + row * work.cols;
        const float scale = work.row_scales[row];
        float sums[LANES] = {};
        int64_t col = 0;
        for (; col + LANES <= work.cols; col += LANES)
            for (int64_t lane = 0; lane < LANES; lane++)
                sums[lane] += squared(read(gradient[col + lane]) * work.col_scales[col + lane] * scale);
        for (int64_t lane = 0; col + lane < work.cols; lane++)
            sums[lane] += squared(read(gradient[col + lane]) * work.col_scales[col + lane] * scale);
        work.row_sums[row] = total(sums);
    }
}

// Subtracts the scaled gradient from the weight. A bfloat16 weight is rounded stochastically. A row whose scale is zero does
// not change.
template <class Weight, class Gradient>
static void change(const Factored& work, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
        auto weight = static_cast<Weight*>(work.weight) + row * work.cols;
        auto gradient = static_cast<const Gradient*>(work.gradient) + row * work.cols;
        const uint32_t start = uint32_t(row * work.cols);
        const float scale = work.row_scales[row];
        if (scale == 0.f) continue;
        for (int64_t col = 0; col < work.cols; col++) {
            const float changed = read(weight[col]) - read(gradient[col]) * work.col_scales[col] * scale;
            round_stochastically(changed, random_bits(start + uint32_t(col), work.random), weight + col);
        }
    }
}
