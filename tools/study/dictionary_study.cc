// Measures what dictionaries can do: trained on one kind of text and used on others, by size, sparsity, learner,
// encoder, coefficient bits, error threshold and with atoms added at run time. Prints the tables of
// docs/results/dictionaries.md.
//     kvcodec_dictionary_study MODEL.gguf TOKENS PICTURES TABLES NAME=TEXT...
// PICTURES is a folder for SVG files, TABLES a pattern of the titles that are wanted (. for all). A text without a file
// (own=) is written by the model itself. The first half of each text trains, the second tests.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <numbers>
#include <numeric>
#include <random>
#include <regex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvcodec/artifact/model_info.h"
#include "kvcodec/codec/dictionary/omp.h"
#include "kvcodec/codec/dictionary/packing.h"
#include "kvcodec/error.h"
#include "kvcodec/learn/dictionary_learning.h"
#include "kvcodec/learn/principal_components.h"
#include "tools/eval/chart.h"
#include "tools/harvest.h"
#include "tools/study/measure.h"

namespace kvcodec {
namespace {

using study::energy_of;
using study::kAtoms;
using study::kSparsity;
using study::Means;

// ---- rows ----------------------------------------------------------------------------------------------------------

/// K or V of one layer: rows as the codec would meet them.
struct Rows {
    size_t dim = 0;
    std::vector<float> train, test;  // [n, dim]
};

using Sides = std::vector<Rows>;  // K and V of each layer in turn

struct Text {
    std::string name;
    std::vector<HarvestedLayer> layers;
};

/// Rows of `text` without the mean of `trained`, keys turned to random positions of the context.
Sides rows_of(const Text& text, const Text& trained, uint32_t n_positions) {
    Sides sides;
    for (size_t i = 0; i < text.layers.size(); ++i) {
        const HarvestedLayer& layer = text.layers[i];
        for (const bool is_k : {true, false}) {
            const HarvestedRows& rows = is_k ? layer.k : layer.v;
            const std::vector<float> own = rows.mean();
            const std::vector<float> other = (is_k ? trained.layers[i].k : trained.layers[i].v).mean();
            std::vector<float> x = rows.residuals();
            for (size_t j = 0; j < x.size(); ++j) {
                x[j] += own[j % own.size()] - other[j % other.size()];
            }
            const Rope rope(layer.rope, rows.dim());
            std::mt19937_64 random(layer.layer);
            for (size_t j = 0; is_k && rope.rotates() && j < x.size(); j += rows.dim()) {
                rope.rotate(x.data() + j, static_cast<int64_t>(random() % n_positions));
            }
            const auto half = static_cast<std::ptrdiff_t>(rows.n_tokens() / 2 * own.size());
            sides.push_back({rows.dim(), {x.begin(), x.begin() + half}, {x.begin() + half, x.end()}});
        }
    }
    return sides;
}

// ---- dictionaries --------------------------------------------------------------------------------------------------

using Dictionary = std::vector<float>;  // [n_atoms, dim], unit norm

void normalise(std::span<float> atom) {
    const double norm = std::sqrt(energy_of(atom));
    for (float& v : atom) {
        v = static_cast<float>(v / norm);
    }
}

Dictionary learned(const Rows& rows, size_t n_atoms, size_t sparsity, size_t sweeps = 8,
                   DictionaryLearner learner = DictionaryLearner::kKsvd, float rate = 1e-4F) {
    LearnOptions options;
    options.learner = learner;
    options.n_atoms = n_atoms;
    options.sparsity = sparsity;
    options.sweeps = sweeps;
    options.learning_rate = rate;
    return learn_dictionary(rows.train, rows.dim, options).atoms;
}

/// Cosines of n_atoms frequencies, an overcomplete discrete cosine transform.
Dictionary cosines(size_t n_atoms, size_t dim) {
    Dictionary atoms(n_atoms * dim);
    for (size_t j = 0; j < n_atoms; ++j) {
        for (size_t i = 0; i < dim; ++i) {
            atoms[j * dim + i] = static_cast<float>(std::cos(std::numbers::pi * (static_cast<double>(i) + 0.5) *
                                                             static_cast<double>(j) / static_cast<double>(n_atoms)));
        }
        normalise(std::span(atoms).subspan(j * dim, dim));
    }
    return atoms;
}

// ---- encoders ------------------------------------------------------------------------------------------------------

struct Coded {
    std::vector<uint16_t> index;     // [n, sparsity]
    std::vector<float> coefficient;  // [n, sparsity]
    std::vector<uint8_t> count;      // [n]
    double error = 0.0;              // ||x - x̂|| / ||x|| over all rows
    double mean_nonzeros = 0.0;
};

Coded pursue(const Dictionary& atoms, size_t dim, std::span<const float> x, size_t sparsity, float threshold = 0.0F) {
    const size_t n = x.size() / dim;
    Coded coded{std::vector<uint16_t>(n * sparsity), std::vector<float>(n * sparsity), std::vector<uint8_t>(n), 0, 0};
    std::vector<float> residual(n);
    omp_encode(atoms.data(), atoms.size() / dim, dim, x.data(), n, {sparsity, threshold}, coded.index.data(),
               coded.coefficient.data(), coded.count.data(), residual.data());
    coded.error = std::sqrt(std::accumulate(residual.begin(), residual.end(), 0.0) / energy_of(x));
    coded.mean_nonzeros = std::accumulate(coded.count.begin(), coded.count.end(), 0.0) / static_cast<double>(n);
    return coded;
}

double dot(const float* a, const float* b, size_t dim) {
    double sum = 0.0;
    for (size_t i = 0; i < dim; ++i) {
        sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    }
    return sum;
}

/// The coefficients of `support` that fit x best; the first `n_fixed` stay as they are. By conjugate gradients on the
/// normal equations.
void refit(const Dictionary& atoms, size_t dim, const float* x, std::span<const uint16_t> support, size_t n_fixed,
           std::vector<double>& c) {
    const size_t n = support.size() - n_fixed;
    std::vector<double> gram(n * n), right(n);
    for (size_t a = 0; a < n; ++a) {
        const float* atom = &atoms[support[n_fixed + a] * dim];
        for (size_t b = 0; b < n; ++b) {
            gram[a * n + b] = dot(atom, &atoms[support[n_fixed + b] * dim], dim);
        }
        right[a] = dot(atom, x, dim);
        for (size_t fixed = 0; fixed < n_fixed; ++fixed) {
            right[a] -= c[fixed] * dot(atom, &atoms[support[fixed] * dim], dim);
        }
    }
    std::vector<double> y(n), residual = right, direction = right, image(n);
    double size = std::inner_product(residual.begin(), residual.end(), residual.begin(), 0.0);
    for (size_t step = 0; step < 2 * n && size > 1e-20; ++step) {
        for (size_t a = 0; a < n; ++a) {
            image[a] = std::inner_product(direction.begin(), direction.end(),
                                          gram.begin() + static_cast<std::ptrdiff_t>(a * n), 0.0);
        }
        const double curvature = std::inner_product(direction.begin(), direction.end(), image.begin(), 0.0);
        if (!(curvature > 0.0)) {
            break;
        }
        for (size_t a = 0; a < n; ++a) {
            y[a] += size / curvature * direction[a];
            residual[a] -= size / curvature * image[a];
        }
        const double next = std::inner_product(residual.begin(), residual.end(), residual.begin(), 0.0);
        for (size_t a = 0; a < n; ++a) {
            direction[a] = residual[a] + next / size * direction[a];
        }
        size = next;
    }
    std::copy(y.begin(), y.end(), c.begin() + static_cast<std::ptrdiff_t>(n_fixed));
}

double miss(const Dictionary& atoms, size_t dim, const float* x, std::span<const uint16_t> support,
            std::span<const double> c) {
    double sum = 0.0;
    for (size_t i = 0; i < dim; ++i) {
        double left = static_cast<double>(x[i]);
        for (size_t k = 0; k < support.size(); ++k) {
            left -= c[k] * static_cast<double>(atoms[support[k] * dim + i]);
        }
        sum += left * left;
    }
    return sum;
}

/// Error when the atoms that correlate most with the vector itself are taken at once, without a pursuit.
double top_k_error(const Dictionary& atoms, size_t dim, std::span<const float> x, size_t sparsity, bool fitted) {
    const size_t n_atoms = atoms.size() / dim;
    std::vector<double> correlation(n_atoms);
    std::vector<uint16_t> order(n_atoms);
    double sum = 0.0;
    for (size_t row = 0; row < x.size(); row += dim) {
        for (size_t j = 0; j < n_atoms; ++j) {
            correlation[j] = dot(&atoms[j * dim], &x[row], dim);
        }
        std::iota(order.begin(), order.end(), uint16_t{0});
        std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(sparsity), order.end(),
                          [&](uint16_t a, uint16_t b) { return std::abs(correlation[a]) > std::abs(correlation[b]); });
        const std::span<const uint16_t> support(order.data(), sparsity);
        std::vector<double> c(sparsity);
        for (size_t k = 0; k < sparsity; ++k) {
            c[k] = correlation[order[k]];
        }
        if (fitted) {
            refit(atoms, dim, &x[row], support, 0, c);
        }
        sum += miss(atoms, dim, &x[row], support, c);
    }
    return std::sqrt(sum / energy_of(x));
}

/// A sparse autoencoder: codes are the largest `sparsity` of |E x|, E and the atoms are trained together by Adam.
double autoencoder_error(const Rows& rows, size_t n_atoms, size_t sparsity, size_t sweeps) {
    const size_t dim = rows.dim, size = n_atoms * dim;
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> atoms(size), encoder, moment(2 * size), spread(2 * size), slope(2 * size);
    std::ranges::generate(atoms, [&] { return normal(random); });
    for (size_t j = 0; j < n_atoms; ++j) {
        normalise(std::span(atoms).subspan(j * dim, dim));
    }
    encoder = atoms;
    std::vector<float> activation(n_atoms), residual(dim);
    std::vector<uint16_t> order(n_atoms);
    const auto encode = [&](const float* x) {
        for (size_t j = 0; j < n_atoms; ++j) {
            float sum = 0.0F;
            for (size_t i = 0; i < dim; ++i) {
                sum += encoder[j * dim + i] * x[i];
            }
            activation[j] = sum;
        }
        std::iota(order.begin(), order.end(), uint16_t{0});
        std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(sparsity), order.end(),
                         [&](uint16_t a, uint16_t b) { return std::abs(activation[a]) > std::abs(activation[b]); });
        std::copy_n(x, dim, residual.begin());
        for (size_t k = 0; k < sparsity; ++k) {
            for (size_t i = 0; i < dim; ++i) {
                residual[i] -= activation[order[k]] * atoms[order[k] * dim + i];
            }
        }
    };
    constexpr size_t kBatch = 64;
    const size_t n_rows = rows.train.size() / dim, n_steps = sweeps * (n_rows / kBatch);
    for (size_t step = 1; step <= n_steps; ++step) {
        std::ranges::fill(slope, 0.0F);
        for (size_t b = 0; b < kBatch; ++b) {
            const float* x = &rows.train[random() % n_rows * dim];
            encode(x);
            for (size_t k = 0; k < sparsity; ++k) {
                const size_t at = order[k] * dim;
                const auto along = static_cast<float>(dot(residual.data(), &atoms[at], dim));
                for (size_t i = 0; i < dim; ++i) {
                    slope[at + i] -= activation[order[k]] * residual[i];
                    slope[size + at + i] -= along * x[i];
                }
            }
        }
        const auto share = static_cast<float>(step) / static_cast<float>(n_steps);
        const float rate = 3e-3F * (1.0F + std::cos(share * std::numbers::pi_v<float>)) / 2;
        const float unbias1 = 1.0F / (1.0F - std::pow(0.9F, static_cast<float>(step)));
        const float unbias2 = 1.0F / (1.0F - std::pow(0.999F, static_cast<float>(step)));
        for (size_t i = 0; i < 2 * size; ++i) {
            moment[i] = 0.9F * moment[i] + 0.1F * slope[i];
            spread[i] = 0.999F * spread[i] + 0.001F * slope[i] * slope[i];
            (i < size ? atoms[i] : encoder[i - size]) -=
                rate * moment[i] * unbias1 / (std::sqrt(spread[i] * unbias2) + 1e-8F);
        }
        for (size_t j = 0; j < n_atoms; ++j) {
            normalise(std::span(atoms).subspan(j * dim, dim));
        }
    }
    double sum = 0.0;
    for (size_t row = 0; row < rows.test.size(); row += dim) {
        encode(&rows.test[row]);
        sum += energy_of(residual);
    }
    return std::sqrt(sum / energy_of(rows.test));
}

