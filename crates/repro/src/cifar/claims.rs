use super::{BATCHES, Results, Study, rank_ratio};
use crate::report::{Arm, Claim};
use crate::statistics::{interval, mean};
use anyhow::Result;
use std::ops::Range;

/// Rank ratio at 95 % energy that ResNet-20 is to reach; the paper's is 0.31.
const RATIO: f64 = 0.4;
/// Points of error that it may cost; the paper's are 0.75.
const PRICE: f64 = 1.0;
/// Share of the first layers' rank ratio that the last ones may have.
const LATE: f64 = 0.5;

pub(super) fn all(study: &Study<'_>, results: &Results, arms: &[Arm]) -> Result<Vec<Claim>> {
    let context = Context { study, results, command: study.pipeline.options.command() };
    let mut claims = Vec::new();
    let forces = [("force-l2", "L2", ""), ("force-l1", "L1", "-l1")];
    for (arm, norm, suffix) in forces.into_iter().filter(|(arm, ..)| results.arms.contains_key(*arm)) {
        claims.push(context.rank_ratio(arm, norm, suffix));
        claims.push(context.accuracy_price(arm, norm, suffix));
        claims.push(context.late_layers(arm, norm, suffix));
    }
    claims.push(context.force_init());
    for batch in BATCHES {
        claims.extend(context.speedup(arms, batch)?);
    }
    if results.arms.contains_key("repulsion") {
        claims.push(context.repulsion());
    }
    Ok(claims)
}

struct Context<'a> {
    study: &'a Study<'a>,
    results: &'a Results,
    command: String,
}

