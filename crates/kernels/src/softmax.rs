/// `dst[r, i] = exp(src[r, i]) / sum_j exp(src[r, j])` for `src` and `dst` of `[rows, cols]`.
///
/// The largest element of a row is subtracted first, so nothing overflows; a row with a NaN or `+inf` gives NaNs.
///
/// # Panics
///
/// If a slice is not `rows * cols` long or `cols` is 0.
pub fn softmax(rows: usize, cols: usize, src: &[f32], dst: &mut [f32]) {
    assert!(cols > 0, "softmax: no columns");
    assert_eq!(src.len(), rows * cols, "softmax: src");
    assert_eq!(dst.len(), rows * cols, "softmax: dst");
    for (src, dst) in src.chunks_exact(cols).zip(dst.chunks_exact_mut(cols)) {
        let (_, sum) = exponentials(src, dst);
        let scale = (1.0 / sum) as f32;
        for d in dst {
            *d *= scale;
        }
    }
}

/// Mean over `rows` of `-ln softmax(logits[r])[labels[r]]`, in nats, and its gradient by the logits if asked:
/// `grad[r, i] = (softmax(logits[r])[i] - [i = labels[r]]) / rows`. `logits` and `grad` are `[rows, cols]`.
///
/// # Panics
///
/// If `rows` or `cols` is 0, a slice has another length, or a label is not below `cols`.
pub fn softmax_cross_entropy(
    rows: usize,
    cols: usize,
    logits: &[f32],
    labels: &[u32],
    mut grad: Option<&mut [f32]>,
) -> f64 {
    assert!(rows > 0 && cols > 0, "softmax_cross_entropy: {rows} rows, {cols} columns");
    assert_eq!(logits.len(), rows * cols, "softmax_cross_entropy: logits");
    assert_eq!(labels.len(), rows, "softmax_cross_entropy: labels");
    if let Some(grad) = &grad {
        assert_eq!(grad.len(), rows * cols, "softmax_cross_entropy: grad");
    }
    let mut loss = 0.0;
    for (r, (row, &label)) in logits.chunks_exact(cols).zip(labels).enumerate() {
        let label = label as usize;
        assert!(label < cols, "softmax_cross_entropy: label {label} of row {r} is not below {cols}");
        let (largest, sum) = match grad.as_deref_mut().map(|g| &mut g[r * cols..(r + 1) * cols]) {
            None => {
                let largest = largest(row);
                (largest, row.iter().map(|&x| f64::from((x - largest).exp())).sum())
            }
            Some(grad) => {
                let (largest, sum) = exponentials(row, grad);
                let scale = (1.0 / (sum * rows as f64)) as f32;
                for g in grad.iter_mut() {
                    *g *= scale;
                }
                grad[label] -= 1.0 / rows as f32;
                (largest, sum)
            }
        };
        loss += sum.ln() - f64::from(row[label] - largest);
    }
    loss / rows as f64
}

/// Writes `exp(src - largest)` and gives the largest element and the sum of what was written.
fn exponentials(src: &[f32], dst: &mut [f32]) -> (f32, f64) {
    let largest = largest(src);
    let mut sum = 0.0;
    for (d, &s) in dst.iter_mut().zip(src) {
        *d = (s - largest).exp();
        sum += f64::from(*d);
    }
    (largest, sum)
}

/// The largest element, NaN if there is one.
fn largest(row: &[f32]) -> f32 {
    row.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a || b.is_nan() { b } else { a })
}
