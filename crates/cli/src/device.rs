//! `--device` and `--math`.

use anyhow::{Context as _, Result, ensure};
use cofilter_runtime::cuda::{Math, Settings};
use cofilter_runtime::{BackendKind, Options};
use cofilter_train::Device;

/// Where a network runs.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct On {
    /// Where the network runs: `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value = "cpu", value_name = "DEVICE", value_parser = device)]
    device: Device,
    /// With CUDA, how products are computed: `f32`, or by tensor cores with rounded factors: `tf32`, `f16`, `bf16` [default: f32]
    #[arg(long, value_parser = math)]
    math: Option<Math>,
}

/// `cpu`, `cuda` or `cuda:N`.
pub(crate) fn device(text: &str) -> Result<Device> {
    match text.split_once(':').unwrap_or((text, "0")) {
        ("cpu", "0") => Ok(Device::Cpu),
        ("cuda", number) => {
            Ok(Device::Cuda(number.parse().with_context(|| format!("`{number}` is no number of a device"))?))
        }
        _ => anyhow::bail!("expected cpu, cuda or cuda:N"),
    }
}

fn math(text: &str) -> Result<Math> {
    Math::ALL.into_iter().find(|math| math.name() == text).context("expected f32, tf32, f16 or bf16")
}

impl On {
    /// The options for where it is said to run.
    pub(crate) fn options(&self, options: Options) -> Result<Options> {
        match self.device {
            Device::Cpu => {
                ensure!(self.math.is_none(), "--math is for --device cuda alone");
                Ok(options)
            }
            Device::Cuda(device) => {
                let cuda = Settings { device, math: self.math.unwrap_or_default(), ..Settings::default() };
                Ok(Options { backend: BackendKind::Cuda, cuda, ..options })
            }
        }
    }

    /// Whether that is the processor.
    pub(crate) fn is_cpu(&self) -> bool {
        self.device == Device::Cpu
    }

    /// For headings: the tier of the processor's kernels, or the device.
    pub(crate) fn name(&self) -> String {
        match self.device {
            Device::Cpu => cofilter_runtime::cpu_tier().to_owned(),
            Device::Cuda(number) => format!("cuda:{number} {}", self.math.unwrap_or_default().name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_or_refused() {
        assert_eq!(device("cpu").unwrap(), Device::Cpu);
        assert_eq!(device("cuda").unwrap(), Device::Cuda(0));
        assert_eq!(device("cuda:3").unwrap(), Device::Cuda(3));
        for text in ["gpu", "cuda:x", "cpu:1", ""] {
            assert!(device(text).is_err(), "{text}");
        }
        assert_eq!(math("bf16").unwrap(), Math::Bf16);
        assert!(math("f64").is_err());
    }
}
