mod clip;
mod rollback;
mod sparse;

use super::*;
use crate::{ForceRule, Multiplier, Multipliers, Schedule};
use cofilter_data::Augment;
use cofilter_force::Force;
use cofilter_graph::{BatchNorm, ChannelOrder, Conv2d, Graph, Init, Pool2d, PoolKind, Shape, Subtract};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Images of 3x10x10 whose class is a bright band; learnable in a few iterations.
fn bands(images: usize, seed: u64) -> Dataset {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let labels: Vec<u32> = (0..images).map(|_| rng.random_range(0..5)).collect();
    let mut pixels = Vec::new();
    for label in &labels {
        for position in 0..300u32 {
            let band = position % 100 / 20 == *label;
            pixels.push(rng.random_range(0..100) + if band { 150 } else { 0 });
        }
    }
    let classes = (0..5).map(|c| format!("band {c}")).collect();
    Dataset::new("bands", [3, 10, 10], classes, pixels, labels).unwrap()
}

fn preprocessing() -> Preprocessing {
    Preprocessing {
        scale: 1.0 / 255.0,
        mean: Subtract::Channel(vec![0.3; 3]),
        std: Vec::new(),
        channel_order: ChannelOrder::Rgb,
        crop: [10, 10],
        resize: None,
        classes: Vec::new(),
    }
}

/// Batch normalisation, dropout, a shortcut and an auxiliary head: everything that has state.
fn model() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(3, 10, 10)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d { padding: [1, 1], ..Conv2d::new(6, 3) }).unwrap();
    let x = b.batch_norm("bn1", x, BatchNorm::default()).unwrap();
    let x = b.relu("relu1", x).unwrap();
    let y = b.conv2d("conv2", x, Conv2d { padding: [1, 1], ..Conv2d::new(6, 3) }).unwrap();
    let x = b.sum("sum", &[x, y]).unwrap();
    let x = b.pool2d("pool", x, Pool2d::caffe(PoolKind::Max, 3, 2)).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let side = b.linear("side", x, 5).unwrap();
    let x = b.dropout("drop", x, 0.3).unwrap();
    let main = b.linear("main", x, 5).unwrap();
    Model::init(b.finish(&[main, side]).unwrap(), &Init::default(), 4).unwrap()
}

fn recipe() -> Recipe {
    Recipe {
        iterations: 30,
        batch: 8,
        seed: 9,
        learning_rate: 0.02,
        schedule: Schedule::MultiStep { at: vec![10, 20], gamma: 0.5 },
        force: Some(ForceRule::new(Force::L1, 1e-3, ["conv1", "conv2"])),
        multipliers: Multipliers { biases: Multiplier::new(2.0, 0.0), ..Multipliers::default() },
        clip_gradients: Some(5.0),
        augment: Augment { padding: 1, mirror: true },
        evaluate_every: 10,
        checkpoint_every: 7,
        record_every: 3,
        ..Recipe::default()
    }
}

struct Setting {
    model: Model,
    recipe: Recipe,
    train: Dataset,
    test: Dataset,
    preprocessing: Preprocessing,
}

impl Setting {
    fn new(recipe: Recipe) -> Self {
        let preprocessing = preprocessing();
        Self { model: model(), recipe, train: bands(60, 1), test: bands(40, 2), preprocessing }
    }

    fn fit<'a>(&'a self, folder: Option<&'a Path>) -> Fit<'a> {
        Fit {
            recipe: &self.recipe,
            train: &self.train,
            test: Some(&self.test),
            preprocessing: &self.preprocessing,
            device: Device::Cpu,
            folder,
            stop: None,
            masks: None,
            teacher: None,
            progress: Progress::Silent,
        }
    }

    fn run(&self, folder: Option<&Path>, end: Option<End>) -> Outcome {
        fit_until(&self.model, &self.fit(folder), end).unwrap()
    }
}

fn trained(outcome: Outcome) -> Trained {
    match outcome {
        Outcome::Finished(trained) => trained,
        Outcome::Stopped { iteration, .. } => panic!("stopped after {iteration}"),
    }
}

