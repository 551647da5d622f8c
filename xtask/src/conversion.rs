//! `diffuse convert` beside the reference library, and beside a plain copy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::full_size::full_size_folder;
use crate::measure::{Measured, measure};
use crate::python::{self, Python};
use crate::statistics::median;
use crate::workspace;

#[derive(Args)]
pub(crate) struct BenchArguments {
    /// How often each is timed
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Leave the reference library out
    #[arg(long)]
    without_reference: bool,
}

/// Opens folders of every family that `diffuse convert` makes, and what `diffuse train` writes, in the reference library.
pub(crate) fn parity() -> Result<()> {
    let python = Python::find_or_install()?;
    let program = build_program()?;
    let (scripts, target) = (workspace::root().join("xtask/python"), workspace::target());
    let converted = target.join("converted");
    python::run(python.script(&scripts.join("converted.py")).arg(&program).arg(converted))?;
    let shapes = workspace::root().join("crates/cli/assets/shapes");
    let trained = target.join("trained");
    python::run(python.script(&scripts.join("trained.py")).arg(program).arg(shapes).arg(trained))
}

/// One thing that is timed.
struct Contender {
    name: String,
    command: Command,
    /// What it writes, which is removed before each run.
    destination: PathBuf,
    measured: Vec<Measured>,
}

/// Times conversions of a full-size Stable Diffusion 1.5 between one file and a folder.
pub(crate) fn bench(arguments: &BenchArguments) -> Result<()> {
    let python = Python::find_or_install()?;
    let program = build_program()?;
    let folder = full_size_folder(&python)?;
    let place = Place::new(&folder)?;
    let convert = |from: &Path, to: &Path, flags: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("convert").arg(from).arg(to).args(flags);
        command
    };
    // The float32 folder as one file of each type, and a folder of float16.
    let (floats, halves, half_folder) =
        (place.at("f32.safetensors"), place.at("f16.safetensors"), place.at("f16-folder"));
    let to_half = ["--dtype", "f16"];
    eprintln!("making {} (about 9 GB, removed at the end)", place.folder.display());
    python::run(convert(&folder, &floats, &[]).env("NO_COLOR", "1"))?;
    python::run(&mut convert(&floats, &halves, &to_half))?;
    python::run(&mut convert(&halves, &half_folder, &[]))?;

    let (file_out, folder_out) = (place.at("out.safetensors"), place.at("out-folder"));
    let copy = |from: &Path, to: &Path| {
        let mut command = Command::new("cp");
        command.arg("-r").arg(from).arg(to);
        command
    };
    let reference = |from: &Path, dtype: &str| {
        let mut command = python.script(&workspace::root().join("xtask/python/single_file.py"));
        command.arg(from).arg(&half_folder).arg(&folder_out).arg(dtype);
        command
    };
    let mut rows = vec![
        Contender::new("cp of the float16 file", copy(&halves, &file_out), &file_out),
        Contender::new("file to folder", convert(&halves, &folder_out, &[]), &folder_out),
        Contender::new("folder to file", convert(&half_folder, &file_out, &[]), &file_out),
        Contender::new("cp of the float32 file", copy(&floats, &file_out), &file_out),
        Contender::new("file to folder, float32 to 16", convert(&floats, &folder_out, &to_half), &folder_out),
        Contender::new("folder to file, float32 to 16", convert(&folder, &file_out, &to_half), &file_out),
    ];
    if !arguments.without_reference {
        rows.push(Contender::new("diffusers, file to folder", reference(&halves, "float16"), &folder_out));
        let changed = reference(&floats, "float16");
        rows.push(Contender::new("diffusers, float32 to 16", changed, &folder_out));
    }
    for _ in 0..arguments.repetitions {
        for row in &mut rows {
            row.run()?;
        }
    }
    print(&rows);
    Ok(())
}

impl Contender {
    fn new(name: &str, command: Command, destination: &Path) -> Self {
        Self { name: name.to_string(), command, destination: destination.to_path_buf(), measured: Vec::new() }
    }

    fn run(&mut self) -> Result<()> {
        remove(&self.destination)?;
        self.measured.push(measure(&mut self.command).with_context(|| self.name.clone())?);
        remove(&self.destination)
    }

    fn median(&self, of: impl Fn(&Measured) -> f64) -> f64 {
        median(self.measured.iter().map(of))
    }
}

fn print(rows: &[Contender]) {
    let cp = |row: &Contender| row.name.starts_with("cp").then(|| row.median(|one| one.seconds));
    let copies: Vec<f64> = rows.iter().filter_map(cp).collect();
    println!(
        "{:<32}{:>9}{:>12}{:>13}{:>13}{:>12}{:>12}",
        "medians", "seconds", "on disk, s", "x cp float16", "x cp float32", "own MB", "with maps MB"
    );
    for row in rows {
        let seconds = row.median(|one| one.seconds);
        let ratio = |copy: usize| copies.get(copy).map_or(f64::NAN, |copy| seconds / copy);
        let megabytes =
            |of: fn(&Measured) -> u64| row.measured.iter().map(of).max().unwrap_or_default() as f64 / 1e6;
        println!(
            "{:<32}{seconds:>9.2}{:>12.2}{:>13.2}{:>13.2}{:>12.0}{:>12.0}",
            row.name,
            row.median(|one| one.seconds_on_disk),
            ratio(0),
            ratio(1),
            megabytes(|one| one.own_peak),
            megabytes(|one| one.peak),
        );
    }
    for row in rows {
        let all: Vec<String> = row.measured.iter().map(|one| format!("{:.2}", one.seconds)).collect();
        println!("{:<32}{}", row.name, all.join(" "));
    }
}

/// A folder for what is made, which goes when the value does.
struct Place {
    folder: PathBuf,
}

impl Place {
    fn new(beside: &Path) -> Result<Self> {
        let folder = beside.with_file_name("conversions");
        remove(&folder)?;
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self { folder })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Left for the next run to remove.
        fs::remove_dir_all(&self.folder).ok();
    }
}

fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Err(_) => return Ok(()),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.with_context(|| format!("could not remove {}", path.display()))
}

/// Builds `diffuse`, optimised, and says where it is.
pub(crate) fn build_program() -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    command.args(["build", "--release", "--workspace", "--bin", "diffuse"]);
    python::run(command.current_dir(workspace::root()))?;
    let program =
        workspace::target().join("release").join(format!("diffuse{}", std::env::consts::EXE_SUFFIX));
    if !program.exists() {
        bail!("cargo did not write {}", program.display());
    }
    program.canonicalize().with_context(|| program.display().to_string())
}
