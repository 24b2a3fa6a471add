use crate::axis::Axis;
use crate::files::MARK;
use crate::html::escape;
use crate::palette::{self, SERIES};
use crate::{BarSeries, Figure, LineSeries, Plot, matrix};
use std::fmt::Write as _;

pub(crate) const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 64.0;
pub(crate) const RIGHT: f64 = 16.0;
pub(crate) const TOP: f64 = 14.0;
pub(crate) const BOTTOM: f64 = 52.0;

/// From so many categories on their labels are slanted and get room below.
const SLANTED: usize = 10;
const SLANT_ROOM: f64 = 70.0;

/// Width of a character of a label, on average.
pub(crate) const CHARACTER: f64 = 7.0;

/// What pages and files share beside colours.
pub(crate) const STYLE: &str =
    ".tick{font-size:12px}.label{font-size:13px}polyline{fill:none;stroke-width:2}\n";
const FILE_STYLE: &str = "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}\
                          .title{font-size:16px;font-weight:600}\n";

/// Where the numbers of a chart lie.
pub(crate) struct Area {
    pub(crate) left: f64,
    pub(crate) width: f64,
    /// From [`TOP`] on.
    pub(crate) height: f64,
    /// What the labels of the horizontal axis need below.
    pub(crate) below: f64,
}

impl Figure {
    /// A file of its own: colours for light and dark, title and legend inside, no script and nothing from elsewhere.
    #[must_use]
    pub fn to_svg(&self) -> String {
        let (body, chart_height) = draw(self);
        let title = wrapped(&self.title, 84);
        #[expect(clippy::cast_precision_loss, reason = "a few lines")]
        let title_height = 12.0 + 22.0 * title.len() as f64;
        let (legend, legend_height) = legend(&names(&self.plot), title_height + chart_height + 6.0);
        let height = (title_height + chart_height + legend_height + 14.0).round();
        let mut svg = format!(
            "{MARK}<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<title>{}</title>\n<desc>{}</desc>\n\
             <style>{FILE_STYLE}{STYLE}{}</style>\n<rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n",
            escape(&self.title),
            escape(&self.caption),
            palette::of_file()
        );
        let mut y = 4.0;
        for line in &title {
            y += 22.0;
            let _ = writeln!(svg, "<text class=\"title\" x=\"16\" y=\"{y}\">{}</text>", escape(line));
        }
        svg + &format!("<g transform=\"translate(0 {title_height})\">\n{body}</g>\n{legend}</svg>\n")
    }
}

/// A chart for a page, whose style sheet colours it, and its legend.
pub(crate) fn of_page(figure: &Figure) -> String {
    let (body, height) = draw(figure);
    let item = |(i, name): (usize, &&str)| {
        format!("<span><i class=\"swatch c{}\"></i>{}</span>", i % SERIES, escape(name))
    };
    let legend: String = names(&figure.plot).iter().enumerate().map(item).collect();
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\" xmlns=\"http://www.w3.org/2000/svg\">\n\
         {body}</svg>\n<div class=\"legend\">{legend}</div>\n",
        escape(&figure.title)
    )
}

/// The elements of a chart, and its height.
fn draw(figure: &Figure) -> (String, f64) {
    let mut svg = String::new();
    let mut area = Area { left: LEFT, width: inner_width(), height: inner_height(), below: BOTTOM };
    match &figure.plot {
        Plot::Bars { categories, series } => {
            bars(&mut svg, categories, series);
            area.below += if categories.len() >= SLANTED { SLANT_ROOM } else { 0.0 };
        }
        Plot::Lines { series } => points(&mut svg, series, true),
        Plot::Points { series } => points(&mut svg, series, false),
        Plot::Matrix { rows, columns, values, range } => {
            area = matrix::draw(&mut svg, [rows, columns], values, *range);
        }
    }
    let height = (TOP + area.height + area.below).round();
    let _ = writeln!(
        svg,
        "<text class=\"label\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        area.left + area.width / 2.0,
        height - 8.0,
        escape(&figure.x_label)
    );
    let middle = TOP + area.height / 2.0;
    let _ = writeln!(
        svg,
        "<text class=\"label\" x=\"14\" y=\"{middle:.1}\" text-anchor=\"middle\" \
         transform=\"rotate(-90 14 {middle:.1})\">{}</text>",
        escape(&figure.y_label)
    );
    (svg, height)
}

fn inner_width() -> f64 {
    WIDTH - LEFT - RIGHT
}

fn inner_height() -> f64 {
    HEIGHT - TOP - BOTTOM
}

fn names(plot: &Plot) -> Vec<&str> {
    match plot {
        Plot::Bars { series, .. } => series.iter().map(|s| s.name.as_str()).collect(),
        Plot::Lines { series } | Plot::Points { series } => series.iter().map(|s| s.name.as_str()).collect(),
        // Its scale is drawn beside it.
        Plot::Matrix { .. } => Vec::new(),
    }
}

/// Names beside their colours in rows from `y` on, and the height of these.
fn legend(names: &[&str], y: f64) -> (String, f64) {
    const ROW: f64 = 22.0;
    let mut svg = String::new();
    let (mut x, mut row) = (LEFT, 0.0);
    for (i, name) in names.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "a short text")]
        let width = 36.0 + CHARACTER * name.chars().count() as f64;
        if x > LEFT && x + width > WIDTH - RIGHT {
            (x, row) = (LEFT, row + ROW);
        }
        let top = y + row;
        let _ = writeln!(
            svg,
            "<rect class=\"c{}\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"12\" height=\"12\" rx=\"3\"/>\
             <text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            i % SERIES,
            x + 18.0,
            top + 11.0,
            escape(name)
        );
        x += width;
    }
    (svg, if names.is_empty() { 0.0 } else { row + ROW })
}

