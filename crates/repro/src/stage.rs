//! Stages whose results are files named by their content, so that a stopped run goes on where it was and an unchanged
//! stage costs nothing.

use crate::machine;
use anyhow::{Context as _, Result, bail};
use cofilter_graph::{Artifact, TEMPORARY_PREFIX, write_atomically};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Rises when a stage of the same settings would give something else than before.
const GENERATION: u32 = 1;

/// File that a running process holds a lock on.
const LOCK: &str = "lock";

/// What a stage is made from.
#[derive(Clone, Debug)]
pub struct Key {
    name: String,
    hash: String,
}

impl Key {
    /// The key of a stage: its name, the hashes of what it starts from, and its settings as plain data.
    ///
    /// # Panics
    /// If the settings have no JSON form.
    #[must_use]
    pub fn new(name: &str, parents: &[&str], settings: &impl Serialize) -> Self {
        let settings = serde_json::to_value(settings).expect("settings are plain data");
        let text = serde_json::json!({"generation": GENERATION, "name": name, "parents": parents, "settings": settings});
        let digest = Sha256::digest(text.to_string());
        let hash = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
        Self { name: name.to_owned(), hash }
    }

    fn file(&self, extension: &str) -> String {
        format!("{}-{}.{extension}", self.name, self.hash)
    }
}

/// The folder of finished stages. Several threads may make stages at the same time; who wants one that another makes waits for it.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    /// Held while the store is open.
    _lock: File,
    log: Mutex<Vec<StageLog>>,
    /// By file.
    turns: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
}

#[derive(Serialize, Deserialize)]
struct Stored<T> {
    commit: String,
    /// SHA-256 of the network that belongs to it.
    #[serde(default)]
    artifact: Option<String>,
    value: T,
}

/// What became of a stage in this run.
#[derive(Clone, Debug)]
pub struct StageLog {
    /// File of the result.
    pub file: String,
    /// Whether it was there already.
    pub cached: bool,
    /// Commit of the program that made it.
    pub made_by: String,
}

