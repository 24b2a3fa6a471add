use super::*;
use crate::Rollback;
use crate::rollback::Memory;

/// A force that throws the network far away in one step, but not when it was lowered twice.
fn too_strong(times: u32) -> Recipe {
    let rollback = Some(Rollback { factor: 1e-4, times });
    let force = ForceRule { rollback, warm_up: 3, ..ForceRule::new(Force::L2, 1e6, ["conv1", "conv2"]) };
    Recipe { force: Some(force), clip_gradients: None, record_every: 2, ..recipe() }
}

#[test]
fn a_force_that_is_too_strong_is_lowered() {
    let setting = Setting::new(too_strong(5));
    let trained = trained(setting.run(None, None));
    let strengths: Vec<f64> = trained.history.iter().map(|r| r.force_strength.unwrap()).collect();
    assert_eq!(trained.history.iter().map(|r| r.iteration).filter(|i| i % 2 == 0).count(), 15, "each once");
    assert!(strengths.iter().all(|s| *s <= 1e6) && strengths[strengths.len() - 1] < 1e3, "{strengths:?}");
    assert!(strengths.windows(2).skip(1).all(|pair| pair[1] <= pair[0]), "{strengths:?}");
}

#[test]
fn a_force_that_is_still_too_strong_is_an_error() {
    let without = Recipe {
        force: too_strong(1).force.map(|force| ForceRule { rollback: None, ..force }),
        ..too_strong(1)
    };
    for recipe in [without, too_strong(1)] {
        let setting = Setting::new(recipe);
        let error = fit(&setting.model, &setting.fit(None)).unwrap_err();
        assert!(matches!(error, Error::Diverged { .. } | Error::Forgotten { .. }), "{error}");
    }
}

/// However a run is interrupted, before or after it was rolled back, going on gives the bytes of the run that was not.
#[test]
fn a_run_that_is_rolled_back_goes_on_after_a_stop_and_after_a_kill() {
    let setting = Setting::new(too_strong(5));
    let whole = trained(setting.run(None, None));
    for end in [End::Stop(1), End::Stop(8), End::Kill(9), End::Stop(14), End::Kill(15), End::Stop(29)] {
        let folder = tempfile::tempdir().unwrap();
        let stopped = setting.run(Some(folder.path()), Some(end));
        let Outcome::Stopped { iteration, checkpoint } = stopped else { panic!("not stopped at {end:?}") };
        if matches!(end, End::Stop(_)) {
            assert_eq!((iteration % 7, checkpoint.is_some()), (0, iteration > 0), "{end:?}");
        }
        let resumed = trained(setting.run(Some(folder.path()), None));
        assert_eq!(resumed.model, whole.model, "{end:?}");
        assert_eq!(timeless(&resumed.history), timeless(&whole.history), "{end:?}");
        assert_eq!(timeless(&lines(folder.path())), timeless(&whole.history), "{end:?}");
    }
}

/// Where nothing goes wrong, being able to go back changes nothing.
#[test]
fn rolling_back_costs_nothing_where_it_is_not_needed() {
    let plain = Setting::new(recipe());
    let force = plain.recipe.force.clone().map(|f| ForceRule { rollback: Some(Rollback::default()), ..f });
    let careful = Setting::new(Recipe { force, ..recipe() });
    let [plain, careful] = [plain, careful].map(|setting| trained(setting.run(None, None)));
    assert_eq!((plain.model, timeless(&plain.history)), (careful.model, timeless(&careful.history)));
}

#[test]
fn a_network_forgets_only_what_it_knew() {
    let step = |iteration, loss| Step {
        iteration,
        loss,
        losses: vec![loss],
        correct: 0,
        learning_rate: 0.1,
        force_share: None,
        force_strength: None,
        seconds: [0.0; 3],
    };
    // Guessing among ten classes: 2.3026.
    let close = |memory: &mut Memory, from: u64, losses: [f64; 2]| {
        losses.iter().zip(from..).for_each(|(loss, i)| memory.add(&step(i, *loss), 10));
        memory.close(from + 2, 10)
    };
    let mut fresh = Memory::default();
    close(&mut fresh, 0, [2.31, 2.30]).unwrap();
    close(&mut fresh, 2, [2.31, 2.31]).unwrap();
    assert!(close(&mut fresh.clone(), 4, [2.31, 500.0]).is_err());
    assert!(!fresh.learnt);
    close(&mut fresh, 4, [2.0, 2.1]).unwrap();
    assert!(fresh.learnt);
    let error = close(&mut fresh, 6, [2.31, 2.51]).unwrap_err();
    let Error::Forgotten { iteration: 8, loss, guessing } = error else { panic!("{error}") };
    assert!((loss - (0.95 * 2.31 + 0.05 * 2.51)).abs() < 1e-12 && (guessing - 10f64.ln()).abs() < 1e-12);
    // One that was trained before shows it in its very first loss, and only the end of an interval counts.
    let mut trained = Memory::default();
    (0..50).for_each(|i| trained.add(&step(i, 0.5), 10));
    (50..150).for_each(|i| trained.add(&step(i, 2.4), 10));
    assert!(trained.close(150, 10).is_err());
}

#[test]
fn each_evaluation_records_the_spectra_that_are_asked_for() {
    let setting = Setting::new(Recipe { spectra: vec!["conv2".into(), "main".into()], ..recipe() });
    let trained = trained(setting.run(None, None));
    for record in &trained.history {
        let recorded: Vec<&str> = record.spectra.keys().map(String::as_str).collect();
        let expected: &[&str] = if record.test.is_some() { &["conv2", "main"] } else { &[] };
        assert_eq!(recorded, expected, "{}", record.iteration);
    }
    let last = &trained.history[trained.history.len() - 1];
    assert_eq!(last.spectra["conv2"], cofilter_lowrank::spectrum(&trained.model, "conv2").unwrap());
    let error = Recipe { spectra: vec!["pool".into()], ..recipe() }.check(setting.model.graph()).unwrap_err();
    assert!(error.to_string().contains("spectra: node `pool`"), "{error}");
}

#[test]
fn bad_rules_are_named() {
    let rule = |of: fn(&mut ForceRule)| {
        let mut recipe = recipe();
        of(recipe.force.as_mut().unwrap());
        recipe
    };
    let cases = [
        (rule(|f| f.rollback = Some(Rollback { factor: 1.0, times: 1 })), "factor in (0, 1), found 1"),
        (rule(|f| f.rollback = Some(Rollback { factor: f64::NAN, times: 1 })), "found NaN"),
        (rule(|f| f.rollback = Some(Rollback { factor: 0.5, times: 0 })), "1 or more times, found 0"),
        (
            Recipe {
                distillation: Some(Default::default()),
                ..rule(|f| f.rollback = Some(Rollback::default()))
            },
            "does not go with distillation",
        ),
        (
            Recipe { checkpoint_every: 0, ..rule(|f| f.rollback = Some(Rollback::default())) },
            "`checkpoint_every` is 0",
        ),
    ];
    for (recipe, expected) in cases {
        let error = recipe.check(model().graph()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}, expected {expected}");
    }
}
