use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// A file with a factor: `FILE[:SCALE]` of the command line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ScaledFile {
    pub(crate) path: PathBuf,
    pub(crate) scale: f64,
}

impl ScaledFile {
    /// What follows the last colon is the scale, unless there is a file whose name is all of it: names may have colons.
    pub(crate) fn parse(argument: &OsStr) -> Result<Self> {
        let whole = Self { path: PathBuf::from(argument), scale: 1.0 };
        if whole.path.exists() {
            return Ok(whole);
        }
        let Some((file, scale)) = argument.to_str().and_then(|text| text.rsplit_once(':')) else {
            return Ok(whole);
        };
        match scale.parse::<f64>() {
            Ok(scale) if scale.is_finite() => Ok(Self { path: PathBuf::from(file), scale }),
            // C:\lora.safetensors, or a word that should have been a number.
            _ if Path::new(file).exists() => {
                bail!(
                    "{file}: the scale {scale:?} is no number; expected FILE or FILE:SCALE, as in {file}:0.8"
                )
            }
            _ => Ok(whole),
        }
    }

    pub(crate) fn parse_all(arguments: &[OsString]) -> Result<Vec<Self>> {
        arguments.iter().map(|argument| Self::parse(argument)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_behind_the_last_colon() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a:2");
        std::fs::write(&file, b"").unwrap();
        let parse = |text: String| {
            ScaledFile::parse(OsStr::new(&text)).map(|one| (one.path.display().to_string(), one.scale))
        };
        let name = file.display().to_string();
        assert_eq!(parse(name.clone()).unwrap(), (name.clone(), 1.0));
        assert_eq!(parse(format!("{name}:0.5")).unwrap(), (name.clone(), 0.5));
        assert_eq!(parse(format!("{name}:-1")).unwrap(), (name.clone(), -1.0));
        assert_eq!(parse("C:\\a".into()).unwrap(), ("C:\\a".into(), 1.0));
        assert_eq!(parse("missing:0.5".into()).unwrap(), ("missing".into(), 0.5));
        assert!(parse(format!("{name}:strong")).is_err() && parse(format!("{name}:inf")).is_err());
    }
}
