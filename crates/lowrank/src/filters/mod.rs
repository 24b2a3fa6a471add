//! How the filters of a layer lie to each other.

mod projection;
mod similarity;

pub use projection::{Plane, Projection, projection};
pub use similarity::{Similarity, similarity};

/// Rows of this length, each divided by its L2 norm; a row of zeros stays.
fn normalised(rows: &[f32], len: usize) -> Vec<f64> {
    let mut rows: Vec<f64> = rows.iter().map(|w| f64::from(*w)).collect();
    for row in rows.chunks_exact_mut(len) {
        // By the largest first, so that no square is lost.
        let largest = row.iter().fold(0.0, |a: f64, w| a.max(w.abs()));
        if largest > 0.0 {
            let norm = row.iter().map(|w| (w / largest).powi(2)).sum::<f64>().sqrt() * largest;
            row.iter_mut().for_each(|w| *w /= norm);
        }
    }
    rows
}
