//! Plans are shared, sessions are apart, and a batch is its images.

use crate::numbers::{images, model, options, run};
use cofilter_graph::{BatchNorm, Conv2d, Graph, Lrn, LrnRegion, Model, Pool2d, PoolKind, Shape};
use cofilter_runtime::{BackendKind, Options, Plan, Session, Team, latency, reference};
use std::sync::Arc;

/// Small, with every kind of step that a batch could mix up.
fn net() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(3, 12, 12)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d { padding: [2, 2], ..Conv2d::new(8, 5) }).unwrap();
    let x = b.relu("relu1", x).unwrap();
    let l = b
        .lrn("norm", x, Lrn { region: LrnRegion::AcrossChannels, size: 5, alpha: 1.0, beta: 0.75, k: 1.0 })
        .unwrap();
    let p = b.pool2d("pool1", l, Pool2d::caffe(PoolKind::Max, 3, 2)).unwrap();
    let x = b.conv2d("conv2", p, Conv2d { padding: [1, 1], groups: 2, ..Conv2d::new(8, 3) }).unwrap();
    let x = b.concat("concat", &[x, p]).unwrap();
    let x = b.batch_norm("bn", x, BatchNorm::default()).unwrap();
    let x = b.pad_channels("pad", x, 1, 2).unwrap();
    let x = b.pool2d("pool2", x, Pool2d::caffe(PoolKind::Average, 3, 2)).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("ip1", x, 16).unwrap();
    let x = b.relu("relu2", x).unwrap();
    let x = b.linear("ip2", x, 10).unwrap();
    let x = b.softmax("prob", x).unwrap();
    model(b.finish(&[x]).unwrap(), 21)
}

#[test]
fn types_cross_threads() {
    fn shared<T: Send + Sync + Clone>() {}
    fn sent<T: Send>() {}
    shared::<Plan>();
    sent::<Session>();
}

#[test]
fn a_batch_is_its_images() {
    let model = net();
    let images = images(8 * 432, 3);
    let together = run(&model, &options(8, 1), &images);
    let alone: Vec<f32> = images.chunks(432).flat_map(|image| run(&model, &options(1, 1), image)).collect();
    assert_eq!(together, alone);
}

#[test]
fn sessions_of_one_plan_run_at_the_same_time() {
    for threads in [1, 2] {
        let plan = Plan::compile(&net(), &options(2, threads)).unwrap();
        let results: Vec<Vec<f32>> = std::thread::scope(|scope| {
            let start = |seed: u64| {
                let plan = plan.clone();
                scope.spawn(move || {
                    let mut session = plan.session();
                    let mut logits = vec![0.0; 20];
                    (0..20).for_each(|_| session.run(&images(864, seed), &mut logits).unwrap());
                    logits
                })
            };
            let running: Vec<_> = (0..4).map(start).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (seed, logits) in results.into_iter().enumerate() {
            assert_eq!(logits, run(&net(), &options(2, 1), &images(864, seed as u64)));
        }
    }
}

#[test]
fn a_team_of_the_caller_serves_several_plans() {
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap());
    let teams = [Team::new(3).unwrap(), Team::rayon(pool, 3)].map(Arc::new);
    let images = images(4 * 432, 5);
    let alone = run(&net(), &options(4, 1), &images);
    for team in teams.iter().chain(&teams) {
        let options = Options { team: Some(Arc::clone(team)), ..options(4, 3) };
        assert_eq!(run(&net(), &options, &images), alone);
    }
}

#[test]
fn the_reference_is_a_backend_too() {
    let model = net();
    let images = images(3 * 432, 7);
    let plan = Plan::compile(&model, &Options { backend: BackendKind::Reference, ..options(4, 1) }).unwrap();
    let mut logits = vec![f32::NAN; 30];
    plan.session().run(&images, &mut logits).unwrap();
    let expected: Vec<f32> = reference::run(&model, &images).unwrap().into_iter().map(|v| v as f32).collect();
    assert_eq!(logits, expected);
    let rows: Vec<f32> = logits.chunks(10).map(|row| row.iter().sum()).collect();
    assert!(rows.iter().all(|sum| (sum - 1.0).abs() < 1e-5), "probabilities: {rows:?}");
}

#[test]
fn a_profile_has_a_time_for_every_step() {
    for backend in [BackendKind::Cpu, BackendKind::Reference] {
        let plan = Plan::compile(&net(), &Options { backend, ..options(2, 1) }).unwrap();
        let profile = plan.session().profile(&images(864, 1)).unwrap();
        assert_eq!(profile.steps.len(), plan.steps().len());
        assert!(profile.steps.iter().all(|s| s.time_us >= 0.0));
        let convs: f64 = profile.steps.iter().filter(|s| s.step.macs > 0).map(|s| s.time_us).sum();
        let sum: f64 = profile.steps.iter().map(|s| s.time_us).sum();
        assert!(convs > 0.0 && sum <= profile.total_us, "{convs} {sum} {}", profile.total_us);
        assert_eq!(profile.memory, plan.memory());
        let trace: serde_json::Value = serde_json::from_str(&profile.chrome_trace()).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), profile.steps.len());
        let mut end = 0.0;
        for (event, step) in events.iter().zip(&profile.steps) {
            assert_eq!((&event["name"], &event["ph"]), (&step.step.nodes.as_str().into(), &"X".into()));
            assert_eq!(event["ts"].as_f64().unwrap(), end, "events follow each other");
            end += event["dur"].as_f64().unwrap();
        }
        assert!(profile.memory.peak_bytes() > profile.memory.weight_bytes);
    }
}

#[test]
fn latencies_are_measured_round_by_round() {
    let small = Plan::compile(&net(), &options(1, 1)).unwrap();
    let large = Plan::compile(&net(), &options(4, 1)).unwrap();
    let images = images(4 * 432, 1);
    let (mut a, mut b) = (small.session(), large.session());
    let budget = latency::Budget { warm_up: 1, settle: 1, rounds: 7, seconds: 1e9 };
    let mut subjects = [("one", &mut a, &images[..432]), ("four", &mut b, &images[..])];
    let latencies = latency::measure(&mut subjects, &budget).unwrap();
    assert_eq!(
        latencies.iter().map(|l| (l.name.as_str(), l.runs)).collect::<Vec<_>>(),
        [("one", 7), ("four", 7)]
    );
    for l in &latencies {
        assert!(0.0 < l.p50_us && l.p50_us <= l.p90_us && l.p90_us <= l.p99_us, "{l:?}");
    }
    let short = latency::Budget { rounds: 1000, seconds: 0.0, ..budget };
    assert_eq!(latency::measure(&mut subjects, &short).unwrap()[0].runs, 1);
    let mut wrong = [("one", &mut a, &images[..433])];
    assert!(latency::measure(&mut wrong, &budget).unwrap_err().to_string().contains("found 433"));
}
