use super::{LayerSurvey, SurveySettings};
use crate::{RankRule, Result, decompose};
use cofilter_graph::{Model, decomposed_names};
use cofilter_runtime::latency::{Budget, measure as in_turns};
use cofilter_runtime::{Options, Plan, Session, Team};
use std::sync::Arc;
use std::time::Instant;

/// Measurements of a pair of networks, fewer where they take more than twice as long as they may.
const REPEATS: usize = 9;
const FEWEST: usize = 3;
/// Times that plans are made anew for the times of layers.
const PLACES: usize = 5;
/// Seconds that each of them is measured at least, unless there were [`MOST`] times the rounds that were asked for.
const SECONDS: f64 = 1.0;
const MOST: usize = 20;
/// How much longer than in the quietest of them both networks may take together, for a measurement to count.
const QUIET: f64 = 1.15;
/// How much longer than it is known to take a network may, on a machine that is quiet.
const KNOWN: f64 = 1.25;
/// Times that a busy machine is measured again.
const PATIENCE: usize = 3;

/// Times every way, inside networks in which each layer is had in one of its ways, and returns the time of a run of the network
/// as it is.
///
/// Network `i` has way `i` of each layer, and layers with fewer ways as they are, so there are as many networks as the
/// layer with the most ways has, and one more.
///
/// Rounds are spread over plans, sessions and threads that are made anew [`PLACES`] times: where those lie matters too.
pub(super) fn measure(model: &Model, layers: &mut [LayerSurvey], settings: &SurveySettings) -> Result<f64> {
    let count = 1 + layers.iter().map(|layer| layer.ways.len()).max().unwrap_or(0);
    let networks = (0..count)
        .map(|network| {
            let mut of = settings.selection();
            let mut ranks = Vec::new();
            for layer in layers.iter() {
                if let Some(way) = network.checked_sub(1).and_then(|way| layer.ways.get(way)) {
                    of.methods.insert(layer.name.clone(), way.method);
                    ranks.push((layer.name.clone(), way.rank));
                }
            }
            of.rule = RankRule::by_name(ranks);
            Ok(decompose(model, &of)?.0)
        })
        .collect::<Result<Vec<Model>>>()?;
    let mut times: Vec<Vec<Vec<f64>>> = vec![vec![Vec::new(); layers.len()]; count];
    let mut whole = Vec::new();
    for _ in 0..PLACES {
        let team = team(settings.threads)?;
        let mut sessions = networks
            .iter()
            .map(|network| session(network, settings.batch, &team))
            .collect::<Result<Vec<_>>>()?;
        let owners: Vec<Vec<Option<usize>>> =
            sessions.iter().map(|session| owners(session, layers)).collect();
        let images = ramp(settings.batch * sessions[0].plan().input_len());
        let rounds = settings.rounds.div_ceil(PLACES);
        let mut start = Instant::now();
        let mut round = 0;
        while round <= rounds || (round <= MOST * rounds && start.elapsed().as_secs_f64() < SECONDS) {
            for ((network, session), owners) in sessions.iter_mut().enumerate().zip(&owners) {
                let profile = session.profile(&images)?;
                // The first round warms up.
                if round == 0 {
                    continue;
                }
                let mut us = vec![0.0; layers.len()];
                for (step, owner) in profile.steps.iter().zip(owners) {
                    if let Some(layer) = owner {
                        us[*layer] += step.time_us;
                    }
                }
                times[network].iter_mut().zip(us).for_each(|(all, us)| all.push(us));
                if network == 0 {
                    whole.push(profile.total_us);
                }
            }
            if round == 0 {
                start = Instant::now();
            }
            round += 1;
        }
    }
    for (at, layer) in layers.iter_mut().enumerate() {
        layer.dense_us = quartile(&mut times[0][at]);
        for (way, of) in layer.ways.iter_mut().zip(&mut times[1..]) {
            way.us = quartile(&mut of[at]);
        }
    }
    Ok(quartile(&mut whole))
}

/// For each step of a plan the layer that it computes, or a part of it.
fn owners(session: &Session, layers: &[LayerSurvey]) -> Vec<Option<usize>> {
    let of_node = |node: &str| {
        layers
            .iter()
            .position(|layer| node == layer.name || decomposed_names(node).contains(&layer.name.as_str()))
    };
    let of_step = |nodes: &str| nodes.split('+').find_map(of_node);
    session.plan().steps().iter().map(|step| of_step(&step.nodes)).collect()
}

/// How many times as fast `small` runs as `dense`, and the times of a run of both in microseconds, in measurements in turns with
/// fresh plans, sessions and threads (where those lie matters too): of those in which the machine was about as quiet as in
/// the quietest one, the one in the middle by the ratio.
///
/// On a machine that others use, times double for seconds, and ratios then tell of waiting threads, not of networks.
///
/// # Errors
/// [`crate::Error::Runtime`] where a network cannot be compiled.
pub fn measured_speedup(
    dense: &Model,
    small: &Model,
    batch: usize,
    threads: usize,
    seconds: f64,
) -> Result<(f64, [f64; 2])> {
    let mut all = measurements([dense, small], batch, threads, seconds)?;
    Ok(middle_of_quiet(&mut all))
}

