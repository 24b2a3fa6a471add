//! The rewriting primitive and the passes written with it. Equality of what the networks compute is tested in the
//! runtime.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use cofilter_graph::{
    Array, BatchNorm, Conv2d, Error, Graph, Init, Model, NodeId, Op, Params, Shape, fold_batch_norm,
    for_inference,
};

/// input -> conv1 -> bn1 -> relu1 -> conv2 -> bn2 -> add(relu1) -> drop -> flatten -> fc; an auxiliary head on relu1;
/// and a node that nobody reads.
fn residual() -> Model {
    let mut b = Graph::builder();
    let conv = |filters| Conv2d { padding: [1, 1], bias: false, ..Conv2d::new(filters, 3) };
    let x = b.input("data", Shape::map(2, 4, 4)).unwrap();
    let c1 = b.conv2d("conv1", x, Conv2d { bias: true, ..conv(3) }).unwrap();
    let b1 = b.batch_norm("bn1", c1, BatchNorm::default()).unwrap();
    let r1 = b.relu("relu1", b1).unwrap();
    let c2 = b.conv2d("conv2", r1, conv(3)).unwrap();
    let b2 = b.batch_norm("bn2", c2, BatchNorm { eps: 0.5, momentum: 0.1 }).unwrap();
    let s = b.sum("add", &[b2, r1]).unwrap();
    let d = b.dropout("drop", s, 0.5).unwrap();
    let f = b.flatten("flatten", d).unwrap();
    let y = b.linear("fc", f, 5).unwrap();
    let head = b.flatten("aux_flatten", r1).unwrap();
    let head = b.linear("aux", head, 5).unwrap();
    b.conv2d("unread", r1, conv(3)).unwrap();
    let graph = b.finish(&[y, head]).unwrap();
    let mut model = Model::init(graph, &Init::default(), 11).unwrap();
    // Statistics as after training, so that folding has something to do.
    let params = model.params().map(|id, slot, array| match model.graph().node(id).op() {
        Op::BatchNorm(_) => {
            let value = |i: usize| 0.5 + (slot * 3 + i) as f32 * 0.25;
            Array::new(array.dims().to_vec(), (0..array.data().len()).map(value).collect::<Vec<_>>())
        }
        _ => array.clone(),
    });
    model = model.with_params(params).unwrap();
    model
}

fn names(model: &Model) -> Vec<&str> {
    model.graph().nodes().iter().map(|n| n.name()).collect()
}

fn tensors<'a>(model: &'a Model, name: &str) -> &'a [Array] {
    model.tensors(model.graph().find(name).unwrap())
}

fn keep_all(model: &Model) -> Model {
    model.rewrite::<Error>(|b, id, inputs| b.keep(id, inputs)).unwrap()
}

#[test]
fn keeping_every_node_gives_an_equal_model_without_dead_nodes() {
    let m = residual();
    let kept = keep_all(&m);
    let mut live = names(&m);
    live.retain(|n| *n != "unread");
    assert_eq!(names(&kept), live);
    let outputs: Vec<&str> = kept.graph().outputs().iter().map(|o| kept.graph().node(*o).name()).collect();
    assert_eq!(outputs, ["fc", "aux"], "order and number of outputs");
    for name in live {
        assert_eq!(tensors(&kept, name), tensors(&m, name), "{name}");
    }
    // Nothing dead is left, so once more is the identity.
    assert_eq!(keep_all(&kept), kept);
}

#[test]
fn the_input_stays_even_if_nobody_reads_it() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::Vector(3)).unwrap();
    let r = b.relu("relu", x).unwrap();
    let m = Model::init(b.finish(&[x, r]).unwrap(), &Init::default(), 1).unwrap();
    let only =
        m.rewrite::<Error>(|b, id, inputs| if id.index() == 1 { Ok(inputs[0]) } else { b.keep(id, inputs) });
    // Both outputs would be the input.
    assert!(only.unwrap_err().to_string().contains("twice"));
}

#[test]
fn one_node_can_become_two_and_two_none() {
    let m = residual();
    let low_rank = m
        .rewrite::<Error>(|b, id, inputs| {
            let node = b.old(id).clone();
            match node.op() {
                Op::Dropout { .. } => Ok(inputs[0]),
                Op::Conv2d(c) if node.name() == "conv2" => {
                    assert_eq!(b.shape(inputs[0]), Shape::map(3, 4, 4));
                    let basis = Op::Conv2d(Conv2d { out_channels: 2, ..c.clone() });
                    let basis =
                        b.add("conv2_lowrank", basis, inputs, vec![Array::full(vec![2, 3, 3, 3], 1.0)])?;
                    let linear = Op::Conv2d(Conv2d { bias: false, ..Conv2d::new(3, 1) });
                    b.add("conv2_linear", linear, &[basis], vec![Array::full(vec![3, 2, 1, 1], 2.0)])
                }
                _ => b.keep(id, inputs),
            }
        })
        .unwrap();
    let expected = [
        "data",
        "conv1",
        "bn1",
        "relu1",
        "conv2_lowrank",
        "conv2_linear",
        "bn2",
        "add",
        "flatten",
        "fc",
        "aux_flatten",
        "aux",
    ];
    assert_eq!(names(&low_rank), expected);
    let graph = low_rank.graph();
    let reads = |name: &str| -> Vec<&str> {
        let node = graph.node(graph.find(name).unwrap());
        node.inputs().iter().map(|i| graph.node(*i).name()).collect()
    };
    assert_eq!(reads("bn2"), ["conv2_linear"]);
    assert_eq!(reads("flatten"), ["add"]);
    assert_eq!(tensors(&low_rank, "conv2_linear")[0].data(), [2.0; 6]);
}

