//! The calls of a network, on one device: weights uploaded once, sessions with memory, stream and graphs of their own.
#![expect(
    unsafe_code,
    reason = "kernels are ordered; `Call::check` has seen to it that they stay within their memory"
)]

use crate::api::DevicePtr;
use crate::call::{self, Builder, Call, Lengths, Place, Region, Work};
use crate::device::{Buffer, Device, Pinned};
use crate::kernel::Set;
use crate::libraries::{Opened, Prepared};
use crate::module::Module;
use crate::pack::int;
use crate::stream::{Event, Graph, Stream};
use crate::{Kernel, Result, args};
use std::path::Path;
use std::sync::Arc;

/// A network's calls with its weights on a device. Sessions share it.
pub struct Sequence {
    device: Device,
    module: Arc<Module>,
    weights: Buffer,
    calls: Vec<Call>,
    output: Place,
    batch: usize,
    lengths: Lengths,
}

impl Sequence {
    /// Makes calls ready: compiles the kernels or takes them from `cache`, and uploads the weights.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge) for what the kernels cannot count, what the compiler and the driver say.
    pub fn new(
        device: &Device,
        builder: Builder,
        output: Place,
        batch: usize,
        cache: Option<&Path>,
    ) -> Result<Self> {
        let (calls, blob, mut lengths) = builder.finish();
        call::exactly("first image of a batch", batch.min(1), 1)?;
        for len in [lengths.image, output.stride] {
            call::at_most("elements of a batch", batch.saturating_mul(len), call::COUNTED)?;
        }
        call::check_place("end of the output", output, output.stride, batch, lengths)?;
        for call in &calls {
            call.check(batch, lengths, blob.words().len(), device.about())?;
            lengths.partial = lengths.partial.max(call.partial_len(batch));
            lengths.workspace = lengths.workspace.max(call.routine().map_or(0, |of| of.workspace()));
        }
        let module = Module::shared(Set::Run, device, cache)?;
        let weights = Buffer::new(device, "weights", size_of_val(blob.words()))?;
        Stream::new(device)?.upload(&weights, blob.words())?;
        Ok(Self { device: device.clone(), module, weights, calls, output, batch, lengths })
    }

    /// Bytes of the weights.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.weights.len()
    }

    /// Bytes that a session has on the device: values, and beside them the sums of products that are made in parts and what routines of
    /// libraries need.
    #[must_use]
    pub fn session_bytes(&self) -> [usize; 2] {
        let Lengths { image, arena, partial, workspace } = self.lengths;
        let bytes = |len: usize| len * size_of::<f32>();
        [bytes(image * self.batch + arena), bytes(partial) + workspace]
    }

    /// Memory to run in.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the device has not as much left; [`Error::LibraryCall`](crate::Error::LibraryCall).
    pub fn session(self: &Arc<Self>) -> Result<Session> {
        let device = &self.device;
        let Lengths { image, arena, partial, workspace } = self.lengths;
        let bytes = |len: usize| len * size_of::<f32>();
        let (images, logits) = (image * self.batch, self.output.stride * self.batch);
        let stream = Stream::new(device)?;
        let routines = self.calls.iter().filter_map(Call::routine).copied();
        let external = match Opened::of(routines, device, &stream)? {
            Some(opened) => Some(External {
                prepared: Vec::new(),
                prepared_for: 0,
                opened,
                workspace: Buffer::new(device, "routines of libraries", workspace)?,
            }),
            None => None,
        };
        Ok(Session {
            host_images: Pinned::new(device, "images on the host", images)?,
            host_logits: Pinned::new(device, "logits on the host", logits)?,
            images: Buffer::new(device, "images", bytes(images))?,
            arena: Buffer::new(device, "values", bytes(arena))?,
            partial: Buffer::new(device, "sums of parts", bytes(partial))?,
            graphs: (0..self.batch).map(|_| None).collect(),
            warm: vec![false; self.batch],
            external,
            stream,
            sequence: Arc::clone(self),
        })
    }
}

/// The memory of one caller.
pub struct Session {
    // Dropped in this order: what uses memory before the memory.
    graphs: Vec<Option<Graph>>,
    /// By number of images: whether every kernel was launched once.
    warm: Vec<bool>,
    external: Option<External>,
    stream: Stream,
    host_images: Pinned,
    host_logits: Pinned,
    images: Buffer,
    arena: Buffer,
    partial: Buffer,
    sequence: Arc<Sequence>,
}

/// What a session has for the calls that libraries compute.
struct External {
    // Dropped in this order too.
    /// By call, for one number of images.
    prepared: Vec<Option<Prepared>>,
    prepared_for: usize,
    opened: Opened,
    /// Used by one call after the other.
    workspace: Buffer,
}

/// Most copies of the images before calls that are timed, and bytes that need no more than one.
const MOST_COPIES: usize = 16;
const LONG_COPY: usize = 4 << 20;

