//! Where a run is, on disk: a folder `checkpoint-STEP` that appears whole or not at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_diffusers_loaders::Repository;
use serde_json::Value;
use tempfile::{Builder, NamedTempFile, TempDir};

use crate::error::{Error, Result};

/// The file of a checkpoint that a run goes on from.
const STATE: &str = "training_state.safetensors";
const PREFIX: &str = "checkpoint-";
/// What the names of a checkpoint's fields begin with that are settings.
pub(crate) const SETTING: &str = "setting.";
/// What the names of folders begin with that are not whole yet, or not any more.
const PARTIAL: &str = ".checkpoint-";
/// What a checkpoint is called in such a folder that is to be removed.
const OLD: &str = "old";

/// The checkpoints of a run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    limit: Option<usize>,
}

/// What a run goes on from.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Parameters, states of the optimizer and the generator, by name.
    pub tensors: HashMap<String, Tensor>,
    /// The step, the position in the data, and the settings.
    pub fields: BTreeMap<String, String>,
}

impl Checkpoints {
    /// Those in `folder` (`output_dir`), which the first checkpoint makes if it is missing; of which only the newest `limit` are kept
    /// (`checkpoints_total_limit`). What a run that was killed has left half-written or half-removed is removed.
    ///
    /// # Errors
    /// When the folder cannot be read, or the limit is 0.
    pub fn new(folder: impl Into<PathBuf>, limit: Option<usize>) -> Result<Self> {
        let folder = folder.into();
        if limit == Some(0) {
            let (found, expected) = ("0".to_string(), "1 or more".to_string());
            return Err(Error::Field { field: "checkpoints_total_limit", found, expected });
        }
        let checkpoints = Self { folder, limit };
        for entry in checkpoints.entries()? {
            if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                let path = entry.path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(|error| io(&path, error))?;
            }
        }
        Ok(checkpoints)
    }

    /// The steps that there are checkpoints of, in order. A folder without a state is none.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let step = |entry: fs::DirEntry| {
            let step: u64 = entry.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
            entry.path().join(STATE).is_file().then_some(step)
        };
        let mut steps: Vec<u64> = self.entries()?.into_iter().filter_map(step).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// What is in the folder: nothing where there is none yet.
    fn entries(&self) -> Result<Vec<fs::DirEntry>> {
        match fs::read_dir(&self.folder) {
            Ok(entries) => Ok(entries.flatten().collect()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(io(&self.folder, error)),
        }
    }

    /// The folder of a step's checkpoint.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{step}"))
    }

    /// Writes a step's checkpoint, with whatever `more` adds to the folder, and removes others beyond the limit. All is on the disk before the folder gets its
    /// name; after an error the earlier checkpoints are as they were.
    ///
    /// # Errors
    /// When something cannot be written.
    pub fn write(
        &self,
        step: u64,
        checkpoint: &Checkpoint,
        more: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        fs::create_dir_all(&self.folder).map_err(|error| io(&self.folder, error))?;
        let partial = self.partial_folder()?;
        let whole = partial.path().join("whole");
        fs::create_dir(&whole).map_err(|error| io(&whole, error))?;
        let tensors: BTreeMap<_, _> =
            checkpoint.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        write_tensors(&whole.join(STATE), &tensors, checkpoint.fields.clone())?;
        more(&whole)?;
        sync_all(&whole)?;
        let (path, old) = (self.path(step), partial.path().join(OLD));
        if path.is_dir() {
            fs::rename(&path, &old).map_err(|error| io(&path, error))?;
        }
        if let Err(error) = fs::rename(&whole, &path) {
            fs::rename(&old, &path).ok();
            return Err(io(&path, error));
        }
        sync(&self.folder)?;
        self.forget(step)?;
        Ok(path)
    }

    /// Removes what is beyond the limit: the oldest, but first those of steps that `newest` has not come to, which an earlier run has left.
    fn forget(&self, newest: u64) -> Result<()> {
        let Some(limit) = self.limit else { return Ok(()) };
        let mut steps = self.steps()?;
        steps.sort_by_key(|step| (*step <= newest, *step));
        for step in &steps[..steps.len().saturating_sub(limit)] {
            let path = self.path(*step);
            let partial = self.partial_folder()?;
            fs::rename(&path, partial.path().join(OLD)).map_err(|error| io(&path, error))?;
            partial.close().map_err(|error| io(&path, error))?;
        }
        Ok(())
    }

    /// A folder that is removed with what is in it: by the next run where this one is killed. What is to be removed goes there first, so that a part of it never has its
    /// old name.
    fn partial_folder(&self) -> Result<TempDir> {
        Builder::new().prefix(PARTIAL).tempdir_in(&self.folder).map_err(|error| io(&self.folder, error))
    }

    /// The folder that `resume_from_checkpoint` names: `latest`, of which there may be none yet, or the name or path of one.
    ///
    /// # Errors
    /// When there is no checkpoint of that name.
    pub fn find(&self, name: &str) -> Result<Option<PathBuf>> {
        if name == "latest" {
            return Ok(self.steps()?.last().map(|step| self.path(*step)));
        }
        let path =
            [self.folder.join(name), PathBuf::from(name)].into_iter().find(|path| path.join(STATE).is_file());
        match path {
            Some(path) => Ok(Some(path)),
            None => {
                let steps: Vec<String> = self.steps()?.iter().map(|step| format!("{PREFIX}{step}")).collect();
                let expected = match steps.is_empty() {
                    true => format!("latest, or a checkpoint in {}, which has none", self.folder.display()),
                    false => format!("latest, or one of {}", steps.join(", ")),
                };
                Err(Error::Field { field: "resume_from_checkpoint", found: name.to_string(), expected })
            }
        }
    }
}