// ---- coefficients --------------------------------------------------------------------------------------------------

/// Lloyd's levels of |coefficient| / largest; none: kept as they are.
std::vector<double> coefficient_levels(const Coded& coded, size_t sparsity, unsigned bits) {
    std::vector<double> ratios;
    for (size_t row = 0; row < coded.count.size(); ++row) {
        const float* c = &coded.coefficient[row * sparsity];
        double largest = 0.0;
        for (size_t k = 0; k < coded.count[row]; ++k) {
            largest = std::max(largest, std::abs(static_cast<double>(c[k])));
        }
        for (size_t k = 0; k < coded.count[row]; ++k) {
            ratios.push_back(std::abs(static_cast<double>(c[k])) / largest);
        }
    }
    std::ranges::sort(ratios);
    std::vector<double> levels(size_t{1} << (bits - 1));
    for (size_t i = 0; i < levels.size(); ++i) {
        levels[i] = static_cast<double>(i + 1) / static_cast<double>(levels.size());
    }
    for (int round = 0; round < 50; ++round) {
        auto begin = ratios.begin();
        for (size_t i = 0; i < levels.size(); ++i) {
            const auto end = i + 1 == levels.size()
                                 ? ratios.end()
                                 : std::lower_bound(begin, ratios.end(), (levels[i] + levels[i + 1]) / 2);
            if (begin != end) {
                levels[i] = std::accumulate(begin, end, 0.0) / static_cast<double>(end - begin);
            }
            begin = end;
        }
    }
    return levels;
}