impl Session {
    /// Computes the output of `n` images, at most the batch; `times_us` has one element a call.
    ///
    /// # Errors
    /// What the driver says, [`Error::TooLarge`](crate::Error::TooLarge) or [`Error::Length`](crate::Error::Length) if the slices are not
    /// those of 1 to `batch` images: then `logits` are as they were.
    pub fn run(
        &mut self,
        n: usize,
        images: &[f32],
        logits: &mut [f32],
        times_us: Option<&mut [f64]>,
    ) -> Result<()> {
        let Sequence { batch, lengths, output, .. } = &*self.sequence;
        call::at_most("images of a run", n, *batch)?;
        call::exactly("first image of a run", n.min(1), 1)?;
        call::exactly("elements of images", images.len(), n * lengths.image)?;
        call::exactly("elements of logits", logits.len(), n * output.stride)?;
        self.host_images.as_mut_slice()[..images.len()].copy_from_slice(images);
        if times_us.is_some() || self.graphs[n - 1].is_none() {
            self.prepare(n)?;
        }
        match times_us {
            Some(times_us) => self.timed(n, times_us)?,
            // Kernels may be loaded at their first launch, which a capture is no place for.
            None if !self.warm[n - 1] => {
                let ordered = self.order(n, 1, |_| Ok(()));
                let waited = self.stream.synchronize();
                ordered.and(waited)?;
                match self.external {
                    // Which kernels a library takes is its own affair.
                    Some(_) => self.warm[n - 1] = true,
                    None => self.warm.fill(true),
                }
            }
            None => {
                let graph = match self.graphs[n - 1].take() {
                    Some(graph) => graph,
                    None => self.stream.capture(|| self.order(n, 1, |_| Ok(())))?,
                };
                let launched = self.stream.launch_graph(&graph);
                self.graphs[n - 1] = Some(graph);
                launched?;
                self.stream.synchronize()?;
            }
        }
        logits.copy_from_slice(&self.host_logits.as_slice()[..logits.len()]);
        Ok(())
    }

    /// Describes the calls of libraries for `n` images: memory of the host, which takes time but nothing of the device.
    fn prepare(&mut self, n: usize) -> Result<()> {
        let Some(external) = self.external.as_mut().filter(|external| external.prepared_for != n) else {
            return Ok(());
        };
        external.prepared_for = 0;
        external.prepared.clear();
        for call in &self.sequence.calls {
            external.prepared.push(match &call.work {
                Work::Routine { routine, geometry, .. } => {
                    let strides = [call.src.stride, call.dst.stride];
                    Some(external.opened.prepare(routine, geometry, strides, n)?)
                }
                _ => None,
            });
        }
        external.prepared_for = n;
        Ok(())
    }

    /// Call by call, with a moment taken before and after each. The images are copied several times before, so that the device has
    /// something to do while the first calls are ordered: their times would be those of the host.
    fn timed(&self, n: usize, times_us: &mut [f64]) -> Result<()> {
        let mut moments = Vec::new();
        let moment = |moments: &mut Vec<Event>| {
            let event = Event::new(&self.sequence.device)?;
            event.record(&self.stream)?;
            moments.push(event);
            Ok(())
        };
        let bytes = n * self.sequence.lengths.image * size_of::<f32>();
        let copies = (LONG_COPY / bytes.max(1)).clamp(1, MOST_COPIES);
        let ordered = self.order(n, copies, |_| moment(&mut moments));
        // Whatever was ordered reads and writes memory that the next run uses too.
        let waited = self.stream.synchronize();
        ordered.and(waited)?;
        for (time, pair) in times_us.iter_mut().zip(moments.windows(2)) {
            *time = pair[1].since_us(&pair[0])?;
        }
        Ok(())
    }

    /// Orders so many copies of the images and all calls; `before` each, with its number.
    fn order(&self, n: usize, copies: usize, mut before: impl FnMut(usize) -> Result<()>) -> Result<()> {
        let Sequence { calls, output, lengths, device, .. } = &*self.sequence;
        device.bind()?;
        for _ in 0..copies {
            self.stream.copy_to_device(&self.images, &self.host_images, n * lengths.image)?;
        }
        for (i, call) in calls.iter().enumerate() {
            before(i)?;
            self.launch(i, call, n)?;
        }
        // The last one ends here: what is copied then is no part of it.
        before(calls.len())?;
        let from = match output.region {
            Region::Images => &self.images,
            Region::Arena => &self.arena,
        };
        self.stream.copy_to_host(&self.host_logits, from, output.at * size_of::<f32>(), n * output.stride)
    }

    fn address(&self, place: Place) -> DevicePtr {
        let buffer = match place.region {
            Region::Images => &self.images,
            Region::Arena => &self.arena,
        };
        buffer.address() + (place.at * size_of::<f32>()) as u64
    }

