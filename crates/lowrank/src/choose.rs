//! One choice for each of several layers, together within a budget.

/// Cells of the budget in the dynamic programme.
const CELLS: usize = 4096;

/// One way of having a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What it takes of the budget, 0 or more.
    pub cost: f64,
    /// What is lost by it, 0 or more.
    pub loss: f64,
}

/// For each layer the index of the choice that it gets, so that the sum of costs is at most `budget` and the sum of losses is
/// the least, up to the rounding of costs to 4096ths of the budget; `None` if even the cheapest are too much. Choices whose
/// numbers are not finite are never taken, and of a layer only the first 65,535 are looked at.
///
/// A dynamic programme over the budget, and then single exchanges with what the rounding left.
#[must_use]
pub fn choose(layers: &[Vec<Choice>], budget: f64) -> Option<Vec<usize>> {
    let is_known = |choice: &Choice| choice.cost.is_finite() && choice.loss.is_finite();
    let cheapest = |choices: &Vec<Choice>| {
        (0..choices.len().min(usize::from(u16::MAX))).filter(|i| is_known(&choices[*i])).min_by(|a, b| {
            let (a, b) = (choices[*a], choices[*b]);
            a.cost.total_cmp(&b.cost).then(a.loss.total_cmp(&b.loss))
        })
    };
    let frugal: Vec<usize> = layers.iter().map(cheapest).collect::<Option<_>>()?;
    let cost_of = |chosen: &[usize]| -> f64 { chosen.iter().zip(layers).map(|(i, c)| c[*i].cost).sum() };
    let least = cost_of(&frugal);
    if least > budget || budget.is_nan() {
        return None;
    }
    // What is left above the cheapest choices is shared out.
    let room = budget - least;
    let mut chosen = frugal.clone();
    if room > 0.0 {
        chosen = programme(layers, &frugal, room);
    }
    exchange(layers, &mut chosen, budget);
    Some(chosen)
}

fn programme(layers: &[Vec<Choice>], frugal: &[usize], room: f64) -> Vec<usize> {
    // `losses[c]`: the least with at most `c` cells spent on the layers so far.
    let mut losses = vec![0.0; CELLS + 1];
    let mut taken: Vec<Vec<u16>> = Vec::with_capacity(layers.len());
    for (choices, cheapest) in layers.iter().zip(frugal) {
        let mut next = vec![f64::INFINITY; CELLS + 1];
        #[expect(clippy::cast_possible_truncation, reason = "as many choices are looked at")]
        let mut from = vec![*cheapest as u16; CELLS + 1];
        let known = choices.iter().enumerate().take(usize::from(u16::MAX));
        for (index, choice) in known.filter(|(_, choice)| choice.cost.is_finite() && choice.loss.is_finite())
        {
            let Some(cells) = cells((choice.cost - choices[*cheapest].cost) / room) else { continue };
            for spent in cells..=CELLS {
                let loss = losses[spent - cells] + choice.loss;
                if loss < next[spent] {
                    next[spent] = loss;
                    #[expect(clippy::cast_possible_truncation, reason = "as many choices are looked at")]
                    {
                        from[spent] = index as u16;
                    }
                }
            }
        }
        losses = next;
        taken.push(from);
    }
    let mut spent = CELLS;
    let mut chosen = vec![0; layers.len()];
    for layer in (0..layers.len()).rev() {
        chosen[layer] = usize::from(taken[layer][spent]);
        let above = layers[layer][chosen[layer]].cost - layers[layer][frugal[layer]].cost;
        spent -= cells(above / room).expect("it was within the room");
    }
    chosen
}

/// A share of the room, rounded up to cells.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share in 0..=1 of a few thousand"
)]
fn cells(share: f64) -> Option<usize> {
    // A share that rounding lifts just above 1 is 1.
    let cells = (share * CELLS as f64 - 1e-9).ceil();
    (cells <= CELLS as f64).then_some(cells.max(0.0) as usize)
}

/// Takes better choices as long as one fits, the most useful first.
fn exchange(layers: &[Vec<Choice>], chosen: &mut [usize], budget: f64) {
    loop {
        let spent: f64 = chosen.iter().zip(layers).map(|(i, c)| c[*i].cost).sum();
        let better = chosen.iter().zip(layers).enumerate().flat_map(|(layer, (now, choices))| {
            let now = choices[*now];
            choices.iter().enumerate().filter_map(move |(index, choice)| {
                let fits = choice.cost.is_finite() && spent - now.cost + choice.cost <= budget;
                (fits && choice.loss < now.loss).then_some((layer, index, now.loss - choice.loss))
            })
        });
        match better.max_by(|a, b| a.2.total_cmp(&b.2)) {
            Some((layer, index, _)) => chosen[layer] = index,
            None => return,
        }
    }
}
