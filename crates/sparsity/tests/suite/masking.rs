//! Masks.

use crate::build::{drawn, edit};
use cofilter_graph::{Array, BatchNorm, Conv2d, Graph, Model, Shape};
use cofilter_sparsity::{Error, apply, masks_of_zeros};

fn model() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 5, 5)).unwrap();
    let x = b.conv2d("conv", x, Conv2d::new(4, 3)).unwrap();
    let x = b.batch_norm("bn", x, BatchNorm::default()).unwrap();
    drawn(b.finish(&[x]).unwrap(), 1)
}

#[test]
fn masked_numbers_become_zero_and_others_stay() {
    let model = model();
    let id = model.graph().find("conv").unwrap();
    let mut masks = masks_of_zeros(&model);
    assert!(masks.iter().all(|(_, _, m)| m.data().iter().all(|v| *v == 1.0)));
    assert_eq!(apply(&model, &masks).unwrap(), model);
    let mask: Vec<f32> = (0..72).map(|i| if i % 3 == 0 { 0.0 } else { 1.0 }).collect();
    masks.get_mut(id)[0] = Array::new(vec![4, 2, 3, 3], mask);
    let sparse = apply(&model, &masks).unwrap();
    for (i, (before, after)) in
        model.tensors(id)[0].data().iter().zip(sparse.tensors(id)[0].data()).enumerate()
    {
        assert_eq!(after.to_bits(), if i % 3 == 0 { 0 } else { before.to_bits() });
    }
    assert_eq!(model.tensors(id)[1], sparse.tensors(id)[1]);
    assert_eq!(apply(&sparse, &masks).unwrap(), sparse);
    assert_eq!(masks_of_zeros(&sparse), masks);
}

#[test]
fn zeros_of_biases_and_statistics_are_not_masked() {
    // Fresh batch normalisation has biases and means of zero.
    let model = edit(&model(), "conv.bias", |_, _| 0.0);
    let masks = masks_of_zeros(&model);
    assert!(masks.iter().all(|(_, _, m)| m.data().iter().all(|v| *v == 1.0)));
}

#[test]
fn masks_that_do_not_fit_are_refused() {
    let model = model();
    let id = model.graph().find("conv").unwrap();
    let with = |mask: Array| {
        let mut masks = masks_of_zeros(&model);
        masks.get_mut(id)[0] = mask;
        apply(&model, &masks).unwrap_err()
    };
    let error = with(Array::full(vec![4, 18], 1.0));
    assert!(matches!(&error, Error::Masks { reason } if reason.contains("conv.weight")), "{error}");
    for value in [0.5, -1.0, f32::NAN] {
        let mut data = vec![1.0; 72];
        data[7] = value;
        let error = with(Array::new(vec![4, 2, 3, 3], data));
        assert!(
            matches!(&error, Error::MaskValue { tensor, index: 7, .. } if tensor == "conv.weight"),
            "{error}"
        );
    }
    let short = cofilter_graph::Params::new(vec![vec![]; 2]);
    assert!(matches!(apply(&model, &short), Err(Error::Masks { .. })));
    let empty = cofilter_graph::Params::new(vec![vec![]; 3]);
    assert!(matches!(apply(&model, &empty), Err(Error::Masks { .. })));
}
