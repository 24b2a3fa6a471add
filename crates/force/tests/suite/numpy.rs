//! Filters and forces computed outside this project's code, with NumPy: `fixtures/force`.

use std::path::{Path, PathBuf};

use crate::oracle::{self, Filters};
use candle_core::{DType, Device, Tensor, safetensors};
use cofilter_force::{Force, gradient};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/force");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    assert!(files.len() >= 10, "{} cases", files.len());
    files
}

fn values(tensor: &Tensor) -> Vec<f64> {
    assert_eq!(tensor.dtype(), DType::F64);
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn forces_of_the_fixtures() {
    for file in files() {
        let tensors = safetensors::load(&file, &Device::Cpu).unwrap();
        let weight = &tensors["weight"];
        let count = weight.dim(0).unwrap();
        let filters = Filters { count, columns: weight.elem_count() / count, data: values(weight) };
        for (name, force) in [
            ("g.l2", Force::L2),
            ("g.l1", Force::L1),
            ("g.linear", Force::Linear),
            ("g.gravity", Force::Gravity),
        ] {
            let expected = values(&tensors[name]);
            let found = values(&gradient(weight, force).unwrap());
            if count == 1 {
                assert!(
                    oracle::norm(&found) < 1e-15 && oracle::norm(&expected) == 0.0,
                    "{}: it is alone",
                    file.display()
                );
                continue;
            }
            // One unit in the last place of a direction weighs 1 / distance in a difference.
            let tolerance = 1e-12f64.max(1e-15 / nearest(&filters));
            let error = oracle::error(&found, &expected);
            println!("{} {name}: {error:.1e} of {tolerance:.1e}", file.display());
            assert!(error < tolerance, "{} {name}: {error:e}", file.display());
            let error = oracle::error(&oracle::gradient(&filters, force), &expected);
            assert!(error < 1e-14, "{} {name}: our own pair loop differs by {error:e}", file.display());
        }
        if let Some(after) = tensors.get("after") {
            check_toy(weight, &values(after));
        }
    }
}

/// Smallest distance of two directions that counts.
fn nearest(filters: &Filters) -> f64 {
    let mut nearest = f64::INFINITY;
    for i in 0..filters.count {
        for j in 0..i {
            let (a, b) = (filters.row(i), filters.row(j));
            let (norm_a, norm_b) = (oracle::norm(a), oracle::norm(b));
            let squared: f64 = a.iter().zip(b).map(|(x, y)| (x / norm_a - y / norm_b).powi(2)).sum();
            if squared.sqrt() > 1e-4 {
                nearest = nearest.min(squared.sqrt());
            }
        }
    }
    nearest
}

/// Ten steps of 0.005 with the L2 force bring the filters together, to where NumPy brings them.
fn check_toy(weight: &Tensor, after: &[f64]) {
    let (count, columns) = weight.dims2().unwrap();
    let cosine = |data| oracle::mean_cosine(&Filters { count, columns, data });
    let mut weight = weight.clone();
    let start = cosine(values(&weight));
    for _ in 0..10 {
        let step = (gradient(&weight, Force::L2).unwrap() * 0.005).unwrap();
        weight = (weight - step).unwrap();
    }
    assert!(oracle::error(&values(&weight), after) < 1e-12);
    let end = cosine(values(&weight));
    assert!(end > start + 0.05, "{start} -> {end}");
}