/// Error with coefficients of so many bits under a scale for each vector; inside: quantised one after the other, the
/// largest first, and the others fitted anew after each.
double quantised_error(const Dictionary& atoms, size_t dim, std::span<const float> x, const Coded& coded,
                       size_t sparsity, const std::vector<double>& levels, bool inside) {
    const auto nearest = [&](double value, double scale) {
        const double ratio = std::abs(value) / scale;
        const double level = *std::ranges::min_element(
            levels, [&](double a, double b) { return std::abs(a - ratio) < std::abs(b - ratio); });
        return std::copysign(level * scale, value);
    };
    double sum = 0.0;
    for (size_t row = 0; row < coded.count.size(); ++row) {
        const size_t count = coded.count[row];
        std::vector<size_t> order(count);
        std::iota(order.begin(), order.end(), size_t{0});
        const float* fitted = &coded.coefficient[row * sparsity];
        std::ranges::sort(order, [&](size_t a, size_t b) { return std::abs(fitted[a]) > std::abs(fitted[b]); });
        std::vector<uint16_t> support(count);
        std::vector<double> c(count);
        for (size_t k = 0; k < count; ++k) {
            support[k] = coded.index[row * sparsity + order[k]];
            c[k] = static_cast<double>(fitted[order[k]]);
        }
        const double scale = count == 0 ? 1.0 : std::abs(c[0]) / levels.back();
        for (size_t k = 0; k < count; ++k) {
            c[k] = nearest(c[k], scale);
            if (inside && k + 1 < count) {
                refit(atoms, dim, &x[row * dim], support, k + 1, c);
            }
        }
        sum += miss(atoms, dim, &x[row * dim], support, c);
    }
    return std::sqrt(sum / energy_of(x));
}

