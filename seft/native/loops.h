// The loops of a product. levels.h includes this file once per level, so that each copy uses the level's instructions.
//
// `Lanes` multiplies one block: Input is an element of x, Value a stored value, Acc a register of partial sums, Sum their
// total, TILE the number of rows of x that share one pass over a panel. `place` is where a column of float32 x is kept, and
// `store` writes a column of quantised x. A total does not depend on TILE or on threads.

// Rows of x in the order that the level reads, padded with zeros to whole blocks.
template <class Lanes>
static void prepare(const Job& job) {
    using Input = typename Lanes::Input;
    const int64_t cols = job.matrix->cols;
    for (int64_t row = 0; row < job.batch; row++) {
        Input* input = static_cast<Input*>(job.input) + row * job.padded;
        if constexpr (Lanes::QUANTISED) {
            float largest = 0;
            bool finite = true;
            for (int64_t col = 0; col < cols; col++) {
                float size = __builtin_fabsf(read_x(job, row * cols + col));
                finite &= size <= __FLT_MAX__;
                largest = size > largest ? size : largest;
            }
            // A tiny largest value would make 1 / scale infinite.
            bool usable = finite && largest > 1e-30f;
            job.input_scales[row] = finite ? largest / LARGEST_INPUT : __builtin_nanf("");
            float inverse = usable ? LARGEST_INPUT / largest : 0;
            for (int64_t col = 0; col < job.padded; col++) {
                float value = usable && col < cols ? read_x(job, row * cols + col) * inverse : 0;
                // Adding 1.5 * 2^23 rounds to an integer.
                Lanes::store(input, col, int((value + 12582912.f) - 12582912.f));
            }
        } else if constexpr (sizeof(Input) == 2) {
            memcpy(input, static_cast<const uint16_t*>(job.x) + row * cols, cols * 2);
            memset(input + cols, 0, (job.padded - cols) * 2);
        } else {
            for (int64_t col = 0; col < job.padded; col++)
                input[Lanes::place(col)] = col < cols ? read_x(job, row * cols + col) : 0;
        }
    }
}

// Sums of a panel for B rows of x.
template <class Lanes, int B>
static void sparse_panel(const Matrix& m, int64_t panel, const typename Lanes::Input* x, int64_t stride,
                         typename Lanes::Sum (*out)[PANEL]) {
    const int64_t blocks = divided_up(m.cols, BLOCK);
    const uint64_t* masks = m.masks + panel * blocks * PANEL;
    auto values = static_cast<const typename Lanes::Value*>(m.values) + m.starts[panel];
    typename Lanes::Acc acc[PANEL][B];
    for (int row = 0; row < PANEL; row++)
        for (int b = 0; b < B; b++) acc[row][b] = Lanes::zero();
    for (int64_t block = 0; block < blocks; block++, masks += PANEL, x += BLOCK) {
        __builtin_prefetch(reinterpret_cast<const char*>(masks) + 512);
#pragma GCC unroll 8
        for (int row = 0; row < PANEL; row++) {
            // The processor's own prefetching stops at the end of a page.
            if (row % 2 == 0) __builtin_prefetch(reinterpret_cast<const char*>(values) + 4096);
            Lanes::template add<B>(masks[row], values, x, stride, acc[row]);
            values += __builtin_popcountll(masks[row]);
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < PANEL; row++)
        for (int b = 0; b < B; b++) out[b][row] = Lanes::sum(acc[row][b]);
}

// Sums of R rows of a dense matrix for B rows of x. They have the order of sparse_panel, so they are bit-identical.
template <class Lanes, int B, int R>
static void dense_rows(const Matrix& m, int64_t first, const typename Lanes::Input* x, int64_t stride,
                       typename Lanes::Sum (*out)[PANEL]) {
    auto values = static_cast<const typename Lanes::Value*>(m.values) + first * m.cols;
    typename Lanes::Acc acc[R][B];
    for (int row = 0; row < R; row++)
        for (int b = 0; b < B; b++) acc[row][b] = Lanes::zero();
    for (int64_t col = 0; col < m.cols; col += BLOCK)
#pragma GCC unroll 8
        for (int row = 0; row < R; row++)
            Lanes::template add_dense<B>(values + row * m.cols + col, x + col, stride, acc[row]);
#pragma GCC unroll 8
    for (int row = 0; row < R; row++)
        for (int b = 0; b < B; b++) out[b][row] = Lanes::sum(acc[row][b]);
}

// The values of y that belong to panel `panel` and to B rows of x.
template <class Lanes, int B>
static void panel_product(const Job& job, int64_t panel, int64_t row_of_x) {
    const Matrix& m = *job.matrix;
    const int64_t first = panel * PANEL;
    const int count = int(m.rows - first < PANEL ? m.rows - first : PANEL);
    auto x = static_cast<const typename Lanes::Input*>(job.input) + row_of_x * job.padded;
    typename Lanes::Sum sums[B][PANEL];
    if constexpr (!Lanes::QUANTISED) {
        if (!m.masks) {
            if (count == PANEL) {
                dense_rows<Lanes, B, PANEL>(m, first, x, job.padded, sums);
            } else {
                for (int row = 0; row < count; row++) {
                    typename Lanes::Sum one[B][PANEL];
                    dense_rows<Lanes, B, 1>(m, first + row, x, job.padded, one);
                    for (int b = 0; b < B; b++) sums[b][row] = one[b][0];
                }
            }
        }
    }
    if (m.masks) sparse_panel<Lanes, B>(m, panel, x, job.padded, sums);
    for (int b = 0; b < B; b++)
        for (int row = 0; row < count; row++) {
            float value;
            if constexpr (Lanes::QUANTISED)
                value = float(sums[b][row]) * m.scales[first + row] * job.input_scales[row_of_x + b];
            else
                value = sums[b][row];
            write_y(job, (row_of_x + b) * m.rows + first + row, m.bias ? value + m.bias[first + row] : value);
        }
}

// All rows of x for the panels from `first` to before `last`. A panel stays in the cache for all rows of x.
template <class Lanes>
static void panels(const Job& job, int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; panel++) {
        int64_t row = 0;
        for (; row + Lanes::TILE <= job.batch; row += Lanes::TILE) panel_product<Lanes, Lanes::TILE>(job, panel, row);
        for (; row < job.batch; row++) panel_product<Lanes, 1>(job, panel, row);
    }
}