/// The lines without their times.
fn timeless(history: &[Record]) -> Vec<Record> {
    history.iter().cloned().map(|r| Record { clock: None, ..r }).collect()
}

fn lines(folder: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(folder.join("history.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn it_learns_and_writes_its_history() {
    let setting = Setting::new(Recipe { iterations: 120, augment: Augment::default(), ..recipe() });
    let folder = tempfile::tempdir().unwrap();
    let trained = trained(setting.run(Some(folder.path()), None));
    let score = trained.score().unwrap();
    assert!(score.top1 > 0.9 && score.top5 == 1.0 && score.images == 40, "{score:?}");
    assert!(trained.history.iter().all(|r| r.force_share.unwrap() > 0.0 && r.losses.len() == 2));
    assert_eq!(lines(folder.path()), trained.history);
    let again =
        crate::evaluate(&trained.model, &setting.test, &setting.preprocessing, 7, Device::Cpu).unwrap();
    assert_eq!((again.top1, again.top5, again.images), (score.top1, score.top5, score.images));
    assert!((again.loss - score.loss).abs() < 1e-6, "{again:?}, expected {score:?}");
}

/// However a run is interrupted, going on gives the bytes of the run that was not.
#[test]
fn a_resumed_run_equals_the_straight_one() {
    let setting = Setting::new(recipe());
    let straight_folder = tempfile::tempdir().unwrap();
    let straight = trained(setting.run(Some(straight_folder.path()), None));
    let bytes = |folder: &Path| std::fs::read(checkpoint::path(folder)).unwrap();
    assert_ne!(straight.model, setting.model);
    let ways: [&[End]; 6] = [
        &[End::Stop(13)],
        &[End::Stop(0), End::Stop(29)],
        &[End::Kill(3)],
        &[End::Kill(13)],
        &[End::Kill(20), End::Kill(15), End::Stop(22)],
        &[End::Stop(13), End::Kill(13), End::Kill(27)],
    ];
    for way in ways {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        for end in way {
            let outcome = setting.run(Some(path), Some(*end));
            let at = match *end {
                End::Stop(at) | End::Kill(at) => at,
            };
            assert!(matches!(outcome, Outcome::Stopped { iteration, .. } if iteration == at), "{way:?}");
            if matches!(end, End::Kill(_)) {
                // A line that was being written.
                let mut file =
                    std::fs::OpenOptions::new().append(true).open(path.join("history.jsonl")).unwrap();
                std::io::Write::write_all(&mut file, b"{\"iteration\":9").unwrap();
            }
        }
        let resumed = trained(setting.run(Some(path), None));
        assert_eq!(resumed.model, straight.model, "{way:?}");
        assert_eq!(timeless(&resumed.history), timeless(&straight.history), "{way:?}");
        assert_eq!(timeless(&lines(path)), timeless(&straight.history), "{way:?}");
        // Weights, momentum, iteration and identity.
        assert!(bytes(path) == bytes(straight_folder.path()), "{way:?}");
    }
    let without_folder = trained(setting.run(None, None));
    assert_eq!(without_folder.model, straight.model);
    // A finished run is there at once.
    assert_eq!(trained(setting.run(Some(straight_folder.path()), None)), straight);
}

#[test]
fn the_number_of_threads_does_not_matter() {
    let setting = Setting::new(Recipe { batch: 13, ..recipe() });
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| trained(setting.run(None, None)))
    };
    let one = run(1);
    for threads in [2, 3] {
        let other = run(threads);
        assert_eq!(other.model, one.model, "{threads} threads");
        assert_eq!(timeless(&other.history), timeless(&one.history), "{threads} threads");
    }
}