// ---- tables --------------------------------------------------------------------------------------------------------

/// measure(side) of every side of the rows.
template <typename Measure>
Means measure_all(const Sides& sides, Measure measure) {
    Means means;
    for (size_t i = 0; i < sides.size(); ++i) {
        means.add(i, measure(i));
    }
    return means;
}

template <typename Make>
std::vector<Dictionary> make_all(const Sides& sides, Make make) {
    std::vector<Dictionary> all;
    for (const Rows& rows : sides) {
        all.push_back(make(rows));
    }
    return all;
}

class Study {
  public:
    Study(std::vector<Text> texts, uint32_t n_positions, std::string pictures)
        : texts_(std::move(texts)), n_positions_(n_positions), pictures_(std::move(pictures)) {
        own_ = rows_of(texts_[0], texts_[0], n_positions_);
        for (const Rows& rows : own_) {
            dictionaries_.push_back(learned(rows, kAtoms, kSparsity));
        }
    }

    void print(const std::regex& wanted) {
        const std::array<std::pair<const char*, void (Study::*)()>, 9> tables = {{
            {"Trained on one text, used on another", &Study::universality},
            {"Dictionaries that were not learned", &Study::controls},
            {"Number of atoms", &Study::sizes},
            {"Sparsity of training and of use", &Study::sparsities},
            {"Learners", &Study::learners},
            {"Encoders", &Study::encoders},
            {"Coefficient and index bits", &Study::coefficients},
            {"Error threshold", &Study::thresholds},
            {"Atoms added at run time", &Study::adaptive},
        }};
        for (const auto& [title, table] : tables) {
            if (std::regex_search(title, wanted)) {
                fmt::print("## {}\n\n", title);
                (this->*table)();
            }
        }
    }

