//! (d) cuDNN and cuBLASLt, by stand-ins: every routine for every convolution, networks that use them, what fails in them.

use crate::faults::run_batches;
use crate::kernels::{By, convolutions, keep_module, pointwise};
use crate::networks::{
    Form, Subject, Task, compare, each, expected, small_model, with_libraries, without_columns,
};
use crate::reference::Case;
use crate::standin::{Standin, loads};
use anyhow::{Context as _, Result, ensure};
use cofilter_cuda::{Builder, Device, Flow, Geometry, Opened, Routine};
use cofilter_graph::Model;
use cofilter_runtime::cuda::{Libraries, Math, Pairs};
use cofilter_runtime::{Error, Options, Plan};
use std::collections::BTreeMap;
use std::path::Path;

/// A convolution of the kernels' for libraries.
pub(crate) struct Layer {
    pub(crate) math: Math,
    geometry: Geometry,
    images: usize,
    pub(crate) case: Case,
}

impl Layer {
    /// The routines that there are for it.
    pub(crate) fn routines(&self, opened: &Opened) -> Vec<Routine> {
        opened.routines(self.math, &self.geometry, self.case.places(), self.images)
    }
}

/// Every convolution of the kernels' in every kind of arithmetic.
pub(crate) fn layers() -> Vec<Layer> {
    let of = |math| {
        convolutions().into_iter().chain(pointwise()).map(move |(geometry, images, splits, zeros)| {
            let case = Case::Conv { math, geometry, images, splits, zeros, second: None };
            Layer { math, geometry, images, case }
        })
    };
    Math::ALL.into_iter().flat_map(of).collect()
}

/// Number of cases: every convolution of the kernels' by every routine that there is for it.
pub(crate) fn cases(standin: &Standin) -> Result<usize> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    {
        let device = Device::open(0)?;
        let _kept = keep_module(&device, None)?;
        let opened = Opened::new(&device);
        for layer in layers() {
            let Layer { math, geometry, case, .. } = &layer;
            let routines = layer.routines(&opened);
            let one_product = geometry.is_pointwise() && geometry.groups == 1;
            let names: Vec<_> = routines.iter().map(|of| of.name()).collect();
            ensure!(names.contains(&"cublaslt") == one_product, "{case:?}: {names:?}");
            let of_cudnn = matches!(math, Math::F32 | Math::Tf32);
            ensure!(names.contains(&"cudnn implicit_gemm") == of_cudnn, "{case:?}: {names:?}");
            for routine in routines {
                case.check(&device, By::Routine(routine))
                    .with_context(|| format!("{}: {case:?}", routine.name()))?;
                *counts.entry((math.name(), routine.name())).or_default() += 1;
            }
        }
        let unaligned = Case::Conv {
            math: Math::F32,
            geometry: convolutions()[0].0,
            images: 1,
            splits: 1,
            zeros: 0.0,
            second: None,
        };
        let [src, dst] = unaligned.places();
        let places = [src, cofilter_cuda::Place { at: dst.at + 1, ..dst }];
        let found = opened.routines(Math::F32, &convolutions()[0].0, places, 1);
        ensure!(found.is_empty(), "a place that begins at no multiple of 16 bytes: {found:?}");
        let geometry = convolutions()[0].0;
        let routines = opened.routines(Math::F32, &geometry, unaligned.places(), 1);
        let routine = *routines.first().context("a routine")?;
        let flow = Flow { src, add: Some(dst), dst, relu: false };
        let weight = vec![1.0; geometry.filters * geometry.columns()];
        let [image, result] = geometry.lens();
        let made = Builder::new(image, dst.at + result).routine(routine, &geometry, [&weight, &[]], &flow);
        let text = made.err().context("a summand in the place of the result")?.to_string();
        ensure!(text.contains("in the place of its result"), "{text}");
    }
    // Three algorithms of cuDNN in two kinds of arithmetic, and cuBLASLt in four.
    ensure!(counts.len() == 2 * 3 + 4, "routines that were run: {counts:?}");
    nothing_left(standin)?;
    Ok(counts.values().sum())
}

fn nothing_left(standin: &Standin) -> Result<()> {
    let left = standin.get("live")?;
    ensure!(left == 0, "{left} things are left");
    Ok(())
}

/// Lines of a description that name a library.
pub(crate) fn lines(plan: &Plan) -> usize {
    let text = plan.describe();
    text.lines().filter(|line| line.contains("cudnn ") || line.contains("cublaslt")).count()
}

