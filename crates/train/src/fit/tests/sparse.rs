use super::*;
use crate::{Freeze, GroupLasso, LassoUpdate, Prune};
use cofilter_sparsity::{Grouping, Groups, Pattern, Pruning, Scope};

fn pruning(prune: Prune) -> Recipe {
    Recipe { prune: Some(prune), ..recipe() }
}

fn gradual() -> Prune {
    let pruning =
        Pruning { sparsity: 0.8, scope: Scope::Layer, exclude: vec!["side".into()], ..Pruning::default() };
    Prune { pruning, begin: 3, end: 20, every: 4 }
}

fn zeros(model: &Model, node: &str) -> usize {
    let id = model.graph().find(node).unwrap();
    model.tensors(id)[0].data().iter().filter(|w| **w == 0.0).count()
}

#[test]
fn zeros_follow_the_schedule_and_stay() {
    let setting = Setting::new(Recipe { record_every: 1, ..pruning(gradual()) });
    let trained = trained(setting.run(None, None));
    let densities: Vec<f64> = trained.history.iter().map(|r| r.density.unwrap()).collect();
    // Nothing up to iteration 6; after 7, 11, 15, 19 and 20 what 1 - (1 - (t - 3) / 17)^3 of 0.8 says.
    let weights: Vec<(&str, usize)> = vec![("conv1", 162), ("conv2", 324), ("side", 750), ("main", 750)];
    let total: usize = weights.iter().map(|(_, w)| w).sum();
    let at = |done: f64| {
        let fraction = 0.8 * (1.0 - (1.0 - (done - 3.0) / 17.0).powi(3));
        let pruned = weights.iter().filter(|(name, _)| *name != "side");
        1.0 - pruned.map(|(_, w)| (fraction * *w as f64).round()).sum::<f64>() / total as f64
    };
    let expected = |iteration: usize| match iteration {
        0..7 => 1.0,
        7..11 => at(7.0),
        11..15 => at(11.0),
        15..19 => at(15.0),
        19 => at(19.0),
        _ => at(20.0),
    };
    for (record, density) in trained.history.iter().zip(densities) {
        let expected = expected(record.iteration as usize);
        assert!((density - expected).abs() < 1e-12, "{}: {density}, expected {expected}", record.iteration);
    }
    assert_eq!((zeros(&trained.model, "conv2"), zeros(&trained.model, "side")), (259, 0));
}

/// However a run is interrupted, going on gives the bytes of the run that was not: masks, momentum and weights.
#[test]
fn a_run_that_prunes_goes_on_after_a_stop_and_after_a_kill() {
    let lasso = GroupLasso::new(Grouping::Columns, 0.3, ["conv1"]);
    let recipe = Recipe { lasso: vec![lasso], threshold: 1e-3, ..pruning(gradual()) };
    let setting = Setting::new(recipe);
    let whole = trained(setting.run(None, None));
    for end in [End::Stop(2), End::Stop(7), End::Kill(9), End::Stop(13), End::Kill(18), End::Stop(25)] {
        let folder = tempfile::tempdir().unwrap();
        let stopped = setting.run(Some(folder.path()), Some(end));
        assert!(matches!(stopped, Outcome::Stopped { .. }));
        let resumed = trained(setting.run(Some(folder.path()), None));
        assert_eq!(resumed.model, whole.model, "{end:?}");
        assert_eq!(timeless(&resumed.history), timeless(&whole.history), "{end:?}");
    }
}

#[test]
fn a_lasso_ends_groups() {
    for update in [LassoUpdate::Proximal, LassoUpdate::Subgradient] {
        let lasso = GroupLasso { update, ..GroupLasso::new(Grouping::Filters, 4.0, ["conv1", "conv2"]) };
        let threshold = if update == LassoUpdate::Subgradient { 5e-2 } else { 0.0 };
        let sparse = Recipe { lasso: vec![lasso], threshold, iterations: 60, force: None, ..recipe() };
        let setting = Setting::new(sparse);
        let model = trained(setting.run(None, None)).model;
        let gone = |node: &str| {
            let id = model.graph().find(node).unwrap();
            let groups = Groups::of_node(model.graph(), id, Grouping::Filters).unwrap();
            groups.norms(model.tensors(id)[0].data()).iter().filter(|norm| **norm == 0.0).count()
        };
        let found = [gone("conv1"), gone("conv2"), gone("main")];
        assert!(found[0] + found[1] > 2 && found[2] == 0, "{update:?}: {found:?}");
    }
}