  private:
    Means error_of(const std::vector<Dictionary>& dictionaries, const Sides& sides, size_t sparsity) const {
        return measure_all(
            sides, [&](size_t i) { return pursue(dictionaries[i], sides[i].dim, sides[i].test, sparsity).error; });
    }

    std::string header(const char* first) const {
        std::string names, rule;
        for (const Text& text : texts_) {
            names += fmt::format(" {} |", text.name);
            rule += " --- |";
        }
        return fmt::format("| {} |{}\n| --- |{}\n", first, names, rule);
    }

    /// Errors of each text; prints them as a row.
    std::vector<Means> row_over_texts(const std::string& name, const Text& trained,
                                      const std::vector<Dictionary>& dictionaries) const {
        std::vector<Means> errors;
        fmt::print("| {} |", name);
        for (const Text& text : texts_) {
            errors.push_back(error_of(dictionaries, rows_of(text, trained, n_positions_), kSparsity));
            fmt::print(" {} |", errors.back().text());
        }
        fmt::print("\n");
        std::fflush(stdout);
        return errors;
    }

    void draw(const std::string& name, const std::string& svg) const {
        const std::string path = fmt::format("{}/dictionaries-{}.svg", pictures_, name);
        std::ofstream file(path);
        file << svg;
        if (!file.flush()) {
            throw Error(fmt::format("{} cannot be written", path));
        }
    }

    /// A dictionary of the text's own has 1, one with twice its error 0.5. rows: errors of each text, [trained on].
    void draw_universality(const std::vector<std::vector<Means>>& rows) const {
        for (const bool is_k : {true, false}) {
            HeatMap map{"used on", "trained on", {}, {}, {}};
            for (size_t i = 0; i < texts_.size(); ++i) {
                map.columns.push_back(texts_[i].name);
                map.rows.push_back(texts_[i].name);
                std::vector<double>& values = map.values.emplace_back();
                for (size_t j = 0; j < texts_.size(); ++j) {
                    const Means own = rows[j][j], error = rows[i][j];
                    values.push_back(std::min(1.0, is_k ? own.k / error.k : own.v / error.v));
                }
            }
            draw(is_k ? "keys" : "values", svg_of(map));
        }
    }

    void universality() {
        fmt::print(
            "N={} s={}. Rows: the text that means and atoms were learned "
            "from.\n\n{}",
            kAtoms, kSparsity, header("trained on"));
        std::vector<std::vector<Means>> errors;
        for (const Text& trained : texts_) {
            const Sides sides = rows_of(trained, trained, n_positions_);
            const auto dictionaries = &trained == &texts_[0] ? dictionaries_ : make_all(sides, [](const Rows& rows) {
                return learned(rows, kAtoms, kSparsity);
            });
            errors.push_back(row_over_texts(trained.name, trained, dictionaries));
        }
        draw_universality(errors);
        // All together: as many rows as each of the others has.
        Sides mixed = own_;
        for (Rows& rows : mixed) {
            rows.train.clear();
        }
        for (const Text& text : texts_) {
            const Sides sides = rows_of(text, texts_[0], n_positions_);
            for (size_t i = 0; i < sides.size(); ++i) {
                const size_t n = sides[i].train.size() / sides[i].dim / texts_.size() * sides[i].dim;
                mixed[i].train.insert(mixed[i].train.end(), sides[i].train.begin(),
                                      sides[i].train.begin() + static_cast<std::ptrdiff_t>(n));
            }
        }
        const auto dictionaries = make_all(mixed, [](const Rows& rows) { return learned(rows, kAtoms, kSparsity); });
        row_over_texts("a part of each", texts_[0], dictionaries);
        fmt::print("\n");
    }

    void controls() {
        fmt::print("The same, means of {}.\n\n{}", texts_[0].name, header("atoms"));
        const auto line = [&](const char* name, const std::vector<Dictionary>& dictionaries) {
            row_over_texts(name, texts_[0], dictionaries);
        };
        line("learned (as above)", dictionaries_);
        line("rows of the text", make_all(own_, [](const Rows& rows) { return learned(rows, kAtoms, kSparsity, 0); }));
        line("random", make_all(own_, [](const Rows& rows) {
                 return learned(rows, kAtoms, kSparsity, 0, DictionaryLearner::kGradient);
             }));
        line("cosines", make_all(own_, [](const Rows& rows) { return cosines(kAtoms, rows.dim); }));
        line("principal components (head_dim atoms)",
             make_all(own_, [](const Rows& rows) { return find_principal_components(rows.train, rows.dim).basis; }));
        fmt::print("\n");
    }