/// Networks with libraries.
pub(crate) fn tasks(libraries: Libraries) -> Vec<Task> {
    let [lenet, resnet, googlenet] =
        ["lenet", "resnet20", "bvlc_googlenet"].map(|name| Subject::Zoo(name, Form::Dense));
    let low_rank = Subject::Zoo("resnet20", Form::LowRank);
    let task = |(name, subject, math, batch): (&str, Subject, Math, usize)| {
        let name = format!("{name}, libraries {libraries:?}, {}", math.name());
        Task { subject, name, math, pairs: Pairs::Faster, batch, libraries: Some(libraries) }
    };
    [
        ("lenet, fully connected layers as products", lenet, Math::F32, 33),
        ("a small one", Subject::Small, Math::F16, 33),
        ("a small one", Subject::Small, Math::Bf16, 33),
        ("resnet20", resnet, Math::F32, 2),
        ("resnet20, low rank", low_rank, Math::F32, 2),
        ("resnet20, low rank", low_rank, Math::Tf32, 2),
        ("bvlc_googlenet", googlenet, Math::F32, 1),
    ]
    .map(task)
    .into()
}

/// Number of networks that were compared.
pub(crate) fn networks(standin: &Standin, kernels: &Path, about: &mut dyn FnMut(String)) -> Result<usize> {
    let cache = with_kernels(kernels)?;
    let tasks = tasks(Libraries::Always);
    each(&tasks, |task, known| {
        let (error, plan) = task.check(known, cache.path(), true)?;
        let lines = lines(&plan);
        ensure!(lines > 0, "no library is used\n{}", plan.describe());
        about(format!("{}: {lines} steps, relative error {error:.1e}", task.name));
        Ok(())
    })?;
    chosen(standin, cache.path()).context("libraries chosen by their times")?;
    nothing_left(standin)?;
    Ok(tasks.len() + 1)
}

/// A library has to be faster by 3 %; times are kept by its version; layers of which much is zero keep our kernels.
fn chosen(standin: &Standin, kernels: &Path) -> Result<()> {
    let dense = Subject::Zoo("convnet", Form::Dense).model()?;
    let compile = |model: &Model, options: &Options| -> Result<(Plan, i64)> {
        let calls = || {
            Ok::<_, anyhow::Error>(standin.get("cudnnConvolutionForward")? + standin.get("cuLaunchKernel")?)
        };
        let before = calls()?;
        let plan = Plan::compile(model, options)?;
        Ok((plan, calls()? - before))
    };
    // A kernel of ours takes 1000 us here, and what follows a library's work 10.
    for (us, least, most) in [(950, 3, 3), (965, 0, 0)] {
        let cache = with_kernels(kernels)?;
        let options = with_libraries(Libraries::Faster, 1, Math::F32, cache.path());
        standin.set("library_us", us)?;
        let (first, calls) = compile(&dense, &options)?;
        ensure!(
            (least..=most).contains(&lines(&first)) && calls > 0,
            "{us} us, {calls} calls\n{}",
            first.describe()
        );
        let (second, again) = compile(&dense, &options)?;
        ensure!(again == 0 && first.describe() == second.describe(), "{again} calls for the second plan");
        standin.set("library", 90_100)?;
        let (_, newer) = compile(&dense, &options)?;
        standin.set("library", 90_000)?;
        ensure!(newer > 0 && newer < calls, "{newer} calls for another version, {calls} for the first");
        let (pruned, again) = compile(&without_columns(&dense)?, &options)?;
        ensure!(again == 0, "{again} calls for times that were kept");
        let text = pruned.describe();
        let keeps = |line: &&str| line.contains("% of the columns") && !line.contains("cudnn");
        ensure!(text.lines().filter(keeps).count() >= 2 && lines(&pruned) < 2, "{us} us\n{text}");
        let (never, _) = compile(&dense, &with_libraries(Libraries::Never, 1, Math::F32, cache.path()))?;
        ensure!(lines(&never) == 0, "{}", never.describe());
    }
    standin.set("library_us", 0)
}

