//! Where the values of a program lie: blocked maps with the borders that their readers need, concatenations whose operands are
//! written straight into their part, one arena.

use super::estimate;
use super::form::{self, Algorithm, Unit};
use super::parts::{self, Load, Part, Size};
use super::product::multiplied;
use crate::arena::{self, Lifetime};
use crate::{Error, Options, Program, Result, Step, Value};
use cofilter_graph::{Op, Shape};
use cofilter_kernels::blocked::{BLOCK, Place, View};
use std::collections::BTreeMap;

/// Most numbers of a map: as many as any number of maps may have without a sum that overflows.
const MOST: usize = isize::MAX as usize >> 12;
/// Images with fewer channels stay planar for the convolutions that read them.
const PLANAR_BELOW: usize = BLOCK;

/// The values of a program and of the copies between them, and what is computed in which order.
#[derive(Debug)]
pub(super) struct Layout {
    /// The first ones are the values of the program, by id.
    maps: Vec<Map>,
    pub(super) work: Vec<Work>,
    /// The work in parts, each for so many images at once.
    pub(super) parts: Vec<Part>,
    pub(super) arena_len: usize,
    /// Of the memory that each worker has for itself.
    pub(super) worker_len: usize,
    /// Of the maps that own memory: the whole batch in the arena, or the images of a part in a worker's.
    offsets: BTreeMap<usize, (Place, usize)>,
}

/// A map in memory.
#[derive(Clone, Debug)]
struct Map {
    /// Channels of each segment; each begins a new block.
    segments: Vec<usize>,
    size: [usize; 2],
    border: [usize; 2],
    home: Home,
}

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    Images,
    Logits,
    /// Its own part of the arena; planar in so many phases, or blocked.
    Arena {
        phases: Option<usize>,
    },
    /// Blocks of another map, from this one on.
    Part {
        of: usize,
        block: usize,
    },
}

/// A thing to do. Maps are given by their index.
#[derive(Debug)]
pub(super) enum Work {
    /// The same numbers in another form; of a unit if another form of that would not need it.
    Copy { src: usize, dst: usize, unit: Option<usize> },
    /// A unit of the program, or the first of its two steps, which gives `dst`.
    Unit { unit: usize, first: bool, srcs: Vec<usize>, add: Option<usize>, dst: usize },
}

impl Work {
    /// The unit that it belongs to, if any.
    pub(super) fn unit(&self) -> Option<usize> {
        match self {
            Self::Copy { unit, .. } => *unit,
            Self::Unit { unit, .. } => Some(*unit),
        }
    }

    /// What it reads and writes.
    fn maps(&self) -> impl Iterator<Item = usize> {
        let (srcs, add, dst) = match self {
            Self::Copy { src, dst, .. } => (std::slice::from_ref(src), None, *dst),
            Self::Unit { srcs, add, dst, .. } => (&**srcs, *add, *dst),
        };
        srcs.iter().copied().chain(add).chain([dst])
    }
}

/// A form in which a step wants a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    Planar {
        border: [usize; 2],
        phases: usize,
    },
    Blocked {
        segments: Vec<usize>,
        border: [usize; 2],
    },
    /// All numbers as channels of one pixel, in the order of a dense map.
    Vector {
        segments: Vec<usize>,
    },
}