impl Store {
    /// Opens or makes the folder, for this process alone, and clears what a killed one left half written; if `fresh`, all
    /// finished stages too.
    ///
    /// # Errors
    /// If another run is using the folder, or what the system says.
    pub fn open(folder: &Path, fresh: bool) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(LOCK);
        let lock = File::create(&path).with_context(|| path.display().to_string())?;
        if let Err(error) = lock.try_lock() {
            bail!("{}: another run is using it ({error})", folder.display());
        }
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let gone = match (fresh && name != LOCK, path.is_dir()) {
                (true, true) => fs::remove_dir_all(&path),
                (true, false) => fs::remove_file(&path),
                (false, _) if name.starts_with(TEMPORARY_PREFIX) => fs::remove_file(&path),
                (false, _) => Ok(()),
            };
            gone.with_context(|| path.display().to_string())?;
        }
        Ok(Self { folder: folder.to_owned(), _lock: lock, log: Mutex::default(), turns: Mutex::default() })
    }

    /// What became of each stage so far.
    #[must_use]
    pub fn log(&self) -> Vec<StageLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A sentence for the report if other commits made some of the stages.
    #[must_use]
    pub fn foreign(&self) -> Option<String> {
        let here = machine::commit();
        let log = self.log();
        let commits: BTreeSet<&str> = log.iter().map(|s| s.made_by.as_str()).filter(|c| *c != here).collect();
        let list = commits.into_iter().collect::<Vec<_>>().join(", ");
        (!list.is_empty())
            .then(|| format!("Some stages were found finished and had been made by other commits: {list}."))
    }

    /// The network of a stage and what is known about it: from their files, or made by `run`, which gets a folder of its
    /// own for checkpoints that outlives a stop and is removed when the stage is finished.
    ///
    /// # Errors
    /// Those of `run` and of the system. A file that is not what was written is made again.
    pub fn artifact<T: Serialize + DeserializeOwned>(
        &self,
        key: &Key,
        run: impl FnOnce(&Path) -> Result<(Artifact, T)>,
    ) -> Result<(Artifact, T)> {
        let turn = self.turn(key);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.folder.join(key.file("safetensors"));
        let work = self.folder.join(key.file("part"));
        if path.exists() {
            match (Artifact::load(&path), self.read::<T>(key)) {
                (Ok(artifact), Ok(stored))
                    if stored.artifact.as_ref().is_none_or(|sha| *sha == artifact.sha256()) =>
                {
                    if work.exists() {
                        fs::remove_dir_all(&work).with_context(|| work.display().to_string())?;
                    }
                    self.note(key.file("safetensors"), true, stored.commit);
                    return Ok((artifact, stored.value));
                }
                (Ok(_), Ok(_)) => tracing::warn!("{} is not what was written: made again", path.display()),
                (Err(error), _) => tracing::warn!("{error}: made again"),
                (_, Err(error)) => tracing::warn!("{error:#}: made again"),
            }
        }
        fs::create_dir_all(&work).with_context(|| work.display().to_string())?;
        let makers = makers(&work)?;
        let (mut artifact, value) = run(&work)?;
        artifact.provenance.commit = Some(makers.clone());
        // The network comes last: where it is, the numbers are.
        let stored = self.write(key, makers, Some(artifact.sha256()), value)?;
        artifact.save(&path)?;
        fs::remove_dir_all(&work).with_context(|| work.display().to_string())?;
        self.note(key.file("safetensors"), false, stored.commit);
        Ok((artifact, stored.value))
    }

    /// Numbers of a stage: from its file, or made by `run`.
    ///
    /// # Errors
    /// Those of `run` and of the system. A file that is not what was written is made again.
    pub fn value<T: Serialize + DeserializeOwned>(
        &self,
        key: &Key,
        run: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let turn = self.turn(key);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = match self.folder.join(key.file("json")).exists() {
            true => self.read(key).inspect_err(|error| tracing::warn!("{error:#}: made again")).ok(),
            false => None,
        };
        let found = cached.is_some();
        let stored = match cached {
            Some(stored) => stored,
            None => self.write(key, machine::commit(), None, run()?)?,
        };
        self.note(key.file("json"), found, stored.commit);
        Ok(stored.value)
    }

    /// Held by who makes or reads a stage.
    fn turn(&self, key: &Key) -> Arc<Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(key.file("")).or_default().clone()
    }

    fn read<T: DeserializeOwned>(&self, key: &Key) -> Result<Stored<T>> {
        let path = self.folder.join(key.file("json"));
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    fn write<T: Serialize + DeserializeOwned>(
        &self,
        key: &Key,
        commit: String,
        artifact: Option<String>,
        value: T,
    ) -> Result<Stored<T>> {
        let stored = Stored { commit, artifact, value };
        let text = serde_json::to_string(&stored)?;
        if let Err(error) = serde_json::from_str::<Stored<T>>(&text) {
            bail!(
                "stage {}: the result does not survive JSON (a number that is not finite?): {error}",
                key.name
            );
        }
        write_atomically(&self.folder.join(key.file("json")), text.as_bytes())?;
        Ok(stored)
    }

    fn note(&self, file: String, cached: bool, made_by: String) {
        tracing::info!("{} {file}", if cached { "found" } else { "made" });
        let entry = StageLog { file, cached, made_by };
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }
}

