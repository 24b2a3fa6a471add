//! Two layers in a row as the one layer that they are.

use crate::{Density, Options, Step};
use cofilter_graph::{Array, Conv2d, Linear, Op};
use cofilter_kernels::blocked::Storage;

/// Most multiply-adds of a product for each of its factors'. Winograd's method does four in the time of one, and a thin factor
/// may run at half the speed of a wide one: beyond, the product cannot win and is not worth multiplying.
const MOST_CONV: usize = 8;

/// The one layer that a basis and its combination, or a vertical and a horizontal filter are, without its tensors; none where
/// no layer is the same, or where it would be far larger than they are.
pub(super) fn multiplied(first: &Step, second: &Step) -> Option<Step> {
    let (op, macs) = match (&first.op, &second.op) {
        (Op::Conv2d(a), Op::Conv2d(b)) => {
            // Where the second one reads zeros beside the map in between, one layer would read the first one's bias.
            let shifted = first.tensors.get(1).is_some_and(|bias| bias.data().iter().any(|b| *b != 0.0));
            if b.padding != [0, 0] && shifted {
                return None;
            }
            let whole = composed(a, b)?;
            let src = first.operands[0].shape;
            // Borders that are larger than the map, on both axes at once, may not fit memory where those of the factors do.
            if (0..2).any(|axis| whole.padding[axis] > src.spatial()[axis]) {
                return None;
            }
            let taps = whole.kernel[0].checked_mul(whole.kernel[1])?;
            let filter = taps.checked_mul(src.channels() / whole.groups)?;
            let macs = second.result.shape.elements().checked_mul(filter)?;
            if macs > first.macs.saturating_add(second.macs).saturating_mul(MOST_CONV) {
                return None;
            }
            (Op::Conv2d(whole), macs)
        }
        (Op::Linear(a), Op::Linear(b)) => {
            let macs = b.out_features * (first.tensors[0].data().len() / a.out_features);
            // No method saves anything here.
            if macs > (first.macs + second.macs) * 5 / 4 {
                return None;
            }
            (Op::Linear(Linear { out_features: b.out_features, bias: true }), macs)
        }
        _ => return None,
    };
    Some(Step {
        nodes: first.nodes.iter().chain(&second.nodes).cloned().collect(),
        op,
        tensors: Vec::new(),
        operands: first.operands.clone(),
        add: second.add,
        relu: second.relu,
        result: second.result,
        macs,
        density: Density::FULL,
    })
}

/// The extents of one convolution that is two, of which along each axis one at least only looks at the pixel itself.
fn composed(first: &Conv2d, second: &Conv2d) -> Option<Conv2d> {
    let groups = match (first.groups, second.groups) {
        (a, b) if a.is_multiple_of(b) => b,
        (a, b) if b.is_multiple_of(a) => a,
        _ => return None,
    };
    let mut whole = Conv2d { out_channels: second.out_channels, groups, bias: true, ..first.clone() };
    for axis in 0..2 {
        let point = |c: &Conv2d| c.kernel[axis] == 1 && c.stride[axis] == 1 && c.padding[axis] == 0;
        if !point(second) {
            if !point(first) {
                return None;
            }
            whole.kernel[axis] = second.kernel[axis];
            whole.stride[axis] = second.stride[axis];
            whole.padding[axis] = second.padding[axis];
            whole.dilation[axis] = second.dilation[axis];
        }
    }
    Some(whole)
}

/// Whether no weight of that layer can be more than is kept.
pub(super) fn product_holds(first: &Step, second: &Step, options: &Options) -> bool {
    let largest = |step: &Step| {
        let values = step.tensors.iter().flat_map(|tensor| tensor.data());
        values.fold(0.0_f64, |most, value| most.max(f64::from(value.abs())))
    };
    #[expect(clippy::cast_precision_loss, reason = "a bound")]
    let terms = {
        let taps: usize = second.tensors[0].dims()[2..].iter().product();
        (first.tensors[0].dims()[0] * taps + 1) as f64
    };
    // The second one's bias is a term without a factor.
    let bound = largest(first).max(1.0) * largest(second) * terms;
    let storage = if matches!(first.op, Op::Linear(_)) { options.linear_weights } else { Storage::F32 };
    bound < f64::from(f32::MAX) && storage.holds(rounded(bound))
}