impl Layout {
    /// # Errors
    /// [`Error::Option`] if the maps of a batch cannot be addressed.
    pub(super) fn new(
        program: &Program,
        units: &[(Unit, form::Form)],
        options: &Options,
        cut: parts::Cut<'_>,
    ) -> Result<Self> {
        let segments = segments(program);
        let slots = slots(program, &segments);
        // What is computed instead of two steps.
        let products = units.iter().map(|unit| match *unit {
            (Unit::Two(a, b), form::Form::Multiplied(_)) => {
                multiplied(&program.steps()[a], &program.steps()[b])
            }
            _ => None,
        });
        let products: Vec<Option<Step>> = products.collect();
        let maps = maps(program, &products, segments, &slots);
        let mut builder = Builder { maps, slots, copies: BTreeMap::new(), work: Vec::new() };
        let step = |index: &usize| &program.steps()[*index];
        for (unit, (what, form)) in units.iter().enumerate() {
            match (what, *form, &products[unit]) {
                (_, form::Form::Multiplied(how), Some(product)) => {
                    builder.step(unit, false, product, product, how);
                }
                (Unit::One(index), form::Form::One(how), _) => {
                    builder.step(unit, false, step(index), step(index), how);
                }
                (Unit::Two(first, second), form::Form::Apart(how, other), _) => {
                    builder.step(unit, true, step(first), step(first), how);
                    builder.step(unit, false, step(second), step(second), other);
                }
                (Unit::Two(first, second), ..) => {
                    builder.step(unit, false, step(first), step(second), Algorithm::Direct);
                }
                (Unit::One(_), ..) => unreachable!("a single step has no form of a pair"),
            }
        }
        builder.output(program.output().id);
        let Builder { maps, work, .. } = builder;
        let mut layout =
            Self { maps, work, parts: Vec::new(), arena_len: 0, worker_len: 0, offsets: BTreeMap::new() };
        let loads = layout.loads(program, units);
        layout.place(&loads, options, cut)?;
        Ok(layout)
    }

    /// What each thing to do moves.
    fn loads(&self, program: &Program, units: &[(Unit, form::Form)]) -> Vec<Load> {
        let load = |work: &Work| {
            let mut maps: Vec<usize> = work.maps().map(|map| self.root(map).0).collect();
            maps.sort_unstable();
            maps.dedup();
            let (weights, pixels) = match work {
                Work::Copy { .. } => (0, None),
                Work::Unit { unit, first, .. } => estimate::weights(program, units[*unit], *first),
            };
            Load { weights, pixels, maps }
        };
        self.work.iter().map(load).collect()
    }

    /// Decides which steps run for a few images at a time, and gives every map of its own an offset in memory.
    fn place(&mut self, loads: &[Load], options: &Options, cut: parts::Cut<'_>) -> Result<()> {
        let batch = options.batch;
        let own = |map: &usize| matches!(self.maps[*map].home, Home::Arena { .. });
        let used = parts::used(loads);
        let size = |map: usize| Size {
            bytes: size_of::<f32>().saturating_mul(self.form(map).image_stride),
            ours: own(&map),
        };
        self.parts = cut(loads, &used.keys().map(|map| (*map, size(*map))).collect(), options);
        // A part that takes the whole batch runs once: nothing has to wait for its end.
        let part_of = |index: usize| self.parts.iter().find(|p| p.images < batch && p.steps.contains(&index));
        // Until when a map is needed, and its parts: what is read in one, or was written before, stays until that is over.
        let mut homes: BTreeMap<Place, Vec<(usize, Lifetime)>> = BTreeMap::new();
        for (map, used) in used.into_iter().filter(|(map, _)| own(map)) {
            let (born, dies) = (used.start, used.end - 1);
            let part = part_of(born).filter(|part| parts::inside(part, &used));
            let (place, born, dies, images) = match part {
                Some(part) => (Place::Worker, born, dies, part.images),
                None => {
                    let first = part_of(born).map_or(born, |part| part.steps.start);
                    let last = part_of(dies).map_or(dies, |part| part.steps.end - 1);
                    (Place::Arena, first, last, batch)
                }
            };
            let stride = self.form(map).image_stride;
            let len = stride.checked_mul(images).filter(|len| *len <= MOST).ok_or_else(|| Error::Option {
                option: "batch",
                reason: format!(
                    "{images} images of {stride} values and their borders are more than memory can address"
                ),
            })?;
            homes.entry(place).or_default().push((map, Lifetime { born, dies, len }));
        }
        for (place, homes) in homes {
            let buffers: Vec<Lifetime> = homes.iter().map(|(_, buffer)| *buffer).collect();
            let (offsets, len) = arena::place(&buffers);
            self.offsets.extend(homes.iter().zip(offsets).map(|((map, _), offset)| (*map, (place, offset))));
            *(if place == Place::Worker { &mut self.worker_len } else { &mut self.arena_len }) = len;
        }
        Ok(())
    }

