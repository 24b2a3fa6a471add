use super::LayerSurvey;
use crate::calibrate::{Calibration, Moments, Told, Values, bias};
use crate::decompose::Selected;
use crate::factor::single;
use crate::method::{Ready, Statistics};
use crate::{Error, Method, Result};
use cofilter_graph::{Array, Model, Op};
use std::collections::BTreeMap;

/// The divergence of every way: the layer's weight becomes the product of the new layers, and its bias, which all have here, the
/// one that goes with it; everything else stays.
pub(super) fn measure(
    model: &Model,
    selected: &[Selected<'_>],
    layers: &mut [LayerSurvey],
    calibration: &Calibration<'_>,
) -> Result<()> {
    let graph = model.graph();
    let output = graph.outputs()[0];
    let mut wanted = Vec::new();
    Values::new(model, calibration)?.each(model, output, |_, part| wanted.extend_from_slice(part))?;
    let classes = graph.output_shape().elements();
    let probabilities = matches!(graph.node(output).op(), Op::Softmax);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(calibration.threads)
        .build()
        .map_err(|error| Error::Calibration { reason: error.to_string() })?;
    let mut values = Values::new(model, calibration)?;
    let mut told = Told::new("measuring effects on outputs", selected.len());
    for (done, (of, survey)) in selected.iter().zip(layers).enumerate() {
        told.done(done);
        let layer = &of.layer;
        if survey.ways.is_empty() {
            continue;
        }
        let read = values.stream(model, graph.node(layer.id).inputs()[0])?;
        let groups = pool.install(|| Moments::of(layer, read, None, calibration))?;
        let statistics = Statistics { groups, ridge: calibration.ridge };
        let mut ready: BTreeMap<Method, Ready<'_>> = BTreeMap::new();
        for way in &mut survey.ways {
            let of = match ready.entry(way.method) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(Ready::new(layer, way.method, true, Some(&statistics), None)?)
                }
            };
            let chain = of.take_apart(way.rank.of_group(layer, way.method)?)?.chain;
            let mut params = model.params().clone();
            let tensors = params.get_mut(layer.id);
            let product = chain.product().weight;
            let groups =
                statistics.groups.iter().zip(product.chunks_exact(layer.group_filters() * layer.len));
            let biases =
                groups.enumerate().flat_map(|(g, (moments, weight))| bias(layer, g, moments, weight));
            tensors[1] = Array::new(vec![layer.filters], biases.map(single).collect::<Vec<_>>());
            tensors[0] = Array::new(
                tensors[0].dims().to_vec(),
                product.iter().map(|w| single(*w)).collect::<Vec<_>>(),
            );
            let changed = model.with_params(params)?;
            let found = values.behind(&changed, layer.id, output)?;
            way.divergence = mean_divergence(&wanted, &found, classes, probabilities);
        }
    }
    Ok(())
}

/// Mean over the rows of `sum_k p_k ln (p_k / q_k)`.
fn mean_divergence(wanted: &[f32], found: &[f32], classes: usize, probabilities: bool) -> f64 {
    let rows = wanted.chunks_exact(classes).zip(found.chunks_exact(classes));
    let sum: f64 = rows
        .map(|(p, q)| {
            let (p, q) = (log_probabilities(p, probabilities), log_probabilities(q, probabilities));
            p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
        })
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "a count of images")]
    let images = (wanted.len() / classes) as f64;
    sum / images
}

fn log_probabilities(row: &[f32], probabilities: bool) -> Vec<f64> {
    if probabilities {
        return row.iter().map(|p| f64::from(*p).max(1e-30).ln()).collect();
    }
    let largest = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let shifted: Vec<f64> = row.iter().map(|v| f64::from(v - largest)).collect();
    let log_sum = shifted.iter().map(|v| v.exp()).sum::<f64>().ln();
    shifted.into_iter().map(|v| v - log_sum).collect()
}
