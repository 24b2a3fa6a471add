//! What each kind of layer becomes.

use super::net::{Importer, Layer, Normalised};
use super::text::Message;
use super::weights::Blob;
use crate::draft::{Reason, Value};
use cofilter_graph::{
    Array, BatchNorm, Conv2d, Linear, Lrn, LrnRegion, Op, Pool2d, PoolKind, Rounding, Shape,
};

/// Settings of how a layer is trained or computed, which change no result.
const TRAINING: [&str; 4] = ["weight_filler", "bias_filler", "engine", "filler"];

impl Importer {
    pub(super) fn layer(&mut self, layer: &Layer<'_>) -> Result<Value, Reason> {
        if layer.tops.len() != 1 && layer.kind != "Split" || layer.tops.is_empty() {
            return Err(format!("gives {} blobs, expected 1", layer.tops.len()));
        }
        match layer.kind {
            "Convolution" => self.convolution(layer),
            "InnerProduct" => self.inner_product(layer),
            "Pooling" => self.pooling(layer),
            "LRN" => self.lrn(layer),
            "BatchNorm" => self.batch_norm(layer),
            "Scale" => self.scale(layer),
            "ReLU" => {
                let slope: f32 = layer
                    .settings("relu_param", &["negative_slope", "engine"])?
                    .number("negative_slope", 0.0)?;
                if slope != 0.0 {
                    return Err(format!("negative_slope {slope} is not supported"));
                }
                self.of_one(layer, Op::Relu)
            }
            "Dropout" => {
                let settings = layer.settings("dropout_param", &["dropout_ratio", "scale_train"])?;
                if !settings.flag("scale_train", true)? {
                    return Err("scale_train: false is not supported".into());
                }
                self.of_one(layer, Op::Dropout { p: settings.number("dropout_ratio", 0.5)? })
            }
            "Softmax" => {
                let x = self.draft.shape(self.value(layer.bottom()?)?);
                if x.spatial() != [1, 1] {
                    return Err(format!("is at each position of a map {x}, which is not supported"));
                }
                let axis: i64 = layer.settings("softmax_param", &["axis", "engine"])?.number("axis", 1)?;
                if axis != 1 {
                    return Err(format!("axis {axis}, only 1 is supported"));
                }
                let x = self.vector(layer)?;
                self.draft.add(layer.name, Op::Softmax, &[x], Vec::new())
            }
            "Flatten" => {
                let settings = layer.settings("flatten_param", &["axis", "end_axis"])?;
                if settings.number("axis", 1)? != 1 || settings.number("end_axis", -1)? != -1 {
                    return Err("only all axes of an image can be flattened".into());
                }
                self.vector(layer)
            }
            "Concat" => {
                let settings = layer.settings("concat_param", &["axis", "concat_dim"])?;
                let axis: i64 = settings.number("axis", settings.number("concat_dim", 1)?)?;
                if axis != 1 {
                    return Err(format!("axis {axis}, only channels are supported"));
                }
                self.of_many(layer, Op::Concat)
            }
            "Eltwise" => {
                let settings =
                    layer.settings("eltwise_param", &["operation", "coeff", "stable_prod_grad"])?;
                let operation = settings.text("operation").unwrap_or("SUM");
                let factors: Vec<f32> = settings.numbers("coeff")?;
                if !["SUM", "1"].contains(&operation) || factors.iter().any(|factor| *factor != 1.0) {
                    return Err(format!(
                        "operation {operation}, coeff {factors:?}: only plain sums are supported"
                    ));
                }
                self.of_many(layer, Op::Add)
            }
            "Split" => self.value(layer.bottom()?),
            _ => Err("is not supported".into()),
        }
    }

    fn of_one(&mut self, layer: &Layer<'_>, op: Op) -> Result<Value, Reason> {
        let x = self.value(layer.bottom()?)?;
        self.draft.add(layer.name, op, &[x], Vec::new())
    }

    fn of_many(&mut self, layer: &Layer<'_>, op: Op) -> Result<Value, Reason> {
        let values: Vec<Value> =
            layer.bottoms.iter().map(|name| self.value(name)).collect::<Result<_, _>>()?;
        match values[..] {
            [one] => Ok(one),
            _ => self.draft.add(layer.name, op, &values, Vec::new()),
        }
    }

