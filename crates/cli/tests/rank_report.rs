//! Reports of `cofilter rank`: every form, and what is refused.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use cofilter_graph::Artifact;
use cofilter_zoo::{Config, Network};
use std::path::Path;
use std::process::{Command, Output};

fn rank(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cofilter"))
        .args(["rank", "net.safetensors"])
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn written(folder: &Path, args: &[&str]) {
    let output = rank(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("effective rank"), "the table is printed too");
}

fn prepare(folder: &Path, network: &str) {
    let model = Network::by_name(network, &Config::default()).unwrap().model(1).unwrap();
    Artifact::new(model).save(&folder.join("net.safetensors")).unwrap();
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Ids of all figures of a `.json` form.
fn ids(page: &serde_json::Value) -> Vec<&str> {
    page["figures"].as_array().unwrap().iter().map(|figure| figure["id"].as_str().unwrap()).collect()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

const ALL: [&str; 7] = [
    "rank-ratios",
    "energy",
    "spectra",
    "similarity-conv1",
    "projection-conv1",
    "similarity-conv2",
    "projection-conv2",
];

#[test]
fn each_form_holds_the_ranks_and_the_figures() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder, "lenet");
    written(folder, &["--energy", "0.9,0.5", "--report", "ranks.json"]);
    let page = json(&folder.join("ranks.json"));
    assert_eq!(ids(&page), ALL);
    assert_eq!(page["title"], "Ranks of net.safetensors");
    let table = &page["tables"][0];
    let column = table["columns"].as_array().unwrap().iter().position(|name| name == "rank at 0.5").unwrap();
    let output = rank(folder, &["--energy", "0.9,0.5", "--format", "json"]);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for (row, layer) in table["rows"].as_array().unwrap().iter().zip(told["layers"].as_array().unwrap()) {
        assert_eq!((&row[0], &row[column]), (&layer["name"], &layer["ranks"][1].to_string().into()));
    }
    let matrix = &page["figures"][5]["plot"];
    assert_eq!((matrix["kind"].as_str(), matrix["values"].as_array().unwrap().len()), (Some("matrix"), 50));
    assert_eq!(matrix["values"][7][7], 1.0);

    written(folder, &["--report", "ranks.html", "--show", "ip2"]);
    let html = std::fs::read_to_string(folder.join("ranks.html")).unwrap();
    for id in ["rank-ratios", "energy", "spectra", "similarity-ip2", "projection-ip2"] {
        assert!(html.contains(&format!("<h2 id=\"{id}\">")), "{id}");
    }
    assert!(!html.contains("similarity-conv1") && html.contains("rank at 0.95") && !html.contains("NaN"));

    written(folder, &["--report", "out"]);
    assert_eq!(files(&folder.join("out")), ["figures", "report.html", "report.json"]);
    assert_eq!(ids(&json(&folder.join("out/report.json"))), ALL);
    let mut svgs: Vec<String> = ALL.iter().map(|id| format!("{id}.svg")).collect();
    svgs.sort();
    assert_eq!(files(&folder.join("out/figures")), svgs);
    let svg = std::fs::read_to_string(folder.join("out/figures/energy.svg")).unwrap();
    assert!(svg.contains("<svg xmlns=") && svg.contains(">ip1</text>"), "{svg}");
    // Again, with fewer figures: what is no longer there goes.
    written(folder, &["--report", "out", "--show", "conv1"]);
    assert_eq!(files(&folder.join("out/figures")).len(), 5);
    assert_eq!(files(folder), ["net.safetensors", "out", "ranks.html", "ranks.json"]);
}

#[test]
fn many_layers_have_their_curves_in_several_figures() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder, "resnet20");
    written(folder, &["--report", "ranks.json"]);
    let page = json(&folder.join("ranks.json"));
    let curves = ["energy", "energy-2", "energy-3", "spectra", "spectra-2", "spectra-3"];
    assert_eq!(ids(&page)[1..7], curves);
    assert_eq!(
        page["figures"][2]["title"],
        "Energy kept by the first basis filters, layer2.0.conv2 to layer3.1.conv1"
    );
    // Of the layers with the most operations the first.
    assert_eq!(
        ids(&page)[7..],
        ["similarity-conv1", "projection-conv1", "similarity-layer1.0.conv1", "projection-layer1.0.conv1"]
    );
}

#[test]
fn what_is_no_report_or_no_layer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder, "lenet");
    let cases: [(&[&str], &str, i32); 5] = [
        (
            &["--report", "ranks.pdf"],
            "expected a name that ends in .html or .json, or a folder, found one in .pdf",
            2,
        ),
        (&["--show", "conv1"], "--report", 2),
        (
            &["--report", "out", "--show", "conv9"],
            "--show: similarity names `conv9`, which is no layer of the network",
            1,
        ),
        (&["--report", "out", "--show", "pool1"], "pool1`, which is a pool2d", 1),
        (&["--report", "nowhere/ranks.html"], "nowhere/ranks.html", 1),
    ];
    for (args, reason, code) in cases {
        let output = rank(folder, args);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains(reason) && !errors.contains("panicked"), "{args:?}: {errors}");
        assert_eq!(output.status.code(), Some(code), "{args:?}");
    }
    assert_eq!(files(folder), ["net.safetensors"], "nothing is left behind");
}