    fn kernel<T: Copy>(&self, kernel: Kernel, argument: &T, grid: [usize; 3], shared: usize) -> Result<()> {
        let function = self.sequence.module.function(kernel)?;
        let grid = grid.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let shared = u32::try_from(shared).unwrap_or(u32::MAX);
        // SAFETY: the struct is the kernel's, and `Call::check` saw that the memory of the session, which outlives the work, has all
        // that the call reads and writes for up to `batch` images.
        unsafe { self.stream.launch(function, argument, grid, shared) }
    }

    /// What a library computes.
    fn routine(&self, number: usize, addresses: [DevicePtr; 3]) -> Result<()> {
        let prepared =
            self.external.as_ref().and_then(|external| Some((external, external.prepared.get(number)?)));
        let Some((External { opened, workspace, .. }, Some(prepared))) = prepared else {
            return call::exactly("descriptions of a routine", 0, 1);
        };
        // SAFETY: as for a kernel; the workspace is the session's, all of whose work is in one stream.
        unsafe { opened.launch(prepared, addresses, workspace, &self.stream) }
    }

    fn launch(&self, number: usize, call: &Call, n: usize) -> Result<()> {
        let weights = |piece: Option<crate::pack::Piece>| {
            piece.map_or(0, |piece| self.sequence.weights.address() + (piece.at * size_of::<u32>()) as u64)
        };
        let (src, dst) = (self.address(call.src), self.address(call.dst));
        let add = call.add.map_or(0, |add| self.address(add));
        let [src_image, dst_image] = [call.src.stride, call.dst.stride].map(int);
        let add_image = call.add.map_or(0, |add| int(add.stride));
        let conv = |of: &call::Convolution| args::Conv {
            src,
            add,
            dst,
            weights: weights(Some(of.weights)),
            bias: weights(of.bias),
            table: weights(Some(of.table)),
            spans: weights(Some(of.spans)),
            partial: if of.splits > 1 { self.partial.address() } else { 0 },
            filters: int(of.geometry.filters / of.geometry.groups),
            tiles: int(of.tiles),
            splits: int(of.splits),
            pixels: int(n * of.geometry.area()),
            area: int(of.geometry.area()),
            columns: int(of.geometry.results[1]),
            height: int(of.geometry.extents[0]),
            width: int(of.geometry.extents[1]),
            stride: of.geometry.stride.map(int),
            padding: of.geometry.padding.map(int),
            src_image,
            dst_image,
            add_image,
            src_group: int(of.src_group()),
            relu: call.relu.into(),
        };
        let [filters, pixels] = call.kernel.tile();
        let map = |of: &args::Map, scale, (src, src_image)| {
            let argument = args::Map {
                src,
                add,
                dst,
                scale: weights(scale),
                images: int(n),
                src_image,
                dst_image,
                add_image,
                relu: call.relu.into(),
                ..*of
            };
            let grid = match pixels {
                1 => n,
                threads => (n * call.dst_len()).div_ceil(threads),
            };
            self.kernel(call.kernel, &argument, [grid, 1, 1], call.kernel.shared_bytes(0))
        };
        match &call.work {
            Work::Conv(of) => {
                let argument = conv(of);
                let (all, groups) = (n * of.geometry.area(), of.geometry.groups);
                let grid = [all.div_ceil(pixels), of.tiles, groups * of.splits];
                self.kernel(call.kernel, &argument, grid, call.kernel.shared_bytes(0))?;
                let Some(sum) = of.sum else { return Ok(()) };
                let argument = args::Conv { tiles: int(groups), ..argument };
                self.kernel(sum, &argument, [(all * of.geometry.filters).div_ceil(256), 1, 1], 0)
            }
            Work::Pair { basis, second, outputs, depth } => {
                let argument = args::Pair {
                    conv: conv(basis),
                    second: weights(Some(*second)),
                    outputs: int(*outputs),
                    depth: int(*depth),
                };
                let grid = [(n * basis.geometry.area()).div_ceil(pixels), 1, 1];
                self.kernel(call.kernel, &argument, grid, call.kernel.shared_bytes(*depth))
            }
            Work::Linear { weights: of, bias, inputs, outputs } => {
                let argument = args::Linear {
                    src,
                    weights: weights(Some(*of)),
                    bias: weights(*bias),
                    dst,
                    images: int(n),
                    inputs: int(*inputs),
                    outputs: int(*outputs),
                    src_image,
                    dst_image,
                    relu: call.relu.into(),
                };
                self.kernel(call.kernel, &argument, [n.div_ceil(pixels), outputs.div_ceil(filters), 1], 0)
            }
            Work::Map { map: of, scale } => map(of, *scale, (src, src_image)),
            Work::Routine { weights: of, follows, scale, .. } => {
                self.routine(number, [src, weights(Some(*of)), dst])?;
                follows.as_ref().map_or(Ok(()), |of| map(of, *scale, (dst, dst_image)))
            }
        }
    }
}