    /// The map that owns the memory of a map, and its first block in there.
    fn root(&self, map: usize) -> (usize, usize) {
        match self.maps[map].home {
            Home::Part { of, block } => {
                let (root, first) = self.root(of);
                (root, first + block)
            }
            _ => (map, 0),
        }
    }

    /// The view of a map that owns its memory, as if that began at 0.
    fn form(&self, root: usize) -> View {
        let Map { segments, size, border, home } = &self.maps[root];
        let channels = segments.iter().sum();
        match home {
            Home::Images => View::dense(Place::Images, channels, *size),
            Home::Logits => View::dense(Place::Logits, channels, *size),
            Home::Arena { phases: Some(phases) } => View::planar(0, channels, *size, *border, *phases),
            _ => View::blocked(0, segments, *size, *border),
        }
    }

    /// Channels of the segments of a value.
    pub(super) fn segments(&self, value: usize) -> &[usize] {
        &self.maps[value].segments
    }

    /// Where a map lies.
    pub(super) fn view(&self, map: usize) -> View {
        let (root, first) = self.root(map);
        let view = match self.offsets.get(&root) {
            Some(&(place, offset)) => View { place, ..self.form(root).moved(offset) },
            None => self.form(root),
        };
        if root == map {
            return view;
        }
        let blocks: usize = self.maps[map].segments.iter().map(|channels| channels.div_ceil(BLOCK)).sum();
        view.slice(first..first + blocks)
    }
}

/// Channels of the segments of every value.
fn segments(program: &Program) -> Vec<Vec<usize>> {
    let input = program.input();
    let mut segments = vec![vec![input.channels()]];
    let mut shapes = vec![input];
    for step in program.steps() {
        let seen = |value: &Value| seen(value, shapes[value.id], &segments[value.id]);
        let next = match &step.op {
            Op::Conv2d(conv) => match &step.add {
                Some(add) => seen(add),
                None => free(program, step.result, conv.groups),
            },
            Op::PadChannels(_) => free(program, step.result, 1),
            Op::Concat => step.operands.iter().flat_map(seen).collect(),
            Op::Linear(_) | Op::Softmax => vec![step.result.shape.elements()],
            _ => seen(&step.operands[0]),
        };
        segments.push(next);
        shapes.push(step.result.shape);
    }
    segments
}

/// Segments of a value as a use sees it.
fn seen(value: &Value, shape: Shape, segments: &[usize]) -> Vec<usize> {
    if flattened(value, shape) { vec![value.shape.elements()] } else { segments.to_vec() }
}

/// Whether a use sees a map as a vector.
fn flattened(value: &Value, shape: Shape) -> bool {
    value.shape.spatial() != shape.spatial()
}

/// Segments of a value that may have any: those of the grouped convolution that reads it, or of the one that writes it, so that
/// no block belongs to two groups.
fn free(program: &Program, value: Value, groups: usize) -> Vec<usize> {
    let channels = value.shape.channels();
    let groups = reading_groups(program, value.id).unwrap_or(groups);
    let share = channels / groups;
    // Groups that end in the middle of a block; very small ones would waste more lanes than they save.
    if groups > 1 && channels.is_multiple_of(groups) && !share.is_multiple_of(BLOCK) && share > BLOCK / 2 {
        vec![share; groups]
    } else {
        vec![channels]
    }
}

/// Groups of the first grouped convolution that reads a value, or what is computed channel by channel from it.
fn reading_groups(program: &Program, id: usize) -> Option<usize> {
    let readers = program.steps().iter().filter(|step| step.operands.iter().any(|operand| operand.id == id));
    readers.into_iter().find_map(|step| match &step.op {
        Op::Conv2d(conv) if conv.groups > 1 => Some(conv.groups),
        Op::Relu | Op::BatchNorm(_) | Op::Pool2d(_) | Op::Lrn(_) => reading_groups(program, step.result.id),
        _ => None,
    })
}

