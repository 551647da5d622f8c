use std::ffi::{OsStr, OsString};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_diffusers_loaders::TextualInversion;

use crate::output::utf8_name;

const FLAG: &str = "--embedding";

/// The embeddings that the command line names, `FILE` or `FILE:TOKEN` each.
pub(crate) fn read(named: &[OsString]) -> Result<Vec<TextualInversion>> {
    let mut embeddings = Vec::new();
    for named in named {
        let (file, token) = split(named)?;
        let read = TextualInversion::read(Path::new(file), token);
        embeddings.extend(read.context(FLAG)?);
    }
    Ok(embeddings)
}

/// The file and the token. File names and tokens may both have colons: the file is the longest beginning that exists.
fn split(named: &OsStr) -> Result<(&str, Option<&str>)> {
    let text = utf8_name(FLAG, Path::new(named))?;
    ensure!(!text.is_empty(), "{FLAG} is empty; expected a file");
    let exists = |file: &str| Path::new(file).exists();
    if exists(text) {
        return Ok((text, None));
    }
    let colons = text.rmatch_indices(':').map(|(position, _)| text.split_at(position));
    match colons.map(|(file, token)| (file, &token[1..])).find(|(file, _)| exists(file)) {
        Some((file, "")) => bail!("{FLAG} {file}: there is no token after the colon"),
        Some((file, token)) => Ok((file, Some(token))),
        None => bail!("{FLAG} {text}: there is no such file"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_what_exists() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(at("cat.pt"), "").unwrap();
        let cases = [("cat.pt", None), ("cat.pt:<cat>", Some("<cat>")), ("cat.pt:a:b", Some("a:b"))];
        for (text, token) in cases {
            assert_eq!(split(OsStr::new(&at(text))).unwrap(), (at("cat.pt").as_str(), token), "{text}");
        }
        for text in ["dog.pt", "dog.pt:<dog>", "cat.pt:", "C:\\dog.pt"] {
            assert!(split(OsStr::new(&at(text))).is_err(), "{text}");
        }
        if cfg!(unix) {
            std::fs::write(at("cat.pt:x"), "").unwrap();
            assert_eq!(split(OsStr::new(&at("cat.pt:x"))).unwrap(), (at("cat.pt:x").as_str(), None));
            assert_eq!(split(OsStr::new(&at("cat.pt:x:y"))).unwrap(), (at("cat.pt:x").as_str(), Some("y")));
        }
        assert!(split(OsStr::new("")).is_err());
    }
}
