#include "kvcodec/learn/principal_components.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "kvcodec/error.h"

namespace kvcodec {

namespace {

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

/// Square, row-major.
struct Matrix {
    explicit Matrix(size_t size) : n(size), values(size * size) {}

    double* row(size_t i) { return values.data() + i * n; }
    const double* row(size_t i) const { return values.data() + i * n; }

    size_t n;
    std::vector<double> values;
};

double dot(const double* a, const double* b, size_t n) {
    return std::inner_product(a, a + n, b, 0.0);
}

/// y += factor x
void add_multiple(double factor, const double* x, size_t n, double* y) {
    for (size_t i = 0; i < n; ++i) {
        y[i] += factor * x[i];
    }
}

/// sum x x^T over the finite rows x, and their number.
std::pair<Matrix, size_t> sum_of_squares(std::span<const float> rows, size_t dim) {
    constexpr size_t kBatch = 4;  // rows added at a time, so that a sum is loaded and stored once for all of them
    Matrix moments(dim);
    std::vector<double> batch(kBatch * dim);
    size_t n = 0;
    const auto add_batch = [&] {
        const double *x0 = batch.data(), *x1 = x0 + dim, *x2 = x1 + dim, *x3 = x2 + dim;
        for (size_t i = 0; i < dim; ++i) {
            double* sums = moments.row(i);
            const double f0 = x0[i], f1 = x1[i], f2 = x2[i], f3 = x3[i];
            for (size_t j = 0; j <= i; ++j) {
                sums[j] += (f0 * x0[j] + f1 * x1[j]) + (f2 * x2[j] + f3 * x3[j]);
            }
        }
        std::ranges::fill(batch, 0.0);
    };
    for (size_t begin = 0; begin + dim <= rows.size(); begin += dim) {
        const std::span<const float> x = rows.subspan(begin, dim);
        if (std::ranges::all_of(x, [](float value) { return std::isfinite(value); })) {
            std::ranges::copy(x, batch.data() + n % kBatch * dim);
            if (++n % kBatch == 0) {
                add_batch();
            }
        }
    }
    add_batch();
    for (size_t i = 0; i < dim; ++i) {
        for (size_t j = 0; j <= i; ++j) {
            moments.row(j)[i] = moments.row(i)[j];
        }
    }
    return {std::move(moments), n};
}

/// A symmetric tridiagonal matrix T and the orthogonal Q with A = Q^T T Q of the matrix A that it was made from.
struct Tridiagonal {
    explicit Tridiagonal(size_t n) : diagonal(n), off_diagonal(n > 0 ? n - 1 : 0), q(n) {}

