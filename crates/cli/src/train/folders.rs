//! The folders that a run reads and writes, of which one may lie in another.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::TrainArguments;
use super::concepts::{Concept, classes};

/// What is not learned from where it lies in a folder of pictures: what the run writes, and pictures of classes.
pub(super) fn left_out(arguments: &TrainArguments, concepts: &[Concept]) -> Vec<PathBuf> {
    let classes = classes(arguments, concepts).map(|(folder, _)| folder);
    [arguments.output_dir.as_path()].into_iter().chain(classes).map(Path::to_path_buf).collect()
}

/// Refuses to write into a folder of pictures itself: those that are painted would be learned from.
pub(super) fn check_output(arguments: &TrainArguments, concepts: &[Concept]) -> Result<()> {
    let own = concepts.iter().map(|concept| concept.instance_data_dir.as_path());
    let classes = classes(arguments, concepts).map(|(folder, _)| folder);
    let output = &arguments.output_dir;
    for folder in own.chain(arguments.train_data_dir()).chain(classes) {
        ensure!(
            !are_same(folder, output),
            "--output-dir {} is a folder of pictures, among which those that are painted would come; give another, which may lie in it",
            output.display()
        );
    }
    Ok(())
}

/// Whether both are one folder, whatever they are called and whether or not it is there.
fn are_same(one: &Path, other: &Path) -> bool {
    let place = |folder: &Path| folder.canonicalize().or_else(|_| std::path::absolute(folder));
    place(one).is_ok_and(|one| place(other).is_ok_and(|other| one == other))
}