    /// What the layer reads, as a vector.
    fn vector(&mut self, layer: &Layer<'_>) -> Result<Value, Reason> {
        let x = self.value(layer.bottom()?)?;
        match self.draft.shape(x) {
            Shape::Vector(_) => Ok(x),
            Shape::Map { .. } => {
                let name = if layer.kind == "Flatten" {
                    layer.name.to_owned()
                } else {
                    format!("{}.flatten", layer.name)
                };
                self.draft.add(&name, Op::Flatten, &[x], Vec::new())
            }
        }
    }

    fn convolution(&mut self, layer: &Layer<'_>) -> Result<Value, Reason> {
        let known = [
            "num_output",
            "bias_term",
            "pad",
            "pad_h",
            "pad_w",
            "kernel_size",
            "kernel_h",
            "kernel_w",
            "stride",
            "stride_h",
            "stride_w",
            "dilation",
            "group",
            "axis",
            "force_nd_im2col",
        ];
        let settings = layer.settings("convolution_param", &[&known[..], &TRAINING].concat())?;
        if settings.number("axis", 1)? != 1 {
            return Err("only channels on axis 1 are supported".into());
        }
        let x = self.value(layer.bottom()?)?;
        let bias = settings.flag("bias_term", true)?;
        let conv = Conv2d {
            out_channels: settings.number("num_output", 0)?,
            kernel: pair(&settings, ["kernel_size", "kernel_h", "kernel_w"], 0)?,
            stride: pair(&settings, ["stride", "stride_h", "stride_w"], 1)?,
            padding: pair(&settings, ["pad", "pad_h", "pad_w"], 0)?,
            dilation: pair(&settings, ["dilation", "", ""], 1)?,
            groups: settings.number("group", 1)?,
            bias,
        };
        self.with_blobs(layer, Op::Conv2d(conv), x)
    }

    fn inner_product(&mut self, layer: &Layer<'_>) -> Result<Value, Reason> {
        let known = ["num_output", "bias_term", "axis", "transpose"];
        let settings = layer.settings("inner_product_param", &[&known[..], &TRAINING].concat())?;
        if settings.number("axis", 1)? != 1 || settings.flag("transpose", false)? {
            return Err("only axis 1 without transposition is supported".into());
        }
        let x = self.vector(layer)?;
        let op = Linear {
            out_features: settings.number("num_output", 0)?,
            bias: settings.flag("bias_term", true)?,
        };
        self.with_blobs(layer, Op::Linear(op), x)
    }

    /// Adds a layer with its trained tensors.
    fn with_blobs(&mut self, layer: &Layer<'_>, op: Op, x: Value) -> Result<Value, Reason> {
        let shapes = [self.draft.shape(x)];
        // Before its slots are asked for, the op must be one.
        op.infer(layer.name, &shapes).map_err(crate::draft::reason)?;
        let slots = op.slots(&shapes);
        let blobs = self.blobs.remove(layer.name).ok_or("has no tensors in the trained file")?;
        if blobs.len() != slots.len() {
            return Err(format!("has {} tensors in the trained file, expected {}", blobs.len(), slots.len()));
        }
        let mut tensors = Vec::with_capacity(slots.len());
        for (blob, slot) in blobs.into_iter().zip(slots) {
            // Old files have four extents for everything.
            let bare = |dims: &[usize]| dims.iter().copied().skip_while(|dim| *dim == 1).collect::<Vec<_>>();
            if bare(&blob.dims) != bare(&slot.dims) {
                return Err(format!("{}: expected {:?}, found {:?}", slot.name, slot.dims, blob.dims));
            }
            tensors.push(Array::new(slot.dims, blob.data));
        }
        self.draft.add(layer.name, op, &[x], tensors)
    }