#[test]
fn seeds_change_the_run() {
    let run = |seed| trained(Setting::new(Recipe { seed, ..recipe() }).run(None, None)).model;
    assert_ne!(run(1), run(2));
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let setting = Setting::new(recipe());
    let folder = tempfile::tempdir().unwrap();
    setting.run(Some(folder.path()), Some(End::Stop(5)));
    let message =
        |setting: &Setting| fit(&setting.model, &setting.fit(Some(folder.path()))).err().unwrap().to_string();
    let other = message(&Setting::new(Recipe { learning_rate: 0.01, ..recipe() }));
    assert!(other.contains("another recipe") && other.contains("checkpoint.safetensors"), "{other}");
    let other_start = Model::init(setting.model.graph().clone(), &Init::default(), 5).unwrap();
    let found = message(&Setting { model: other_start, ..Setting::new(recipe()) });
    assert!(found.contains("another starting model"), "{found}");
    let found = message(&Setting { train: bands(60, 3), ..Setting::new(recipe()) });
    assert!(found.contains("other training data"), "{found}");
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(3, 10, 10)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d::new(5, 10)).unwrap();
    b.conv2d("conv2", x, Conv2d::new(1, 1)).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let graph = b.finish(&[x]).unwrap();
    let model = Model::init(graph, &Init::default(), 1).unwrap();
    let found = message(&Setting { model, ..Setting::new(recipe()) });
    assert!(found.contains("another network"), "{found}");
    // A damaged one too.
    let path = checkpoint::path(folder.path());
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
    let found = message(&setting);
    assert!(found.contains("not a checkpoint"), "{found}");
    std::fs::write(&path, &bytes).unwrap();
    std::fs::remove_file(folder.path().join("history.jsonl")).unwrap();
    let found = message(&setting);
    assert!(found.contains("history.jsonl") && found.contains("1 records"), "{found}");
}

#[test]
fn a_diverging_run_names_iteration_and_layer_and_keeps_its_checkpoint() {
    let mut setting = Setting::new(Recipe { clip_gradients: None, force: None, ..recipe() });
    let folder = tempfile::tempdir().unwrap();
    // Calm until iteration 10, then the rate explodes.
    setting.recipe.schedule = Schedule::MultiStep { at: vec![10], gamma: 1e30 };
    let error = fit(&setting.model, &setting.fit(Some(folder.path()))).err().unwrap();
    let Error::Diverged { iteration, node, what, .. } = &error else { panic!("{error}") };
    assert!((10..=12).contains(iteration), "{error}");
    assert!(setting.model.graph().find(node).is_ok(), "{error}");
    assert!(["output", "weight", "gradient"].iter().any(|w| what.starts_with(w)), "{error}");
    assert!(error.to_string().contains(&format!("iteration {iteration}")), "{error}");
    let identity = Identity::of(&setting.model, &setting.fit(Some(folder.path())));
    let kept = checkpoint::read(folder.path(), &setting.model, &identity).unwrap().unwrap();
    assert_eq!(kept.iteration, 7);
    kept.model.check_finite().unwrap();
}

#[test]
fn the_first_node_that_is_not_finite_is_named() {
    let setting = Setting::new(recipe());
    let trainer = || Trainer::new(&setting.model, &setting.recipe, None, Device::Cpu).unwrap();
    let mut images = vec![0.1; 300];
    images[7] = f32::INFINITY;
    let error = trainer().step(images, &[2], false).err().unwrap();
    let Error::Diverged { iteration: 0, node, what, .. } = &error else { panic!("{error}") };
    assert_eq!((node.as_str(), what.as_str()), ("data", "output"));
    let mut trainer = trainer();
    let id = trainer.net().graph().find("conv2").unwrap();
    crate::net::update(&trainer.net().params().get(id)[1], |bias| bias[0] = f32::NAN).unwrap();
    let error = trainer.step(vec![0.1; 300], &[2], false).err().unwrap();
    let Error::Diverged { node, what, .. } = &error else { panic!("{error}") };
    assert_eq!((node.as_str(), what.as_str()), ("conv2", "weight (bias)"));
}