    void sizes() {
        fmt::print(
            "On {}, error by sparsity.\n\n| N | index bits | s=4 | s=8 | s=16 |\n| --- | --- | "
            "--- | --- | --- |\n",
            texts_[0].name);
        Chart chart{"atoms of a vector (s)", "error", true, {}};
        for (const size_t n_atoms : {256, 512, 1024, 2048, 4096, 8192}) {
            if (own_[0].train.size() / own_[0].dim * 15 / 16 < n_atoms) {
                break;  // too few rows to learn from
            }
            const auto dictionaries =
                make_all(own_, [&](const Rows& rows) { return learned(rows, n_atoms, kSparsity); });
            fmt::print("| {} | {} |", n_atoms, std::lround(std::log2(n_atoms)));
            ChartSeries k{fmt::format("K, N={}", n_atoms), {}}, v{fmt::format("V, N={}", n_atoms), {}};
            for (const size_t s : {4, 8, 16}) {
                const Means error = error_of(dictionaries, own_, s);
                fmt::print(" {} |", error.text());
                k.points.emplace_back(s, error.k);
                v.points.emplace_back(s, error.v);
            }
            fmt::print("\n");
            std::fflush(stdout);
            chart.series.push_back(std::move(k));
            chart.series.push_back(std::move(v));
        }
        draw("atoms", svg_of(chart));
        fmt::print("\n");
    }

    void sparsities() {
        fmt::print(
            "On {}, N={}.\n\n| trained with | s=2 | s=4 | s=8 | s=12 | s=16 | "
            "s=24 | s=32 |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n",
            texts_[0].name, kAtoms);
        for (const size_t trained : {4, 8, 16}) {
            const auto dictionaries = make_all(own_, [&](const Rows& rows) { return learned(rows, kAtoms, trained); });
            std::string row;
            for (const size_t used : {2, 4, 8, 12, 16, 24, 32}) {
                row += fmt::format(" {} |", error_of(dictionaries, own_, used).text());
            }
            fmt::print("| s={} |{}\n", trained, row);
            std::fflush(stdout);
        }
        fmt::print("\n");
    }

    void learners() {
        fmt::print(
            "On {}, N={} s={}, one thread. Time: of all {} dictionaries.\n\n| learner | sweeps | error "
            "| time, s |\n| --- | --- | --- | --- |\n",
            texts_[0].name, kAtoms, kSparsity, own_.size());
        const auto line = [&](const std::string& name, size_t sweeps, DictionaryLearner learner, float rate) {
            const auto start = std::chrono::steady_clock::now();
            const auto dictionaries = make_all(
                own_, [&](const Rows& rows) { return learned(rows, kAtoms, kSparsity, sweeps, learner, rate); });
            const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            fmt::print("| {} | {} | {} | {:.1f} |\n", name, sweeps, error_of(dictionaries, own_, kSparsity).text(),
                       seconds);
            std::fflush(stdout);
        };
        for (const size_t sweeps : {1, 2, 4, 8, 16}) {
            line("K-SVD", sweeps, DictionaryLearner::kKsvd, 0.0F);
        }
        for (const float rate : {1e-4F, 1e-3F, 3e-3F}) {
            for (const size_t sweeps : {5, 20}) {
                line(fmt::format("gradient, rate {}", rate), sweeps, DictionaryLearner::kGradient, rate);
            }
        }
        fmt::print("\n");
    }

    void encoders() {
        fmt::print("On {}, N={} s={}.\n\n| encoder | error |\n| --- | --- |\n", texts_[0].name, kAtoms, kSparsity);
        const auto line = [&](const char* name, auto measure) {
            fmt::print("| {} | {} |\n", name, measure_all(own_, measure).text());
            std::fflush(stdout);
        };
        line("orthogonal matching pursuit",
             [&](size_t i) { return pursue(dictionaries_[i], own_[i].dim, own_[i].test, kSparsity).error; });
        line("the s atoms that correlate most, fitted",
             [&](size_t i) { return top_k_error(dictionaries_[i], own_[i].dim, own_[i].test, kSparsity, true); });
        line("the same, correlations as coefficients",
             [&](size_t i) { return top_k_error(dictionaries_[i], own_[i].dim, own_[i].test, kSparsity, false); });
        line("autoencoder with the s largest activations, trained as one (20 sweeps)",
             [&](size_t i) { return autoencoder_error(own_[i], kAtoms, kSparsity, 20); });
        fmt::print("\n");
    }

