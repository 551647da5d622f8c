//! A folder's scheduler settings.

use candle_diffusers_loaders::Repository;
use candle_diffusers_schedulers::config_from_json;
use serde_json::Value;

use crate::error::{Error, Result};

/// The settings of the scheduler in the folder `scheduler`, as its `scheduler_config.json` has them; Python's bare infinities
/// are understood ([`config_from_json`]).
///
/// # Errors
/// When the file is missing or not a JSON object.
pub fn load_scheduler_config(repository: &Repository) -> Result<Value> {
    load_scheduler_config_in(repository, "scheduler")
}

/// [`load_scheduler_config`] of another folder; `""` is the top.
pub(crate) fn load_scheduler_config_in(repository: &Repository, folder: &str) -> Result<Value> {
    let path = match folder {
        "" => "scheduler_config.json".to_string(),
        folder => format!("{folder}/scheduler_config.json"),
    };
    let problem = |problem: String| Error::Folder { file: repository.display(&path), problem };
    let bytes = repository.read(&path)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| problem(format!("is not text: {error}")))?;
    match config_from_json(text) {
        Ok(config) if config.is_object() => Ok(config),
        Ok(_) => Err(problem("is not a JSON object".into())),
        Err(error) => Err(problem(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_are_read_and_other_mistakes_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::folder(folder.path()).unwrap();
        let load = || load_scheduler_config(&repository);
        assert!(load().unwrap_err().to_string().contains("has no scheduler/scheduler_config.json"));
        std::fs::create_dir(folder.path().join("scheduler")).unwrap();
        let write = |text: &[u8]| {
            std::fs::write(folder.path().join("scheduler/scheduler_config.json"), text).unwrap()
        };
        for mistake in [&b"[1]"[..], b"{", b"\xff"] {
            write(mistake);
            assert!(load().unwrap_err().to_string().contains("scheduler_config.json: "));
        }
        write(br#"{"lambda_min_clipped": -Infinity, "steps_offset": 1}"#);
        assert_eq!(load().unwrap()["steps_offset"], 1);
    }
}
