//! Storages: numbers of one kind, of which tensors are views.

use super::pickle::Tensor;
use half::{bf16, f16};

/// What the numbers of a storage are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Kind {
    /// By the name of PyTorch's class.
    pub(super) fn of(class: &str) -> Option<Self> {
        Some(match class {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::I16,
            "CharStorage" => Self::I8,
            "ByteStorage" => Self::U8,
            "BoolStorage" => Self::Bool,
            _ => return None,
        })
    }

    /// Bytes of a number.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// The number at the beginning of `bytes`, little endian.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "everything becomes f32"
    )]
    fn number(self, bytes: &[u8]) -> f32 {
        fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
            bytes.first_chunk().copied().unwrap_or([0; N])
        }
        match self {
            Self::F64 => f64::from_le_bytes(first(bytes)) as f32,
            Self::F32 => f32::from_le_bytes(first(bytes)),
            Self::F16 => f16::from_le_bytes(first(bytes)).to_f32(),
            Self::Bf16 => bf16::from_le_bytes(first(bytes)).to_f32(),
            Self::I64 => i64::from_le_bytes(first(bytes)) as f32,
            Self::I32 => i32::from_le_bytes(first(bytes)) as f32,
            Self::I16 => i16::from_le_bytes(first(bytes)).into(),
            Self::I8 => i8::from_le_bytes(first(bytes)).into(),
            Self::U8 | Self::Bool => bytes.first().copied().unwrap_or(0).into(),
        }
    }
}

/// Where the storages of a file are.
pub(super) trait Storages {
    /// The numbers of a view of a storage, row-major.
    fn view(&mut self, key: &str, kind: Kind, count: usize, tensor: &Tensor) -> Result<Vec<f32>, String>;
}

/// The numbers of a view of `bytes`, a whole storage.
pub(super) fn numbers(bytes: &[u8], kind: Kind, tensor: &Tensor) -> Result<Vec<f32>, String> {
    let Tensor { offset, size, stride, .. } = tensor;
    let len: usize = size.iter().product();
    if len == 0 {
        return Ok(Vec::new());
    }
    let reach = size
        .iter()
        .zip(stride)
        .try_fold(*offset, |at, (size, stride)| at.checked_add(stride.checked_mul(size - 1)?));
    let held = bytes.len() / kind.bytes();
    if reach.is_none_or(|last| last >= held) {
        return Err(format!(
            "extents {size:?} at {offset} in steps of {stride:?} are beyond a storage of {held}"
        ));
    }
    let mut numbers = Vec::with_capacity(len);
    let mut index = vec![0; size.len()];
    let inner = size.last().copied().unwrap_or(1);
    let step = stride.last().copied().unwrap_or(1);
    while numbers.len() < len {
        let start = offset + index.iter().zip(stride).map(|(i, stride)| i * stride).sum::<usize>();
        let places = (0..inner).map(|i| (start + i * step) * kind.bytes());
        numbers.extend(places.map(|at| kind.number(&bytes[at..])));
        // The next row.
        for d in (0..size.len().saturating_sub(1)).rev() {
            index[d] += 1;
            if index[d] < size[d] {
                break;
            }
            index[d] = 0;
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(offset: usize, size: &[usize], stride: &[usize]) -> Tensor {
        Tensor { storage: 0, offset, size: size.into(), stride: stride.into() }
    }

    #[test]
    fn views_are_read_in_their_order() {
        let bytes: Vec<u8> = (0..12).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let read = |tensor: &Tensor| numbers(&bytes, Kind::F32, tensor);
        assert_eq!(read(&view(2, &[2, 3], &[3, 1])).unwrap(), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        // Transposed, a scalar, nothing, one number again and again.
        assert_eq!(read(&view(0, &[3, 2], &[1, 3])).unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(read(&view(11, &[], &[])).unwrap(), [11.0]);
        assert_eq!(read(&view(99, &[0, 3], &[3, 1])).unwrap(), [0.0; 0]);
        assert_eq!(read(&view(1, &[4], &[0])).unwrap(), [1.0; 4]);
        assert!(read(&view(0, &[13], &[1])).is_err());
        assert!(read(&view(0, &[2, 2], &[usize::MAX, 1])).is_err());
    }

    #[test]
    fn every_kind_of_number_becomes_f32() {
        let read = |kind: Kind, bytes: &[u8]| numbers(bytes, kind, &view(0, &[1], &[1])).unwrap()[0];
        assert_eq!(read(Kind::F64, &(-2.5_f64).to_le_bytes()), -2.5);
        assert_eq!(read(Kind::F16, &f16::from_f32(0.75).to_le_bytes()), 0.75);
        assert_eq!(read(Kind::Bf16, &bf16::from_f32(-3.0).to_le_bytes()), -3.0);
        assert_eq!(read(Kind::I64, &(-7_i64).to_le_bytes()), -7.0);
        assert_eq!(read(Kind::I32, &70_000_i32.to_le_bytes()), 70_000.0);
        assert_eq!(read(Kind::I16, &(-9_i16).to_le_bytes()), -9.0);
        assert_eq!(read(Kind::I8, &[0xff]), -1.0);
        assert_eq!(read(Kind::U8, &[0xff]), 255.0);
    }
}
