use crate::{Config, Result, fillers};
use cofilter_graph::{Conv2d, Graph, Init, Op, Pool2d, PoolKind, Shape};

/// torchvision's AlexNet (Krizhevsky 2014, "one weird trick"): 3x224x224 in, 1000 classes; no groups, no local response
/// normalisation, 64-192-384-256-256 filters, dropout before the fully connected layers.
///
/// # Errors
/// [`crate::Error::Graph`] for an input under 63x63 or 0 classes.
pub fn torchvision(config: &Config) -> Result<Graph> {
    let (mut b, mut x) = config.start("input", Shape::map(3, 224, 224))?;
    let mut index = 0;
    let mut next = || {
        index += 1;
        format!("features.{}", index - 1)
    };
    let layers = [
        (64, 11, 4, 2, true),
        (192, 5, 1, 2, true),
        (384, 3, 1, 1, false),
        (256, 3, 1, 1, false),
        (256, 3, 1, 1, true),
    ];
    for (filters, kernel, stride, padding, pooled) in layers {
        let conv = Conv2d { stride: [stride; 2], padding: [padding; 2], ..Conv2d::new(filters, kernel) };
        x = b.conv2d(&next(), x, conv)?;
        x = b.relu(&next(), x)?;
        if pooled {
            x = b.pool2d(&next(), x, Pool2d::torch(PoolKind::Max, 3, 2))?;
        }
    }
    let x = b.add("avgpool", Op::AdaptiveAvgPool { output: [6, 6] }, &[x])?;
    let x = b.flatten("flatten", x)?;
    let x = b.dropout("classifier.0", x, 0.5)?;
    let x = b.linear("classifier.1", x, 4096)?;
    let x = b.relu("classifier.2", x)?;
    let x = b.dropout("classifier.3", x, 0.5)?;
    let x = b.linear("classifier.4", x, 4096)?;
    let x = b.relu("classifier.5", x)?;
    let scores = b.linear("classifier.6", x, config.classes(1000))?;
    config.finish(b, scores, &[])
}

/// PyTorch's default with normal in place of uniform distributions of the same variance, `1 / (3 fan_in)`.
#[must_use]
pub fn torchvision_init(graph: &Graph) -> Init {
    fillers::torch_default(graph)
}
