use crate::chart::{Area, BOTTOM, CHARACTER, RIGHT, TOP, WIDTH};
use crate::html::escape;
use crate::markdown::short;
use crate::palette::{LEVELS, heat, level};
use std::fmt::Write as _;

/// Most height of all cells.
const MOST_HEIGHT: f64 = 470.0;
/// Most width of the labels of rows.
const MOST_LABEL: f64 = 200.0;
/// What the scale needs to the right.
const SCALE_ROOM: f64 = 96.0;
const SCALE_HEIGHT: f64 = 80.0;
/// Most cells that tell their value when pointed at.
const MOST_TITLES: usize = 4096;

/// Square cells, their labels, and the scale of the colours.
pub(crate) fn draw(
    svg: &mut String,
    [rows, columns]: [&[String]; 2],
    values: &[Vec<Option<f64>>],
    range: [f64; 2],
) -> Area {
    let longest = |labels: &[String]| labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "short labels, and cells that can be drawn")]
    let (left, column_label, across, down) = (
        34.0 + (CHARACTER * longest(rows) as f64).min(MOST_LABEL),
        CHARACTER * longest(columns) as f64,
        columns.len().max(1) as f64,
        rows.len().max(1) as f64,
    );
    let cell = ((WIDTH - left - SCALE_ROOM - RIGHT) / across).min(MOST_HEIGHT / down);
    let share =
        |value: f64| if range[1] > range[0] { (value - range[0]) / (range[1] - range[0]) } else { 0.5 };
    // A cell is 1 wide and high here.
    let _ = writeln!(
        svg,
        "<g transform=\"translate({left} {TOP}) scale({cell:.4})\" shape-rendering=\"crispEdges\">"
    );
    let known = values.iter().enumerate().flat_map(|(row, values)| {
        values.iter().enumerate().filter_map(move |(column, value)| Some((row, column, (*value)?)))
    });
    if rows.len() * columns.len() <= MOST_TITLES {
        for (row, column, value) in known {
            let label = |labels: &[String], i: usize| labels.get(i).map_or_else(String::new, |l| escape(l));
            let _ = writeln!(
                svg,
                "<rect x=\"{column}\" y=\"{row}\" width=\"1\" height=\"1\" fill=\"{}\"><title>{}, {}: {}</title></rect>",
                heat(level(share(value))),
                label(rows, row),
                label(columns, column),
                short(value)
            );
        }
    } else {
        // One path a colour.
        let mut paths = vec![String::new(); LEVELS];
        for (row, column, value) in known {
            let _ = write!(paths[level(share(value))], "M{column} {row}h1v1h-1z");
        }
        for (level, path) in paths.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
            let _ = writeln!(svg, "<path fill=\"{}\" d=\"{path}\"/>", heat(level));
        }
    }
    svg.push_str("</g>\n");
    let (width, height) = (cell * across, (cell * down).max(SCALE_HEIGHT));
    for (y, label) in places(rows, cell, 14.0) {
        text(svg, [left - 6.0, TOP + y + 4.0], "end", label);
    }
    for (x, label) in places(columns, cell, column_label + 8.0) {
        text(svg, [left + x, TOP + cell * down + 18.0], "middle", label);
    }
    scale(svg, left + width + 24.0, height, range);
    Area { left, width, height, below: BOTTOM }
}

/// The middles of cells that have room for their label, with it.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "cells that can be drawn"
)]
fn places(labels: &[String], cell: f64, room: f64) -> impl Iterator<Item = (f64, &String)> {
    let step = ((room / cell).ceil() as usize).max(1);
    labels.iter().enumerate().step_by(step).map(move |(i, label)| (cell * (i as f64 + 0.5), label))
}

/// A bar of all colours, with the values of its ends and its middle.
fn scale(svg: &mut String, x: f64, height: f64, range: [f64; 2]) {
    #[expect(clippy::cast_precision_loss, reason = "a few levels")]
    let step = height / LEVELS as f64;
    svg.push_str("<g shape-rendering=\"crispEdges\">");
    let mut bottom = TOP + height;
    for level in 0..LEVELS {
        bottom -= step;
        let _ = write!(
            svg,
            "<path fill=\"{}\" d=\"M{x:.1} {bottom:.2}h14v{:.2}h-14z\"/>",
            heat(level),
            step + 0.5
        );
    }
    svg.push_str("</g>\n");
    for (share, value) in [(0.0, range[0]), (0.5, f64::midpoint(range[0], range[1])), (1.0, range[1])] {
        text(svg, [x + 20.0, TOP + height * (1.0 - share) + 4.0], "start", &short(value));
    }
}

fn text(svg: &mut String, [x, y]: [f64; 2], anchor: &str, label: &str) {
    let _ = writeln!(
        svg,
        "<text class=\"tick\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escape(label)
    );
}

#[cfg(test)]
mod tests {
    use crate::chart::of_page;
    use crate::palette::{LEVELS, heat};
    use crate::tests::matrix;
    use crate::{Figure, Plot};

    #[test]
    fn every_cell_is_drawn_and_few_tell_their_value() {
        let few = of_page(&matrix(5, 7));
        assert_eq!((few.matches("<rect").count(), few.matches("<title>").count()), (30, 30), "{few}");
        assert!(few.contains("<title>2, 3: 0.375</title>") && !few.contains("NaN"));
        let many = of_page(&matrix(65, 64));
        assert_eq!((many.matches("<rect").count(), many.matches("<title>").count()), (0, 0));
        assert_eq!(many.matches("h1v1h-1z").count(), 65 * 64 - 64);
    }

    #[test]
    fn the_range_is_that_of_the_colours() {
        let values = vec![vec![Some(-5.0), Some(0.0), Some(5.0), None]];
        let columns = ["a", "b", "c", "d"].map(String::from).to_vec();
        let plot = Plot::Matrix { rows: vec!["x".into()], columns, values, range: [0.0, 4.0] };
        let svg = of_page(&Figure { plot, ..matrix(1, 1) });
        for (colour, cells) in [(heat(0), 2), (heat(LEVELS - 1), 1)] {
            assert_eq!(svg.matches(&format!("height=\"1\" fill=\"{colour}\"")).count(), cells, "{svg}");
        }
        assert!([">0</text>", ">2</text>", ">4</text>"].iter().all(|label| svg.contains(label)));
        let empty = Plot::Matrix { rows: vec![], columns: vec![], values: vec![], range: [1.0, 1.0] };
        assert!(!of_page(&Figure { plot: empty, ..matrix(1, 1) }).contains("NaN"));
    }
}