/// The commits that worked on a stage so far, this one included: a checkpoint may come from an older program.
fn makers(work: &Path) -> Result<String> {
    let path = work.join("commits");
    let here = machine::commit();
    let before = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let makers = match before.split('+').any(|c| c == here) {
        true => before,
        false if before.is_empty() => here,
        false => format!("{before}+{here}"),
    };
    write_atomically(&path, makers.as_bytes())?;
    Ok(makers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cofilter_graph::{Graph, Init, Model, Shape};

    fn artifact(seed: u64) -> Artifact {
        let mut b = Graph::builder();
        let x = b.input("data", Shape::Vector(3)).unwrap();
        let x = b.linear("ip", x, 2).unwrap();
        Artifact::new(Model::init(b.finish(&[x]).unwrap(), &Init::default(), seed).unwrap())
    }

    #[test]
    fn a_finished_stage_is_not_run_again() {
        let folder = tempfile::tempdir().unwrap();
        let key = Key::new("fit", &["parent"], &1);
        let store = Store::open(folder.path(), false).unwrap();
        assert!(Store::open(folder.path(), false).unwrap_err().to_string().contains("another run"));
        let first = store.artifact(&key, |_| Ok((artifact(1), 7))).unwrap();
        drop(store);
        fs::write(folder.path().join(format!("{TEMPORARY_PREFIX}x")), "half").unwrap();
        let again = Store::open(folder.path(), false).unwrap();
        assert_eq!(again.artifact::<i32>(&key, |_| panic!("run twice")).unwrap(), first);
        assert!(again.log()[0].cached);
        assert!(!folder.path().join(format!("{TEMPORARY_PREFIX}x")).exists());
        let other = Key::new("fit", &["parent"], &2);
        assert_ne!(again.artifact(&other, |_| Ok((artifact(2), 7))).unwrap().0.model, first.0.model);
    }

    #[test]
    fn a_stage_that_many_want_at_once_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), false).unwrap();
        let (key, other) = (Key::new("fit", &[], &1), Key::new("numbers", &[], &1));
        let made = Mutex::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let run = |_: &Path| {
                        std::thread::sleep(std::time::Duration::from_millis(5));
                        *made.lock().unwrap() += 1;
                        Ok((artifact(1), 7))
                    };
                    assert_eq!(store.artifact(&key, run).unwrap().1, 7);
                    let count = || {
                        *made.lock().unwrap() += 10;
                        Ok(7)
                    };
                    assert_eq!(store.value(&other, count).unwrap(), 7);
                });
            }
        });
        assert_eq!((made.into_inner().unwrap(), store.log().len()), (11, 16));
    }

    #[test]
    fn a_failed_stage_keeps_its_checkpoints_and_leaves_no_result() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), false).unwrap();
        let key = Key::new("fit", &[], &());
        let failed = store.artifact::<()>(&key, |work| {
            fs::write(work.join("checkpoint"), "half").unwrap();
            bail!("killed")
        });
        assert!(failed.is_err());
        let done = store.artifact(&key, |work| {
            assert_eq!(fs::read_to_string(work.join("checkpoint")).unwrap(), "half");
            Ok((artifact(3), ()))
        });
        assert_eq!(done.unwrap().0.model, artifact(3).model);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "only the results and the lock are left");
    }

    #[test]
    fn a_damaged_result_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), false).unwrap();
        let key = Key::new("fit", &[], &());
        store.artifact(&key, |_| Ok((artifact(1), ()))).unwrap();
        let path = folder.path().join(key.file("safetensors"));
        artifact(2).save(&path).unwrap();
        assert_eq!(
            store.artifact(&key, |_| Ok((artifact(1), ()))).unwrap().0.model,
            artifact(1).model,
            "a stranger"
        );
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
        let mut runs = 0;
        store
            .artifact(&key, |_| {
                runs += 1;
                Ok((artifact(1), ()))
            })
            .unwrap();
        assert_eq!(runs, 1);
        let key = Key::new("numbers", &[], &());
        assert_eq!(store.value(&key, || Ok(vec![1.5, 2.5])).unwrap(), [1.5, 2.5]);
        assert_eq!(store.value::<Vec<f64>>(&key, || panic!("run twice")).unwrap(), [1.5, 2.5]);
        fs::write(folder.path().join(key.file("json")), "{").unwrap();
        assert_eq!(store.value(&key, || Ok(vec![3.0])).unwrap(), [3.0]);
        assert!(store.value(&Key::new("nan", &[], &()), || Ok(f64::NAN)).is_err(), "NaN has no JSON form");
    }
}
