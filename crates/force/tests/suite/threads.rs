//! The number of threads changes no bit.

use std::process::Command;

use crate::oracle::Generator;
use candle_core::{DType, Device, Tensor};
use cofilter_force::{Force, gradient_grouped};

const MARK: &str = "bits of";

fn bits(tensor: &Tensor) -> u64 {
    let values: Vec<f64> = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    // FNV-1a.
    values.iter().flat_map(|value| value.to_bits().to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Prints the bits of forces large enough for candle and `gemm` to share out; run by the test below in
/// processes of its own, since candle reads the number of threads from the environment.
#[test]
fn print_bits() {
    for (groups, count, columns) in [(1, 150, 1153), (2, 256, 600), (1, 97, 4001), (1, 16, 144)] {
        let filters = Generator(count as u64).filters(count, columns);
        let weight = Tensor::from_slice(&filters.data, (count, columns), &Device::Cpu).unwrap();
        for dtype in [DType::F32, DType::F64] {
            for force in Force::ALL {
                let result = gradient_grouped(&weight.to_dtype(dtype).unwrap(), groups, force).unwrap();
                println!("\n{MARK} {groups}x{count}x{columns} {dtype:?} {force:?}: {:016x}", bits(&result));
            }
        }
    }
}

fn with_threads(threads: usize) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "threads::print_bits", "--nocapture"])
        .env("RAYON_NUM_THREADS", threads.to_string())
        .env("CANDLE_NUM_THREADS", threads.to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().filter(|line| line.starts_with(MARK)).map(str::to_owned).collect()
}

#[test]
fn result_does_not_depend_on_threads() {
    let one = with_threads(1);
    assert_eq!(one.len(), 4 * 2 * Force::ALL.len());
    let mut distinct = one.iter().map(|line| line.rsplit(' ').next()).collect::<Vec<_>>();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), one.len(), "different forces share their bits: {one:#?}");
    for threads in [2, 3, 5] {
        assert_eq!(with_threads(threads), one, "{threads} threads");
    }
}