/// An infinite variance hides every activation behind it, and the loss stays finite.
#[test]
fn infinite_statistics_are_found() {
    let setting = Setting::new(recipe());
    let mut trainer = Trainer::new(&setting.model, &setting.recipe, None, Device::Cpu).unwrap();
    let id = trainer.net().graph().find("conv1").unwrap();
    crate::net::update(&trainer.net().params().get(id)[0], |w| w.fill(3e20)).unwrap();
    let images = (0..600u16).map(|i| f32::from(i % 7)).collect();
    let error = trainer.step(images, &[2, 3], false).err().unwrap();
    let Error::Diverged { node, what, .. } = &error else { panic!("{error}") };
    assert_eq!(node, "bn1", "{what}");
}

#[test]
fn masks_hold_through_training_and_resumption() {
    let setting = Setting::new(recipe());
    let masks = setting.model.params().map(|_, slot, array| {
        let keep = |i: usize| if slot == 0 && i.is_multiple_of(3) { 0.0 } else { 1.0 };
        Array::new(array.dims().to_vec(), (0..array.data().len()).map(keep).collect::<Vec<f32>>())
    });
    let folder = tempfile::tempdir().unwrap();
    let masked = |folder| Fit { masks: Some(&masks), ..setting.fit(folder) };
    fit_until(&setting.model, &masked(Some(folder.path())), Some(End::Stop(13))).unwrap();
    let resumed = trained(fit(&setting.model, &masked(Some(folder.path()))).unwrap());
    let straight = trained(fit(&setting.model, &masked(None)).unwrap());
    assert_eq!(resumed.model, straight.model);
    let mut zeros = 0;
    for (_, slot, array, mask) in straight.model.params().zip(&masks) {
        for (w, m) in array.data().iter().zip(mask.data()) {
            if *m == 0.0 {
                assert_eq!(w.to_bits(), 0);
                zeros += 1;
            } else if slot == 0 {
                assert_ne!(*w, 0.0);
            }
        }
    }
    assert!(zeros > 300);
    let error = fit(&setting.model, &setting.fit(Some(folder.path()))).err().unwrap().to_string();
    assert!(error.contains("other masks"), "{error}");
}

#[test]
fn a_stop_signal_ends_with_a_checkpoint() {
    let setting = Setting::new(recipe());
    let folder = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(true);
    let outcome =
        fit(&setting.model, &Fit { stop: Some(&stop), ..setting.fit(Some(folder.path())) }).unwrap();
    let checkpoint = Some(checkpoint::path(folder.path()));
    assert_eq!(outcome, Outcome::Stopped { iteration: 0, checkpoint });
    assert!(checkpoint::path(folder.path()).exists());
    let outcome = fit(&setting.model, &Fit { stop: Some(&stop), ..setting.fit(None) }).unwrap();
    assert_eq!(outcome, Outcome::Stopped { iteration: 0, checkpoint: None });
}

#[test]
fn what_does_not_fit_is_refused() {
    let message = |setting: &Setting| fit(&setting.model, &setting.fit(None)).err().unwrap().to_string();
    let with = |change: &dyn Fn(&mut Recipe)| {
        let mut recipe = recipe();
        change(&mut recipe);
        message(&Setting::new(recipe))
    };
    type Change = fn(&mut Recipe);
    let table: [(Change, &str); 10] = [
        (|r| r.iterations = 0, "iterations 0"),
        (|r| r.batch = 0, "batch 0"),
        (|r| r.learning_rate = f64::NAN, "learning_rate"),
        (|r| r.momentum = 1.0, "momentum"),
        (|r| r.weight_decay = -1.0, "weight_decay"),
        (|r| r.clip_gradients = Some(0.0), "clip_gradients"),
        (|r| r.output_weights = vec![1.0], "output_weights: expected 2, found 1"),
        (|r| r.schedule = Schedule::Step { every: 0, gamma: 0.1 }, "every 0 iterations"),
        (|r| r.force = Some(ForceRule::new(Force::L2, 1.0, ["conv9"])), "`conv9`"),
        (|r| r.force = Some(ForceRule::new(Force::L2, 1.0, ["pool"])), "`pool` is pool2d"),
    ];
    for (change, expected) in table {
        let found = with(&change);
        assert!(found.starts_with("recipe:") && found.contains(expected), "{found}, expected {expected}");
    }
    let found = with(&|r| {
        r.multipliers.tensors.insert("bn1.running_mean".into(), Multiplier::new(1.0, 1.0));
    });
    assert!(found.contains("`bn1.running_mean`") && found.contains("conv1.weight"), "{found}");

    let classes = (0..6).map(|c| c.to_string()).collect();
    let train = Dataset::new("six", [3, 10, 10], classes, vec![0; 600], vec![5, 0]).unwrap();
    let found = message(&Setting { train, ..Setting::new(recipe()) });
    assert!(found.contains("`six`") && found.contains("label 5") && found.contains("5 classes"), "{found}");
    let wrong = Preprocessing { crop: [9, 9], ..preprocessing() };
    let found = message(&Setting { preprocessing: wrong, ..Setting::new(recipe()) });
    assert!(!found.is_empty(), "{found}");
    let mut params = model().params().clone();
    let id = model().graph().find("conv1").unwrap();
    params.get_mut(id)[1] = Array::full(vec![6], f32::NAN);
    let broken = Setting { model: model().with_params(params).unwrap(), ..Setting::new(recipe()) };
    assert!(message(&broken).contains("`conv1.bias`"));
}

