use super::*;
use cofilter_lowrank as lowrank;

fn subject(of: Subject, scale: f64) -> Subject {
    Subject { scale, ..of }
}

/// The solver table of the paper's authors (paper.md 6.0): batch, rate, decay, iterations and steps.
#[test]
fn at_full_length_the_recipes_are_the_published_ones() {
    let steps = |recipe: &Recipe| match &recipe.schedule {
        Schedule::MultiStep { at, gamma } if (*gamma - 0.1).abs() < 1e-12 => at.clone(),
        other => panic!("{other:?}"),
    };
    let convnet = Subject::convnet(false).unwrap();
    let resnet = Subject::resnet20(true).unwrap();
    let table = [
        (convnet.baseline(1), 100, 0.001, 0.004, 240_000, [120_000, 200_000]),
        (convnet.continued(1, None), 100, 0.001, 0.004, 240_000, [200_000, 220_000]),
        (resnet.baseline(1), 256, 0.1, 1e-4, 64_000, [32_000, 48_000]),
        (resnet.continued(1, None), 256, 0.1, 1e-4, 64_000, [32_000, 48_000]),
    ];
    for (recipe, batch, rate, decay, iterations, at) in table {
        assert_eq!((recipe.batch, recipe.iterations), (batch, iterations));
        assert_eq!((recipe.learning_rate, recipe.weight_decay, recipe.momentum), (rate, decay, 0.9));
        assert_eq!(steps(&recipe), at);
    }
    // Neither the first convolution nor the shortcuts feel it; the ranks of 19 layers are known.
    let forced = resnet.continued(1, Some((Force::L2, 1e-4)));
    let forced: Vec<String> = forced.force.unwrap().multipliers.into_keys().collect();
    assert!(forced.len() == 18 && forced.iter().all(|name| name.starts_with("res_grp")), "{forced:?}");
    assert!(!forced.iter().any(|name| name.ends_with("downsampling")));
    assert_eq!((resnet.layers.len(), resnet.depths[3].end), (19, 19));
}

#[test]
fn iterations_and_steps_are_shortened_together() {
    let short = subject(Subject::resnet20(false).unwrap(), 0.01);
    for (_, _, job) in short.jobs() {
        assert_eq!((job.iterations, job.steps), (640, [320, 480]));
    }
    let further = Subject { tuning: Some(64), ..short.clone() };
    let [_, (.., continued), (.., tuning)] = further.jobs();
    assert_eq!((continued.iterations, tuning.iterations, tuning.steps), (640, 64, [32, 48]));
    assert_eq!(further.tuning_iterations(), 64);
    assert!(
        short.first_strengths().iter().zip(short.strengths).all(|(s, full)| (s / full - 100.0).abs() < 1e-9)
    );
    let adaptive = Subject { scaling: Scaling::Adaptive, ..short.clone() };
    assert_eq!(adaptive.first_strengths(), [SHARE; 2], "a share does not depend on the length");
    assert_eq!(adaptive.continued(1, Some((Force::L1, SHARE))).force.unwrap().scaling, Scaling::Adaptive);
    let shortest = subject(short, 0.0).continued(1, Some((Force::L1, 1e-3)));
    assert_eq!((shortest.iterations, shortest.evaluate_every), (FEWEST, 1));
    let graph = Subject::resnet20(false).unwrap().network.graph;
    shortest.check(&graph).unwrap();
}

fn of(network: &str, more: &[&str]) -> Subject {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }
    let line = ["reproduce", network].into_iter().chain(more.iter().copied());
    Subject::new(&<Line as clap::Parser>::parse_from(line).options).unwrap()
}

