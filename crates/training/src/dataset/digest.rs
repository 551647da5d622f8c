//! What pictures and captions are known by, so that a run that goes on notices when they have changed.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Dataset;
use super::examples::Example;

impl Dataset {
    /// A number of the pictures' files, by their names within the folder that has them all, widths, heights and lengths in bytes; of files that have gone since, by their
    /// names alone. What a file holds is not read.
    pub fn pictures_digest(&self) -> String {
        let folder = common_folder(self.examples.iter().flat_map(files));
        let mut digest = Sha256::new();
        for example in &self.examples {
            digest.update(example.size.map(u32::to_le_bytes).concat());
            for file in files(example) {
                let name = file.strip_prefix(folder).unwrap_or(file);
                add(&mut digest, name.as_os_str().as_encoded_bytes());
                digest.update(length(file).to_le_bytes());
            }
        }
        hexadecimal(digest)
    }

    /// A number of all pictures' captions.
    pub fn captions_digest(&self) -> String {
        let mut digest = Sha256::new();
        for example in &self.examples {
            digest.update((example.captions.len() as u64).to_le_bytes());
            example.captions.iter().for_each(|caption| add(&mut digest, caption.as_bytes()));
        }
        hexadecimal(digest)
    }
}

fn files(example: &Example) -> impl Iterator<Item = &Path> {
    std::iter::once(&example.picture).chain(&example.others).map(PathBuf::as_path)
}

/// The innermost folder that all files are in, however it is named on the way there.
fn common_folder<'a>(mut files: impl Iterator<Item = &'a Path>) -> &'a Path {
    let first = files.next().and_then(Path::parent).unwrap_or(Path::new(""));
    files.fold(first, |common, file| {
        common.ancestors().find(|folder| file.starts_with(folder)).unwrap_or(Path::new(""))
    })
}

/// Adds bytes so that they do not run into the next ones.
fn add(digest: &mut Sha256, bytes: &[u8]) {
    digest.update((bytes.len() as u64).to_le_bytes());
    digest.update(bytes);
}

fn length(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |metadata| metadata.len())
}

/// As much of it as tells lists apart and can be read in a line.
fn hexadecimal(digest: Sha256) -> String {
    let digest = digest.finalize().to_vec();
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