/// As [`measured_speedup`] of a network that is known to take so many microseconds: on a machine that is busy now it is measured
/// again, and what is quiet of all is taken.
pub(super) fn speedup_when_quiet(
    models: [&Model; 2],
    known_us: f64,
    settings: &SurveySettings,
    seconds: f64,
) -> Result<f64> {
    let SurveySettings { batch, threads, .. } = *settings;
    when_quiet(known_us, || measurements(models, batch, threads, seconds))
}

fn when_quiet(known_us: f64, mut measure: impl FnMut() -> Result<Vec<(f64, [f64; 2])>>) -> Result<f64> {
    let mut all = measure()?;
    for _ in 0..PATIENCE {
        if all.iter().any(|(_, us)| us[0] <= KNOWN * known_us) {
            break;
        }
        tracing::warn!("the machine is busy: the network takes more than {KNOWN} times as long as it did");
        all.extend(measure()?);
    }
    Ok(middle_of_quiet(&mut all).0)
}

/// Ratios and times.
fn measurements(
    models: [&Model; 2],
    batch: usize,
    threads: usize,
    seconds: f64,
) -> Result<Vec<(f64, [f64; 2])>> {
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    let budget = Budget { warm_up: 2, settle: 1, rounds: 20_000, seconds: seconds / REPEATS as f64 };
    let start = Instant::now();
    // A large network takes its time to be compiled, and to run even once.
    let enough = |repeat: usize| repeat >= FEWEST && start.elapsed().as_secs_f64() > 2.0 * seconds;
    (0..REPEATS)
        .take_while(|repeat| !enough(*repeat))
        .map(|_| {
            let team = team(threads)?;
            let [mut a, mut b] = [session(models[0], batch, &team)?, session(models[1], batch, &team)?];
            let images = ramp(batch * a.plan().input_len());
            let mut subjects = [("dense", &mut a, images.as_slice()), ("small", &mut b, images.as_slice())];
            let times = in_turns(&mut subjects, &budget)?;
            let us = [times[0].p50_us, times[1].p50_us];
            Ok((us[0] / us[1], us))
        })
        .collect()
}

/// The middle one by the ratio of those with about the least times.
fn middle_of_quiet(all: &mut Vec<(f64, [f64; 2])>) -> (f64, [f64; 2]) {
    let both = |of: &(f64, [f64; 2])| of.1[0] + of.1[1];
    let least = all.iter().map(both).fold(f64::INFINITY, f64::min);
    all.retain(|of| both(of) <= QUIET * least);
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all[all.len() / 2]
}

fn team(threads: usize) -> Result<Arc<Team>> {
    let team = Team::new(threads).map_err(|source| cofilter_runtime::Error::Threads { threads, source })?;
    Ok(Arc::new(team))
}

fn session(model: &Model, batch: usize, team: &Arc<Team>) -> Result<Session> {
    let options =
        Options { batch, threads: team.threads(), team: Some(Arc::clone(team)), ..Options::default() };
    Ok(Plan::compile(model, &options)?.session())
}

/// Inputs without meaning in `[-1, 1)`, the same each time.
fn ramp(len: usize) -> Vec<f32> {
    #[expect(clippy::cast_precision_loss, reason = "small integers")]
    (0..len).map(|i| ((i * 7919) % 2048) as f32 / 1024.0 - 1.0).collect()
}

/// The lower one: rounds in which the machine was busy, even most of them, do not move it.
fn quartile(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 4).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::{PATIENCE, middle_of_quiet, when_quiet};

    #[test]
    fn a_busy_machine_is_measured_again() {
        let of = |dense: f64| (dense / 500.0, [dense, 500.0]);
        let with = |rounds: &[f64]| {
            let mut asked = 0;
            let found = when_quiet(700.0, || {
                asked += 1;
                Ok(vec![of(rounds[(asked - 1).min(rounds.len() - 1)])])
            });
            (found.unwrap(), asked)
        };
        assert_eq!(with(&[760.0]), (760.0 / 500.0, 1));
        assert_eq!(with(&[1400.0, 1300.0, 750.0, 740.0]), (750.0 / 500.0, 3));
        // Busy for ever: what there is.
        assert_eq!(with(&[1400.0]), (1400.0 / 500.0, 1 + PATIENCE));
    }

    #[test]
    fn busy_moments_do_not_count() {
        let of = |dense: f64, small: f64| (dense / small, [dense, small]);
        // Quiet, with layouts of memory that differ; and a neighbour that makes both wait.
        let mut all = vec![
            of(1300.0, 1280.0),
            of(760.0, 530.0),
            of(700.0, 535.0),
            of(1400.0, 1330.0),
            of(740.0, 540.0),
            of(1350.0, 1290.0),
        ];
        assert_eq!(middle_of_quiet(&mut all), of(740.0, 540.0));
        assert_eq!(all.len(), 3);
        assert_eq!(middle_of_quiet(&mut vec![of(2.0, 1.0)]), of(2.0, 1.0));
    }
}
