use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::workspace;

/// Names a Python that has the packages already; none is installed then.
const PYTHON_VARIABLE: &str = "DIFFUSERS_PYTHON";

/// Packages whose version is part of the specification: with another one, other numbers may be right.
const SPECIFIED: [&str; 3] = ["diffusers", "torch", "transformers"];

/// Prints the installed version of each package named as an argument, or `missing`.
const VERSIONS_SCRIPT: &str = "\
import importlib.metadata, sys
for name in sys.argv[1:]:
    try:
        print(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        print(name, 'missing')
";

/// A Python with the reference library in the pinned versions.
#[derive(Clone)]
pub(crate) struct Python {
    executable: PathBuf,
}

impl Python {
    /// The one that `DIFFUSERS_PYTHON` names, or one in a virtual environment that is made where it is not there yet.
    pub(crate) fn find_or_install() -> Result<Self> {
        if let Some(executable) = env::var_os(PYTHON_VARIABLE) {
            let python = Self { executable: executable.into() };
            python.check_versions().with_context(|| {
                format!("{PYTHON_VARIABLE} is {}, which does not do", python.executable.display())
            })?;
            return Ok(python);
        }
        let environment = workspace::target().join("python");
        let python = Self { executable: executable_in(&environment) };
        if !python.executable.exists() || python.check_versions().is_err() {
            install(&environment, &python.executable)?;
            python.check_versions()?;
        }
        Ok(python)
    }

    /// One that has been chosen, with whatever versions.
    pub(crate) fn at(executable: &Path) -> Self {
        // Scripts run in folders of their own.
        let executable = std::path::absolute(executable).unwrap_or_else(|_| executable.to_path_buf());
        Self { executable }
    }

    /// A command that runs `script` in its own folder, with what all scripts share on the path.
    pub(crate) fn script(&self, script: &Path) -> Command {
        let mut command = Command::new(&self.executable);
        command.arg(script).env("PYTHONPATH", workspace::root().join("xtask/python"));
        // No compiled files beside the sources.
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        if let Some(folder) = script.parent() {
            command.current_dir(folder);
        }
        command
    }

    fn check_versions(&self) -> Result<()> {
        let pinned = pinned_versions(&fs::read_to_string(requirements())?);
        let output = Command::new(&self.executable)
            .args(["-c", VERSIONS_SCRIPT])
            .args(pinned.iter().map(|(name, _)| name))
            .output()
            .with_context(|| format!("could not run {}", self.executable.display()))?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        let installed = String::from_utf8_lossy(&output.stdout).into_owned();
        for ((name, wanted), found) in pinned.iter().zip(installed.lines()) {
            let found = found.split_once(' ').map_or("missing", |(_, version)| version);
            // A local version label says for which device it was built, as in 2.15.0+cpu.
            if found.split('+').next() == Some(wanted.as_str()) {
                continue;
            }
            if SPECIFIED.contains(&name.as_str()) {
                bail!("{name} is {found}, but the expected numbers are those of {wanted}");
            }
            // A script that needs what is missing says so itself; most need few of them.
            eprintln!("note: {name} is {found}, the fixtures were made with {wanted}");
        }
        Ok(())
    }
}

fn requirements() -> PathBuf {
    workspace::root().join("xtask/python/requirements.txt")
}

/// Name and version of each line of a requirements file.
fn pinned_versions(requirements: &str) -> Vec<(String, String)> {
    let pin = |line: &str| {
        let line = line.split('#').next()?.trim();
        let (name, version) = line.split_once("==")?;
        Some((name.to_string(), version.to_string()))
    };
    requirements.lines().filter_map(pin).collect()
}

fn install(environment: &Path, executable: &Path) -> Result<()> {
    eprintln!("installing the reference library to {} (several GB, once)", environment.display());
    let base = if cfg!(windows) { "python" } else { "python3" };
    run(Command::new(base).args(["-m", "venv"]).arg(environment))
        .context("making a virtual environment needs Python 3.11 or later")?;
    let pip = ["-m", "pip", "install", "--disable-pip-version-check", "--requirement"];
    run(Command::new(executable).args(pip).arg(requirements()))
}

fn executable_in(environment: &Path) -> PathBuf {
    environment.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" })
}

/// Runs `command`, which may print, and fails where it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("could not run {program}"))?;
    ensure!(status.success(), "{program} ended with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_without_comments() {
        let pins = pinned_versions("# why\ntorch==2.15.0\n\npillow==13.0.0 # pictures\n");
        let expected = [("torch", "2.15.0"), ("pillow", "13.0.0")];
        assert_eq!(pins, expected.map(|(name, version)| (name.to_string(), version.to_string())));
    }

    #[test]
    fn every_specified_package_is_pinned() {
        let pins = pinned_versions(&fs::read_to_string(requirements()).unwrap());
        for package in SPECIFIED {
            assert!(pins.iter().any(|(name, _)| name == package), "{package}");
        }
    }
}