impl Context<'_> {
    fn claim(&self, id: &str, statement: String, values: &[f64]) -> Claim {
        Claim {
            id: id.into(),
            statement,
            paper: None,
            ours: mean(values),
            interval: interval(values),
            tolerance: None,
            holds: false,
            command: self.command.clone(),
        }
    }

    /// The paper's ranks, without and with L2-norm force, where the arm is of that force and the paper tells them.
    fn published(&self, arm: &str) -> Option<&[Vec<usize>; 2]> {
        self.study.subject.published.as_ref().filter(|_| arm == "force-l2")
    }

    fn rank_ratio(&self, arm: &str, norm: &str, suffix: &str) -> Claim {
        let manner = self.study.subject.manner();
        let id = format!("rank-ratio{suffix}");
        let all = 0..self.results.full_ranks.len();
        if self.study.subject.published.is_some() {
            let paper = self.published(arm).map(|[_, force]| rank_ratio(force, &self.results.full_ranks));
            let ours = self.results.rank_ratios(arm, all.clone());
            let control = mean(&self.results.rank_ratios("control", all));
            let statement = format!(
                "{norm}-norm force{manner}: the mean rank ratio at 95 % energy is at most {RATIO} (control: {control:.2})"
            );
            let claim = self.claim(&id, statement, &ours);
            return Claim { paper, tolerance: Some(RATIO), holds: claim.ours <= RATIO, ..claim };
        }
        let late = 1..all.end;
        let pairs = self.results.ranks[arm].iter().zip(&self.results.ranks["control"]);
        let below = pairs.clone().all(|(force, control)| late.clone().all(|i| force[i] < control[i]));
        let ratios: Vec<f64> =
            pairs.map(|(force, control)| left(force, control, &self.results.full_ranks, &late)).collect();
        let statement = format!(
            "{norm}-norm force{manner}: the rank of every convolution but the first at 95 % energy is below the control's, for every \
             seed (ours: mean rank ratio over the control's)"
        );
        Claim { holds: below, ..self.claim(&id, statement, &ratios) }
    }

    fn accuracy_price(&self, arm: &str, norm: &str, suffix: &str) -> Claim {
        let manner = self.study.subject.manner();
        let lost = self.results.gains("control", arm);
        let (lost, which) = match self.study.searched() {
            true => not_chosen_by(&lost),
            false => (&*lost, "one strength, not searched for"),
        };
        let (most, paper) = match self.study.subject.published {
            Some(_) => (PRICE, (arm == "force-l2").then_some(0.75)),
            None => (0.0, None),
        };
        let against = if paper.is_some() { "; the paper's points are against its baseline" } else { "" };
        let statement = format!(
            "{norm}-norm force{manner}: before decomposition it costs at most {most} points of top-1 against the control; {which}{against}"
        );
        let claim = self.claim(&format!("accuracy-price{suffix}"), statement, lost);
        Claim { paper, tolerance: Some(most), holds: claim.ours <= most, ..claim }
    }

    /// The collapse is where the paper's is.
    fn late_layers(&self, arm: &str, norm: &str, suffix: &str) -> Claim {
        let manner = self.study.subject.manner();
        let depths = &self.study.subject.depths;
        let (late, early) = (&depths[depths.len() - 1], &depths[usize::from(depths.len() > 3)]);
        let full = &self.results.full_ranks;
        let quotient = |force: &[usize], control: &[usize]| {
            left(force, control, full, late) / left(force, control, full, early)
        };
        let pairs = self.results.ranks[arm].iter().zip(&self.results.ranks["control"]);
        let ours: Vec<f64> = pairs.map(|(force, control)| quotient(force, control)).collect();
        let layers = &self.study.subject.layers;
        let name = |of: &Range<usize>| match of.len() {
            1 => layers[of.start].clone(),
            _ => format!("{} to {}", layers[of.start], layers[of.end - 1]),
        };
        let statement = format!(
            "{norm}-norm force{manner}: what is left of the control's rank in {} is at most {LATE} of what is left of it in {} (ours: \
             the quotient)",
            name(late),
            name(early)
        );
        let paper = self.published(arm).map(|[control, force]| quotient(force, control));
        let claim = self.claim(&format!("late-layers{suffix}"), statement, &ours);
        Claim { paper, tolerance: Some(LATE), holds: claim.ours <= LATE, ..claim }
    }

    fn force_init(&self) -> Claim {
        let gains = self.results.gains("force-l2-tuned", "control-tuned");
        let statement = "decomposed to the same ranks and fine-tuned alike, the network trained with force is at least as accurate as the \
                         control (points of top-1; paper: AlexNet)";
        let claim = self.claim("force-init", statement.into(), &gains);
        Claim { paper: Some(0.41), holds: claim.ours >= 0.0, ..claim }
    }

    fn speedup(&self, arms: &[Arm], batch: usize) -> Result<Option<Claim>> {
        let [own, force] = self.study.speedups(self.results, batch)?;
        let macs = |name: &str| arms.iter().find(|a| a.name == name).map(|a| a.macs);
        let (Some(dense), Some(own_macs), Some(force_macs)) =
            (macs("control"), macs(super::OWN), macs("force-l2-tuned"))
        else {
            return Ok(None);
        };
        #[expect(clippy::cast_precision_loss, reason = "operations are far below 2^53")]
        let theory = |small: usize| dense as f64 / small as f64;
        let statement = format!(
            "batch {batch}: the decomposed force arm is faster than the dense network (theory {:.2}; the control at its own ranks: {:.2}, \
             theory {:.2})",
            theory(force_macs),
            mean(&own),
            theory(own_macs)
        );
        let claim = self.claim("speedup", statement, &force);
        Ok(Some(Claim { holds: claim.interval.map_or(claim.ours, |[low, _]| low) > 1.0, ..claim }))
    }

    fn repulsion(&self) -> Claim {
        let gains = self.results.gains("repulsion", "control");
        let statement = "repulsion makes the dense network more accurate than the control (points of top-1)";
        let claim = self.claim("repulsion", statement.into(), &gains);
        let holds = claim.interval.map_or(claim.ours, |[low, _]| low) > 0.0;
        Claim { holds, ..claim }
    }
}

/// The values of the seeds but the first, by which the strength was chosen; that one where there is no other.
fn not_chosen_by(values: &[f64]) -> (&[f64], &'static str) {
    match values {
        [_, others @ ..] if !others.is_empty() => {
            (others, "without the seed that the strength was chosen by")
        }
        all => (all, "the seed is the one that the strength was chosen by"),
    }
}

/// Mean rank ratio of some layers over that of the control.
fn left(force: &[usize], control: &[usize], full: &[usize], layers: &Range<usize>) -> f64 {
    let [force, control] =
        [force, control].map(|ranks| rank_ratio(&ranks[layers.clone()], &full[layers.clone()]));
    force / control
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_computed_as_they_say() {
        // (2/4 + 3/8) / 2 over (4/4 + 6/8) / 2.
        assert_eq!(not_chosen_by(&[1.0, 2.0, 3.0]).0, [2.0, 3.0]);
        assert_eq!(not_chosen_by(&[1.0]).0, [1.0]);
        let found = left(&[9, 2, 3], &[9, 4, 6], &[9, 4, 8], &(1..3));
        assert!((found - 0.4375 / 0.875).abs() < 1e-12, "{found}");
    }
}