/// At their depths, the layers that `force_layers` names.
#[test]
fn a_target_and_factors_of_the_force_are_used_and_told() {
    for network in ["convnet", "resnet20"] {
        let [usual, held, without] = [
            &[][..],
            &["--strengths", "1,1", "--target-spread", "0.1", "--factors", "0.5,2,3"],
            &["--factors", "1,0,1"],
        ]
        .map(|more| of(network, more));
        let rule = |of: &Subject, strength| of.continued(1, Some((Force::L2, strength))).force.unwrap();
        let (forced, names) = (rule(&held, 1e-4), held.network.force_layers.iter());
        assert_eq!(forced.target_spread, Some(0.1));
        assert_eq!(rule(&held, -1e-4).target_spread, None, "repulsion has no end");
        let graph = &held.network.graph;
        for layer in names {
            let filters = graph.slots(graph.find(layer).unwrap())[0].dims[0];
            let expected = match (network, layer.as_str(), filters) {
                ("convnet", "conv1", _) | ("resnet20", _, 16) => 0.5,
                ("convnet", "conv2", _) | ("resnet20", _, 32) => 2.0,
                _ => 3.0,
            };
            assert!((forced.multipliers[layer] - expected).abs() < 1e-12, "{network}: {layer}");
            let usual = rule(&usual, 1e-4).multipliers[layer];
            assert!((usual - 1.0).abs() < 1e-12, "{network}: {layer}");
            let feels = rule(&without, 1e-4).multipliers.contains_key(layer);
            assert_eq!(feels, (expected - 2.0).abs() > 1e-12, "{network}: {layer}");
        }
        assert_eq!(forced.multipliers.len(), held.network.force_layers.len());
        assert!(held.manner().contains("0.5, 2, 3 times") && held.manner().contains("spread of 0.1"));
        assert!(held.deviations().join("\n").contains("twice 0.1"), "{:?}", held.deviations());
        assert_eq!(usual.manner(), "");
    }
}

#[test]
fn a_batch_or_a_rate_of_ones_own_is_used_and_told() {
    for (network, published) in [("convnet", (100, 0.001)), ("resnet20", (256, 0.1))] {
        let usual = of(network, &[]);
        let own = of(network, &["--batch", "64", "--rate", "0.02"]);
        for (subject, (batch, rate)) in [(&usual, published), (&own, (64, 0.02))] {
            let recipe = subject.continued(1, None);
            assert_eq!((recipe.batch, recipe.learning_rate), (batch, rate), "{network}");
            assert_eq!(subject.tuning(1, &subject.network.model(1).unwrap()).batch, batch, "{network}");
        }
        // A filter turns by strength times rate.
        for (own, usual) in own.first_strengths().iter().zip(usual.first_strengths()) {
            assert!((own * 0.02 / (usual * published.1) - 1.0).abs() < 1e-9, "{network}: {own}");
        }
        let notes = own.deviations().join("\n");
        assert!(notes.contains("64 images") && notes.contains("0.02"), "{notes}");
        assert!(!usual.deviations().join("\n").contains("images, the authors'"), "{network}");
    }
}

#[test]
fn recipes_fit_the_networks_before_and_after_decomposition() {
    for of in [
        Subject::convnet(false).unwrap(),
        Subject::convnet(true).unwrap(),
        Subject::resnet20(false).unwrap(),
        Subject::resnet20(true).unwrap(),
    ] {
        let model = of.network.model(1).unwrap();
        of.baseline(1).check(model.graph()).unwrap();
        of.continued(1, Some((Force::L2, -1e-4))).check(model.graph()).unwrap();
        let rule = lowrank::RankRule::by_name([(of.layers[1].clone(), 3)]);
        let settings = lowrank::Settings { rule, ..lowrank::Settings::default() };
        let (small, _) = lowrank::decompose(&model, &settings).unwrap();
        of.tuning(1, &small).check(small.graph()).unwrap();
    }
    let convnet = Subject::convnet(false).unwrap();
    let rule = lowrank::RankRule::by_name([("conv3", 3)]);
    let settings = lowrank::Settings { rule, ..lowrank::Settings::default() };
    let (small, _) = lowrank::decompose(&convnet.network.model(1).unwrap(), &settings).unwrap();
    let names: Vec<String> = convnet.tuning(1, &small).multipliers.tensors.into_keys().collect();
    assert_eq!(names, ["conv3_linear.bias", "ip1.bias", "ip1.weight"]);
}