    fn pooling(&mut self, layer: &Layer<'_>) -> Result<Value, Reason> {
        let known = [
            "pool",
            "pad",
            "pad_h",
            "pad_w",
            "kernel_size",
            "kernel_h",
            "kernel_w",
            "stride",
            "stride_h",
            "stride_w",
            "engine",
            "global_pooling",
            "round_mode",
            "ceil_mode",
        ];
        let settings = layer.settings("pooling_param", &known)?;
        let kind = match settings.text("pool").unwrap_or("MAX") {
            "MAX" | "0" => PoolKind::Max,
            "AVE" | "1" => PoolKind::Average,
            other => return Err(format!("pool {other} is not supported")),
        };
        let x = self.value(layer.bottom()?)?;
        let extents = self.draft.shape(x).spatial();
        if settings.flag("global_pooling", false)? {
            let op = match kind {
                PoolKind::Average => Op::AdaptiveAvgPool { output: [1, 1] },
                PoolKind::Max => Op::Pool2d(Pool2d { kernel: extents, ..Pool2d::caffe(kind, 1, 1) }),
            };
            return self.of_one(layer, op);
        }
        let floor = settings.text("round_mode").is_some_and(|mode| ["FLOOR", "1"].contains(&mode))
            || !settings.flag("ceil_mode", true)?;
        let pool = Pool2d {
            kernel: pair(&settings, ["kernel_size", "kernel_h", "kernel_w"], 0)?,
            stride: pair(&settings, ["stride", "stride_h", "stride_w"], 1)?,
            padding: pair(&settings, ["pad", "pad_h", "pad_w"], 0)?,
            rounding: if floor { Rounding::Floor } else { Rounding::Ceil },
            ..Pool2d::caffe(kind, 1, 1)
        };
        // Without padding Caffe keeps even a window that starts behind the map.
        for at in 0..2 {
            let room = extents[at].saturating_sub(pool.kernel[at]);
            let beyond =
                pool.stride[at] > 0 && room.div_ceil(pool.stride[at]) * pool.stride[at] >= extents[at];
            if pool.padding == [0; 2] && !floor && beyond {
                return Err(format!("has a window that starts behind {extents:?}"));
            }
        }
        self.of_one(layer, Op::Pool2d(pool))
    }

    fn lrn(&mut self, layer: &Layer<'_>) -> Result<Value, Reason> {
        let known = ["local_size", "alpha", "beta", "k", "norm_region", "engine"];
        let settings = layer.settings("lrn_param", &known)?;
        let within = match settings.text("norm_region").unwrap_or("ACROSS_CHANNELS") {
            "ACROSS_CHANNELS" | "0" => false,
            "WITHIN_CHANNEL" | "1" => true,
            other => return Err(format!("norm_region {other}")),
        };
        let lrn = Lrn {
            region: if within { LrnRegion::WithinChannel } else { LrnRegion::AcrossChannels },
            size: settings.number("local_size", 5)?,
            alpha: settings.number("alpha", 1.0)?,
            beta: settings.number("beta", 0.75)?,
            // Within channels Caffe adds 1, whatever k says.
            k: if within { 1.0 } else { settings.number("k", 1.0)? },
        };
        self.of_one(layer, Op::Lrn(lrn))
    }

    /// Remembers the statistics of a `BatchNorm` until its `Scale` comes, or something else.
    fn batch_norm(&mut self, layer: &Layer<'_>) -> Result<Value, Reason> {
        let known = ["use_global_stats", "moving_average_fraction", "eps"];
        let settings = layer.settings("batch_norm_param", &known)?;
        if !settings.flag("use_global_stats", true)? {
            return Err("use_global_stats: false is not supported".into());
        }
        let input = self.value(layer.bottom()?)?;
        let Shape::Map { channels, .. } = self.draft.shape(input) else {
            return Err("normalises a vector, which is not supported".into());
        };
        let blobs = self.blobs.remove(layer.name).ok_or("has no tensors in the trained file")?;
        let [mean, variance, factor] = &blobs[..] else {
            return Err(format!("has {} tensors in the trained file, expected 3", blobs.len()));
        };
        for blob in [mean, variance] {
            if blob.data.len() != channels {
                return Err(format!("statistics of {:?}, expected {channels} channels", blob.dims));
            }
        }
        let [factor] = factor.data[..] else {
            return Err(format!("factor of {:?}, expected one number", factor.dims));
        };
        // Sums of a moving average, with the sum of its weights.
        let scaled = |blob: &Blob| {
            blob.data.iter().map(|sum| if factor == 0.0 { 0.0 } else { sum / factor }).collect()
        };
        self.last = Some(Normalised {
            top: layer.tops[0].into(),
            input,
            layer: layer.name.into(),
            eps: settings.number("eps", 1e-5)?,
            momentum: 1.0 - settings.number("moving_average_fraction", 0.999_f32)?,
            mean: scaled(mean),
            variance: scaled(variance),
        });
        // The node itself comes when it is known whether factors follow.
        Ok(input)
    }

