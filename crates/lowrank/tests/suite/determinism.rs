//! The same bits for any number of threads, and every time.

use cofilter_graph::{Conv2d, Graph, Init, Model, Shape};
use cofilter_lowrank::{Method, Settings, analyse, decompose};

fn model() -> Model {
    let mut b = Graph::builder();
    let mut x = b.input("data", Shape::map(3, 20, 20)).unwrap();
    for (i, filters) in [40, 96, 64, 48].into_iter().enumerate() {
        let conv = Conv2d { padding: [1, 1], ..Conv2d::new(filters, 3) };
        x = b.conv2d(&format!("conv{i}"), x, conv).unwrap();
    }
    let x = b.global_avg_pool("pool", x).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("fc", x, 200).unwrap();
    Model::init(b.finish(&[x]).unwrap(), &Init::default(), 12).unwrap()
}

#[test]
fn threads_do_not_change_a_bit() {
    let model = model();
    for method in [Method::Pca, Method::Svd, Method::Spatial, Method::Channel, Method::Tucker] {
        let settings = Settings { method, linear: true, ..Settings::default() };
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| (decompose(&model, &settings).unwrap(), analyse(&model, 0.9).unwrap()))
        };
        let ((first, report), analysis) = run(1);
        for threads in [1, 2, 5] {
            // Another heap layout must not matter either.
            let _ballast: Vec<Vec<u8>> = (0..threads * 7).map(|i| vec![0; 1000 + 13 * i]).collect();
            let ((other, other_report), other_analysis) = run(threads);
            for (a, b) in first.params().zip(other.params()).map(|(_, _, a, b)| (a, b)) {
                let bits =
                    |a: &cofilter_graph::Array| a.data().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(a), bits(b));
            }
            assert_eq!(report, other_report);
            assert_eq!(analysis, other_analysis);
        }
    }
}
