use super::*;
use crate::Clip;
use cofilter_lowrank::{Rank, RankRule, Settings, decompose};

fn clipped_recipe(rule: RankRule) -> Recipe {
    let force = ForceRule::new(Force::L1, 0.5, ["conv1_lowrank", "conv2_lowrank"]);
    Recipe { clip: Some(Clip { every: 6, until: Some(18), rule }), force: Some(force), ..recipe() }
}

/// The network with pairs of full rank.
fn pairs() -> Model {
    let settings = Settings { rule: RankRule::Full, grow: true, ..Settings::default() };
    decompose(&model(), &settings).unwrap().0
}

fn rank_of(model: &Model, node: &str) -> usize {
    model.tensors(model.graph().find(node).unwrap())[0].dims()[0]
}

#[test]
fn a_run_that_clips_goes_on_after_a_stop_and_after_a_kill() {
    let setting = Setting { model: pairs(), ..Setting::new(clipped_recipe(RankRule::Energy(0.9))) };
    let whole = trained(setting.run(None, None));
    let cut: Vec<(u64, Vec<usize>)> = whole
        .history
        .iter()
        .filter(|record| !record.clipped.is_empty())
        .map(|record| (record.iteration, record.clipped.iter().map(|layer| layer.rank).collect()))
        .collect();
    assert!(!cut.is_empty() && cut.iter().all(|(at, _)| [6, 12, 18].contains(at)), "{cut:?}");
    for layer in ["conv1", "conv2"] {
        let last = whole.history.iter().flat_map(|r| &r.clipped).rfind(|of| of.name == layer);
        let rank = rank_of(&whole.model, &format!("{layer}_lowrank"));
        assert!(rank < 6 && last.unwrap().rank == rank, "{layer} {rank}: {last:?}");
    }
    for end in [End::Stop(5), End::Stop(6), End::Stop(13), End::Kill(16), End::Stop(29)] {
        let folder = tempfile::tempdir().unwrap();
        let stopped = setting.run(Some(folder.path()), Some(end));
        assert!(matches!(stopped, Outcome::Stopped { .. }));
        let resumed = trained(setting.run(Some(folder.path()), None));
        assert_eq!(resumed.model, whole.model, "{end:?}");
        assert_eq!(timeless(&resumed.history), timeless(&whole.history), "{end:?}");
        assert_eq!(timeless(&lines(folder.path())), timeless(&whole.history), "{end:?}");
    }
}

/// A pair with more ranks than it needs learns as the same pair without them, momentum included.
#[test]
fn clipping_makes_no_jump() {
    let ranks = RankRule::by_name([("conv2", Rank::One(3))]);
    let settings = Settings { rule: ranks, grow: true, ..Settings::default() };
    let narrow = decompose(&model(), &settings).unwrap().0;
    let wide = widened(&narrow, "conv2", 5);
    let recipe = Recipe {
        clip: Some(Clip { every: 10, until: None, rule: RankRule::Energy(0.999_999_999) }),
        force: None,
        ..clipped_recipe(RankRule::Full)
    };
    let with = Setting { model: wide.clone(), ..Setting::new(recipe.clone()) };
    let without = Setting { model: wide, ..Setting::new(Recipe { clip: None, ..recipe }) };
    let (with, without) = (trained(with.run(None, None)), trained(without.run(None, None)));
    assert_eq!(rank_of(&with.model, "conv2_lowrank"), 3);
    assert_eq!(rank_of(&without.model, "conv2_lowrank"), 5);
    let clipped: Vec<u64> =
        with.history.iter().filter(|r| !r.clipped.is_empty()).map(|r| r.iteration).collect();
    assert_eq!(clipped, [10]);
    let losses = |trained: &Trained| -> Vec<(u64, f64)> {
        trained.history.iter().map(|record| (record.iteration, record.loss)).collect()
    };
    // Records of both are the same but for those that clipping adds.
    for (at, loss) in losses(&without) {
        let other = losses(&with).into_iter().find(|(i, _)| *i == at).unwrap().1;
        assert!((loss - other).abs() < 2e-4 * loss, "iteration {at}: {loss} without, {other} with");
    }
}

