//! A folder's scheduler settings.

use candle_diffusers_loaders::Repository;
use candle_diffusers_schedulers::config_from_json;
use serde_json::Value;

use crate::error::{Error, Result};

const PATH: &str = "scheduler/scheduler_config.json";

/// The settings of the scheduler in the folder `scheduler`, as its `scheduler_config.json` has them; Python's bare infinities
/// are understood ([`config_from_json`]).
///
/// # Errors
/// When the file is missing or not a JSON object.
pub fn load_scheduler_config(repository: &Repository) -> Result<Value> {
    let problem = |problem: String| Error::Folder { file: repository.display(PATH), problem };
    let bytes = repository.read(PATH)?;
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
        let write = |text: &[u8]| std::fs::write(folder.path().join(PATH), text).unwrap();
        for mistake in [&b"[1]"[..], b"{", b"\xff"] {
            write(mistake);
            assert!(load().unwrap_err().to_string().contains("scheduler_config.json: "));
        }
        write(br#"{"lambda_min_clipped": -Infinity, "steps_offset": 1}"#);
        assert_eq!(load().unwrap()["steps_offset"], 1);
    }
}
