/// Counts how often the right class is ranked first, and among the first five.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Images counted.
    pub images: usize,
    /// Of which the right class was first.
    pub first: usize,
    /// Of which the right class was among the first five.
    pub among_five: usize,
}

impl Tally {
    /// Counts an image. Of equal scores the lower class number comes first; a score that is NaN is ranked nowhere.
    ///
    /// # Panics
    /// If `label` is no index of `scores`.
    pub fn add(&mut self, scores: &[f32], label: usize) {
        let own = scores[label];
        let before = |(class, score): (usize, &f32)| *score > own || (*score == own && class < label);
        let rank = scores.iter().enumerate().filter(|entry| before(*entry)).count();
        self.images += 1;
        self.first += usize::from(rank == 0 && !own.is_nan());
        self.among_five += usize::from(rank < 5 && !own.is_nan());
    }

    /// Share of the images whose class was first; 0 of none.
    #[must_use]
    pub fn top1(&self) -> f64 {
        share(self.first, self.images)
    }

    /// Share of the images whose class was among the first five; 0 of none.
    #[must_use]
    pub fn top5(&self) -> f64 {
        share(self.among_five, self.images)
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of images are far below 2^52")]
fn share(of: usize, all: usize) -> f64 {
    of as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_go_by_class_and_nan_never_counts() {
        let count = |scores: &[f32], label| {
            let mut tally = Tally::default();
            tally.add(scores, label);
            (tally.first, tally.among_five)
        };
        assert_eq!(count(&[0.0, 2.0, 2.0], 1), (1, 1));
        assert_eq!(count(&[0.0, 2.0, 2.0], 2), (0, 1));
        assert_eq!(count(&[1.0; 7], 5), (0, 0));
        assert_eq!(count(&[f32::NAN, f32::NAN], 0), (0, 0));
        let two = Tally { images: 2, first: 1, among_five: 2 };
        assert_eq!((two.top1(), two.top5(), Tally::default().top1()), (0.5, 1.0, 0.0));
    }
}