#[test]
fn what_does_not_fit_is_refused_while_rewriting() {
    let m = residual();
    let replace = |op: Op, arrays: Vec<Array>| -> Error {
        m.rewrite::<Error>(|b, id, inputs| {
            if b.old(id).name() == "conv2" {
                b.add("conv2", op.clone(), inputs, arrays.clone())
            } else {
                b.keep(id, inputs)
            }
        })
        .unwrap_err()
    };
    let conv = |filters| Conv2d { padding: [1, 1], bias: false, ..Conv2d::new(filters, 3) };
    let weight = |filters| Array::full(vec![filters, 3, 3, 3], 1.0);
    let e = replace(Op::Conv2d(conv(3)), vec![]);
    assert!(matches!(&e, Error::Slots { node, expected: 1, found: 0 } if node == "conv2"), "{e}");
    let e = replace(Op::Conv2d(conv(3)), vec![weight(2)]);
    assert!(matches!(&e, Error::Dims { tensor, .. } if tensor == "conv2.weight"), "{e}");
    // The sum behind it no longer fits.
    let e = replace(Op::Conv2d(conv(2)), vec![weight(2)]);
    assert!(e.to_string().contains("bn2") || e.to_string().contains("add"), "{e}");
    let e = replace(Op::Conv2d(Conv2d { groups: 0, ..conv(3) }), vec![weight(3)]);
    assert!(e.to_string().contains("groups 0"), "{e}");
    let taken = m.rewrite::<Error>(|b, id, inputs| {
        let op = b.old(id).op().clone();
        if b.old(id).name() == "relu1" { b.add("conv1", op, inputs, vec![]) } else { b.keep(id, inputs) }
    });
    assert!(matches!(taken.unwrap_err(), Error::Name(n) if n == "conv1"));
    // The caller's own error comes back as it is.
    #[derive(Debug)]
    struct Own(String);
    impl From<Error> for Own {
        fn from(e: Error) -> Self {
            Self(e.to_string())
        }
    }
    let own = m.rewrite::<Own>(|_, _, _| Err(Own("mine".into())));
    assert_eq!(own.unwrap_err().0, "mine");
}

#[test]
fn models_of_unfitting_parameters_are_refused() {
    let m = residual();
    let graph = m.graph().clone();
    let all: Vec<Vec<Array>> = graph.iter().map(|(id, _)| m.tensors(id).to_vec()).collect();
    assert_eq!(Model::new(graph.clone(), Params::new(all.clone())).unwrap(), m);
    let refused = |change: &dyn Fn(&mut Vec<Vec<Array>>)| {
        let mut changed = all.clone();
        change(&mut changed);
        Model::new(graph.clone(), Params::new(changed)).unwrap_err()
    };
    assert!(refused(&|p| drop(p.pop())).to_string().contains("13 nodes, parameters for 12"));
    assert!(matches!(refused(&|p| drop(p[1].pop())), Error::Slots { expected: 2, found: 1, .. }));
    assert!(matches!(
        refused(&|p| p[3].push(Array::full(vec![1], 0.0))),
        Error::Slots { expected: 0, found: 1, .. }
    ));
    let e = refused(&|p| p[1][0] = Array::full(vec![3, 18], 0.0));
    assert!(e.to_string().contains("conv1.weight") && e.to_string().contains("[3, 2, 3, 3]"), "{e}");

    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let params = m.params().map(|id, slot, array| {
            let mut data = array.data().to_vec();
            if graph.tensor_name(id, slot) == "bn2.running_var" {
                data[2] = bad;
            }
            Array::new(array.dims().to_vec(), data)
        });
        let e = m.with_params(params).unwrap().check_finite().unwrap_err();
        assert!(
            matches!(&e, Error::NotFinite { tensor, index: 2, .. } if tensor == "bn2.running_var"),
            "{e}"
        );
    }
}