/// Weights and biases of that layer, in double precision until they are kept.
pub(super) fn product(first: &Step, second: &Step, whole: &Step) -> Vec<Array> {
    let groups = |step: &Step| if let Op::Conv2d(conv) = &step.op { conv.groups } else { 1 };
    let (basis, combination) = (&first.tensors[0], &second.tensors[0]);
    let (middles, outputs) = (basis.dims()[0], combination.dims()[0]);
    // Channels of a group that the first layer reads, and the one layer.
    let inputs = basis.dims()[1];
    let all_inputs = inputs * groups(first) / groups(whole);
    let kernel = |array: &Array| array.dims()[2..].to_vec();
    let taps = |array: &Array| kernel(array).iter().product::<usize>();
    let (basis_taps, combination_taps) = (taps(basis), taps(combination));
    let extents: Vec<usize> =
        kernel(basis).iter().zip(kernel(combination)).map(|(a, b)| *a.max(&b)).collect();
    let all_taps: usize = extents.iter().product();
    // Where a tap of each falls together: along each axis one of them has one tap only.
    let at = |array: &Array, tap: usize| match (kernel(array).as_slice(), extents.as_slice()) {
        (&[_, width], &[_, all]) => tap / width * all + tap % width,
        _ => 0,
    };
    let basis_at: Vec<usize> = (0..basis_taps).map(|tap| at(basis, tap)).collect();
    let combination_at: Vec<usize> = (0..combination_taps).map(|tap| at(combination, tap)).collect();
    let group_middles = combination.dims()[1];
    let mut weight = Vec::with_capacity(outputs * all_inputs * all_taps);
    let mut bias = Vec::with_capacity(outputs);
    for output in 0..outputs {
        let start = output / (outputs / groups(second)) * group_middles;
        let before = output / (outputs / groups(whole)) * all_inputs;
        let mut sums = vec![0.0_f64; all_inputs * all_taps];
        let mut shift = second.tensors.get(1).map_or(0.0, |bias| f64::from(bias.data()[output]));
        for m in 0..group_middles {
            let middle = start + m;
            let filter = &basis.data()[middle * inputs * basis_taps..(middle + 1) * inputs * basis_taps];
            let channel = middle / (middles / groups(first)) * inputs - before;
            let shares = &combination.data()[(output * group_middles + m) * combination_taps..];
            for (share, shared) in shares.iter().zip(&combination_at) {
                let share = f64::from(*share);
                let sums = &mut sums[channel * all_taps..];
                if basis_taps == all_taps {
                    // The usual case, and a large one: a filter is one run.
                    for (sum, value) in sums.iter_mut().zip(filter) {
                        *sum += share * f64::from(*value);
                    }
                } else {
                    for (values, sums) in filter.chunks_exact(basis_taps).zip(sums.chunks_exact_mut(all_taps))
                    {
                        for (value, at) in values.iter().zip(&basis_at) {
                            sums[shared + at] += share * f64::from(*value);
                        }
                    }
                }
                // Every tap reads it: with a bias, there are no zeros beside the map in between.
                shift += first.tensors.get(1).map_or(0.0, |bias| share * f64::from(bias.data()[middle]));
            }
        }
        weight.extend(sums.into_iter().map(rounded));
        bias.push(rounded(shift));
    }
    let dims = [outputs, all_inputs].into_iter().chain(extents).collect::<Vec<_>>();
    vec![Array::new(dims, weight), Array::new(vec![outputs], bias)]
}

#[expect(clippy::cast_possible_truncation, reason = "computed in f64, kept in f32")]
fn rounded(value: f64) -> f32 {
    value as f32
}
