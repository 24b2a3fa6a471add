//! The CUDA backend on a machine that has no device. What it computes is checked by `cargo xtask cuda-check`.

use crate::numbers::{model, options};
use cofilter_runtime::{BackendKind, Error, Options, Plan};
use cofilter_zoo::{Config, by_name};

fn compile() -> Result<Plan, Error> {
    let model = model(by_name("lenet", &Config::default()).unwrap(), 1);
    Plan::compile(&model, &Options { backend: BackendKind::Cuda, ..options(1, 1) })
}

#[cfg(not(feature = "cuda"))]
#[test]
fn without_the_feature_the_error_names_it() {
    let text = compile().unwrap_err().to_string();
    assert!(text.contains("backend `cuda`") && text.contains("feature `cuda`"), "{text}");
}

#[cfg(feature = "cuda")]
#[test]
fn without_a_device_the_error_says_so_and_the_processor_still_runs() {
    match compile() {
        Ok(plan) => {
            println!("a device is here: {}", plan.describe());
            let mut logits = vec![f32::NAN; plan.output_len()];
            plan.session().run(&vec![0.5; plan.input_len()], &mut logits).unwrap();
            assert!(logits.iter().all(|x| x.is_finite()));
        }
        Err(error) => {
            println!("skipped: no CUDA device here ({error})");
            assert!(matches!(error, Error::Cuda(_)), "{error}");
            let text = error.to_string();
            assert!(text.contains("the CUDA driver: not found") || text.contains("CUDA device 0"), "{text}");
        }
    }
    let model = model(by_name("lenet", &Config::default()).unwrap(), 1);
    let plan = Plan::compile(&model, &options(1, 1)).unwrap();
    let mut logits = vec![f32::NAN; plan.output_len()];
    plan.session().run(&vec![0.5; plan.input_len()], &mut logits).unwrap();
    assert!(logits.iter().all(|x| x.is_finite()));
}
