// Line and scatter charts and heat-maps as SVG.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace kvcodec {

struct ChartSeries {
    std::string name;
    std::vector<std::pair<double, double>> points;
    bool line = true;           ///< joined by a line; else a marker each
    bool label_points = false;  ///< the name is written beside the first point, not in the legend
    bool emphasised = false;    ///< drawn in a strong colour
};

struct Chart {
    std::string x_label;
    std::string y_label;
    bool log_y = false;
    std::vector<ChartSeries> series;
};

/// Points that a logarithmic axis cannot show are left out.
std::string svg_of(const Chart& chart);

struct HeatMap {
    std::string x_label;
    std::string y_label;
    std::vector<std::string> columns;
    std::vector<std::string> rows;
    std::vector<std::vector<double>> values;  ///< [rows][columns], 0 to 1
};

std::string svg_of(const HeatMap& map);

/// `text` with &, <, > and quotes escaped for HTML and SVG.
std::string escape_markup(const std::string& text);

}  // namespace kvcodec
