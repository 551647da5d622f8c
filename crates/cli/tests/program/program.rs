//! Starting the program in a folder of its own, and looking at what it did.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Tiny models of other tests.
pub(crate) const PARITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity");

/// A folder in which the program runs.
pub(crate) struct Workplace {
    folder: TempDir,
}

/// What a run left behind.
pub(crate) struct Run {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Workplace {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Every file and folder in it, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The program with `arguments`, about to run here, without the network.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_diffuse"));
        command.args(arguments).current_dir(self.folder.path());
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", self.path("no-cache"));
        command
    }

    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Run {
        finish(&mut self.command(arguments))
    }

    /// Runs the program and fails the test where it fails.
    #[track_caller]
    pub(crate) fn succeed<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Run {
        let run = self.run(arguments);
        assert_eq!(run.status, Some(0), "{}", run.stderr);
        run
    }

    /// Runs the program, which must end with status 1 and one line on standard error that has all of `culprits`, and must
    /// have written nothing.
    #[track_caller]
    pub(crate) fn refuse<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>, culprits: &[&str]) {
        let before = self.names();
        let run = self.run(arguments);
        assert_eq!(run.status, Some(1), "{}{}", run.stdout, run.stderr);
        assert_eq!(run.stderr.lines().count(), 1, "not one line: {}", run.stderr);
        assert!(run.stderr.starts_with("error: "), "{}", run.stderr);
        for culprit in culprits {
            assert!(run.stderr.contains(culprit), "{culprit:?} is not named: {}", run.stderr);
        }
        assert_eq!(run.stdout, "");
        assert_eq!(self.names(), before, "something was written");
    }
}

pub(crate) fn finish(command: &mut Command) -> Run {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { status: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// The small model as a folder on disk.
pub(crate) fn shapes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/shapes")
}

/// A copy of the small model that a test may damage.
pub(crate) fn copy_of_shapes(workplace: &Workplace) -> PathBuf {
    let copy = workplace.path("model");
    copy_folder(&shapes(), &copy);
    copy
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (source, target) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if source.is_dir() {
            copy_folder(&source, &target);
        } else {
            fs::copy(source, target).unwrap();
        }
    }
}

/// A model of this class with the UNet of another test, as `name`.
pub(crate) fn make_model(workplace: &Workplace, name: &str, base: &str, unet: &str, class_name: &str) {
    let folder = workplace.path(name);
    copy_folder(&Path::new(PARITY).join(base), &folder);
    fs::remove_dir_all(folder.join("unet")).unwrap();
    copy_folder(&Path::new(PARITY).join(unet), &folder.join("unet"));
    let index = folder.join("model_index.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    json["_class_name"] = class_name.into();
    fs::write(index, json.to_string()).unwrap();
}
