/// A linear scale between round numbers.
pub(crate) struct Axis {
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

    pub(crate) fn over<'a>(values: impl Iterator<Item = &'a f64>) -> Self {
        let finite = values.copied().filter(|v| v.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low <= high { Self::new(low, high) } else { Self::new(0.0, 1.0) }
    }

    pub(crate) fn share(&self, v: f64) -> f64 {
        (v - self.low) / (self.high - self.low)
    }

    pub(crate) fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a handful of ticks")]
        let n = ((self.high - self.low) / self.step).round() as usize;
        #[expect(clippy::cast_precision_loss, reason = "a handful of ticks")]
        (0..=n).map(|i| self.low + i as f64 * self.step)
    }

    pub(crate) fn label(&self, v: f64) -> String {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "few decimals")]
        let decimals = (-self.step.log10().floor()).clamp(0.0, 6.0) as usize
            + usize::from(
                self.step < 1.0 && (self.step * 10f64.powf(-self.step.log10().floor()) - 2.5).abs() < 1e-9,
            );
        format!("{v:.decimals$}")
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
}
