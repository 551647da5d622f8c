use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, RgbImage};
use tempfile::{Builder, NamedTempFile};

use crate::grid::Grid;

/// The text chunk that web UIs read.
pub(crate) const PARAMETERS_KEYWORD: &str = "parameters";

/// Of 100; pictures are looked at, not only stored.
const JPEG_QUALITY: u8 = 95;

/// A grid is put together in memory: two GB, and as much for its pictures.
const MOST_IN_GRID: usize = 1 << 29;

/// Held while a file is on its way to its place, so that an interrupt leaves nothing half-written.
static WRITING: Mutex<()> = Mutex::new(());

/// Ends the program at an interrupt or a request to terminate, though not in the middle of writing a file.
pub(crate) fn finish_writing_on_interrupt() {
    // 128 and SIGINT's number: what shells report of a program that an interrupt has ended.
    const INTERRUPTED: i32 = 130;
    let handler = || {
        let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        process::exit(INTERRUPTED);
    };
    // Without a handler the program ends at once, which at worst leaves a temporary file behind.
    ctrlc::set_handler(handler).ok();
}

/// The files that pictures are written to.
#[derive(Debug)]
pub(crate) struct Outputs {
    file: PathBuf,
    count: usize,
    format: Format,
    /// The pictures so far, and in how many columns they will stand, where all become one.
    grid: Option<(Grid, usize)>,
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Png,
    Jpeg,
    WebP,
}

impl Outputs {
    /// The files for `count` pictures: `file`, or `file` with an index before its ending where there are several.
    ///
    /// Finds out whether they can be written, without leaving anything there.
    pub(crate) fn new(file: &Path, count: usize) -> Result<Self> {
        let name = utf8_name("--output", file)?;
        ensure!(
            file.file_name().is_some() && !name.ends_with(['/', std::path::MAIN_SEPARATOR]),
            "--output {name:?} names no file; expected one such as out.png"
        );
        let outputs = Self { file: file.to_path_buf(), count, format: Format::of(file)?, grid: None };
        Self::check((0..count).map(|index| outputs.path(index)))?;
        Ok(outputs)
    }

    /// `file` for a grid of `count` pictures in `columns`, as [`new`](Self::new).
    pub(crate) fn grid(file: &Path, count: usize, columns: usize) -> Result<Self> {
        let grid = Some((Grid::default(), columns));
        Ok(Self { count, grid, ..Self::new(file, 1)? })
    }

    /// Whether pictures of this size can be written: one by one, or as the grid that they become.
    pub(crate) fn check_size(&self, width: usize, height: usize) -> Result<()> {
        let (columns, rows) = match &self.grid {
            Some((_, columns)) => (*columns, self.count.div_ceil(*columns)),
            None => (1, 1),
        };
        let (width, height) = (width.saturating_mul(columns), height.saturating_mul(rows));
        let most = self.format.most();
        ensure!(
            width.max(height) <= most,
            "--output {}: the picture would be {width}x{height}, and this format has at most {most} pixels a side; ask for less, or for a .png",
            self.file.display()
        );
        ensure!(
            self.grid.is_none() || width.saturating_mul(height) <= MOST_IN_GRID,
            "--grid would be {width}x{height} pixels, more than {MOST_IN_GRID} in all; ask for fewer or smaller pictures, or leave it out"
        );
        Ok(())
    }

    fn check(paths: impl Iterator<Item = PathBuf>) -> Result<()> {
        let mut last_folder = None;
        for path in paths {
            check_replaceable(&path)?;
            let folder = folder_of(&place_of(&path));
            if last_folder.as_ref() != Some(&folder) {
                temporary_file(&folder)
                    .with_context(|| format!("--output {} cannot be written", path.display()))?;
                last_folder = Some(folder);
            }
        }
        Ok(())
    }

    /// The file of picture `index`.
    pub(crate) fn path(&self, index: usize) -> PathBuf {
        if self.count == 1 {
            return self.file.clone();
        }
        let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let (stem, ending) = (text(self.file.file_stem()), text(self.file.extension()));
        self.file.with_file_name(format!("{stem}-{index}.{ending}"))
    }

    /// Writes picture `index`, whole or not at all, and returns where; a grid is written with its last picture. A PNG carries
    /// `parameters`.
    pub(crate) fn write(
        &mut self,
        index: usize,
        picture: &RgbImage,
        parameters: &str,
    ) -> Result<Option<PathBuf>> {
        self.check_size(picture.width() as usize, picture.height() as usize)?;
        let Some((grid, columns)) = &mut self.grid else {
            let path = self.path(index);
            self.write_file(&path, picture, parameters)?;
            return Ok(Some(path));
        };
        grid.add(picture, parameters);
        if grid.len() < self.count {
            return Ok(None);
        }
        let (whole, parameters) = (grid.join(*columns), grid.parameters().to_string());
        self.write_file(&self.file, &whole, &parameters)?;
        Ok(Some(self.file.clone()))
    }

    fn write_file(&self, path: &Path, picture: &RgbImage, parameters: &str) -> Result<()> {
        let encoded = match self.format {
            Format::Png => encode_png(picture, parameters),
            Format::Jpeg => encode_jpeg(picture),
            Format::WebP => encode_webp(picture),
        };
        encoded
            .and_then(|bytes| write_whole(path, &bytes))
            .with_context(|| format!("writing {}", path.display()))
    }
}

