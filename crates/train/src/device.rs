use crate::Result;
use crate::cuda::OnCuda;
use crate::evaluate::on_cpu;
use crate::net::{Mode, Net};
use crate::sweep::{Sweep, logits};

/// Where values and gradients are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor, by rayon's current thread pool.
    #[default]
    Cpu,
    /// The NVIDIA GPU of this number, from 0.
    Cuda(usize),
}

impl Device {
    /// Looks whether it is there, before anything is computed for it.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda): no driver, no device of this number, or one that is not supported.
    pub fn check(self) -> Result<()> {
        match self {
            Self::Cpu => Ok(()),
            Self::Cuda(device) => {
                cofilter_cuda::Device::open(device)?;
                Ok(())
            }
        }
    }
}

/// What computes the class scores of a network that is not being trained.
pub(crate) enum Scorer {
    Cpu(Box<Sweep>),
    Cuda {
        device: usize,
        /// Once it is known how many images there are at a time.
        on: Option<Box<OnCuda>>,
    },
}

impl Scorer {
    /// See [`Recipe::tolerance`](crate::Recipe::tolerance), which is for the processor alone.
    pub(crate) fn new(device: Device, tolerance: f32) -> Self {
        match device {
            Device::Cpu => Self::Cpu(Box::new(Sweep::new(tolerance))),
            Device::Cuda(device) => Self::Cuda { device, on: None },
        }
    }

    /// A buffer for so many numbers. Contents are arbitrary.
    pub(crate) fn buffer(&mut self, len: usize) -> Vec<f32> {
        match self {
            Self::Cpu(sweep) => sweep.pool().take(len),
            Self::Cuda { .. } => vec![0.0; len],
        }
    }

    /// Class scores of the main head, row by row, and the number of classes.
    pub(crate) fn scores(&mut self, net: &Net, images: Vec<f32>, count: usize) -> Result<(Vec<f32>, usize)> {
        let head = logits(net, net.graph().outputs()[0]);
        let classes = net.graph().node(head).shape().elements();
        let scores = match self {
            Self::Cpu(sweep) => on_cpu(net, sweep, images, head)?,
            Self::Cuda { device, on } => {
                let fits = on.take().filter(|on| count <= on.batch());
                let wanted = net.params().map(|_, _, _| false);
                let on = match fits {
                    Some(fits) => on.insert(fits),
                    None => on.insert(Box::new(OnCuda::new(net, &[head], &wanted, (*device, count, false))?)),
                };
                on.forward(net, &images, Mode::Eval)?;
                on.head(0)[..count * classes].to_vec()
            }
        };
        Ok((scores, classes))
    }
}
