#include "tools/eval/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>

namespace kvcodec {

namespace {

constexpr double kWidth = 860;
constexpr double kHeight = 520;
constexpr double kLegendRow = 18;
constexpr double kLeft = 70;
constexpr double kRight = 20;
constexpr double kTop = 16;
constexpr double kBottom = 56;
constexpr std::array kColours = {"#1f6feb", "#d1242f", "#1a7f37", "#8250df",
                                 "#bf8700", "#0a7ea4", "#bc4c00", "#57606a"};

struct Axis {
    double low = std::numeric_limits<double>::infinity();
    double high = -std::numeric_limits<double>::infinity();
    bool log = false;

    double map(double value) const { return log ? std::log10(value) : value; }
    void include(double value) {
        low = std::min(low, map(value));
        high = std::max(high, map(value));
    }
    double share(double value) const { return (map(value) - low) / (high - low); }
};

/// Round steps: 1, 2 or 5 times a power of ten, about `n` of them.
std::vector<double> ticks(const Axis& axis, int n) {
    std::vector<double> values;
    if (axis.log) {
        for (int decade = static_cast<int>(std::floor(axis.low)); decade <= axis.high; ++decade) {
            for (const double digit : {1.0, 2.0, 5.0}) {
                const double value = digit * std::pow(10.0, decade);
                if (axis.map(value) >= axis.low - 1e-9 && axis.map(value) <= axis.high + 1e-9) {
                    values.push_back(value);
                }
            }
        }
        return values;
    }
    const double rough = (axis.high - axis.low) / n;
    const double power = std::pow(10.0, std::floor(std::log10(rough)));
    double step = power;
    for (const double factor : {2.0, 5.0, 10.0}) {
        if (step < rough) {
            step = factor * power;
        }
    }
    for (double value = std::ceil(axis.low / step) * step; value <= axis.high + step * 1e-6; value += step) {
        values.push_back(std::abs(value) < step * 1e-9 ? 0.0 : value);
    }
    return values;
}

/// Finds places for labels beside their points, so that they do not cover each other. Widths are estimates: text is
/// laid out by whoever shows the picture.
class Labels {
  public:
    struct Place {
        double x;
        double y;
        const char* anchor;
    };

    /// Points keep labels away, too.
    void avoid(double x, double y) { boxes_.push_back({x - 5, x + 5, y - 5, y + 5}); }

    /// The free place nearest to (x, y); the nearest of all if none is free.
    Place place(double x, double y, size_t n_characters) {
        constexpr double kCharacter = 6.4;
        constexpr double kLine = 13;
        constexpr int kSteps = 12;
        const double width = kCharacter * static_cast<double>(n_characters);
        std::optional<Place> chosen;
        Box box{};
        for (int step = 0; step <= kSteps && !chosen; ++step) {
            for (const double shift : {-1.0 * step, 1.0 * step}) {
                for (const bool right : {true, false}) {
                    const double baseline = y + 4 + shift * kLine / 2;
                    const double left = right ? x + 8 : x - 8 - width;
                    box = {left, left + width, baseline - 10, baseline + 3};
                    const bool inside =
                        box.left >= kLeft && box.right <= kWidth && box.top >= 0 && box.bottom <= kHeight - kBottom;
                    if (!chosen && inside && is_free(box)) {
                        chosen = {right ? x + 8 : x - 8, baseline, right ? "start" : "end"};
                        boxes_.push_back(box);
                    }
                }
            }
        }
        return chosen.value_or(Place{x + 8, y + 4, "start"});
    }

  private:
    struct Box {
        double left;
        double right;
        double top;
        double bottom;
    };

    bool is_free(const Box& box) const {
        return std::ranges::none_of(boxes_, [&](const Box& other) {
            return box.left < other.right && other.left < box.right && box.top < other.bottom && other.top < box.bottom;
        });
    }

    std::vector<Box> boxes_;
};

std::string open_svg(double width, double height) {
    return fmt::format(
        R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" font-family="sans-serif" font-size="12">)"
        R"(<rect width="100%" height="100%" fill="white"/>)",
        width, height);
}

std::string text_at(double x, double y, const std::string& anchor, const std::string& text,
                    const std::string& more = "") {
    return fmt::format(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="{}" fill="#24292f" {}>{}</text>)", x, y, anchor,
                       more, escape_markup(text));
}

}  // namespace

std::string escape_markup(const std::string& text) {
    std::string result;
    for (const char c : text) {
        switch (c) {
            case '&':
                result += "&amp;";
                break;
            case '<':
                result += "&lt;";
                break;
            case '>':
                result += "&gt;";
                break;
            case '"':
                result += "&quot;";
                break;
            default:
                result += c;
        }
    }
    return result;
}

