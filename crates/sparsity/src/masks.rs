use crate::layer::Layer;
use crate::{Error, Grouping, Groups, Result};
use cofilter_graph::{Array, Model, Params};

/// A 0 or 1 for every number of a network: 0 keeps it at zero.
pub type Masks = Params<Array>;

/// The network with every masked number set to zero.
///
/// # Errors
/// [`Error::Masks`] for masks of another network, [`Error::MaskValue`] for an element other than 0 and 1.
pub fn apply(model: &Model, masks: &Masks) -> Result<Model> {
    let graph = model.graph();
    if masks.nodes() != graph.nodes().len() {
        let reason = format!("{} nodes, masks for {}", graph.nodes().len(), masks.nodes());
        return Err(Error::Masks { reason });
    }
    for (id, node) in graph.iter() {
        let (tensors, masks) = (model.tensors(id).len(), masks.get(id).len());
        if tensors != masks {
            return Err(Error::Masks {
                reason: format!("`{}` has {tensors} tensors and {masks} masks", node.name()),
            });
        }
    }
    let masked = model.params().try_map(|id, slot, array| {
        let mask = &masks.get(id)[slot];
        let tensor = || graph.tensor_name(id, slot);
        if mask.dims() != array.dims() {
            let reason = format!("`{}` is {:?}, its mask {:?}", tensor(), array.dims(), mask.dims());
            return Err(Error::Masks { reason });
        }
        if let Some((index, value)) =
            mask.data().iter().copied().enumerate().find(|(_, m)| *m != 0.0 && *m != 1.0)
        {
            return Err(Error::MaskValue { tensor: tensor(), index, value });
        }
        Ok(masked(array, mask))
    })?;
    Ok(model.with_params(masked)?)
}

fn masked(array: &Array, mask: &Array) -> Array {
    if mask.data().iter().all(|m| *m == 1.0) {
        return array.clone();
    }
    let keep = |(value, mask): (&f32, &f32)| if *mask == 0.0 { 0.0 } else { *value };
    Array::new(array.dims().to_vec(), array.data().iter().zip(mask.data()).map(keep).collect::<Vec<_>>())
}

/// Masks that keep every weight of a convolution or fully connected layer at zero that is zero now; 1 for all other
/// numbers. What a network is fine-tuned with after [`crate::compact`] changed its extents.
#[must_use]
pub fn masks_of_zeros(model: &Model) -> Masks {
    model.params().map(|id, slot, array| {
        let prunable = slot == 0 && Layer::at(model, id).is_some();
        let mask = |value: &f32| if prunable && *value == 0.0 { 0.0 } else { 1.0 };
        Array::new(array.dims().to_vec(), array.data().iter().map(mask).collect::<Vec<_>>())
    })
}

/// Masks that keep the groups of every convolution and fully connected layer at zero that are all zero now, and let single zeros
/// learn again (the authors' `DISCONNECTED_GRPWISE`); 1 for all other numbers.
#[must_use]
pub fn masks_of_zero_groups(model: &Model, grouping: Grouping) -> Masks {
    model.params().map(|id, slot, array| {
        let mut mask = vec![1.0; array.data().len()];
        if let Some(layer) = Layer::at(model, id).filter(|_| slot == 0) {
            let groups = Groups::of_layer(&layer, grouping);
            groups.apply(&groups.norms(layer.weight), &mut mask, |m, norm| {
                if norm == 0.0 {
                    *m = 0.0;
                }
            });
        }
        Array::new(array.dims().to_vec(), mask)
    })
}