#[test]
fn recipes_survive_json() {
    let json = serde_json::to_string(&recipe()).unwrap();
    assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), recipe());
    assert!(serde_json::from_str::<Recipe>("{\"learning_rat\": 1}").is_err());
    assert_eq!(serde_json::from_str::<Recipe>("{}").unwrap(), Recipe::default());
}

#[test]
fn a_student_learns_from_its_teacher_alone_and_goes_on_after_a_stop() {
    let teacher = trained(
        Setting::new(Recipe { iterations: 120, augment: Augment::default(), ..recipe() }).run(None, None),
    );
    // Labels do not count, so whatever the student knows it has from the teacher.
    let distillation = Some(crate::Distillation { temperature: 2.0, weight: 1.0 });
    let setting = Setting::new(Recipe {
        iterations: 120,
        augment: Augment::default(),
        output_weights: vec![1.0, 0.0],
        distillation,
        ..recipe()
    });
    let folder = tempfile::tempdir().unwrap();
    let with = |folder| Fit { teacher: Some(&teacher.model), ..setting.fit(folder) };
    let whole = trained(fit_until(&setting.model, &with(None), None).unwrap());
    assert!(whole.score().unwrap().top1 > 0.9, "{:?}", whole.score());
    let stopped = fit_until(&setting.model, &with(Some(folder.path())), Some(End::Stop(50))).unwrap();
    assert!(matches!(stopped, Outcome::Stopped { iteration: 50, .. }));
    let resumed = trained(fit_until(&setting.model, &with(Some(folder.path())), None).unwrap());
    assert_eq!(resumed.model, whole.model);
    // Another teacher is another run, none is an error, and one with other classes too.
    let other = Fit { teacher: Some(&setting.model), ..with(Some(folder.path())) };
    let error = fit_until(&setting.model, &other, None).unwrap_err().to_string();
    assert!(error.contains("another teacher"), "{error}");
    let error = fit_until(&setting.model, &setting.fit(None), None).unwrap_err().to_string();
    assert!(error.contains("no teacher"), "{error}");
    let graph = cofilter_zoo::lenet(&cofilter_zoo::Config::default()).unwrap();
    let stranger = Model::init(graph, &cofilter_graph::Init::default(), 1).unwrap();
    let error = fit_until(&setting.model, &Fit { teacher: Some(&stranger), ..setting.fit(None) }, None);
    assert!(error.unwrap_err().to_string().contains("teacher: takes"));
    let wrong = Setting::new(Recipe {
        distillation: Some(crate::Distillation { temperature: 0.0, weight: 1.0 }),
        ..recipe()
    });
    assert!(fit_until(&wrong.model, &wrong.fit(None), None).unwrap_err().to_string().contains("temperature"));
}
