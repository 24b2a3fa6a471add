//! Colours, once for pages and once for files.

use std::fmt::Write as _;

/// Colours of series, which repeat after so many.
pub(crate) const SERIES: usize = 8;

/// Colours of one of light and dark.
struct Palette {
    background: &'static str,
    text: &'static str,
    soft: &'static str,
    line: &'static str,
    card: &'static str,
    good: &'static str,
    bad: &'static str,
    series: [&'static str; SERIES],
}

const LIGHT: Palette = Palette {
    background: "#fcfcfb",
    text: "#1c1f23",
    soft: "#5a626c",
    line: "#e2e4e7",
    card: "#fff",
    good: "#1a7f37",
    bad: "#b42318",
    series: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#6a51a3", "#7f7f7f"],
};

const DARK: Palette = Palette {
    background: "#14171a",
    text: "#e6e8ea",
    soft: "#9aa3ad",
    line: "#2c3238",
    card: "#1a1e22",
    good: "#4ac26b",
    bad: "#ff7b72",
    series: ["#4aa3df", "#f0883e", "#2dc49b", "#e59ac4", "#e3b341", "#8fd0f5", "#a892e0", "#a0a6ad"],
};

/// Colours of heat maps from low to high, evenly spaced: lightness rises all the way, so that it reads without hue too.
const HEAT: [[f64; 3]; 6] = [
    [36.0, 20.0, 80.0],
    [64.0, 62.0, 140.0],
    [38.0, 113.0, 150.0],
    [40.0, 165.0, 131.0],
    [148.0, 207.0, 84.0],
    [250.0, 232.0, 60.0],
];

/// Colours of heat maps that are told apart.
pub(crate) const LEVELS: usize = 64;

impl Palette {
    fn variables(&self) -> String {
        let mut css = format!(
            "--bg:{};--fg:{};--soft:{};--line:{};--card:{};--good:{};--bad:{}",
            self.background, self.text, self.soft, self.line, self.card, self.good, self.bad
        );
        for (i, colour) in self.series.iter().enumerate() {
            let _ = write!(css, ";--c{i}:{colour}");
        }
        css
    }

    fn rules(&self) -> String {
        let mut css = format!(
            ".back{{fill:{}}}.title{{fill:{}}}.tick,.label{{fill:{}}}.grid{{stroke:{}}}\n",
            self.card, self.text, self.soft, self.line
        );
        for (i, colour) in self.series.iter().enumerate() {
            let _ = write!(css, ".c{i}{{fill:{colour}}}.l{i}{{stroke:{colour}}}");
        }
        css + "\n"
    }
}

/// Variables for the style sheet of a page, and the rules of series that use them.
pub(crate) fn of_page() -> String {
    let mut css = format!(
        ":root{{{}}}\n@media(prefers-color-scheme:dark){{:root{{{}}}}}\n",
        LIGHT.variables(),
        DARK.variables()
    );
    for i in 0..SERIES {
        let _ = writeln!(css, ".c{i}{{fill:var(--c{i});background:var(--c{i})}}.l{i}{{stroke:var(--c{i})}}");
    }
    css + ".grid{stroke:var(--line)}.tick,.label{fill:var(--soft)}\n"
}

/// Rules for a file of its own, without variables, which few programs beside browsers know.
pub(crate) fn of_file() -> String {
    format!("{}@media(prefers-color-scheme:dark){{{}}}\n", LIGHT.rules(), DARK.rules())
}

/// The level of a share of a colour scale, from 0 to 1.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a few levels"
)]
pub(crate) fn level(share: f64) -> usize {
    ((share.clamp(0.0, 1.0) * LEVELS as f64) as usize).min(LEVELS - 1)
}

/// The colour of a level.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a few levels of bytes"
)]
pub(crate) fn heat(level: usize) -> String {
    let at = level as f64 / (LEVELS - 1) as f64 * (HEAT.len() - 1) as f64;
    let below = (at as usize).min(HEAT.len() - 2);
    let share = at - below as f64;
    let mix = |i: usize| (HEAT[below][i] + share * (HEAT[below + 1][i] - HEAT[below][i])).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_of_heat_become_lighter_all_the_way() {
        let lightness = |level: usize| {
            let colour = heat(level);
            let part = |i: usize| f64::from(u8::from_str_radix(&colour[i..i + 2], 16).unwrap());
            0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
        };
        let all: Vec<f64> = (0..LEVELS).map(lightness).collect();
        assert!(all.windows(2).all(|pair| pair[1] > pair[0]), "{all:?}");
        assert_eq!([level(-1.0), level(0.0), level(1.0), level(f64::NAN)], [0, 0, LEVELS - 1, 0]);
        assert_eq!((heat(0), heat(LEVELS - 1)), ("#241450".into(), "#fae83c".into()));
    }

    #[test]
    fn every_colour_of_a_page_is_defined_for_light_and_dark() {
        let css = of_page();
        let style = include_str!("style.css");
        for name in style.split("var(").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            assert_eq!(css.matches(&format!("{name}:#")).count(), 2, "{name}");
        }
    }
}