    void coefficients() {
        constexpr size_t kBytes = 26;  // s=8 in the published layout
        fmt::print(
            "At {} bytes a vector, on {}, N={}. A byte is for the scale. Sorted: "
            "indices as a set, at the bound "
            "log2(N choose s). Inside: coefficients are quantised one after the other and the rest fitted anew.\n\n"
            "| coefficient bits | indices | s | error, quantised afterwards | inside |\n| --- | --- | --- | --- | --- "
            "|\n",
            kBytes, texts_[0].name, kAtoms);
        for (const unsigned bits : {2, 3, 4, 5, 6}) {
            for (const bool sorted : {false, true}) {
                size_t s = 1;
                for (double used = 0.0; used <= 8.0 * (kBytes - 1); ++s) {
                    const auto n = static_cast<double>(s + 1);
                    const double index_bits =
                        sorted ? (std::lgamma(kAtoms + 1.0) - std::lgamma(n + 1) - std::lgamma(kAtoms - n + 1)) /
                                     std::numbers::ln2
                               : n * std::log2(kAtoms);
                    used = index_bits + n * bits;
                }
                --s;
                Means after, inside;
                for (size_t i = 0; i < own_.size(); ++i) {
                    const Rows& rows = own_[i];
                    const std::span<const float> train(rows.train.data(), std::min(rows.train.size(), 2000 * rows.dim));
                    const std::span<const float> test(rows.test.data(), std::min(rows.test.size(), 1000 * rows.dim));
                    const auto levels = coefficient_levels(pursue(dictionaries_[i], rows.dim, train, s), s, bits);
                    const Coded coded = pursue(dictionaries_[i], rows.dim, test, s);
                    after.add(i, quantised_error(dictionaries_[i], rows.dim, test, coded, s, levels, false));
                    inside.add(i, quantised_error(dictionaries_[i], rows.dim, test, coded, s, levels, true));
                }
                fmt::print("| {} | {} | {} | {} | {} |\n", bits, sorted ? "sorted" : "10 bits", s, after.text(),
                           inside.text());
                std::fflush(stdout);
            }
        }
        fmt::print("\n");
    }

    void thresholds() {
        fmt::print(
            "On {}, N={}, at most 32 atoms a vector. Beside it the fixed s with as many atoms, "
            "between its neighbours. A row of "
            "variable length takes 2 bytes more for its offset.\n\n"
            "| threshold | mean atoms K / V | error | error at a fixed s |\n| --- | --- | --- | --- |\n",
            texts_[0].name, kAtoms);
        for (const float threshold : {0.6F, 0.5F, 0.4F, 0.3F, 0.2F}) {
            Means atoms, error, fixed;
            for (size_t i = 0; i < own_.size(); ++i) {
                const Rows& rows = own_[i];
                const Coded coded = pursue(dictionaries_[i], rows.dim, rows.test, 32, threshold);
                atoms.add(i, coded.mean_nonzeros);
                error.add(i, coded.error);
                const double s = std::max(1.0, coded.mean_nonzeros);
                const auto below = static_cast<size_t>(s);
                const double part = s - static_cast<double>(below);
                const double at_below = pursue(dictionaries_[i], rows.dim, rows.test, below).error;
                const double at_above = pursue(dictionaries_[i], rows.dim, rows.test, below + 1).error;
                fixed.add(i, at_below + part * (at_above - at_below));
            }
            fmt::print("| {} | {:.1f} / {:.1f} | {} | {} |\n", threshold, atoms.k, atoms.v, error.text(), fixed.text());
            std::fflush(stdout);
        }
        fmt::print("\n");
    }