impl Checkpoint {
    /// What one of the settings was that it was made with, if that is known.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.fields.get(&format!("{SETTING}{name}")).map(String::as_str)
    }

    /// Says what one of the settings was, where the checkpoint does not: one of an earlier version, which knew no such setting.
    pub fn assume_setting(&mut self, name: &str, value: &str) {
        self.fields.entry(format!("{SETTING}{name}")).or_insert_with(|| value.to_string());
    }

    /// Forgets one of the settings, which a run that goes on need not have.
    pub fn forget_setting(&mut self, name: &str) {
        self.fields.remove(&format!("{SETTING}{name}"));
    }

    /// Reads the checkpoint in `folder`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        // Mapped, and let go tensor by tensor: an optimizer's state of a whole model is as large as two more models.
        let checkpoint = Repository::folder(folder)?.open_checkpoint(STATE)?;
        let (mut tensors, mut fields) = (HashMap::new(), BTreeMap::new());
        for file in checkpoint.files() {
            fields.extend(file.metadata().clone());
            for info in file.tensors() {
                let bytes = file.bytes(&info.name).unwrap_or_default();
                let dtype = DType::try_from(info.dtype)?;
                let tensor = Tensor::from_raw_buffer(bytes, dtype, &info.shape, &Device::Cpu)?;
                tensors.insert(info.name.clone(), tensor);
                file.release(&info.name);
            }
        }
        Ok(Self { tensors, fields })
    }

    /// Reads what the checkpoint in `folder` says of its run, without the tensors.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_fields(folder: &Path) -> Result<Self> {
        let checkpoint = Repository::folder(folder)?.open_checkpoint(STATE)?;
        let fields = checkpoint.files().iter().flat_map(|file| file.metadata().clone()).collect();
        Ok(Self { tensors: HashMap::new(), fields })
    }

    /// Whether it was made with these settings; `name` is what it is called in the error.
    ///
    /// # Errors
    /// When it was made with others: says all that differ.
    pub fn check_settings(&self, name: &str, settings: &BTreeMap<String, String>) -> Result<()> {
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        let removed = self.fields.keys().filter_map(|field| field.strip_prefix(SETTING));
        let all: BTreeSet<&str> = settings.keys().map(String::as_str).chain(removed).collect();
        for setting in all {
            let (before, now) = (self.setting(setting), settings.get(setting).map(String::as_str));
            if before != now {
                found.push(format!("{setting} {}", before.unwrap_or("nothing")));
                expected.push(format!("{setting} {}", now.unwrap_or("nothing")));
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        let (checkpoint, found, expected) = (name.to_string(), found.join(", "), expected.join(", "));
        Err(Error::Resume { checkpoint, found, expected })
    }
}

/// Writes tensors as a `.safetensors` file, whole or not at all.
///
/// # Errors
/// When the file cannot be written.
pub fn save_tensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: impl IntoIterator<Item = (String, String)>,
) -> Result<()> {
    let file = partial_file(path)?;
    // The library that writes it makes a file of its own, which only its owner may read.
    let permissions = fs::metadata(file.path()).map_err(|error| io(path, error))?.permissions();
    write_tensors(file.path(), tensors, metadata)?;
    fs::set_permissions(file.path(), permissions).map_err(|error| io(path, error))?;
    sync(file.path())?;
    file.persist(path).map_err(|error| io(path, error.error))?;
    Ok(())
}