/// A text in lines of at most so many characters, where its words allow.
fn wrapped(text: &str, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() < most => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn grid(svg: &mut String, axis: &Axis) {
    for v in axis.ticks() {
        let y = TOP + inner_height() * (1.0 - axis.share(v));
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            WIDTH - RIGHT
        );
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 4.0,
            axis.label(v)
        );
    }
}

fn bars(svg: &mut String, categories: &[String], series: &[BarSeries]) {
    let axis = Axis::over(series.iter().flat_map(|s| s.values.iter().flatten()).chain(&[0.0]));
    grid(svg, &axis);
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    let (group, width) = {
        let group = inner_width() / categories.len().max(1) as f64;
        (group, 0.8 * group / series.len().max(1) as f64)
    };
    let base = TOP + inner_height() * (1.0 - axis.share(0.0));
    for (c, category) in categories.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let left = LEFT + group * c as f64 + 0.1 * group;
        let (x, y) = (left + 0.4 * group, HEIGHT - BOTTOM + 18.0);
        let slanted = categories.len() >= SLANTED;
        let turn = if slanted { format!(" transform=\"rotate(-35 {x:.1} {y:.1})\"") } else { String::new() };
        let anchor = if slanted { "end" } else { "middle" };
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{turn}>{}</text>",
            escape(category)
        );
        for (s, one) in series.iter().enumerate() {
            let Some(value) = one.values.get(c).copied().flatten() else { continue };
            let y = TOP + inner_height() * (1.0 - axis.share(value));
            #[expect(clippy::cast_precision_loss, reason = "small counts")]
            let x = left + width * s as f64;
            let (top, height) = (y.min(base), (y - base).abs());
            let _ = writeln!(
                svg,
                "<rect class=\"c{}\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height:.1}\">\
                 <title>{} {}: {value:.4}</title></rect>",
                s % SERIES,
                (width - 1.0).max(1.0),
                escape(&one.name),
                escape(category)
            );
        }
    }
}

fn points(svg: &mut String, series: &[LineSeries], joined: bool) {
    let all = || series.iter().flat_map(|s| &s.points);
    let (x_axis, y_axis) = (Axis::over(all().map(|p| &p[0])), Axis::over(all().map(|p| &p[1])));
    grid(svg, &y_axis);
    for v in x_axis.ticks() {
        let x = LEFT + inner_width() * x_axis.share(v);
        let y = HEIGHT - BOTTOM + 18.0;
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{}</text>",
            x_axis.label(v)
        );
    }
    let place = |p: &[f64; 2]| {
        (LEFT + inner_width() * x_axis.share(p[0]), TOP + inner_height() * (1.0 - y_axis.share(p[1])))
    };
    for (s, one) in series.iter().enumerate() {
        let color = s % SERIES;
        let drawn = || one.points.iter().filter(|p| p[0].is_finite() && p[1].is_finite());
        if joined {
            let path: Vec<String> = drawn().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(svg, "<polyline class=\"l{color}\" points=\"{}\"/>", path.join(" "));
        }
        if !joined || one.points.len() <= 40 {
            for p in drawn() {
                let (x, y) = place(p);
                let radius = if joined { 2.5 } else { 5.0 };
                let _ = writeln!(
                    svg,
                    "<circle class=\"c{color}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"><title>{}: {} / {}</title></circle>",
                    escape(&one.name),
                    p[0],
                    p[1]
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{bars, lines, matrix};

    #[test]
    fn charts_draw_every_value() {
        let chart = of_page(&bars());
        assert_eq!(chart.matches("<rect").count(), 3, "{chart}");
        let chart = of_page(&lines());
        assert_eq!((chart.matches("<polyline").count(), chart.matches("<circle").count()), (2, 6));
        assert!(!chart.contains("NaN"));
    }

    #[test]
    fn a_file_of_its_own_has_size_colours_title_and_legend() {
        for figure in [bars(), lines(), matrix(3, 4)] {
            let svg = figure.to_svg();
            assert!(svg.starts_with(MARK) && svg.ends_with("</svg>\n"), "{svg}");
            let size = svg.split("<svg ").nth(1).unwrap().split('>').next().unwrap();
            assert!(
                ["width=\"760\"", "height=\"", "viewBox=\"0 0 760 "].iter().all(|part| size.contains(part)),
                "{size}"
            );
            assert!(svg.contains("prefers-color-scheme:dark") && !svg.contains("var("));
            assert!(svg.contains(&format!(">{}</text>", figure.title)));
            assert!(svg.contains("Lower is &lt;better&gt;."));
            for name in names(&figure.plot) {
                assert!(svg.contains(&format!(">{name}</text>")), "{name}");
            }
            let fetched =
                ["src=", "href=", "url(", "@import", "<script"].into_iter().find(|word| svg.contains(word));
            assert_eq!(fetched, None, "the file fetches something");
        }
    }

    #[test]
    fn long_titles_and_legends_are_broken() {
        let long = ["word"; 50].join(" ");
        assert_eq!(wrapped(&long, 84).join(" "), long);
        assert!(wrapped(&long, 84).iter().all(|line| line.len() <= 84));
        let (_, one) = legend(&["a", "b"], 0.0);
        let (_, several) = legend(&["a name of some length"; 12], 0.0);
        assert!(several > one);
    }
}