    /// Vectors in the order in which a cache would meet them; those that miss the threshold become atoms.
    void adaptive() {
        constexpr size_t kStep = 32, kMost = 1024;
        fmt::print(
            "On {}, N={} s={}, one context of {} vectors a layer and side. A vector that "
            "misses the threshold becomes an "
            "atom (2 bytes an element), at most {} of them, and its code that one atom. Beside it: the error if the "
            "same bytes buy more atoms a vector.\n\n"
            "| text | threshold | atoms added K / V | bytes a vector K / V | error | error of the same bytes |\n| --- "
            "| --- | --- | --- | --- | --- |\n",
            texts_[0].name, kAtoms, kSparsity, own_[0].test.size() / own_[0].dim, kMost);
        for (const size_t t : {size_t{0}, texts_.size() - 1}) {
            const Sides sides = rows_of(texts_[t], texts_[0], n_positions_);
            for (const float threshold : {0.7F, 0.6F, 0.5F, 0.4F}) {
                Means added, bytes, error, same;
                for (size_t i = 0; i < sides.size(); ++i) {
                    const size_t dim = sides[i].dim;
                    const std::vector<float>& x = sides[i].test;
                    Dictionary atoms = dictionaries_[i];
                    const size_t n_before = atoms.size() / dim;
                    double lost = 0.0;
                    for (size_t first = 0; first < x.size(); first += kStep * dim) {
                        const std::span<const float> part(x.data() + first, std::min(kStep * dim, x.size() - first));
                        std::vector<float> residual(part.size() / dim);
                        const size_t n = residual.size();
                        std::vector<uint16_t> index(n * kSparsity);
                        std::vector<float> coefficient(n * kSparsity);
                        std::vector<uint8_t> count(n);
                        omp_encode(atoms.data(), atoms.size() / dim, dim, part.data(), n, {kSparsity}, index.data(),
                                   coefficient.data(), count.data(), residual.data());
                        for (size_t row = 0; row < n; ++row) {
                            const std::span<const float> vector = part.subspan(row * dim, dim);
                            const double energy = energy_of(vector);
                            const double limit =
                                static_cast<double>(threshold) * static_cast<double>(threshold) * energy;
                            if (static_cast<double>(residual[row]) > limit && atoms.size() / dim < n_before + kMost) {
                                atoms.insert(atoms.end(), vector.begin(), vector.end());
                                normalise(std::span(atoms).last(dim));
                            } else {
                                lost += static_cast<double>(residual[row]);
                            }
                        }
                    }
                    const double n_rows = static_cast<double>(x.size() / dim);
                    const double n_added = static_cast<double>(atoms.size() / dim - n_before);
                    const auto code = static_cast<double>(study::code_bytes(kSparsity));
                    const double of_vector =
                        ((n_rows - n_added) * code + n_added * (2.0 * static_cast<double>(dim) + 5.0)) / n_rows;
                    added.add(i, n_added);
                    bytes.add(i, of_vector);
                    error.add(i, std::sqrt(lost / energy_of(x)));
                    const size_t bought = study::sparsity_of(static_cast<size_t>(of_vector));
                    same.add(i, pursue(dictionaries_[i], dim, x, bought).error);
                }
                fmt::print("| {} | {} | {:.0f} / {:.0f} | {:.1f} / {:.1f} | {} | {} |\n", texts_[t].name, threshold,
                           added.k, added.v, bytes.k, bytes.v, error.text(), same.text());
                std::fflush(stdout);
            }
        }
    }

    std::vector<Text> texts_;
    uint32_t n_positions_;
    std::string pictures_;                  // folder
    Sides own_;                             // rows of the first text
    std::vector<Dictionary> dictionaries_;  // learned from them
};

int run(std::span<char*> arguments) {
    if (arguments.size() < 6) {
        fmt::print(stderr, "usage: {} MODEL.gguf TOKENS PICTURES TABLES NAME=TEXT...\n", arguments[0]);
        return 1;
    }
    const ModelInfo model = read_model_info(arguments[1]);
    const size_t n_tokens = std::stoul(arguments[2]);
    std::vector<Text> texts;
    for (const std::string text : arguments.subspan(5)) {
        const size_t mark = text.find('=');
        const std::string file = mark == std::string::npos ? "" : text.substr(mark + 1);
        texts.push_back({text.substr(0, mark), study::harvest_layers(model, file, n_tokens)});
    }
    fmt::print(
        "Errors are ||x - x̂|| / ||x||, mean removed, K / V, means over {} layers of {}; {} tokens of each text, half "
        "to train on and half to "
        "test on; keys at random positions.\n\n",
        study::kLayers, model.name, n_tokens);
    Study(std::move(texts), model.n_ctx_train, arguments[3]).print(std::regex(arguments[4]));
    return 0;
}

}  // namespace
}  // namespace kvcodec

int main(int argc, char** argv) {
    return kvcodec::study::run(argc, argv, kvcodec::run);
}