impl Format {
    /// How many pixels a side the format has room for.
    fn most(self) -> usize {
        match self {
            Self::Png => i32::MAX as usize,
            Self::Jpeg => 65_535,
            Self::WebP => 16_383,
        }
    }

    fn of(file: &Path) -> Result<Self> {
        let ending = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        match ending.as_str() {
            "png" => Ok(Self::Png),
            "jpg" | "jpeg" => Ok(Self::Jpeg),
            "webp" => Ok(Self::WebP),
            "" => bail!("--output {}: no ending; expected .png, .jpg or .webp", file.display()),
            _ => bail!(
                "--output {}: the ending .{ending} is not supported; expected .png, .jpg or .webp",
                file.display()
            ),
        }
    }
}

/// The name of a file that `flag` names, as text: it goes into messages, pictures and JSON, all of which are UTF-8.
pub(crate) fn utf8_name<'a>(flag: &str, path: &'a Path) -> Result<&'a str> {
    path.to_str().with_context(|| format!("{flag} {path:?}: the file name is not UTF-8; rename it"))
}

/// Fails where `path` is something that a picture must not replace.
fn check_replaceable(path: &Path) -> Result<()> {
    let what = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("--output {} cannot be written", path.display()));
        }
        Ok(metadata) if metadata.is_dir() => "it is a folder",
        Ok(metadata) if !metadata.is_file() => "it is not a regular file",
        Ok(metadata) if metadata.permissions().readonly() => "it is there already and read-only",
        Ok(_) => return Ok(()),
    };
    bail!("--output {} cannot be written: {what}", path.display())
}

/// Where a picture at `path` really goes: a link stays, and what it leads to is replaced.
fn place_of(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

fn folder_of(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).to_path_buf()
}

/// A file in `folder` that is removed unless it is given a name.
fn temporary_file(folder: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = Builder::new();
    builder.prefix(".diffuse-").suffix(".partial");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As for any new file: what the user's mask leaves of it. Temporary files are for the user alone otherwise.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

/// Writes a file whole or not at all, in the place of what a link leads to.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let path = place_of(path);
    let mut file = temporary_file(&folder_of(&path))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    Ok(())
}

fn encode_png(picture: &RgbImage, parameters: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // The chunk that Pillow would choose: plain text is Latin-1, all else is in a chunk of its own kind.
    let (keyword, text) = (PARAMETERS_KEYWORD.to_string(), parameters.replace('\0', "\u{fffd}"));
    if text.chars().all(|character| u32::from(character) <= 0xff) {
        encoder.add_text_chunk(keyword, text)?;
    } else {
        encoder.add_itxt_chunk(keyword, text)?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

fn encode_jpeg(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).encode_image(picture)?;
    Ok(bytes)
}

fn encode_webp(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let (width, height) = picture.dimensions();
    WebPEncoder::new_lossless(&mut bytes).encode(picture.as_raw(), width, height, ExtendedColorType::Rgb8)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn the_index_goes_before_the_ending() {
        let folder = tempfile::tempdir().unwrap();
        let one = Outputs::new(&folder.path().join("a.b.png"), 1).unwrap();
        assert_eq!(one.path(0), folder.path().join("a.b.png"));
        let several = Outputs::new(&folder.path().join("a.b.png"), 2).unwrap();
        assert_eq!(several.path(1), folder.path().join("a.b-1.png"));
    }

    #[test]
    fn finding_out_leaves_nothing_and_writing_leaves_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let picture = RgbImage::from_pixel(2, 3, image::Rgb([1, 2, 3]));
        for name in ["a.png", "b.JPG", "c.webp"] {
            let path = folder.path().join(name);
            let mut outputs = Outputs::new(&path, 1).unwrap();
            assert!(!path.exists());
            outputs.write(0, &picture, "a prompt").unwrap();
            assert_eq!(image::open(&path).unwrap().to_rgb8().dimensions(), (2, 3));
        }
        assert_eq!(files(folder.path()), ["a.png", "b.JPG", "c.webp"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_and_its_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (link, file) = (folder.path().join("link.png"), folder.path().join("file.png"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let picture = RgbImage::new(1, 1);
        Outputs::new(&link, 1).unwrap().write(0, &picture, "").unwrap();
        assert!(link.is_symlink());
        assert!(image::open(&file).is_ok());
    }

    /// Nobody, not even the administrator, may make files beside the system's settings.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_link_to_where_nothing_can_be_written_is_found_out_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link.png");
        std::os::unix::fs::symlink("/proc/self/comm", &link).unwrap();
        let error = format!("{:#}", Outputs::new(&link, 1).unwrap_err());
        assert!(error.contains("link.png cannot be written"), "{error}");
        assert_eq!(files(folder.path()), ["link.png"]);
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("folder.png")).unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        fs::write(folder.path().join("kept.png"), "").unwrap();
        let mut permissions = fs::metadata(folder.path().join("kept.png")).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(folder.path().join("kept.png"), permissions).unwrap();
        let before = files(folder.path());
        for name in ["missing/a.png", "folder.png", "file/a.png", "kept.png", "noending", "a.gif", "new/", ""]
        {
            let path = folder.path().join(name);
            let path = if name.is_empty() { Path::new("") } else { &path };
            let error = format!("{:#}", Outputs::new(path, 1).unwrap_err());
            assert!(error.contains(name), "{name}: {error}");
        }
        assert_eq!(files(folder.path()), before);
    }
}
