use crate::{Figure, LineSeries, Plot, Table};
use std::fmt::Write as _;

/// Most rows and columns of a matrix whose numbers are all shown.
const MOST: usize = 16;

impl Figure {
    /// Title and numbers; of a large matrix its extents, and the least, the mean and the largest value.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        numbers(self, &self.title).to_markdown()
    }
}

impl Table {
    /// Title, caption and cells.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let mut text = format!("\n## {}\n\n", self.title);
        if !self.caption.is_empty() {
            let _ = writeln!(text, "{}\n", self.caption);
        }
        let row = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|c| c.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        text += &row(&self.columns);
        text += &row(&self.columns.iter().map(|_| "---".to_owned()).collect::<Vec<_>>());
        for cells in &self.rows {
            text += &row(cells);
        }
        text
    }
}

/// Four digits after the point at most.
pub(crate) fn short(value: f64) -> String {
    format!("{value:.4}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The numbers behind a chart as a table: one row a category or x value.
pub(crate) fn numbers(figure: &Figure, title: &str) -> Table {
    let number = |v: Option<f64>| v.map_or("-".to_owned(), short);
    let mut columns = vec![figure.x_label.clone()];
    let rows = match &figure.plot {
        Plot::Bars { categories, series } => {
            columns.extend(series.iter().map(|s| s.name.clone()));
            let row = |(i, category): (usize, &String)| {
                let values = series.iter().map(|s| number(s.values.get(i).copied().flatten()));
                std::iter::once(category.clone()).chain(values).collect()
            };
            categories.iter().enumerate().map(row).collect()
        }
        Plot::Points { series } => {
            columns = vec![String::new(), figure.x_label.clone(), figure.y_label.clone()];
            let row =
                |s: &LineSeries, [x, y]: [f64; 2]| vec![s.name.clone(), number(Some(x)), number(Some(y))];
            series.iter().flat_map(|s| s.points.iter().map(move |point| row(s, *point))).collect()
        }
        Plot::Lines { series } => {
            columns.extend(series.iter().map(|s| s.name.clone()));
            let mut xs: Vec<f64> = series.iter().flat_map(|s| s.points.iter().map(|p| p[0])).collect();
            xs.sort_by(f64::total_cmp);
            xs.dedup();
            let at = |s: &LineSeries, x: f64| s.points.iter().find(|p| p[0] == x).map(|p| p[1]);
            let row = |x: &f64| {
                std::iter::once(number(Some(*x))).chain(series.iter().map(|s| number(at(s, *x)))).collect()
            };
            xs.iter().map(row).collect()
        }
        Plot::Matrix { rows, columns: names, values, .. } if rows.len().max(names.len()) <= MOST => {
            columns = vec![format!("{} \\ {}", figure.y_label, figure.x_label)];
            columns.extend(names.iter().cloned());
            let row = |(name, values): (&String, &Vec<Option<f64>>)| {
                std::iter::once(name.clone()).chain(values.iter().copied().map(number)).collect()
            };
            rows.iter().zip(values).map(row).collect()
        }
        Plot::Matrix { rows, columns: names, values, .. } => {
            columns = ["rows", "columns", "least", "mean", "largest"].map(String::from).into();
            let known = || values.iter().flatten().copied().flatten();
            #[expect(clippy::cast_precision_loss, reason = "a count of cells")]
            let count = known().count() as f64;
            let some = |value: f64| number((count > 0.0).then_some(value));
            vec![vec![
                rows.len().to_string(),
                names.len().to_string(),
                some(known().fold(f64::INFINITY, f64::min)),
                some(known().sum::<f64>() / count),
                some(known().fold(f64::NEG_INFINITY, f64::max)),
            ]]
        }
    };
    Table { title: title.to_owned(), caption: String::new(), columns, rows }
}

#[cfg(test)]
mod tests {
    use crate::tests::{bars, lines, matrix};

    #[test]
    fn numbers_of_every_kind() {
        assert!(bars().to_markdown().contains("| conv2 | 25 | - |"), "{}", bars().to_markdown());
        assert!(lines().to_markdown().contains("| 10 | 98.5 | 98.5 |"), "{}", lines().to_markdown());
        let small = matrix(2, 3).to_markdown();
        assert!(
            small.contains("| 0 | - | 0.125 | 0.25 |") && small.contains("| 1 | 0.375 | - | 0.625 |"),
            "{small}"
        );
        let large = matrix(17, 3).to_markdown();
        assert!(large.contains("| rows | columns | least | mean | largest |"), "{large}");
        assert!(large.contains("| 17 | 3 | 0 | 0.3724 | 0.75 |"), "{large}");
        assert_eq!(large.lines().filter(|l| l.starts_with('|')).count(), 3);
    }
}