/// Calls that are made to fail, and whether a session makes them too, not only the choice of a routine.
const FAILURES: &[(Math, &str, i32, bool)] = &[
    (Math::F32, "cudnnCreate", 4000, true),
    (Math::F32, "cudnnSetStream", 2000, true),
    (Math::F32, "cudnnCreateTensorDescriptor", 4003, true),
    (Math::F32, "cudnnSetTensor4dDescriptorEx", 3000, true),
    (Math::F32, "cudnnCreateFilterDescriptor", 4003, true),
    (Math::F32, "cudnnSetFilter4dDescriptor", 2000, true),
    (Math::F32, "cudnnCreateConvolutionDescriptor", 4003, true),
    (Math::F32, "cudnnSetConvolution2dDescriptor", 2000, true),
    (Math::F32, "cudnnSetConvolutionGroupCount", 2000, true),
    (Math::F32, "cudnnSetConvolutionMathType", 2000, true),
    (Math::F32, "cudnnGetConvolutionForwardWorkspaceSize", 3000, false),
    (Math::F32, "cudnnConvolutionForward", 5000, true),
    (Math::F16, "cublasLtCreate", 3, true),
    (Math::F16, "cublasLtMatmulDescCreate", 3, true),
    (Math::F16, "cublasLtMatmulDescSetAttribute", 7, true),
    (Math::F16, "cublasLtMatrixLayoutCreate", 3, true),
    (Math::F16, "cublasLtMatrixLayoutSetAttribute", 7, true),
    (Math::F16, "cublasLtMatmulPreferenceCreate", 3, true),
    (Math::F16, "cublasLtMatmulPreferenceSetAttribute", 7, true),
    (Math::F16, "cublasLtMatmulAlgoGetHeuristic", 15, true),
    (Math::F16, "cublasLtMatmul", 13, true),
    (Math::F32, "cuMemAlloc_v2", 2, true),
    (Math::F32, "cuStreamEndCapture", 901, true),
    (Math::F32, "cuLaunchKernel", 1, true),
];

/// Number of failures that were tried: in a choice they leave our kernels, in a session they are errors, and nothing is left behind.
pub(crate) fn faults(standin: &Standin, kernels: &Path) -> Result<usize> {
    let model = small_model()?;
    let mut tried = 0;
    for (math, call, code, in_session) in FAILURES {
        for times_kept in [false, true] {
            let kept = with_kernels(kernels)?;
            // A fully connected layer is a product for many images alone.
            let batch = if *call == "cublasLtMatmulDescSetAttribute" { 32 } else { 3 };
            let options = with_libraries(Libraries::Always, batch, *math, kept.path());
            if times_kept {
                run(&model, &options)?;
            }
            let before = standin.get(call)?;
            run(&model, &options)?;
            let calls = i32::try_from(standin.get(call)? - before)?;
            ensure!(calls > 0, "nothing calls {call}");
            // The first ones, which choose, and the last ones, which run.
            let mut numbers: Vec<i32> = (0..2).chain([calls / 2]).chain(calls - 2..calls).collect();
            numbers.retain(|number| (0..calls).contains(number));
            let mut errors = 0;
            for after in numbers {
                let cold = with_kernels(kernels)?;
                let cache = if times_kept { &kept } else { &cold };
                standin.fail(call, after, *code)?;
                let outcome = run(&model, &with_libraries(Libraries::Always, batch, *math, cache.path()));
                standin.set("repair", 0)?;
                let about = || format!("{call} number {after} of {calls}, times kept: {times_kept}");
                nothing_left(standin).with_context(about)?;
                tried += 1;
                let Err(error) = outcome else { continue };
                let (text, named) =
                    (error.to_string(), if *call == "cuMemAlloc_v2" { "memory" } else { call });
                ensure!(matches!(error, Error::Cuda(_)), "{}: {text}", about());
                ensure!(text.contains(named), "{}: `{text}` does not say {named}", about());
                errors += 1;
            }
            ensure!(errors > 0 || !in_session, "{call} failed and nobody noticed");
        }
    }
    Ok(tried)
}

/// A folder with the machine code of another one, and no times.
fn with_kernels(folder: &Path) -> Result<tempfile::TempDir> {
    let fresh = tempfile::tempdir()?;
    for file in std::fs::read_dir(folder)? {
        let file = file?;
        if file.file_name().to_string_lossy().starts_with("kernels-") {
            std::fs::copy(file.path(), fresh.path().join(file.file_name()))?;
        }
    }
    Ok(fresh)
}

/// Batches of two sizes, until their graphs run.
fn run(model: &Model, options: &Options) -> Result<(), Error> {
    run_batches(model, options, &[options.batch, 2, options.batch, 2])
}

/// Without cuDNN and cuBLASLt our kernels compute, however much libraries are wanted.
pub(crate) fn alone(standin: &Standin) -> Result<()> {
    let all = ["cudnn.so.9", "cudnn.so.8", "cublasLt.so.13", "cublasLt.so.12", "cublasLt.so.11"];
    if let Some(found) = all.iter().find(|name| loads(&format!("lib{name}"))) {
        println!("skipped: a plan without cuDNN and cuBLASLt, as this machine has lib{found}");
        return Ok(());
    }
    let cache = tempfile::tempdir()?;
    let model = small_model()?;
    let options = with_libraries(Libraries::Always, 32, Math::F32, cache.path());
    let (_, plan) = compare(&model, &expected(&model)?, &options, true)?;
    ensure!(lines(&plan) == 0, "{}", plan.describe());
    drop(plan);
    nothing_left(standin)
}