std::string svg_of(const Chart& chart) {
    Axis x;
    Axis y;
    y.log = chart.log_y;
    x.include(0);
    for (const ChartSeries& series : chart.series) {
        for (const auto& [at, value] : series.points) {
            if (!chart.log_y || value > 0) {
                x.include(at);
                y.include(value);
            }
        }
    }
    if (!chart.log_y) {
        y.include(0);
    }
    if (!(y.low < y.high)) {
        y.high = y.low + 1;
    }
    if (!(x.low < x.high)) {
        x.high = x.low + 1;
    }
    const double margin = 0.05 * (y.high - y.low);
    y.low -= chart.log_y ? margin : 0;
    y.high += margin;
    x.high += 0.06 * (x.high - x.low);
    const auto px = [&](double value) { return kLeft + x.share(value) * (kWidth - kLeft - kRight); };
    const auto py = [&](double value) { return kHeight - kBottom - y.share(value) * (kHeight - kTop - kBottom); };

    const auto n_legend = static_cast<double>(
        std::ranges::count_if(chart.series, [](const ChartSeries& series) { return !series.label_points; }));
    std::string svg = open_svg(kWidth, kHeight + kLegendRow * n_legend);
    Labels labels;
    for (const ChartSeries& series : chart.series) {
        for (const auto& [at, value] : series.points) {
            if (series.label_points && (!chart.log_y || value > 0)) {
                labels.avoid(px(at), py(value));
            }
        }
    }
    for (const double value : ticks(x, 8)) {
        svg += fmt::format(R"(<line x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}" stroke="#eaeef2"/>)", px(value), kTop,
                           kHeight - kBottom);
        svg += text_at(px(value), kHeight - kBottom + 18, "middle", fmt::format("{:.4g}", value));
    }
    for (const double value : ticks(y, 6)) {
        svg += fmt::format(R"(<line x1="{1}" x2="{2}" y1="{0:.1f}" y2="{0:.1f}" stroke="#eaeef2"/>)", py(value), kLeft,
                           kWidth - kRight);
        svg += text_at(kLeft - 6, py(value) + 4, "end", fmt::format("{:.3g}", value));
    }
    svg += fmt::format(R"(<path d="M{0} {1}V{2}H{3}" fill="none" stroke="#57606a"/>)", kLeft, kTop, kHeight - kBottom,
                       kWidth - kRight);
    svg += text_at((kLeft + kWidth - kRight) / 2, kHeight - 16, "middle", chart.x_label);
    svg += text_at(16, (kTop + kHeight - kBottom) / 2, "middle", chart.y_label,
                   fmt::format(R"svg(transform="rotate(-90 16 {})")svg", (kTop + kHeight - kBottom) / 2));

    double legend_top = kHeight;
    for (size_t i = 0; i < chart.series.size(); ++i) {
        const ChartSeries& series = chart.series[i];
        const char* colour = kColours[i % kColours.size()];
        std::string path;
        std::string markers;
        for (const auto& [at, value] : series.points) {
            if (chart.log_y && value <= 0) {
                continue;
            }
            path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", px(at), py(value));
            markers += fmt::format(
                R"(<circle cx="{:.1f}" cy="{:.1f}" r="{}" fill="{}"><title>{}: {:.4g}, {:.4g}</title></circle>)",
                px(at), py(value), series.emphasised ? 5 : 4, colour, escape_markup(series.name), at, value);
        }
        if (path.empty()) {
            continue;
        }
        if (series.line) {
            svg += fmt::format(R"(<path d="{}" fill="none" stroke="{}" stroke-width="{}"/>)", path, colour,
                               series.emphasised ? 2.5 : 1.5);
        }
        svg += markers;
        if (series.label_points) {
            const auto& [at, value] = series.points.front();
            const Labels::Place place = labels.place(px(at), py(value), series.name.size());
            svg +=
                text_at(place.x, place.y, place.anchor, series.name, series.emphasised ? R"(font-weight="600")" : "");
        } else {
            svg += fmt::format(R"(<rect x="{}" y="{}" width="10" height="10" fill="{}"/>)", kLeft, legend_top, colour);
            svg += text_at(kLeft + 16, legend_top + 9, "start", series.name);
            legend_top += kLegendRow;
        }
    }
    return svg + "</svg>";
}

std::string svg_of(const HeatMap& map) {
    constexpr double kCellWidth = 84;
    constexpr double kCellHeight = 30;
    const double width = kLeft + 30 + kCellWidth * static_cast<double>(map.columns.size()) + kRight;
    const double height = kTop + kCellHeight * static_cast<double>(map.rows.size()) + kBottom;
    std::string svg = open_svg(width, height);
    for (size_t r = 0; r < map.rows.size(); ++r) {
        const double top = kTop + kCellHeight * static_cast<double>(r);
        svg += text_at(kLeft + 24, top + kCellHeight / 2 + 4, "end", map.rows[r]);
        for (size_t c = 0; c < map.columns.size(); ++c) {
            const double left = kLeft + 30 + kCellWidth * static_cast<double>(c);
            // From red over yellow to green.
            svg +=
                fmt::format(R"svg(<rect x="{:.1f}" y="{:.1f}" width="{}" height="{}" fill="hsl({:.0f},65%,62%)"/>)svg",
                            left, top, kCellWidth - 2, kCellHeight - 2, 120 * map.values[r][c]);
            svg += text_at(left + kCellWidth / 2, top + kCellHeight / 2 + 4, "middle",
                           fmt::format("{:.0f} %", 100 * map.values[r][c]));
        }
    }
    const double bottom = kTop + kCellHeight * static_cast<double>(map.rows.size());
    for (size_t c = 0; c < map.columns.size(); ++c) {
        svg += text_at(kLeft + 30 + kCellWidth * (static_cast<double>(c) + 0.5), bottom + 16, "middle", map.columns[c]);
    }
    svg += text_at((kLeft + width) / 2, bottom + 40, "middle", map.x_label);
    svg += text_at(16, (kTop + bottom) / 2, "middle", map.y_label,
                   fmt::format(R"svg(transform="rotate(-90 16 {})")svg", (kTop + bottom) / 2));
    return svg + "</svg>";
}

}  // namespace kvcodec