#[test]
fn folding_merges_a_normalisation_into_the_convolution_before_it() {
    let m = residual();
    let folded = fold_batch_norm(&m).unwrap();
    assert_eq!(
        names(&folded),
        ["data", "conv1", "relu1", "conv2", "add", "drop", "flatten", "fc", "aux_flatten", "aux"]
    );
    let graph = folded.graph();
    let biased = |name: &str| matches!(graph.node(graph.find(name).unwrap()).op(), Op::Conv2d(c) if c.bias);
    assert!(biased("conv1") && biased("conv2"), "the one without bias has one now");

    // w' = w g / sqrt(var + eps), b' = (b - mean) g / sqrt(var + eps) + beta.
    for (conv, bn, eps) in [("conv1", "bn1", 1e-5), ("conv2", "bn2", 0.5)] {
        let [gamma, beta, mean, var] = [0, 1, 2, 3].map(|slot| tensors(&m, bn)[slot].data().to_vec());
        let bias = tensors(&m, conv).get(1).map_or(vec![0.0; 3], |b| b.data().to_vec());
        let len = tensors(&m, conv)[0].matrix_dims().1;
        for n in 0..3 {
            let scale = f64::from(gamma[n]) / (f64::from(var[n]) + eps).sqrt();
            let expected = (f64::from(bias[n]) - f64::from(mean[n])) * scale + f64::from(beta[n]);
            let found = f64::from(tensors(&folded, conv)[1].data()[n]);
            assert!((found - expected).abs() < 1e-6, "{conv} bias {n}: {found}, expected {expected}");
            for i in n * len..(n + 1) * len {
                let expected = f64::from(tensors(&m, conv)[0].data()[i]) * scale;
                let found = f64::from(tensors(&folded, conv)[0].data()[i]);
                assert!((found - expected).abs() < 1e-6, "{conv} weight {i}: {found}, expected {expected}");
            }
        }
    }
}

#[test]
fn folding_leaves_what_others_read() {
    let network = |build: &dyn Fn(&mut cofilter_graph::GraphBuilder, NodeId) -> Vec<NodeId>| {
        let mut b = Graph::builder();
        let x = b.input("data", Shape::map(2, 4, 4)).unwrap();
        let outputs = build(&mut b, x);
        Model::init(b.finish(&outputs).unwrap(), &Init::default(), 1).unwrap()
    };
    let bn = BatchNorm::default();
    // The convolution is an output, or read twice, or there is none.
    let cases = [
        network(&|b, x| {
            let c = b.conv2d("conv", x, Conv2d::new(2, 3)).unwrap();
            vec![b.batch_norm("bn", c, bn.clone()).unwrap(), c]
        }),
        network(&|b, x| {
            let c = b.conv2d("conv", x, Conv2d { padding: [1, 1], ..Conv2d::new(2, 3) }).unwrap();
            let n = b.batch_norm("bn", c, bn.clone()).unwrap();
            vec![b.sum("sum", &[n, c]).unwrap()]
        }),
        network(&|b, x| vec![b.batch_norm("bn", x, bn.clone()).unwrap()]),
        network(&|b, x| {
            let c = b.conv2d("conv", x, Conv2d::new(2, 3)).unwrap();
            let r = b.relu("relu", c).unwrap();
            vec![b.batch_norm("bn", r, bn.clone()).unwrap()]
        }),
    ];
    for m in cases {
        assert_eq!(fold_batch_norm(&m).unwrap(), m, "{:?}", names(&m));
    }
    // Two in a row: the first is merged, the second stays.
    let twice = network(&|b, x| {
        let c = b.conv2d("conv", x, Conv2d::new(2, 3)).unwrap();
        let n = b.batch_norm("bn1", c, bn.clone()).unwrap();
        vec![b.batch_norm("bn2", n, bn.clone()).unwrap()]
    });
    assert_eq!(names(&fold_batch_norm(&twice).unwrap()), ["data", "conv", "bn2"]);
}

#[test]
fn inference_drops_auxiliary_heads_and_dropout() {
    let m = residual();
    let lean = for_inference(&m).unwrap();
    assert_eq!(names(&lean), ["data", "conv1", "relu1", "conv2", "add", "flatten", "fc"]);
    assert_eq!(lean.graph().outputs().len(), 1);
    assert_eq!(lean.graph().output_shape(), Shape::Vector(5));
    assert_eq!(tensors(&lean, "fc"), tensors(&m, "fc"));
    assert_eq!(for_inference(&lean).unwrap(), lean);

    // A convolution that only a dropped head read besides its normalisation is merged.
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 4, 4)).unwrap();
    let c = b.conv2d("conv", x, Conv2d::new(2, 3)).unwrap();
    let y = b.batch_norm("bn", c, BatchNorm::default()).unwrap();
    let head = b.relu("head", c).unwrap();
    let m = Model::init(b.finish(&[y, head]).unwrap(), &Init::default(), 1).unwrap();
    assert_eq!(names(&for_inference(&m).unwrap()), ["data", "conv"]);
}
