//! The program as a user starts it: it survives being killed, and says what is wrong.
#![expect(clippy::unwrap_used, reason = "clippy takes the functions beside the tests for library code")]

use cofilter_repro::report::Report;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cofilter-repro"));
    command.args(args).env("COFILTER_ROOT", root()).env_remove("COFILTER_COMMIT").stdin(Stdio::null());
    command
}

fn output(args: &[&str]) -> Output {
    program(args).output().unwrap()
}

fn report(folder: &Path) -> Report {
    serde_json::from_str(&std::fs::read_to_string(folder.join("report.json")).unwrap()).unwrap()
}

/// All that does not depend on the clock.
fn timeless(mut report: Report) -> String {
    report.claims.retain(|c| !c.id.starts_with("speedup"));
    report.figures.retain(|f| f.id != "speed");
    report.arms.iter_mut().for_each(|a| a.latency_us.clear());
    report.command.clear();
    report.claims.iter_mut().for_each(|c| c.command.clear());
    serde_json::to_string_pretty(&report).unwrap()
}

fn start(args: &[&str]) -> Child {
    program(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_run_killed_again_and_again_gives_the_report_of_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let (straight, killed) = (folder.path().join("straight"), folder.path().join("killed"));
    let args =
        |out: &Path| ["reproduce", "lenet", "--quick", "--out", out.to_str().unwrap()].map(String::from);
    let whole = args(&straight);
    let begin = std::time::Instant::now();
    let out = output(&whole.each_ref().map(String::as_str));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let whole_run = begin.elapsed();
    let broken = args(&killed);
    for share in [5, 17, 3, 29, 41, 11, 23, 8, 13] {
        let mut child = start(&broken.each_ref().map(String::as_str));
        std::thread::sleep(Duration::from_micros(
            u64::try_from(whole_run.as_micros()).unwrap() * share / 100,
        ));
        // SIGKILL on Unix.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let out = output(&broken.each_ref().map(String::as_str));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let (killed_report, straight_report) = (timeless(report(&killed)), timeless(report(&straight)));
    let differs = killed_report.lines().zip(straight_report.lines()).find(|(k, s)| k != s);
    assert!(killed_report == straight_report, "first difference (killed, straight): {differs:?}");
    let left: Vec<_> =
        std::fs::read_dir(killed.join("stages")).unwrap().map(|e| e.unwrap().file_name()).collect();
    let debris = |name: &str| name.ends_with(".part") || name.starts_with('.');
    assert!(!left.iter().any(|f| debris(&f.to_string_lossy())), "work is left: {left:?}");
}

/// SIGINT ends the run after the iteration, with a checkpoint, a sentence and a failure.
#[cfg(unix)]
#[test]
fn an_interrupted_run_says_so_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["reproduce", "lenet", "--seeds", "1", "--out", folder.path().to_str().unwrap()];
    let child = program(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let work = || {
        let stages = std::fs::read_dir(folder.path().join("stages"));
        stages.into_iter().flatten().any(|e| e.unwrap().file_name().to_string_lossy().ends_with(".part"))
    };
    while !work() {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(500));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("stopped in baseline at iteration") && text.contains("goes on"), "{text}");
    let stages = folder.path().join("stages");
    let part = std::fs::read_dir(&stages).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap();
    assert!(part.join("checkpoint.safetensors").exists(), "no checkpoint in {}", part.display());
}

#[test]
fn the_report_has_the_arms_and_claims_its_schema_promises() {
    let folder = tempfile::tempdir().unwrap();
    let out = output(&[
        "reproduce",
        "lenet",
        "--quick",
        "--sweep",
        "--seeds",
        "2",
        "--out",
        folder.path().to_str().unwrap(),
    ]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("force-l2-tuned") && text.contains("report.html"), "{text}");
    let report = report(folder.path());
    let names: Vec<&str> = report.arms.iter().map(|a| a.name.as_str()).collect();
    for dense in ["baseline", "control", "force-l1", "force-l2"] {
        for child in ["", "-lowrank", "-tuned"] {
            let arm = report
                .arm(&format!("{dense}{child}"))
                .unwrap_or_else(|| panic!("no {dense}{child}: {names:?}"));
            assert_eq!(arm.top1_by_seed.len(), 2);
            assert!(arm.top1_interval.is_some() && arm.latency_us.keys().eq(&[1, 64]));
            let full = &arm.full_ranks;
            assert_eq!((full["conv1"], full["conv2"]), (20, 50));
        }
        let (lowrank, tuned) = (
            report.arm(&format!("{dense}-lowrank")).unwrap(),
            report.arm(&format!("{dense}-tuned")).unwrap(),
        );
        assert_eq!((lowrank.macs, &lowrank.ranks), (tuned.macs, &tuned.ranks));
        assert_eq!(tuned.parent.as_deref(), Some(lowrank.name.as_str()));
    }
    let sparse = report.arm("force-l2-sparse").unwrap();
    assert!(sparse.density < 0.25 && sparse.macs < report.arm("force-l2-tuned").unwrap().macs);
    assert!(
        report.figures.iter().any(|f| f.id == "sweep")
            && report.tables.iter().any(|t| t.title == "Strength sweep")
    );
    assert!(report.claims.len() >= 8);
}

/// Pictures of noise, brighter for higher classes, as folders `train` and `test`.
fn pictures(folder: &Path, classes: &[&str]) {
    let mut state = 1_u32;
    for (part, images) in [("train", 30), ("test", 5)] {
        for (label, class) in classes.iter().enumerate() {
            let place = folder.join(part).join(class);
            std::fs::create_dir_all(&place).unwrap();
            for image in 0..images {
                let pixel = |_, _| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let noise = u8::try_from(state >> 25).unwrap();
                    image::Rgb([noise + 12 * u8::try_from(label).unwrap(), noise, 255 - noise])
                };
                image::RgbImage::from_fn(32, 32, pixel).save(place.join(format!("{image}.png"))).unwrap();
            }
        }
    }
}