/// For each value, the concatenation that it is written into (as the value that this gives) and its first block there.
fn slots(program: &Program, segments: &[Vec<usize>]) -> Vec<Option<(usize, usize)>> {
    let mut slots = vec![None; segments.len()];
    let shapes = shapes(program);
    for step in program.steps().iter().filter(|step| matches!(step.op, Op::Concat)) {
        let mut block = 0;
        for operand in &step.operands {
            let own = seen(operand, shapes[operand.id], &segments[operand.id]);
            let fits = operand.id != 0 && !flattened(operand, shapes[operand.id]);
            if fits && slots[operand.id].is_none() {
                slots[operand.id] = Some((step.result.id, block));
            }
            block += own.iter().map(|channels| channels.div_ceil(BLOCK)).sum::<usize>();
        }
    }
    slots
}

/// Extents of every value as it is written.
fn shapes(program: &Program) -> Vec<Shape> {
    let input = program.input();
    [input].into_iter().chain(program.steps().iter().map(|step| step.result.shape)).collect()
}

/// The maps of the values.
fn maps(
    program: &Program,
    products: &[Option<Step>],
    segments: Vec<Vec<usize>>,
    slots: &[Option<(usize, usize)>],
) -> Vec<Map> {
    let mut borders = vec![[0; 2]; segments.len()];
    let widen = |border: &mut [usize; 2], other: [usize; 2]| {
        *border = [border[0].max(other[0]), border[1].max(other[1])];
    };
    for step in program.steps().iter().chain(products.iter().flatten()) {
        if let Op::Conv2d(conv) = &step.op {
            widen(&mut borders[step.operands[0].id], conv.padding);
        }
    }
    // The parts of a concatenation share its border; operands come before it.
    for (id, slot) in slots.iter().enumerate() {
        if let Some((of, _)) = slot {
            let own = borders[id];
            widen(&mut borders[*of], own);
        }
    }
    for (id, slot) in slots.iter().enumerate().rev() {
        if let Some((of, _)) = slot {
            borders[id] = borders[*of];
        }
    }
    let output = program.output();
    let read = |id: usize| {
        let reads = |step: &Step| step.operands.iter().chain(&step.add).any(|operand| operand.id == id);
        program.steps().iter().any(reads)
    };
    let home = |id: usize| match slots[id] {
        _ if id == 0 => Home::Images,
        Some((of, block)) => Home::Part { of, block },
        None => {
            let vector = matches!(program.steps()[id - 1].op, Op::Linear(_) | Op::Softmax);
            if id == output.id && vector && !read(id) { Home::Logits } else { Home::Arena { phases: None } }
        }
    };
    let shapes = shapes(program);
    let map = |(id, segments): (usize, Vec<usize>)| Map {
        segments,
        size: shapes[id].spatial(),
        border: borders[id],
        home: home(id),
    };
    segments.into_iter().enumerate().map(map).collect()
}

struct Builder {
    maps: Vec<Map>,
    slots: Vec<Option<(usize, usize)>>,
    /// Copies made so far: of which value, in which form.
    copies: BTreeMap<(usize, Form), usize>,
    work: Vec<Work>,
}

impl Builder {
    /// A unit, or one of its two steps, that reads what one step reads and writes what another one (or the same) writes.
    fn step(&mut self, unit: usize, first: bool, step: &Step, last: &Step, how: Algorithm) {
        let dst = last.result.id;
        let srcs = match &step.op {
            Op::Concat => {
                self.concat(step);
                return;
            }
            Op::Conv2d(conv) if how == Algorithm::Sparse => {
                let planes = Form::Planar { border: conv.padding, phases: 1 };
                let value = step.operands[0];
                // Images of few channels are copied to planes for any form.
                let always = value.id == 0 && value.shape.channels() < PLANAR_BELOW;
                vec![self.copy_for(value, planes, (!always).then_some(unit))]
            }
            Op::Conv2d(conv) => vec![self.convolved(step.operands[0], conv.padding, conv.stride)],
            // A fully connected layer reads any form.
            Op::Linear(_) => vec![step.operands[0].id],
            Op::Add => {
                let segments = self.maps[dst].segments.clone();
                step.operands.iter().map(|operand| self.blocked(*operand, &segments)).collect()
            }
            _ => {
                let segments = self.seen(step.operands[0]);
                vec![self.blocked(step.operands[0], &segments)]
            }
        };
        let add = last.add.map(|add| {
            let segments = self.maps[dst].segments.clone();
            self.blocked(add, &segments)
        });
        self.work.push(Work::Unit { unit, first, srcs, add, dst });
    }