    /// Adds the batch normalisation that waited, unless `next` is its `Scale`.
    pub(super) fn complete(&mut self, next: Option<&Layer<'_>>) {
        let Some(last) = &self.last else { return };
        // Another reader wants it without the factors.
        let alone = |next: &Layer<'_>| next.tops == next.bottoms || self.readers.get(&last.top) == Some(&1);
        if next.is_some_and(|next| next.kind == "Scale" && next.bottoms == [last.top.as_str()] && alone(next))
        {
            return;
        }
        let channels = last.mean.len();
        let (top, layer) = (last.top.clone(), last.layer.clone());
        match self.normalise(vec![1.0; channels], vec![0.0; channels]) {
            Ok(value) => self.replace(&top, value),
            Err(reason) => self.problems.push(format!("layer `{layer}` (BatchNorm): {reason}")),
        }
    }

    fn normalise(&mut self, factors: Vec<f32>, shifts: Vec<f32>) -> Result<Value, Reason> {
        let last = self.last.take().ok_or("follows no batch normalisation")?;
        let op = Op::BatchNorm(BatchNorm { eps: last.eps, momentum: last.momentum });
        let tensors = [factors, shifts, last.mean, last.variance];
        let tensors = tensors.into_iter().map(|numbers| Array::new(vec![numbers.len()], numbers)).collect();
        self.draft.add(&last.layer, op, &[last.input], tensors)
    }

    fn scale(&mut self, layer: &Layer<'_>) -> Result<Value, Reason> {
        let settings =
            layer.settings("scale_param", &["axis", "num_axes", "bias_term", "filler", "bias_filler"])?;
        if settings.number("axis", 1)? != 1 || settings.number("num_axes", 1)? != 1 {
            return Err("only factors by channel are supported".into());
        }
        let x = self.value(layer.bottom()?)?;
        let channels = self.draft.shape(x).channels();
        let biased = settings.flag("bias_term", false)?;
        let blobs = self.blobs.remove(layer.name).ok_or("has no tensors in the trained file")?;
        if blobs.len() != 1 + usize::from(biased) || blobs.iter().any(|blob| blob.data.len() != channels) {
            let found: Vec<_> = blobs.iter().map(|blob| &blob.dims).collect();
            return Err(format!(
                "has tensors {found:?} in the trained file, expected {} of {channels}",
                1 + usize::from(biased)
            ));
        }
        let mut blobs = blobs.into_iter();
        let factors = blobs.next().map(|blob| blob.data).unwrap_or_default();
        let shifts = blobs.next().map_or_else(|| vec![0.0; channels], |blob| blob.data);
        if self.last.is_some() {
            return self.normalise(factors, shifts);
        }
        self.draft.affine(layer.name, x, false, &factors, &shifts)
    }
}

/// `[height, width]` of a setting: one or two numbers under one name, or one each under two.
fn pair(settings: &Message, [both, height, width]: [&str; 3], default: usize) -> Result<[usize; 2], Reason> {
    let own = |name: &str| settings.text(name).map(|_| settings.number(name, 0)).transpose();
    let apart = [own(height)?, own(width)?];
    match (&settings.numbers(both)?[..], apart) {
        ([], [Some(height), Some(width)]) => Ok([height, width]),
        ([], [None, None]) => Ok([default; 2]),
        // One of the two alone leaves the other at its default.
        ([], [height, width]) => Ok([height.unwrap_or(default), width.unwrap_or(default)]),
        ([one], [None, None]) => Ok([*one; 2]),
        ([height, width], [None, None]) => Ok([*height, *width]),
        (given, apart) => Err(format!("{both} {given:?}, {height} and {width} {apart:?}")),
    }
}