/// A file beside `path`, to take its place when it is whole.
fn partial_file(path: &Path) -> Result<NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = Builder::new();
    builder.prefix(PARTIAL);
    // As any file that a program makes: others may read it where the user's mask lets them.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder).map_err(|error| io(path, error))
}

/// Writes a config, whole or not at all.
pub(crate) fn save_json(path: &Path, value: &Value) -> Result<()> {
    let file = partial_file(path)?;
    fs::write(file.path(), format!("{value:#}\n")).map_err(|error| io(path, error))?;
    sync(file.path())?;
    file.persist(path).map_err(|error| io(path, error.error))?;
    Ok(())
}

fn write_tensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: impl IntoIterator<Item = (String, String)>,
) -> Result<()> {
    let metadata: BTreeMap<String, String> = metadata.into_iter().collect();
    let unsorted = metadata.clone().into_iter().collect();
    safetensors::serialize_to_file(tensors, Some(unsorted), path)
        .map_err(|error| Error::File { file: path.display().to_string(), problem: error.to_string() })?;
    sort_metadata(path, &metadata).map_err(|error| io(path, error))
}

/// Puts a file's metadata, which are these, in the order of their names, so that the same tensors make the same bytes: the library takes a hash map, whose order is another
/// one each time. They are as long in any order.
fn sort_metadata(path: &Path, metadata: &BTreeMap<String, String>) -> std::io::Result<()> {
    const BEGIN: &[u8] = b"{\"__metadata__\":";
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    // Behind the header's length.
    let mut begin = [0; size_of::<u64>() + BEGIN.len()];
    file.read_exact(&mut begin)?;
    if begin.ends_with(BEGIN) {
        file.write_all(serde_json::to_string(metadata)?.as_bytes())?;
    }
    Ok(())
}

/// Waits until a file, or a folder with all that is in it, is on the disk.
fn sync_all(path: &Path) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(|error| io(path, error))?.flatten() {
            sync_all(&entry.path())?;
        }
    }
    sync(path)
}

/// Waits until a file, or the names in a folder, are on the disk.
fn sync(path: &Path) -> Result<()> {
    // Folders can be opened for this on Unix only.
    if path.is_dir() && !cfg!(unix) {
        return Ok(());
    }
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(|error| io(path, error))
}

fn io(path: &Path, error: std::io::Error) -> Error {
    Error::File { file: path.display().to_string(), problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn the_same_checkpoint_makes_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path(), None).unwrap();
        let tensors = HashMap::from([("a".to_string(), Tensor::new(&[1f32], &Device::Cpu).unwrap())]);
        let fields = (0..20).map(|number| (format!("field \"{number}\""), "é\n".repeat(number))).collect();
        let checkpoint = Checkpoint { tensors, fields };
        let [first, second] = [1, 2].map(|step| {
            let folder = checkpoints.write(step, &checkpoint, |_| Ok(())).unwrap();
            assert_eq!(Checkpoint::read(&folder).unwrap().fields, checkpoint.fields);
            fs::read(folder.join(STATE)).unwrap()
        });
        assert!(first == second);
    }

    #[test]
    fn a_folder_without_its_state_is_no_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path(), Some(2)).unwrap();
        let tensors = HashMap::from([("a".to_string(), Tensor::new(&[1f32], &Device::Cpu).unwrap())]);
        let checkpoint = Checkpoint { tensors, fields: BTreeMap::new() };
        let write = |step| checkpoints.write(step, &checkpoint, |_| Ok(())).unwrap();
        write(1);
        // What was left of one that was being removed when the run was killed.
        fs::create_dir(folder.path().join("checkpoint-2")).unwrap();
        fs::write(folder.path().join("checkpoint-2/learned_embeds.safetensors"), "").unwrap();
        assert_eq!(checkpoints.steps().unwrap(), [1]);
        assert_eq!(checkpoints.find("latest").unwrap(), Some(checkpoints.path(1)));
        // Another takes its place, and nothing else is left behind.
        write(2);
        assert_eq!(names(&checkpoints.path(2)), [STATE]);
        write(3);
        assert_eq!(checkpoints.steps().unwrap(), [2, 3]);
        assert_eq!(names(folder.path()), ["checkpoint-2", "checkpoint-3"]);
    }
}