    fn seen(&self, value: Value) -> Vec<usize> {
        if self.flattened(value) {
            vec![value.shape.elements()]
        } else {
            self.maps[value.id].segments.clone()
        }
    }

    fn flattened(&self, value: Value) -> bool {
        value.shape.spatial() != self.maps[value.id].size
    }

    /// A value for a convolution that reads it.
    fn convolved(&mut self, value: Value, border: [usize; 2], stride: [usize; 2]) -> usize {
        match value.id {
            0 if value.shape.channels() < PLANAR_BELOW => {
                // Beyond the width of the image there is one column of windows only.
                let phases = if stride[1] <= value.shape.spatial()[1] { stride[1] } else { 1 };
                self.copy(value, Form::Planar { border, phases })
            }
            0 => self.copy(value, Form::Blocked { segments: vec![value.shape.channels()], border }),
            id => id,
        }
    }

    /// A value as a blocked map of these segments.
    fn blocked(&mut self, value: Value, segments: &[usize]) -> usize {
        if self.flattened(value) {
            return self.copy(value, Form::Vector { segments: segments.to_vec() });
        }
        if value.id != 0 && self.maps[value.id].segments == segments {
            return value.id;
        }
        self.copy(value, Form::Blocked { segments: segments.to_vec(), border: [0, 0] })
    }

    /// A copy of a value in another form, made once.
    fn copy(&mut self, value: Value, form: Form) -> usize {
        self.copy_for(value, form, None)
    }

    /// The same, made for a unit if it is not there.
    fn copy_for(&mut self, value: Value, form: Form, unit: Option<usize>) -> usize {
        if let Some(known) = self.copies.get(&(value.id, form.clone())) {
            return *known;
        }
        let size = self.maps[value.id].size;
        let channels = self.maps[value.id].segments.iter().sum();
        let (segments, size, border, phases) = match &form {
            Form::Planar { border, phases } => (vec![channels], size, *border, Some(*phases)),
            Form::Blocked { segments, border } => (segments.clone(), size, *border, None),
            Form::Vector { segments } => (segments.clone(), [1, 1], [0, 0], None),
        };
        self.maps.push(Map { segments, size, border, home: Home::Arena { phases } });
        let dst = self.maps.len() - 1;
        self.work.push(Work::Copy { src: value.id, dst, unit });
        self.copies.insert((value.id, form), dst);
        dst
    }

    /// Copies the operands that were not written into their part.
    fn concat(&mut self, step: &Step) {
        let dst = step.result.id;
        let mut block = 0;
        for operand in &step.operands {
            let segments = self.seen(*operand);
            let blocks = segments.iter().map(|channels| channels.div_ceil(BLOCK)).sum::<usize>();
            if self.slots[operand.id] != Some((dst, block)) {
                let Map { size, border, .. } = self.maps[dst];
                self.maps.push(Map { segments, size, border, home: Home::Part { of: dst, block } });
                self.work.push(Work::Copy { src: operand.id, dst: self.maps.len() - 1, unit: None });
            }
            block += blocks;
        }
    }

    /// Brings the result, this value, to the caller, if it is not there.
    fn output(&mut self, id: usize) {
        if self.maps[id].home != Home::Logits {
            let Map { segments, size, .. } = &self.maps[id];
            let map = Map {
                segments: vec![segments.iter().sum()],
                size: *size,
                border: [0, 0],
                home: Home::Logits,
            };
            self.maps.push(map);
            self.work.push(Work::Copy { src: id, dst: self.maps.len() - 1, unit: None });
        }
    }
}