#[test]
fn sparse_recipes_that_make_no_sense_are_named() {
    let of = |change: fn(&mut Prune)| {
        let mut prune = gradual();
        change(&mut prune);
        pruning(prune)
    };
    let lasso = |strength, node: &str| Recipe {
        lasso: vec![GroupLasso::new(Grouping::Columns, strength, [node])],
        ..recipe()
    };
    let cases = [
        (of(|p| p.every = 0), "prune: expected 1 or more"),
        (of(|p| p.end = 31), "prune: from 3 to 31 of 30"),
        (of(|p| p.begin = 20), "prune: from 20 to 20"),
        (of(|p| p.pruning.sparsity = 0.0), "prunes nothing"),
        (of(|p| p.pruning.sparsity = 1.5), "prune: the sparsity is 1.5"),
        (of(|p| p.pruning.exclude = vec!["sid".into()]), "prune: "),
        (
            of(|p| p.pruning = Pruning { pattern: Pattern::NOfM { n: 3, m: 2 }, ..Pruning::default() }),
            "prune: pattern: expected 1 to 2",
        ),
        (lasso(-1.0, "conv1"), "lasso: strength"),
        (lasso(1.0, "pool"), "lasso: node `pool`"),
        (Recipe { threshold: f64::NAN, ..recipe() }, "threshold"),
    ];
    for (recipe, expected) in cases {
        let error = recipe.check(model().graph()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}, expected {expected}");
    }
}

#[test]
fn a_word_that_means_nothing_is_refused() {
    let text = serde_json::json!({"sparsity": 0.5, "scope": "layer", "end": 20, "every": 4});
    let read: Prune = serde_json::from_value(text.clone()).unwrap();
    assert_eq!((read.begin, read.pruning.sparsity, read.pruning.scope), (0, 0.5, Scope::Layer));
    assert_eq!(serde_json::from_value::<Prune>(serde_json::to_value(&read).unwrap()).unwrap(), read);
    let mut wrong = text;
    wrong["sparsty"] = 0.9.into();
    let error = serde_json::from_value::<Prune>(wrong).unwrap_err().to_string();
    assert!(error.contains("sparsty"), "{error}");
}

#[test]
fn zeros_are_frozen_one_by_one_or_group_by_group() {
    let dense = Setting::new(Recipe { iterations: 12, ..recipe() });
    let pruned = |pattern, sparsity| {
        let pruning = Pruning { sparsity, pattern, ..Pruning::default() };
        cofilter_sparsity::prune_magnitude(&dense.model, &pruning).unwrap().0
    };
    let after = |model: &Model, freeze| {
        let recipe = Recipe { freeze, ..dense.recipe.clone() };
        let setting = Setting { model: model.clone(), recipe, ..Setting::new(Recipe::default()) };
        let whole = trained(setting.run(None, None)).model;
        let folder = tempfile::tempdir().unwrap();
        setting.run(Some(folder.path()), Some(End::Stop(5)));
        assert_eq!(trained(setting.run(Some(folder.path()), None)).model, whole);
        zeros(&whole, "conv2")
    };
    let elements = pruned(Pattern::Elements, 0.6);
    let before = zeros(&elements, "conv2");
    assert!(before > 100);
    assert_eq!(after(&elements, Some(Freeze::Elements)), before);
    assert!(after(&elements, Some(Freeze::Groups(Grouping::Filters))) < before / 10);
    assert!(after(&elements, None) < before / 10);
    let columns = pruned(Pattern::Groups(Grouping::Columns), 0.5);
    assert_eq!(after(&columns, Some(Freeze::Groups(Grouping::Columns))), zeros(&columns, "conv2"));
    let masks = cofilter_sparsity::masks_of_zeros(&columns);
    for recipe in [pruning(gradual()), Recipe { freeze: Some(Freeze::Elements), ..recipe() }] {
        let setting = Setting::new(recipe);
        let job = Fit { masks: Some(&masks), ..setting.fit(None) };
        assert!(matches!(fit(&setting.model, &job), Err(Error::Recipe(_))));
    }
}