#[test]
fn coordination_of_filters_runs_on_a_folder_of_images() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    let classes = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    pictures(&data, &classes);
    let (data, out_text) = (data.to_str().unwrap(), out.to_str().unwrap());
    let args = ["reproduce", "convnet", "--quick", "--seeds", "2", "--data", data, "--out", out_text];
    let trained = output(&args);
    let text = String::from_utf8_lossy(&trained.stderr).into_owned();
    assert!(!trained.status.success() && text.contains("--from-scratch trains"), "{text}");
    let made = output(&[args.as_slice(), &["--from-scratch"]].concat());
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let report = report(&out);
    let names: Vec<&str> = report.arms.iter().map(|a| a.name.as_str()).collect();
    for name in ["baseline", "control", "force-l1", "force-l2", "repulsion", "control-own-ranks"] {
        let arm = report.arm(name).unwrap_or_else(|| panic!("no {name}: {names:?}"));
        assert_eq!((arm.top1_by_seed.len(), arm.ranks.len()), (2, 3));
        assert!(arm.latency_us.keys().eq(&[1, 32, 128]));
    }
    let [control, force] = ["control-tuned", "force-l2-tuned"].map(|name| report.arm(name).unwrap());
    assert_eq!((control.macs, &control.ranks), (force.macs, &force.ranks), "the same ranks");
    let ids: Vec<&str> = report.claims.iter().map(|claim| claim.id.as_str()).collect();
    let l2 = ["rank-ratio", "accuracy-price", "late-layers"];
    let l1 = ["rank-ratio-l1", "accuracy-price-l1", "late-layers-l1"];
    let rest = ["force-init", "speedup", "speedup", "speedup", "repulsion"];
    assert_eq!(ids, [l2.as_slice(), &l1, &rest].concat());
    assert!(
        report
            .claims
            .iter()
            .filter(|c| c.id != "accuracy-price" && c.id != "accuracy-price-l1")
            .all(|c| c.interval.is_some())
    );
    for id in
        ["ranks", "sweep", "rank-ratio", "fine-tuning", "spectra-force-l2", "projection-baseline", "speed"]
    {
        assert!(report.figures.iter().any(|figure| figure.id == id), "no figure {id}");
    }
    assert!(
        report.notes.iter().any(|note| note.contains("--quick: iterations and steps")),
        "{:?}",
        report.notes
    );
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out_folder = folder.path().join("out");
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let (out_text, empty_text) = (out_folder.to_str().unwrap(), empty.to_str().unwrap());
    for (extra, expected) in [
        (vec!["lenet", "--data", "/nonexistent"], "/nonexistent"),
        (vec!["lenet", "--data", empty_text], "empty"),
        (vec!["lenet", "--seeds", "0"], "--seeds 0"),
        (vec!["lenet", "--threads", "0"], "--threads 0"),
        (vec!["lenet", "--device", "abacus"], "abacus"),
        (vec!["alexnet"], "alexnet"),
        (vec!["lenet", "--unknown"], "--unknown"),
        (vec!["lenet", "--budget", "2h"], "--budget: an option of convnet"),
        (vec!["decompose", "--sweep"], "--sweep: an option of lenet"),
        (vec!["convnet"], "--data"),
        (vec!["resnet20", "--budget", "soon"], "soon"),
        (vec!["resnet20", "--budget", "10s"], "at least a minute"),
        (vec!["resnet20", "--budget", "2h", "--full"], "--full"),
        (vec!["resnet20", "--tries", "0"], "--tries 0"),
        (
            vec!["resnet20", "--strengths", "1,1", "--target-spread", "1"],
            "--target-spread 1: expected a share",
        ),
        (vec!["resnet20", "--target-spread", "0.1"], "--strengths"),
        (vec!["convnet", "--factors", "1,1"], "--factors: expected three"),
        (vec!["convnet", "--factors", "0,0,0"], "--factors: expected three"),
        (vec!["convnet", "--factors", "1,-1,1"], "--factors: expected three"),
        (vec!["lenet", "--factors", "1,1,1"], "--factors: an option of convnet"),
    ] {
        let mut args = vec!["reproduce", "--out", out_text];
        args.extend(&extra);
        let out = output(&args);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success(), "{extra:?} succeeded");
        assert!(text.contains(expected) && !text.contains("panicked"), "{extra:?}: {text}");
        assert!(!out_folder.join("report.json").exists(), "{extra:?} wrote a report");
    }
    let out = output(&["data", empty_text]);
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("no data set"));
}