    std::vector<double> diagonal;
    std::vector<double> off_diagonal;
    Matrix q;
};

/// Householder reflections (Golub, Van Loan, Matrix Computations, 8.3.1).
Tridiagonal reduce(Matrix a) {
    const size_t n = a.n;
    Tridiagonal result(n);
    for (size_t i = 0; i < n; ++i) {
        result.q.row(i)[i] = 1.0;
    }
    // Rows of a low rank leave rounding errors, and those errors' own errors, down to where squares underflow.
    double negligible = 0.0;
    for (size_t i = 0; i < n; ++i) {
        negligible = std::max(negligible, kEpsilon * kEpsilon * std::abs(a.row(i)[i]));
    }
    std::vector<double> v(n), w(n);
    for (size_t k = 0; k + 2 < n; ++k) {
        // I - beta v v^T turns what is left of column k, rows from k + 1 on, into a multiple of its first axis.
        const size_t first = k + 1, m = n - first;
        std::copy_n(a.row(k) + first, m, v.begin());
        const double norm = std::sqrt(dot(v.data(), v.data(), m));
        if (!(norm > negligible)) {
            continue;
        }
        a.row(k)[first] = -std::copysign(norm, v[0]);
        v[0] += std::copysign(norm, v[0]);
        const double beta = 2.0 / dot(v.data(), v.data(), m);
        // A - v w^T - w v^T with w = p - beta / 2 (p^T v) v and p = beta A v
        std::fill_n(w.begin(), m, 0.0);
        for (size_t i = 0; i < m; ++i) {
            add_multiple(beta * v[i], a.row(first + i) + first, m, w.data());
        }
        add_multiple(-beta / 2 * dot(w.data(), v.data(), m), v.data(), m, w.data());
        for (size_t i = 0; i < m; ++i) {
            add_multiple(-v[i], w.data(), m, a.row(first + i) + first);
            add_multiple(-w[i], v.data(), m, a.row(first + i) + first);
        }
        // Q - beta v (v^T Q)
        std::fill(w.begin(), w.end(), 0.0);
        for (size_t i = 0; i < m; ++i) {
            add_multiple(v[i], result.q.row(first + i), n, w.data());
        }
        for (size_t i = 0; i < m; ++i) {
            add_multiple(-beta * v[i], w.data(), n, result.q.row(first + i));
        }
    }
    for (size_t k = 0; k < n; ++k) {
        result.diagonal[k] = a.row(k)[k];
        if (k + 1 < n) {
            result.off_diagonal[k] = a.row(k)[k + 1];
        }
    }
    return result;
}

/// One step of the implicit QR algorithm with Wilkinson's shift on rows and columns first to last, none of whose
/// off-diagonal elements is zero (Golub, Van Loan, 8.3.2).
void qr_step(Tridiagonal& t, size_t first, size_t last) {
    std::vector<double>&d = t.diagonal, &e = t.off_diagonal;
    const double half_difference = (d[last - 1] - d[last]) / 2, corner = e[last - 1];
    const double shift =
        d[last] -
        corner * corner / (half_difference + std::copysign(std::hypot(half_difference, corner), half_difference));
    double x = d[first] - shift, z = e[first];
    for (size_t k = first; k < last; ++k) {
        const double length = std::hypot(x, z);
        const double c = length > 0.0 ? x / length : 1.0, s = length > 0.0 ? z / length : 0.0;
        if (k > first) {
            e[k - 1] = length;
        }
        const double upper = d[k], lower = d[k + 1], beside = e[k];
        d[k] = c * c * upper + 2 * c * s * beside + s * s * lower;
        d[k + 1] = s * s * upper - 2 * c * s * beside + c * c * lower;
        e[k] = c * s * (lower - upper) + (c * c - s * s) * beside;
        if (k + 1 < last) {
            x = e[k];
            z = s * e[k + 1];
            e[k + 1] *= c;
        }
        double *a = t.q.row(k), *b = t.q.row(k + 1);
        for (size_t i = 0; i < t.q.n; ++i) {
            const double a_i = a[i], b_i = b[i];
            a[i] = c * a_i + s * b_i;
            b[i] = c * b_i - s * a_i;
        }
    }
}

/// Makes T diagonal: then its diagonal holds the eigenvalues of A and Q's rows are the eigenvectors.
void diagonalise(Tridiagonal& t) {
    const size_t n = t.diagonal.size();
    double largest = 0.0;
    for (size_t i = 0; i < n; ++i) {
        largest = std::max({largest, std::abs(t.diagonal[i]), i + 1 < n ? std::abs(t.off_diagonal[i]) : 0.0});
    }
    const auto is_zero = [&](size_t i) { return std::abs(t.off_diagonal[i]) <= kEpsilon * largest; };
    size_t steps_left = 100 * n;  // two or three an eigenvalue are usual
    for (size_t last = n; last-- > 1;) {
        while (!is_zero(last - 1)) {
            size_t first = last - 1;
            while (first > 0 && !is_zero(first - 1)) {
                --first;
            }
            if (steps_left-- == 0) {
                throw Error("principal components were not found: the rows are out of the range of numbers");
            }
            qr_step(t, first, last);
        }
    }
}

/// Eigenvalues, descending, and eigenvectors, the rows of a matrix, of a symmetric one.
struct Eigen {
    std::vector<double> values;
    Matrix vectors;
};

Eigen eigen(Matrix symmetric) {
    const size_t dim = symmetric.n;
    Tridiagonal t = reduce(std::move(symmetric));
    diagonalise(t);
    std::vector<size_t> order(dim);
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::stable_sort(order, [&](size_t a, size_t b) { return t.diagonal[a] > t.diagonal[b]; });
    Eigen result{{}, Matrix(dim)};
    for (size_t j = 0; j < dim; ++j) {
        const double* direction = t.q.row(order[j]);
        const double* largest =
            std::max_element(direction, direction + dim, [](double a, double b) { return std::abs(a) < std::abs(b); });
        const double sign = *largest < 0.0 ? -1.0 : 1.0;
        std::transform(direction, direction + dim, result.vectors.row(j), [&](double v) { return sign * v; });
        result.values.push_back(std::max(t.diagonal[order[j]], 0.0));
    }
    return result;
}

std::vector<float> floats(std::span<const double> values) {
    return {values.begin(), values.end()};
}

Matrix covariance(std::span<const float> rows, size_t dim) {
    auto [moments, n] = sum_of_squares(rows, dim);
    for (double& value : moments.values) {
        value /= static_cast<double>(std::max<size_t>(n, 1));
    }
    return std::move(moments);
}

}  // namespace

std::vector<double> second_moments(std::span<const float> rows, size_t dim) {
    return sum_of_squares(rows, dim).first.values;
}

PrincipalComponents find_principal_components(std::span<const float> rows, size_t dim) {
    return principal_components_of(covariance(rows, dim).values, dim);
}

PrincipalComponents principal_components_of(std::span<const double> moments, size_t dim) {
    Matrix symmetric(dim);
    std::ranges::copy(moments, symmetric.values.begin());
    const Eigen found = eigen(std::move(symmetric));
    return {floats(found.vectors.values), floats(found.values)};
}

WeightedComponents find_weighted_components(std::span<const float> rows, std::span<const double> readers, size_t dim,
                                            const Tempering& tempering) {
    Matrix moments(dim);
    std::ranges::copy(readers, moments.values.begin());
    Eigen weight = eigen(std::move(moments));
    const double mean = std::accumulate(weight.values.begin(), weight.values.end(), 0.0) / static_cast<double>(dim);
    for (double& value : weight.values) {
        value = (mean > 0.0 ? std::pow(value / mean, tempering.power) : 1.0) + tempering.offset;
    }
    // W = diag(sqrt(value)) U: its second moments of rows are those of x between W and W^T.
    const Matrix x = covariance(rows, dim);
    Matrix half(dim), weighted(dim);
    for (size_t i = 0; i < dim; ++i) {
        for (size_t k = 0; k < dim; ++k) {
            add_multiple(std::sqrt(weight.values[i]) * weight.vectors.row(i)[k], x.row(k), dim, half.row(i));
        }
    }
    for (size_t i = 0; i < dim; ++i) {
        for (size_t j = 0; j <= i; ++j) {
            weighted.row(i)[j] = weighted.row(j)[i] =
                std::sqrt(weight.values[j]) * dot(half.row(i), weight.vectors.row(j), dim);
        }
    }
    const Eigen found = eigen(std::move(weighted));
    // Row j: W^-1 times direction j, W^-1 = U^T diag(1 / sqrt(value)).
    Matrix basis(dim);
    for (size_t j = 0; j < dim; ++j) {
        for (size_t k = 0; k < dim; ++k) {
            add_multiple(found.vectors.row(j)[k] / std::sqrt(weight.values[k]), weight.vectors.row(k), dim,
                         basis.row(j));
        }
    }
    double energy = 0.0;
    for (size_t i = 0; i < dim; ++i) {
        energy += x.row(i)[i];
    }
    const double weights = std::accumulate(weight.values.begin(), weight.values.end(), 0.0);
    return {floats(basis.values), floats(found.values), weights / static_cast<double>(dim), energy};
}

}  // namespace kvcodec
