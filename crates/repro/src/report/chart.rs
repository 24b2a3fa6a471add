use super::html::escape;
use super::{BarSeries, Figure, LineSeries, Plot};
use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 52.0;

/// From so many categories on their labels are slanted and get room below.
const SLANTED: usize = 10;
const SLANT_ROOM: f64 = 70.0;

/// A chart as SVG that takes its colours from the page's style sheet, so that it fits light and dark.
pub(super) fn to_svg(figure: &Figure) -> String {
    let slanted = matches!(&figure.plot, Plot::Bars { categories, .. } if categories.len() >= SLANTED);
    let height = HEIGHT + if slanted { SLANT_ROOM } else { 0.0 };
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\" xmlns=\"http://www.w3.org/2000/svg\">\n",
        escape(&figure.title)
    );
    match &figure.plot {
        Plot::Bars { categories, series } => bars(&mut svg, categories, series),
        Plot::Lines { series } => points(&mut svg, series, true),
        Plot::Points { series } => points(&mut svg, series, false),
    }
    let (x, y) = (LEFT + inner_width() / 2.0, height - 8.0);
    let _ = writeln!(
        svg,
        "<text class=\"label\" x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{}</text>",
        escape(&figure.x_label)
    );
    let middle = TOP + inner_height() / 2.0;
    let _ = writeln!(
        svg,
        "<text class=\"label\" x=\"14\" y=\"{middle}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {middle})\">{}</text>",
        escape(&figure.y_label)
    );
    svg + "</svg>\n" + &legend(&figure.plot)
}

fn inner_width() -> f64 {
    WIDTH - LEFT - RIGHT
}

fn inner_height() -> f64 {
    HEIGHT - TOP - BOTTOM
}

fn legend(plot: &Plot) -> String {
    let names: Vec<&str> = match plot {
        Plot::Bars { series, .. } => series.iter().map(|s| s.name.as_str()).collect(),
        Plot::Lines { series } | Plot::Points { series } => series.iter().map(|s| s.name.as_str()).collect(),
    };
    let item = |(i, name): (usize, &&str)| {
        format!("<span><i class=\"swatch c{}\"></i>{}</span>", i % 8, escape(name))
    };
    format!("<div class=\"legend\">{}</div>\n", names.iter().enumerate().map(item).collect::<String>())
}

/// A linear scale between round numbers.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    fn new(low: f64, high: f64) -> Self {
        let (low, high) = if high > low { (low, high) } else { (low - 0.5, low + 0.5) };
        let rough = (high - low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(rough);
        Self { low: (low / step).floor() * step, high: (high / step).ceil() * step, step }
    }

    fn over<'a>(values: impl Iterator<Item = &'a f64>) -> Self {
        let finite = values.copied().filter(|v| v.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low <= high { Self::new(low, high) } else { Self::new(0.0, 1.0) }
    }

    fn share(&self, v: f64) -> f64 {
        (v - self.low) / (self.high - self.low)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a handful of ticks")]
        let n = ((self.high - self.low) / self.step).round() as usize;
        #[expect(clippy::cast_precision_loss, reason = "a handful of ticks")]
        (0..=n).map(|i| self.low + i as f64 * self.step)
    }

    fn label(&self, v: f64) -> String {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "few decimals")]
        let decimals = (-self.step.log10().floor()).clamp(0.0, 6.0) as usize
            + usize::from(
                self.step < 1.0 && (self.step * 10f64.powf(-self.step.log10().floor()) - 2.5).abs() < 1e-9,
            );
        format!("{v:.decimals$}")
    }
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
                s % 8,
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
        let color = s % 8;
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

    #[test]
    fn axes_cover_their_values_with_round_steps() {
        for (low, high) in [(0.0, 1.0), (97.2, 99.13), (0.0, 50.0), (5.0, 5.0), (-3.0, 1e6)] {
            let axis = Axis::new(low, high);
            assert!(axis.low <= low && axis.high >= high, "{low} {high}");
            let ticks: Vec<f64> = axis.ticks().collect();
            assert!((2..=12).contains(&ticks.len()), "{low} {high}: {ticks:?}");
            let labels: std::collections::BTreeSet<String> = ticks.iter().map(|t| axis.label(*t)).collect();
            assert_eq!(labels.len(), ticks.len(), "labels collide: {labels:?}");
        }
    }

    #[test]
    fn charts_draw_every_value() {
        let report = super::super::tests::example();
        let bars = to_svg(&report.figures[0]);
        assert_eq!(bars.matches("<rect").count(), 3, "{bars}");
        let lines = to_svg(&report.figures[1]);
        assert_eq!((lines.matches("<polyline").count(), lines.matches("<circle").count()), (2, 6));
        assert!(!lines.contains("NaN"));
    }
}
