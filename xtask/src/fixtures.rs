use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::python::{self, Python};
use crate::workspace;

/// The script of a parity test that asks the reference library.
const SCRIPT: &str = "export.py";

/// Prints the path of every script that `filter` selects.
pub(crate) fn list(filter: Option<&str>) -> Result<()> {
    for script in scripts(filter)? {
        println!("{}", workspace::relative(&script));
    }
    Ok(())
}

/// Runs every script that `filter` selects and says which files it has changed.
pub(crate) fn make(filter: Option<&str>) -> Result<()> {
    let scripts = scripts(filter)?;
    let python = Python::find_or_install()?;
    let mut changed = Vec::new();
    let mut failed = Vec::new();
    for script in &scripts {
        println!("{}", workspace::relative(script));
        let folder = script.parent().with_context(|| format!("{} has no folder", script.display()))?;
        let before = contents(folder)?;
        if let Err(error) = python::run(&mut python.script(script)) {
            // The other scripts can still run; what failed is named at the end.
            eprintln!("{error:#}");
            failed.push(workspace::relative(script).to_string());
        }
        changed.extend(differences(&before, &contents(folder)?));
    }
    println!("{} scripts, {} files changed", scripts.len(), changed.len());
    for line in &changed {
        println!("  {line}");
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// The scripts of all crates whose path contains `filter`, sorted.
fn scripts(filter: Option<&str>) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in ["crates", "tests"] {
        collect(&workspace::root().join(folder), &mut found)?;
    }
    if let Some(filter) = filter {
        found.retain(|script| workspace::relative(script).to_string().contains(filter));
        if found.is_empty() {
            bail!("no {SCRIPT} has {filter:?} in its path; `cargo xtask fixtures --list` names all");
        }
    }
    found.sort();
    Ok(found)
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), found)?;
        } else if entry.file_name() == SCRIPT {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// Every file below `folder`, with what it holds.
fn contents(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(contents(&path)?);
        } else {
            let bytes = fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
            files.insert(path, bytes);
        }
    }
    Ok(files)
}

fn differences(before: &BTreeMap<PathBuf, Vec<u8>>, after: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, bytes) in after {
        match before.get(path) {
            None => lines.push(format!("new      {}", workspace::relative(path))),
            Some(old) if old != bytes => lines.push(format!("changed  {}", workspace::relative(path))),
            Some(_) => {}
        }
    }
    let gone = before.keys().filter(|path| !after.contains_key(*path));
    lines.extend(gone.map(|path| format!("gone     {}", workspace::relative(path))));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_new_changed_or_gone_are_named() {
        let files = |entries: &[(&str, &[u8])]| {
            entries.iter().map(|(path, bytes)| (PathBuf::from(path), bytes.to_vec())).collect()
        };
        let before = files(&[("a", b"1"), ("b", b"1"), ("c", b"1")]);
        let after = files(&[("a", b"1"), ("b", b"2"), ("d", b"1")]);
        assert_eq!(differences(&before, &after), ["changed  b", "new      d", "gone     c"]);
    }

    #[test]
    fn every_script_has_committed_numbers() {
        for script in scripts(None).unwrap() {
            let folder = script.parent().unwrap();
            let has_numbers = contents(folder).unwrap().keys().any(|path| path != &script);
            assert!(has_numbers, "{} has written nothing; run cargo xtask fixtures", script.display());
        }
    }

    #[test]
    fn a_filter_that_matches_nothing_is_an_error() {
        let error = scripts(Some("no such test")).unwrap_err().to_string();
        assert!(error.contains("no such test"), "{error}");
    }
}