/// The same network with a basis of more filters, which are zero, as are their shares in the mixtures.
fn widened(model: &Model, layer: &str, rank: usize) -> Model {
    model
        .rewrite(|b, id, inputs| {
            let node = model.graph().node(id);
            let mut tensors = model.tensors(id).to_vec();
            let mut op = node.op().clone();
            if node.name() == format!("{layer}_lowrank") {
                let mut dims = tensors[0].dims().to_vec();
                let mut numbers = tensors[0].data().to_vec();
                numbers.resize(numbers.len() / dims[0] * rank, 0.0);
                dims[0] = rank;
                tensors[0] = Array::new(dims, numbers);
                if let cofilter_graph::Op::Conv2d(conv) = &mut op {
                    conv.out_channels = rank;
                }
            } else if node.name() == format!("{layer}_linear") {
                let mut dims = tensors[0].dims().to_vec();
                let rows = tensors[0].data().chunks_exact(dims[1]);
                let padding = vec![0.0; rank - dims[1]];
                let numbers: Vec<f32> = rows.flat_map(|row| [row, &padding].concat()).collect();
                dims[1] = rank;
                tensors[0] = Array::new(dims, numbers);
            }
            b.add(node.name(), op, inputs, tensors)
        })
        .unwrap()
}

#[test]
fn clipping_that_makes_no_sense_is_refused() {
    let fails = |model: Model, clip: Clip| {
        let setting = Setting {
            model,
            ..Setting::new(Recipe { clip: Some(clip), force: None, ..clipped_recipe(RankRule::Full) })
        };
        fit_until(&setting.model, &setting.fit(None), None).unwrap_err().to_string()
    };
    let clip = |every, rule| Clip { every, until: None, rule };
    for (model, clip, expected) in [
        (pairs(), clip(0, RankRule::Energy(0.9)), "expected 1 or more iterations"),
        (pairs(), clip(5, RankRule::Energy(1.5)), "energy ratio is 1.5"),
        (pairs(), clip(5, RankRule::by_name([("conv1", Rank::One(2))])), "one layer alone"),
        (pairs(), clip(5, RankRule::Ratio(0.5)), "a ratio of what is left"),
        (pairs(), clip(30, RankRule::Energy(0.9)), "every 30 of 30 iterations is never"),
        (model(), clip(5, RankRule::Energy(0.9)), "no pairs"),
    ] {
        let error = fails(model, clip);
        assert!(error.starts_with("recipe: clip: ") && error.contains(expected), "{error}");
    }
    let setting = Setting { model: pairs(), ..Setting::new(clipped_recipe(RankRule::Energy(0.9))) };
    let masks = setting.model.params().map(|_, _, array| Array::full(array.dims().to_vec(), 1.0));
    let fit = Fit { masks: Some(&masks), ..setting.fit(None) };
    let error = fit_until(&setting.model, &fit, None).unwrap_err().to_string();
    assert!(error.contains("masks are of the ranks"), "{error}");
}

#[test]
fn recipes_without_clipping_say_nothing_of_it() {
    // Runs of before go on: a recipe is part of the identity of a checkpoint.
    assert!(!serde_json::to_string(&recipe()).unwrap().contains("\"clip\""));
    let of = clipped_recipe(RankRule::Energy(0.99));
    assert_eq!(serde_json::from_str::<Recipe>(&serde_json::to_string(&of).unwrap()).unwrap(), of);
    let read: Recipe = serde_json::from_str("{\"clip\": {\"every\": 100}}").unwrap();
    assert_eq!(read.clip, Some(Clip { every: 100, until: None, rule: RankRule::Energy(0.99) }));
}
